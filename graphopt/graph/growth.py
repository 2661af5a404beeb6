"""Weighs what folding adds to a file against what it takes away, and takes back what the file cannot bear."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.graph.symbolic import Facts
from graphopt.graph.view import GraphView, is_op
from graphopt.model.ir import node_bytes

SMALL = 256
"""Bytes up to which a value is worth a node in any case: no more than names and types of a few nodes take."""

_DESCRIPTION = 16
_STORABLE = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.BOOL,
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
}


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
        is_short: Whether a node stays for want of room, of which there may be more once the others have gone.
    """

    nodes: dict[int, gs.Node] = field(default_factory=dict)
    computable: set[int] = field(default_factory=set)
    stated: set[int] = field(default_factory=set)
    folded: set[int] = field(default_factory=set)
    results: list[gs.Tensor] = field(default_factory=list)
    refused: list[tuple[gs.Node, str]] = field(default_factory=list)
    is_short: bool = False


def is_foldable_type(kind: int) -> bool:
    """Whether ONNX Runtime takes and gives tensors of this type as numpy arrays."""
    return kind in _STORABLE


def byte_size(facts: Facts, tensor: gs.Tensor) -> int | None:
    """Return how many bytes a tensor takes, or None if its shape or type is not known."""
    shape, kind = facts.shape(tensor), facts.type(tensor)
    if shape is None or not is_foldable_type(kind):
        return None
    extents = [entry for entry in shape if isinstance(entry, int)]
    itemsize = int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize)
    return math.prod(extents) * itemsize if len(extents) == len(shape) else None


class Constants:
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


def settle_growth(
    view: GraphView, facts: Facts, constants: Constants, plan: Plan, max_growth: int, room: Callable[[], int]
) -> None:
    """Choose which nodes go, so that the file can bear the results; a node that stays needs its inputs.

    First no value may add more than ``max_growth`` bytes. Then all that goes is weighed against all that comes: if the
    file would grow by more than there is ``room``, those values are given up that take the most bytes for each node
    that they save, until it fits. Values of up to ``SMALL`` bytes are not given up.
    """
    scales = _Scales(view, facts, constants, plan)
    plan.folded = {key for key, node in plan.nodes.items() if not is_op(node, "Identity")}  # it only passes one on
    limit: int | None = None
    while True:
        plan.results = _results(view, plan)
        refused = scales.too_large(max_growth)
        if not refused and (total := scales.total()) > 0:
            limit = max(0, room()) if limit is None else limit
            refused = scales.too_many(total - limit)
            plan.is_short = plan.is_short or bool(refused)
        if not refused:
            return
        plan.folded -= refused.keys()
        plan.refused += [(plan.nodes[key], reason) for key, reason in refused.items()]


def _results(view: GraphView, plan: Plan) -> list[gs.Tensor]:
    """Return what folded nodes give to others, or out."""
    folded = plan.folded
    return [
        out
        for key, node in plan.nodes.items()
        if key in folded
        for out in node.outputs
        if out.name and (view.is_output(out) or any(id(reader) not in folded for reader in view.readers(out)))
    ]


class _Scales:
    """Weighs the results of a plan, as it stands, against the nodes and constants that go."""

    def __init__(self, view: GraphView, facts: Facts, constants: Constants, plan: Plan) -> None:
        self._view, self._facts, self._constants, self._plan = view, facts, constants, plan

    def too_large(self, max_growth: int) -> dict[int, str]:
        """Return the nodes, by ``id``, of results that each add too much, with the reason."""
        refused: dict[int, str] = {}
        credited: set[int] = set()
        for out in self._plan.results:
            size, node = byte_size(self._facts, out) or 0, self._view.producer(out)
            if node is None or size <= max_growth:
                continue
            freed = self._freed_before(node) - credited
            credited |= freed
            if (growth := size - sum(self._constants.bytes(each) for each in freed)) > max_growth:
                refused[id(node)] = f"its value would add {growth} bytes to the file"
        return refused

    def total(self) -> int:
        """Return by how many bytes the file would grow."""
        plan = self._plan
        inputs = (tensor for key in plan.folded for tensor in plan.nodes[key].inputs)
        constants = {id(tensor): tensor for tensor in inputs if tensor.name and self._constants.holds(tensor)}
        freed = sum(self._stored(each) for each in constants.values() if self._is_read_within(each, plan.folded))
        return sum(map(self._cost, plan.results)) - freed - sum(node_bytes(plan.nodes[key]) for key in plan.folded)

    def too_many(self, excess: int) -> dict[int, str]:
        """Return the nodes, by ``id``, whose results to give up so that the file grows by ``excess`` bytes less."""
        if excess <= 0:
            return {}
        roots = {id(node): node for out in self._plan.results if (node := self._view.producer(out)) is not None}
        found = []
        for key, node in roots.items():
            if self._size(node) > SMALL:
                growth, shared, cone = self._weigh(node)
                found.append((growth - shared > 0, growth / len(cone), growth, key, cone))
        refused: dict[int, str] = {}
        for _, _, growth, key, cone in sorted(found, key=lambda entry: entry[:3], reverse=True):
            if excess <= 0 or growth <= 0:
                break
            excess -= growth
            reason = f"its value would add {growth} bytes to a file that is not to become larger"
            refused |= dict.fromkeys(self._as_large(roots[key], cone), reason)
        return refused

    def _weigh(self, node: gs.Node) -> tuple[int, int, set[int]]:
        """Return what the results of one node add, and the ids of the nodes that go for their sake only.

        Between the two: what constants take that go because others are folded too.
        """
        view, plan, cone = self._view, self._plan, {id(node)}
        waiting, constants = list(node.inputs), dict[int, gs.Tensor]()
        while waiting:
            tensor = waiting.pop()
            if not tensor.name:
                continue
            if self._constants.holds(tensor):
                constants[id(tensor)] = tensor
                continue
            source = view.producer(tensor)
            if source is None or id(source) in cone or id(source) not in plan.folded:
                continue
            if all(self._is_read_within(out, cone) for out in source.outputs if out.name):
                cone.add(id(source))
                waiting += source.inputs
        freed = {key for key, each in constants.items() if self._is_read_within(each, plan.folded)}
        own = {key for key in freed if self._is_read_within(constants[key], cone)}
        gone = sum(self._stored(constants[key]) for key in own) + sum(node_bytes(plan.nodes[key]) for key in cone)
        growth = sum(self._cost(out) for out in node.outputs if out.name) - gone
        return growth, sum(self._stored(constants[key]) for key in freed - own), cone

    def _as_large(self, node: gs.Node, cone: set[int]) -> list[int]:
        """Return the ids of a node and of those right before it, within its cone, whose values are no smaller."""
        size = self._size(node)
        found, waiting = {id(node): None}, list(node.inputs)  # in order
        while waiting:
            source = self._view.producer(waiting.pop())
            if source is None or id(source) not in cone or id(source) in found:
                continue
            if self._size(source) >= size:
                found[id(source)] = None
                waiting += source.inputs
        return list(found)

    def _size(self, node: gs.Node) -> int:
        """Return how many bytes the outputs of a node take."""
        return sum(byte_size(self._facts, out) or 0 for out in node.outputs if out.name)

    def _cost(self, tensor: gs.Tensor) -> int:
        """Return about how many bytes a file needs for the value of a tensor."""
        return (byte_size(self._facts, tensor) or 0) + len(tensor.name) + _DESCRIPTION

    def _stored(self, tensor: gs.Tensor) -> int:
        """Return about how many bytes a file has for a constant."""
        return self._constants.bytes(id(tensor)) + len(tensor.name) + _DESCRIPTION

    def _is_read_within(self, tensor: gs.Tensor, nodes: set[int]) -> bool:
        """Whether all readers of a tensor are among these nodes, and no graph gives it out."""
        return not self._view.is_output(tensor) and all(id(each) in nodes for each in self._view.readers(tensor))

    def _freed_before(self, node: gs.Node) -> set[int]:
        """Return the ids of the constants that only folded nodes read, among those that ``node`` is computed from."""
        freed, seen, waiting = set[int](), {id(node)}, [node]
        while waiting:
            for tensor in waiting.pop().inputs:
                if self._constants.holds(tensor):
                    if self._is_read_within(tensor, self._plan.folded):
                        freed.add(id(tensor))
                    continue
                source = self._view.producer(tensor) if tensor.name else None
                if source is not None and id(source) in self._plan.folded and id(source) not in seen:
                    seen.add(id(source))
                    waiting.append(source)
        return freed
