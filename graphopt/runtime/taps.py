"""Runs a model up to chosen tensors of its main graph, and no further."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from graphopt.errors import ModelError
from graphopt.model import Model, to_proto
from graphopt.runtime.session import Session, serialized


class Taps:
    """Gives the values of inner tensors; nodes that do not lead to them are left out, so early taps are cheap."""

    def __init__(
        self,
        model: Model,
        names: Iterable[str],
        threads: int = 0,
        *,
        optimize: bool = False,
        form: Callable[[], onnx.ModelProto] | None = None,
        given: Sequence[onnx.ValueInfoProto] = (),
    ) -> None:
        """Cut ``model`` at the tensors ``names``; ``optimize`` lets ONNX Runtime rewrite what is left.

        ``form`` makes a proto of the model that has further tensors; what is ``given`` is fed instead of computed.
        """
        self.names = list(dict.fromkeys(names))
        self._inputs, self._stored, content = _cut_and_serialized(
            form() if form else to_proto(model), self.names, given
        )
        self._given = [name for name in self.names if name in self._inputs or name in self._stored]
        self._session = (
            Session(content, optimize=optimize, threads=threads) if len(self._given) < len(self.names) else None
        )

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Run once; feeds that the cut model does not need are ignored, and initializers hold what they store."""
        fed = {name: value for name, value in feeds.items() if name in self._inputs}
        values: dict[str, Any] = {name: fed[name] if name in fed else self._stored[name] for name in self._given}
        if self._session is not None:
            values |= self._session.run(fed)
        return values


def _cut_and_serialized(
    proto: onnx.ModelProto, names: Sequence[str], given: Sequence[onnx.ValueInfoProto]
) -> tuple[set[str], dict[str, NDArray[Any]], bytes]:
    """Return the inputs that are left, the initializers of ``names``, which are copied, and the cut model's bytes.

    The protos are gone when ONNX Runtime loads the bytes.
    """
    proto = cut(proto, names, given)
    stored = {
        each.name: onnx.numpy_helper.to_array(each).copy() for each in proto.graph.initializer if each.name in names
    }
    return {info.name for info in proto.graph.input}, stored, serialized(proto)


def cut(proto: onnx.ModelProto, names: Iterable[str], given: Sequence[onnx.ValueInfoProto] = ()) -> onnx.ModelProto:
    """Return the model with ``names`` for outputs and only the nodes, initializers and inputs that they need.

    Args:
        proto: The model.
        names: Tensors of its main graph.
        given: Tensors that become inputs, so that what computes them is not needed.

    Raises:
        ModelError: The main graph has no such tensor.
    """
    graph = proto.graph
    fed = {info.name for info in given}
    producer = {
        name: index for index, node in enumerate(graph.node) for name in node.output if name and name not in fed
    }
    known = fed | {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in producer and name not in known:
            raise ModelError(f"the model has no tensor {name!r}")
    needed, read, waiting = set[int](), set[str](wanted), list(wanted)
    while waiting:
        index = producer.get(waiting.pop())
        if index is None or index in needed:
            continue
        needed.add(index)
        for name in reads(graph.node[index]):
            if name and name not in read:
                read.add(name)
                waiting.append(name)
    result = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            result.MergeFrom(onnx.ModelProto(**{field.name: value}))
    rest = result.graph
    for field, value in graph.ListFields():
        if field.name not in ("node", "initializer", "output", "value_info", "input"):
            rest.MergeFrom(onnx.GraphProto(**{field.name: value}))
    rest.node.extend(node for index, node in enumerate(graph.node) if index in needed)
    rest.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    rest.input.extend(info for info in (*graph.input, *given) if info.name in read)
    rest.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name in producer)
    return result


def reads(node: onnx.NodeProto) -> list[str]:
    """Return the names a node reads, those that its subgraphs may take from outside included."""
    names = list(node.input)
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs]:
            names += [output.name for output in body.output]
            for inner in body.node:
                names += reads(inner)
    return names
