"""Decides which nodes can be replaced by values: what is computable, and whether the file can bear the result."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.graph.symbolic import Facts
from graphopt.graph.view import GraphView, is_op
from graphopt.model.ir import Graph
from graphopt.result import Skip

LARGEST = 1 << 28
"""Bytes beyond which not even an intermediate value is computed."""

_STORABLE = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.BOOL,
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
}
RANDOM = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
)
LOW_BIT = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_BOUNDED = ("NonZero", "Compress", "Unique")


@dataclass
class Plan:
    """What to fold.

    Attributes:
        nodes: The computable nodes by ``id``, in topological order.
        computable: Ids of their outputs.
        stated: Ids of the outputs whose content is known without running anything.
        folded: Ids of those nodes that go.
        results: The tensors that take their place as constants.
        refused: For each node that could be computed but stays, why.
    """

    nodes: dict[int, gs.Node] = field(default_factory=dict)
    computable: set[int] = field(default_factory=set)
    stated: set[int] = field(default_factory=set)
    folded: set[int] = field(default_factory=set)
    results: list[gs.Tensor] = field(default_factory=list)
    refused: list[tuple[gs.Node, str]] = field(default_factory=list)


def may_fold(view: GraphView) -> bool:
    """Whether a closer look is worth while: a node asks for a shape or reads nothing but constants."""
    for node in view.nodes():
        if node.op in ("Shape", "Size"):
            return True
        reads = [tensor for tensor in node.inputs if tensor.name]
        if reads and all(isinstance(t, gs.Constant) or view.producer(t, "Constant") is not None for t in reads):
            return True
    return False


def plan_folds(view: GraphView, facts: Facts, max_growth: int, broken: Mapping[int, str]) -> Plan:
    """Return what can be folded so that no value adds more than ``max_growth`` bytes to the file.

    ``broken`` holds nodes, by ``id``, that turned out not to run, and why.
    """
    plan = Plan()
    constants = _Constants(view)
    for graph in view.graphs():
        for node in graph.nodes:
            if id(node) in broken:
                plan.refused.append((node, broken[id(node)]))
            else:
                _consider(view, facts, constants, plan, node)
    _settle_growth(view, facts, constants, plan, max_growth)
    return plan


def is_foldable_type(kind: int) -> bool:
    """Whether ONNX Runtime takes and gives tensors of this type as numpy arrays."""
    return kind in _STORABLE


def _consider(view: GraphView, facts: Facts, constants: "_Constants", plan: Plan, node: gs.Node) -> None:
    """Add a node to the plan if its outputs can be computed."""
    outputs = [out for out in node.outputs if out.name]
    if not is_op(node, node.op) or is_op(node, "Constant") or not outputs or view.edit.is_removed(node):
        return
    stated = len(outputs) == 1 and _is_complete(facts, outputs[0])
    inputs = [tensor for tensor in node.inputs if tensor.name]
    if not stated and not (inputs and all(constants.holds(t) or id(t) in plan.computable for t in inputs)):
        return
    try:
        view.require_permitted(view.site(node))
        if not stated:
            _require_computable(facts, node, outputs)
    except Skip as reason:
        plan.refused.append((node, str(reason)))
        return
    plan.nodes[id(node)] = node
    plan.computable |= {id(out) for out in outputs}
    if stated:
        plan.stated.add(id(outputs[0]))


def _require_computable(facts: Facts, node: gs.Node, outputs: list[gs.Tensor]) -> None:
    """Raise Skip if a node of constant inputs must not or cannot be computed ahead."""
    if node.op in RANDOM:
        raise Skip(f"{node.op} gives something else each time")
    if node.op in LOW_BIT:
        raise Skip(f"{node.op} keeps low-bit values small")
    if any(isinstance(value, (gs.Graph, gs.Node.AttributeRef)) for value in node.attrs.values()):
        raise Skip(f"{node.op} has a body or takes an attribute from the function's caller")
    for tensor in [*node.inputs, *outputs]:
        if tensor.name and not is_foldable_type(kind := facts.type(tensor)):
            text = TensorProto.DataType.Name(kind).lower() if kind else "values of unknown type"
            raise Skip(f"{tensor.name!r} holds {text}")
    for out in outputs:
        size = byte_size(facts, out)
        if size is None and node.op not in _BOUNDED:
            raise Skip(f"the size of {out.name!r} is not known beforehand")
        if size is not None and size > LARGEST:
            raise Skip(f"{out.name!r} would take {size} bytes")


def _settle_growth(view: GraphView, facts: Facts, constants: "_Constants", plan: Plan, max_growth: int) -> None:
    """Choose which nodes go, so that each result stays within bounds; a node that stays needs its inputs."""
    plan.folded = set(plan.nodes)
    waiting = [
        (node, f"{node.op} only passes a constant on") for node in plan.nodes.values() if is_op(node, "Identity")
    ]
    while True:
        refused = {id(node): reason for node, reason in waiting}
        plan.folded -= refused.keys()
        plan.refused += [(node, reason) for node, reason in waiting if node.op != "Identity"]
        plan.results = [
            out
            for node in plan.nodes.values()
            if id(node) in plan.folded
            for out in node.outputs
            if out.name and (view.is_output(out) or any(id(r) not in plan.folded for r in view.readers(out)))
        ]
        waiting, credited = [], set[int]()
        for out in plan.results:
            size, node = byte_size(facts, out) or 0, view.producer(out)
            if node is None or size <= max_growth:
                continue
            freed = _freed(view, constants, plan, node) - credited
            credited |= freed
            if (growth := size - sum(constants.bytes(each) for each in freed)) > max_growth:
                waiting.append((node, f"its value would add {growth} bytes to the file"))
        if not waiting:
            return
        waiting = list({id(node): (node, reason) for node, reason in waiting}.values())


def _freed(view: GraphView, constants: "_Constants", plan: Plan, node: gs.Node) -> set[int]:
    """Return the ids of the constants that only folded nodes read, among those that ``node`` is computed from."""
    freed, seen, waiting = set[int](), {id(node)}, [node]
    while waiting:
        for tensor in waiting.pop().inputs:
            if constants.holds(tensor):
                if all(id(r) in plan.folded for r in view.readers(tensor)) and not view.is_output(tensor):
                    freed.add(id(tensor))
                continue
            source = view.producer(tensor) if tensor.name else None
            if source is not None and id(source) in plan.folded and id(source) not in seen:
                seen.add(id(source))
                waiting.append(source)
    return freed


def _is_complete(facts: Facts, tensor: gs.Tensor) -> bool:
    """Whether every element of a tensor is known as a number."""
    value = facts.value(tensor)
    return value is not None and all(isinstance(entry, int) for entry in value.reshape(-1))


def byte_size(facts: Facts, tensor: gs.Tensor) -> int | None:
    """Return how many bytes a tensor takes, or None if its shape or type is not known."""
    shape, kind = facts.shape(tensor), facts.type(tensor)
    if shape is None or not is_foldable_type(kind):
        return None
    extents = [entry for entry in shape if isinstance(entry, int)]
    itemsize = int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize)
    return math.prod(extents) * itemsize if len(extents) == len(shape) else None


class _Constants:
    """Which tensors are constant with values that can be read; asked often, so remembered."""

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._bytes: dict[int, int | None] = {}

    def holds(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` is constant."""
        if id(tensor) not in self._bytes:
            self._bytes[id(tensor)] = self._measure(tensor)
        return self._bytes[id(tensor)] is not None

    def bytes(self, key: int) -> int:
        """Return the size of a constant by its id."""
        return self._bytes[key] or 0

    def _measure(self, tensor: gs.Tensor) -> int | None:
        if self._view.is_input(tensor):
            return None
        if isinstance(tensor, gs.Constant):
            return None if hasattr(tensor._values, "sparse") else int(tensor._values.nbytes)
        if self._view.producer(tensor, "Constant") is None:
            return None
        array = self._view.array(tensor)
        return None if array is None else array.nbytes


def in_function(view: GraphView, node: gs.Node) -> bool:
    """Whether a node stands directly in the body of a local function, which has no initializers."""
    graph = view.edit.graph_of(node)
    return isinstance(graph, Graph) and graph.is_function
