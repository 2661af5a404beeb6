"""A cheap structural identity of a model, to tell that a pass has changed nothing."""

from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.model.exporter import write_model
from graphopt.model.ir import Graph, Info
from graphopt.model.model import Model
from graphopt.model.weights import MappedValues
from graphopt.model.wire import marker


class Fingerprint:
    """The skeleton of a model and the identity of its weights; it keeps those alive, so that none is mistaken."""

    def __init__(self, skeleton: bytes, weights: tuple[Any, ...]) -> None:
        """Remember ``skeleton`` and ``weights``."""
        self._skeleton = skeleton
        self._weights = weights

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Fingerprint)
            and self._skeleton == other._skeleton
            and len(self._weights) == len(other._weights)
            and all(a is b for a, b in zip(self._weights, other._weights, strict=True))
        )

    def __hash__(self) -> int:
        return hash((self._skeleton, tuple(map(id, self._weights))))


def fingerprint(model: Model) -> Fingerprint:
    """Return an identity: equal ones mean equal models; of unequal ones a weight may still have equal values.

    Weights of 1 KB and more count as the same if they are the same object, or still equal what the file had.
    """
    weights: list[Any] = []

    def place(tensor: TensorProto, data: Any) -> None:
        tensor.raw_data = marker(len(weights))
        weights.append(data if isinstance(data, MappedValues) else _owner(data))

    skeleton = write_model(model, place).SerializeToString(deterministic=True)
    return Fingerprint(skeleton, tuple(weights))


def _owner(raw: Any) -> Any:
    """Return the array whose memory raw bytes are, or the bytes themselves."""
    while isinstance(raw, memoryview):
        raw = raw.obj
    while getattr(raw, "base", None) is not None:
        raw = raw.base
    return raw


def outline(model: Model) -> int:
    """Return a number that equal models have in common, and others hardly ever: a hash of operators and names."""
    return hash(
        tuple(
            (node.op, *(tensor.name for tensor in node.inputs), *(tensor.name for tensor in node.outputs))
            for graph in model.graphs()
            for node in graph.nodes
        )
    )


def is_untouched(copy: Model, model: Model) -> bool:
    """Whether a copy of ``model`` is certainly still as it was made.

    It costs much less than two fingerprints. False says nothing: a part may have been replaced by an equal one.
    """
    graphs, others = list(copy.graphs()), list(model.graphs())
    if len(graphs) != len(others) or copy.header != model.header:
        return False
    comparison = _Comparison()
    return all(map(comparison.graphs, graphs, others))


class _Comparison:
    """Compares a copy, part by part, with what it was made of; each tensor has to stand for the same one throughout."""

    def __init__(self) -> None:
        self._twins: dict[int, gs.Tensor] = {}

    def graphs(self, one: gs.Graph, two: gs.Graph) -> bool:
        """Whether two graphs agree, subgraphs left out."""
        if not (isinstance(one, Graph) and isinstance(two, Graph) and one.rest is two.rest and one.name == two.name):
            return False
        if len(one.nodes) != len(two.nodes) or one.doc_string != two.doc_string:
            return False
        tensors = ((one.initializers, two.initializers), (one.inputs, two.inputs), (one.outputs, two.outputs))
        infos = (one.input_infos, two.input_infos), (one.output_infos, two.output_infos)
        return (
            all(self._lists(a, b) for a, b in tensors)
            and all(self._infos(a, b) for a, b in (*infos, (one.value_infos, two.value_infos)))
            and all(map(self._nodes, one.nodes, two.nodes))
        )

    def _nodes(self, one: gs.Node, two: gs.Node) -> bool:
        if one.op != two.op or one.name != two.name or one.domain != two.domain or len(one.attrs) != len(two.attrs):
            return False
        if getattr(one, "source", None) is not getattr(two, "source", None):
            return False
        if not (self._lists(one.inputs, two.inputs) and self._lists(one.outputs, two.outputs)):
            return False
        return not one.attrs or all(map(self._attributes, one.attrs.items(), two.attrs.items()))

    def _attributes(self, one: tuple[str, Any], two: tuple[str, Any]) -> bool:
        (name, value), (other, before) = one, two
        if name != other or type(value) is not type(before):
            return False
        if isinstance(value, gs.Constant):
            return self._tensors(value, before)
        return value is before or isinstance(value, gs.Graph) or repr(value) == repr(before)

    def _infos(self, one: Sequence[Info], two: Sequence[Info]) -> bool:
        return len(one) == len(two) and all(
            a is b and ((s is None and t is None) or (s is not None and t is not None and self._tensors(s, t)))
            for (a, s), (b, t) in zip(one, two, strict=True)
        )

    def _lists(self, one: Sequence[gs.Tensor], two: Sequence[gs.Tensor]) -> bool:
        return len(one) == len(two) and all(map(self._tensors, one, two))

    def _tensors(self, one: gs.Tensor, two: gs.Tensor) -> bool:
        twin = self._twins.get(id(one))
        if twin is not None:
            return twin is two
        self._twins[id(one)] = two
        if one.name != two.name or len(one.outputs) != len(two.outputs):
            return False
        if isinstance(one, gs.Constant):
            return isinstance(two, gs.Constant) and one._values is two._values
        if isinstance(two, gs.Constant) or getattr(one, "declared", None) is not getattr(two, "declared", None):
            return False
        return bool(one.dtype == two.dtype and one.shape == two.shape)
