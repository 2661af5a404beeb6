"""Drop what exporters leave in a file for debugging: stack traces, documentation, shapes that inference gives back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from graphopt import BitExact, GraphView, Pass, PassResult, Rewritten, Skip, Skipped, option
from graphopt.model.exporter import to_proto
from graphopt.model.inference import with_inferred_shapes
from graphopt.model.ir import Graph, Node

DEBUG_KEYS = ("pkg.torch.", "pkg.onnxscript.")
"""How keys of metadata begin that exporters write of what a thing came from."""

Strip = Callable[[Any], None]


@dataclass(frozen=True, kw_only=True)
class DropRecords(Pass):
    """Drop debug records, which no runtime reads, and say how many bytes they took.

    1. Metadata that an exporter writes of what a thing came from: keys that begin with ``pkg.torch.`` or
       ``pkg.onnxscript.``, and ``namespace`` at nodes; of the model, graphs, functions, nodes and declared values.
    2. Documentation (``doc_string``) of nodes and declared values, where older exporters put stack traces.
    3. Declared types and shapes of tensors inside the main graph that ONNX's own inference gives back without them:
       the same type, rank and numbers. Names and expressions of sizes go with them.

    What means something stays: metadata under any other key (class names, strides, licences), documentation of the
    model, graphs and functions, quantization annotations, declared inputs and outputs, and a shape of which inference
    finds less, such as that of an operator of another domain.
    """

    name = "drop-records"
    contract = BitExact()

    metadata: bool = option(True, "Drop the exporter's own metadata.")
    documentation: bool = option(True, "Drop documentation of nodes and values.")
    shapes: bool = option(True, "Drop declared shapes that inference gives back.")

    def run(self, view: GraphView) -> PassResult:
        """Drop kind by kind; the records of one kind in one graph are a site."""
        rewritten: list[Rewritten] = []
        skipped: list[Skipped] = []
        kinds = {"metadata": (self.metadata, _strip_metadata), "documentation": (self.documentation, _strip_words)}
        for number, graph in enumerate(list(view.graphs())):
            place = "the main graph" if graph is view.model.graph else f"graph {number}, {graph.name or 'a body'!r}"
            for kind, (wanted, strip) in kinds.items():
                site = f"{kind} of {place}"
                if not wanted:
                    continue
                if site in view.vetoes:
                    skipped.append(Skipped(site, view.vetoes[site]))
                elif saved := _drop(view, graph, strip):
                    rewritten.append(Rewritten(site, f"{saved:,} bytes"))
        site = "declared shapes"
        if self.shapes and (found := list(_inferred(view))):
            try:
                view.require_permitted(site)
            except Skip as reason:
                skipped.append(Skipped(site, str(reason)))
            else:
                _forget(view, [tensor for tensor, _ in found])
                saved = sum(nbytes for _, nbytes in found)
                rewritten.append(
                    Rewritten(site, f"{saved:,} bytes of {len(found):,} tensors, which inference gives back")
                )
        return PassResult(tuple(rewritten), tuple(skipped))


def _strip_metadata(proto: Any) -> None:
    """Take debug metadata out of a proto."""
    keys = DEBUG_KEYS if not isinstance(proto, onnx.NodeProto) else (*DEBUG_KEYS, "namespace")
    kept = [entry for entry in proto.metadata_props if not _is_debug(entry.key, keys)]
    if len(kept) < len(proto.metadata_props):
        kept = [onnx.StringStringEntryProto(key=entry.key, value=entry.value) for entry in kept]
        proto.ClearField("metadata_props")
        proto.metadata_props.extend(kept)


def _is_debug(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a key of metadata is an exporter's own."""
    return any(key.startswith(each) if each.endswith(".") else key == each for each in keys)


def _strip_words(proto: Any) -> None:
    """Take documentation out of a node's or value's proto; that of models, graphs and functions is somebody's text."""
    if isinstance(proto, onnx.NodeProto | onnx.ValueInfoProto):
        proto.ClearField("doc_string")


def _drop(view: GraphView, graph: gs.Graph, strip: Strip) -> int:
    """Strip a graph, its nodes and what it declares, the model too if it is the main one; return the bytes saved.

    The protos are shared with other copies of the model, so each that changes is replaced.
    """
    saved = 0

    def stripped(proto: Any) -> Any:
        nonlocal saved
        if not proto.HasField("doc_string") and not proto.metadata_props:
            return proto
        new = type(proto)()
        new.CopyFrom(proto)
        strip(new)
        less = proto.ByteSize() - new.ByteSize()
        saved += less
        return new if less else proto

    if graph is view.model.graph:
        view.model.header = stripped(view.model.header)
    if isinstance(graph, Graph):
        graph.rest = stripped(graph.rest)
        for infos in (graph.input_infos, graph.value_infos, graph.output_infos):
            infos[:] = [(stripped(info), tensor) for info, tensor in infos]
    for node in graph.nodes:
        if isinstance(node, Node) and node.source is not None:
            node.source = stripped(node.source)
    return saved


def _inferred(view: GraphView) -> Iterator[tuple[gs.Tensor, int]]:
    """Yield the tensors inside the main graph whose declaration inference gives back without it, with its bytes."""
    proto = to_proto(view.model, weights=False)
    declared = {info.name: info for info in proto.graph.value_info if not info.metadata_props}
    if not declared:
        return
    proto.graph.ClearField("value_info")
    found = {info.name: info for info in with_inferred_shapes(proto, data_prop=True).graph.value_info}
    for node in view.model.graph.nodes:
        for tensor in node.outputs:
            info = declared.get(str(tensor.name))
            if info is not None and info.name in found and _says(found[info.name].type, info.type):
                yield tensor, info.ByteSize() + 2


def _says(found: onnx.TypeProto, declared: onnx.TypeProto) -> bool:
    """Whether one type says at least as much as another, names of sizes left aside."""
    if not declared.HasField("tensor_type") or not found.HasField("tensor_type"):
        return False
    one, two = found.tensor_type, declared.tensor_type
    if one.elem_type != two.elem_type or (two.HasField("shape") and not one.HasField("shape")):
        return False
    if not two.HasField("shape"):
        return True
    pairs = list(zip(one.shape.dim, two.shape.dim, strict=False))
    exact = all(
        not b.HasField("dim_value") or (a.HasField("dim_value") and a.dim_value == b.dim_value) for a, b in pairs
    )
    return len(one.shape.dim) == len(two.shape.dim) and exact


def _forget(view: GraphView, tensors: list[gs.Tensor]) -> None:
    """Drop what is declared of tensors, and what passes have noted of them."""
    gone = {id(tensor) for tensor in tensors}
    infos = view.model.graph.value_infos
    infos[:] = [(info, tensor) for info, tensor in infos if id(tensor) not in gone]
    for tensor in tensors:
        tensor.dtype = tensor.shape = tensor.declared = None
    view.forget_shapes()
