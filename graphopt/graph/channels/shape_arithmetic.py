"""The arithmetic on shapes that exporters leave in the graph, element by element as far as it can be told."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.facts import Facts
from graphopt.graph.channels.values import Values
from graphopt.graph.slicing import slice_of
from graphopt.graph.symbolic.fact import element_type as declared_type

Rule = Callable[[gs.Node, list[Values], Facts], Values | None]


def evaluate_values(node: gs.Node, facts: Facts) -> Values | None:
    """Return what is known of the first output of a node that computes on shapes; None if nothing is."""
    if node.domain not in (None, "", "ai.onnx"):
        return None
    if node.op == "Shape":
        return _shape(node, facts)
    rule = _RULES.get(str(node.op))
    if rule is None:
        return None
    used = node.inputs[:1] if node.op == "CastLike" else node.inputs
    inputs = [facts.values(tensor) if tensor.name else None for tensor in used]
    if not any(value is not None for value in inputs):
        return None
    for index, (value, tensor) in enumerate(zip(inputs, used, strict=True)):
        if value is None and tensor.name and (value := _open(tensor, facts)) is None:
            return None
        inputs[index] = value
    try:
        with np.errstate(all="ignore"):
            found = rule(node, [value for value in inputs if value is not None], facts)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    return found if found is not None and found.array.size <= 4096 else None


def _open(tensor: gs.Tensor, facts: Facts) -> Values | None:
    """Return a tensor of known shape of which no element is known."""
    shape = facts.shape(tensor)
    if (
        shape is None
        or any(not isinstance(size, int) for size in shape)
        or math.prod(s for s in shape if isinstance(s, int)) > 64
    ):
        return None
    array = np.zeros([size for size in shape if isinstance(size, int)], dtype=np.int64)
    return Values(array, np.zeros(array.shape, dtype=bool))


def _shape(node: gs.Node, facts: Facts) -> Values | None:
    """Shape: the sizes that are known."""
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    sizes = shape[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    known = np.array([isinstance(size, int) for size in sizes], dtype=bool)
    codes = [facts.symbols.code(size) if isinstance(size, str) else size or 0 for size in sizes]
    return Values(np.array(codes, dtype=np.int64), known)


def _arithmetic(function: Callable[..., Any]) -> Rule:
    def rule(node: gs.Node, inputs: list[Values], facts: Facts) -> Values:
        array = np.asarray(function(*(value.array for value in inputs)))
        known = inputs[0].known
        for value in inputs[1:]:
            known = known & value.known
        known = np.broadcast_to(known, array.shape)
        return Values(np.where(known, array, 0).astype(array.dtype), known)

    return rule


def _moving(function: Callable[..., Any]) -> Rule:
    """Make the rule of an operator that only moves elements of its first input, as the others say."""

    def rule(node: gs.Node, inputs: list[Values], facts: Facts) -> Values | None:
        if any(not value.known.all() for value in inputs[1:]):
            return None
        rest = [value.array for value in inputs[1:]]
        return Values(function(node, inputs[0].array, *rest), function(node, inputs[0].known, *rest))

    return rule


def _divide(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Division; that of integers truncates towards zero, as ONNX has it."""
    if left.dtype.kind == "f":
        return np.asarray(left / right)
    safe = np.where(right == 0, 1, right)
    return np.where(right == 0, 0, np.sign(left) * np.sign(safe) * (np.abs(left) // np.abs(safe))).astype(left.dtype)


def _concat(node: gs.Node, inputs: list[Values], facts: Facts) -> Values:
    axis = int(node.attrs.get("axis", 0))
    return Values(
        np.concatenate([value.array for value in inputs], axis), np.concatenate([value.known for value in inputs], axis)
    )


def _squeeze(node: gs.Node, array: NDArray[Any], axes: NDArray[Any] | None = None) -> NDArray[Any]:
    chosen = node.attrs.get("axes") if axes is None else axes
    return np.squeeze(array) if chosen is None else np.squeeze(array, tuple(int(axis) for axis in chosen))


def _unsqueeze(node: gs.Node, array: NDArray[Any], axes: NDArray[Any] | None = None) -> NDArray[Any]:
    chosen = node.attrs["axes"] if axes is None else axes
    return np.expand_dims(array, tuple(int(axis) for axis in np.ravel(chosen)))


def _slice(node: gs.Node, array: NDArray[Any], *bounds: NDArray[Any]) -> NDArray[Any]:
    axes: Any
    steps: Any
    if bounds:
        starts, ends = bounds[0], bounds[1]
        axes = bounds[2] if len(bounds) > 2 else np.arange(len(starts))
        steps = bounds[3] if len(bounds) > 3 else np.ones(len(starts), dtype=np.int64)
    else:
        starts, ends = node.attrs["starts"], node.attrs["ends"]
        axes, steps = node.attrs.get("axes", range(len(starts))), [1] * len(starts)
    index: list[slice] = [slice(None)] * array.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[int(axis)] = slice_of(array.shape[int(axis)], int(start), int(end), int(step))
    return array[tuple(index)]


def _reshape(node: gs.Node, array: NDArray[Any], target: NDArray[Any]) -> NDArray[Any]:
    sizes = [array.shape[place] if size == 0 else int(size) for place, size in enumerate(target)]
    return array.reshape(sizes)


def cast_type(node: gs.Node, facts: Facts) -> int:
    """Return ONNX's code of the element type that a Cast or CastLike gives; 0 if it is not known."""
    if node.op == "Cast":
        return int(node.attrs["to"])
    like = node.inputs[1]
    return declared_type(like) or facts.view.facts.type(like)


def _cast(node: gs.Node, inputs: list[Values], facts: Facts) -> Values | None:
    to = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}.get(cast_type(node, facts))
    return None if to is None else Values(inputs[0].array.astype(to), inputs[0].known)


def _where(node: gs.Node, inputs: list[Values], facts: Facts) -> Values:
    choice, yes, no = inputs
    array = np.where(choice.known & choice.array.astype(bool), yes.array, no.array)
    array = np.where(choice.known, array, 0)
    return Values(array, np.broadcast_to(choice.known & np.where(choice.array, yes.known, no.known), array.shape))


def _filled(node: gs.Node, inputs: list[Values], facts: Facts) -> Values | None:
    value = node.attrs.get("value")
    fill = facts.array(value) if isinstance(value, gs.Constant) else None
    if fill is None or fill.dtype.kind not in "iub" or not inputs[0].known.all() or inputs[0].array.prod() > 4096:
        return None
    array = np.full(inputs[0].array.astype(int), fill.ravel()[0])
    return Values(array, np.ones(array.shape, dtype=bool))


def _expand(node: gs.Node, array: NDArray[Any], target: NDArray[Any]) -> NDArray[Any]:
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(int(size) for size in target)))


def _range(node: gs.Node, inputs: list[Values], facts: Facts) -> Values | None:
    if any(not value.known.all() for value in inputs):
        return None
    start, limit, delta = (int(value.array.ravel()[0]) for value in inputs)
    if delta == 0 or abs(limit - start) > 4096 * abs(delta):
        return None
    array = np.arange(start, limit, delta, dtype=inputs[0].array.dtype)
    return Values(array, np.ones(array.shape, dtype=bool))


_RULES: dict[str, Rule] = {
    "Identity": _moving(lambda node, array: array),
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(_divide),
    "Mod": _arithmetic(np.mod),
    "Neg": _arithmetic(np.negative),
    "Equal": _arithmetic(np.equal),
    "Min": _arithmetic(lambda *arrays: np.minimum.reduce(np.broadcast_arrays(*arrays))),
    "Max": _arithmetic(lambda *arrays: np.maximum.reduce(np.broadcast_arrays(*arrays))),
    "Cast": _cast,
    "CastLike": _cast,
    "Concat": _concat,
    "Gather": _moving(
        lambda node, array, index: np.take(
            array, np.where(index < 0, index + len(array), index), node.attrs.get("axis", 0)
        )
    ),
    "Squeeze": _moving(_squeeze),
    "Unsqueeze": _moving(_unsqueeze),
    "Slice": _moving(_slice),
    "Transpose": _moving(lambda node, array: np.transpose(array, node.attrs.get("perm"))),
    "Reshape": _moving(_reshape),
    "Expand": _moving(_expand),
    "Where": _where,
    "ConstantOfShape": _filled,
    "Range": _range,
}
