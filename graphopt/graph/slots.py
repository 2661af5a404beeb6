"""Which inputs of which layers are weights, and what their axes mean, operator by operator."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.graph.shapes import Shape
from graphopt.graph.view import GraphView, is_op

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""How many gates a unit of a recurrent layer has; their rows lie one behind the other."""


@dataclass(frozen=True)
class WeightSlot:
    """An input of a layer that takes a weight.

    ``channel`` is the axis of the weight, as the layer reads it, whose slices belong to separate outputs; ``summed`` is
    an axis that the layer sums over. None where there is no such axis, or it cannot be told.
    """

    index: int
    channel: int | None = None
    summed: int | None = None


def weight_slots(view: GraphView, node: gs.Node) -> list[WeightSlot]:
    """Return the slots in which a layer can take a weight; empty for any other operator."""
    convention = CONVENTIONS.get(node.op) if is_op(node, node.op) else None
    slots = convention(view, node) if convention else []
    return [slot for slot in slots if slot.index < len(node.inputs) and not node.inputs[slot.index].is_empty()]


def _integer(node: gs.Node, name: str, default: int) -> int | None:
    """Return an integer attribute; None where a function's caller decides it."""
    value = node.attrs.get(name, default)
    return value if isinstance(value, int) else None


def rank_of(view: GraphView, tensor: gs.Tensor) -> int | None:
    """Return the rank of a tensor; where inference does not reach into a body, that of all it stands for."""
    shapes = [view.shape(tensor)]
    if shapes == [None]:
        shapes = [view.shape(outer) for outer in view.borders.outside(tensor)]
    ranks = {None if shape is None else len(shape) for shape in shapes}
    return ranks.pop() if len(ranks) == 1 else None


def _conv(view: GraphView, node: gs.Node) -> list[WeightSlot]:
    """Conv, DeformConv: [M, C / group, ...]."""
    return [WeightSlot(1, 0, 1)]


def _conv_transpose(view: GraphView, node: gs.Node) -> list[WeightSlot]:
    """ConvTranspose: [C, M / group, ...].

    With groups, a slice of axis 1 mixes one channel of every group, while a slice of axis 0 stays within one; in the
    depthwise case axis 0 is the channel itself.
    """
    return [WeightSlot(1, 1, 0) if _integer(node, "group", 1) == 1 else WeightSlot(1, 0, 1)]


def _gemm(view: GraphView, node: gs.Node) -> list[WeightSlot]:
    """Gemm: A is [M, K] ([K, M] if transposed), B is [K, N] ([N, K] if transposed)."""
    left, right = _integer(node, "transA", 0), _integer(node, "transB", 0)
    slots = [WeightSlot(1) if right is None else WeightSlot(1, 0, 1) if right else WeightSlot(1, 1, 0)]
    return [*slots, WeightSlot(0) if left is None else WeightSlot(0, 1, 0) if left else WeightSlot(0, 0, 1)]


def _matmul(view: GraphView, node: gs.Node) -> list[WeightSlot]:
    """MatMul: [..., M, K] by [..., K, N]; a vector is summed over whole."""
    right, left = rank_of(view, node.inputs[1]), rank_of(view, node.inputs[0])
    slots = [WeightSlot(1) if right is None or right < 2 else WeightSlot(1, right - 1, right - 2)]
    return [*slots, WeightSlot(0) if left is None or left < 2 else WeightSlot(0, left - 2, left - 1)]


def _gather(view: GraphView, node: gs.Node) -> list[WeightSlot]:
    """Gather: a table, of which rows along ``axis`` are picked; nothing is summed, blocks run along the last axis."""
    axis, rank = _integer(node, "axis", 0), rank_of(view, node.inputs[0])
    if axis is None or rank is None or rank < 2 or _picks_scales(view, node):
        return []
    axis %= rank
    return [WeightSlot(0, axis, rank - 1 if axis != rank - 1 else 0)]


def _slice(view: GraphView, node: gs.Node) -> list[WeightSlot]:
    """Slice with computed bounds: a table, of which as many rows are taken as the sequence is long."""
    rank = rank_of(view, node.inputs[0])
    bounds = [view.array(tensor) for tensor in node.inputs[1:] if tensor.name]
    if rank is None or rank < 2 or all(bound is not None for bound in bounds) or _picks_scales(view, node):
        return []
    axes = view.array(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3].name else None
    if axes is None or axes.size != 1:
        return [WeightSlot(0)]
    axis = int(axes.reshape(-1)[0]) % rank
    return [WeightSlot(0, axis, rank - 1 if axis != rank - 1 else 0)]


def scaled_rows(view: GraphView, node: gs.Node) -> gs.Node | None:
    """Return the Mul behind a Gather or Slice that picks integers, casts and scales them; None if it does not."""
    behind = view.readers(node.outputs[0])
    while len(behind) == 1 and is_op(behind[0], "Cast", "Sub"):
        behind = view.readers(behind[0].outputs[0])
    if len(behind) != 1 or not is_op(behind[0], "Mul") or _is_float_table(view, node.inputs[0]):
        return None
    return behind[0]


def _picks_scales(view: GraphView, node: gs.Node) -> bool:
    """Whether a Gather or Slice picks the scales of integer rows that another picks with the same inputs."""
    behind = view.readers(node.outputs[0])
    if len(behind) != 1 or not is_op(behind[0], "Mul"):
        return False
    twins = [twin for tensor in node.inputs[1:2] for twin in view.readers(tensor) if twin is not node]
    same = (twin for twin in twins if is_op(twin, node.op) and _reads_alike(twin, node))
    return any(scaled_rows(view, twin) is behind[0] for twin in same)


def _reads_alike(one: gs.Node, other: gs.Node) -> bool:
    """Whether two nodes read the same tensors behind their first input."""
    rest = list(one.inputs)[1:], list(other.inputs)[1:]
    return len(rest[0]) == len(rest[1]) and all(
        left is right or not (left.name or right.name) for left, right in zip(*rest, strict=True)
    )


def _is_float_table(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a table is not made of stored integers, as they are or cast from narrower ones."""
    cast = view.producer(tensor, "Cast")
    values = view.array(cast.inputs[0] if cast is not None else tensor)
    return values is None or values.dtype.name.startswith(("float", "bfloat"))


def _recurrent(view: GraphView, node: gs.Node) -> list[WeightSlot]:
    """LSTM, GRU, RNN: W is [directions, gates * hidden, input], R is [directions, gates * hidden, hidden]."""
    return [WeightSlot(1, 1, 2), WeightSlot(2, 1, 2)]


def _einsum(view: GraphView, node: gs.Node) -> list[WeightSlot]:
    """Einsum of two operands without ellipsis or repeated index: a matrix product over their common indices."""
    equation = node.attrs.get("equation")
    if not isinstance(equation, str) or len(node.inputs) != 2 or "." in equation:
        return []
    left, _, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or any(len(set(term)) != len(term) for term in terms):
        return []
    if "->" not in equation:
        result = "".join(index for index in terms[0] + terms[1] if index not in set(terms[0]) & set(terms[1]))
    slots = []
    for slot, (term, other) in ((1, (terms[1], terms[0])), (0, (terms[0], terms[1]))):
        own = [axis for axis, index in enumerate(term) if index in result and index not in other]
        summed = [axis for axis, index in enumerate(term) if index in other and index not in result]
        if own and summed:
            slots.append(WeightSlot(slot, _longest(view.shape(node.inputs[slot]), own), summed[-1]))
    return slots


def _longest(shape: Shape, axes: list[int]) -> int:
    """Return the axis of the largest known size; the last one among equals."""
    sizes = [shape[axis] if shape is not None and axis < len(shape) else 0 for axis in axes]
    return max(zip((size if isinstance(size, int) else 0 for size in sizes), axes, strict=True))[1]


CONVENTIONS: dict[str, Callable[[GraphView, gs.Node], list[WeightSlot]]] = {
    "Conv": _conv,
    "DeformConv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
    "Slice": _slice,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
