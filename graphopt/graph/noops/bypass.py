"""Nodes that give out one of their inputs, bit for bit."""

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto as T

from graphopt.graph.noops.place import Place
from graphopt.graph.symbolic.attributes import attribute, integers
from graphopt.graph.symbolic.shapes import slice_arguments
from graphopt.result import Skip

Rule = Callable[[Place], gs.Tensor | None]

_HOLDS: dict[int, tuple[int, ...]] = {
    T.BOOL: (T.INT8, T.UINT8, T.INT16, T.UINT16, T.INT32, T.UINT32, T.INT64, T.UINT64, T.FLOAT16, T.FLOAT, T.DOUBLE),
    T.INT8: (T.INT16, T.INT32, T.INT64, T.FLOAT16, T.FLOAT, T.DOUBLE),
    T.UINT8: (T.INT16, T.UINT16, T.INT32, T.UINT32, T.INT64, T.UINT64, T.FLOAT16, T.FLOAT, T.DOUBLE),
    T.INT16: (T.INT32, T.INT64, T.FLOAT, T.DOUBLE),
    T.UINT16: (T.INT32, T.UINT32, T.INT64, T.UINT64, T.FLOAT, T.DOUBLE),
    T.INT32: (T.INT64, T.DOUBLE),
    T.UINT32: (T.INT64, T.UINT64, T.DOUBLE),
    T.FLOAT16: (T.FLOAT, T.DOUBLE),
    T.BFLOAT16: (T.FLOAT, T.DOUBLE),
    T.FLOAT: (T.DOUBLE,),
}
"""For each element type, the types that hold every value of it."""


def _identity(place: Place) -> gs.Tensor | None:
    """Identity."""
    return place.node.inputs[0]


def _single(place: Place) -> gs.Tensor | None:
    """Concat, Sum, Max, Min and Mean of one input."""
    return place.node.inputs[0] if len(place.node.inputs) == 1 else None


def _dropout(place: Place) -> gs.Tensor | None:
    """Dropout outside training; before opset 7 it says so itself, from opset 12 an input can turn training on."""
    node = place.node
    if place.opset < 7 and not attribute(node, "is_test", 0):
        raise Skip("training mode: is_test is 0")
    if place.opset >= 12 and place.has(2):
        training = place.array(2)
        if training is None or training.size != 1 or bool(training.reshape(-1)[0]):
            raise Skip("training mode, or it may be turned on")
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    if mask is not None and mask.name and (place.view.readers(mask) or place.view.is_output(mask)):
        raise Skip(f"its mask {mask.name!r} is used")
    return node.inputs[0]


def _cast(place: Place) -> gs.Tensor | None:
    """A Cast to the type that the input has, or back to the type before a Cast that lost nothing."""
    source, target = place.node.inputs[0], _target(place)
    if not target:
        return None
    if place.facts.type(source) == target:
        return source
    before = place.before("Cast", "CastLike")
    if before is not None and place.facts.type(before.inputs[0]) == target:
        through = place.facts.type(source)
        if through in _HOLDS.get(target, ()):
            return before.inputs[0]
        raise Skip(f"casting to {T.DataType.Name(through).lower()} and back is not lossless")
    return None


def _target(place: Place) -> int:
    """Return the type that a Cast or CastLike casts to; 0 if unknown."""
    if place.node.op == "CastLike":
        return place.facts.type(place.node.inputs[1])
    target = attribute(place.node, "to", 0)
    return T.DataType.Value(target) if isinstance(target, str) else int(target)


def _transpose(place: Place) -> gs.Tensor | None:
    """A Transpose that keeps the order of axes, or restores what another has changed."""
    order = place.permutation()
    if order is None:
        return None
    if order == sorted(order):
        return place.node.inputs[0]
    before = place.before("Transpose")
    first = None if before is None else place.permutation(before)
    if before is not None and first is not None and [first[axis] for axis in order] == sorted(order):
        return before.inputs[0]
    return None


def _reshape(place: Place) -> gs.Tensor | None:
    """A Reshape, Flatten, Squeeze, Unsqueeze or Expand to the input's own shape, or that of what came before others."""
    if place.keeps_shape():
        return place.node.inputs[0]
    before = place.before(*RESHAPES) if place.node.op in RESHAPES else None
    if before is not None and (shape := place.facts.shape(before.inputs[0])) is not None and shape == place.out_shape():
        return before.inputs[0]
    return None


def _keeps_shape(place: Place) -> gs.Tensor | None:
    """Expand, Tile and Split into the input's own shape."""
    named = [out for out in place.node.outputs if out.name]
    return place.node.inputs[0] if len(named) == 1 and place.keeps_shape() else None


def _slice(place: Place) -> gs.Tensor | None:
    """A Slice of everything, forwards."""
    known = [place.value(slot) for slot in range(len(place.node.inputs))]
    _, _, _, steps = slice_arguments(place.node, known, place.opset)
    forwards = steps is not None and all(step == 1 for step in steps)
    return place.node.inputs[0] if forwards and place.keeps_shape() else None


def _pad(place: Place) -> gs.Tensor | None:
    """A Pad by nothing."""
    if place.opset >= 11:
        pads = integers(place.value(1))
    else:
        pads = attribute(place.node, "pads", attribute(place.node, "paddings", None))
    return place.node.inputs[0] if pads is not None and not any(pads) else None


def _pool(place: Place) -> gs.Tensor | None:
    """A pooling of windows of one element, one by one."""
    node = place.node
    if (
        any(out.name for out in node.outputs[1:])
        or attribute(node, "p", 2) != 2
        or node.op not in ("MaxPool", "AveragePool")
    ):
        return None
    ones = [attribute(node, "kernel_shape", [0]), attribute(node, "strides", [1])]
    plain = all(n == 1 for row in ones for n in row) and not any(attribute(node, "pads", [0]))
    return node.inputs[0] if plain and place.keeps_shape() else None


def _neutral(slots: tuple[int, ...], neutral: float) -> Rule:
    """Make the rule of an arithmetic operator with a constant that changes nothing, in one of ``slots``."""

    def rule(place: Place) -> gs.Tensor | None:
        for slot in slots:
            values = place.array(slot) if len(place.node.inputs) == 2 else None
            if values is None or not _is_all(values, neutral) or not _fits(values, place.shape(1 - slot)):
                continue
            source, constant = place.node.inputs[1 - slot], place.node.inputs[slot]
            if _flips_zero(place.node.op, values) and place.zero_signs.matters(place.node.outputs[0]):
                raise Skip(f"{constant.name!r} changes the sign of zero, which matters to a division further on")
            return source
        return None

    return rule


def _flips_zero(op: str, values: NDArray[np.generic]) -> bool:
    """Whether x + 0.0 (unlike x + -0.0 and x - 0.0) turns -0.0 into 0.0."""
    if op not in ("Add", "Sub") or values.dtype.kind in "iub":
        return False
    negative = np.signbit(values.astype(np.float64))
    return not negative.all() if op == "Add" else bool(negative.any())


def _is_all(values: NDArray[np.generic], neutral: float) -> bool:
    """Whether every element equals ``neutral``; the first one decides for most."""
    return bool(values.size) and bool(values.flat[0] == neutral) and bool((values == neutral).all())


def _fits(values: NDArray[np.generic], shape: tuple[object, ...] | None) -> bool:
    """Whether broadcasting ``values`` against a tensor of ``shape`` certainly leaves that shape."""
    if not values.ndim:
        return True
    if shape is None or values.ndim > len(shape):
        return False
    return all(n in (1, extent) for n, extent in zip(values.shape, shape[len(shape) - values.ndim :], strict=True))


def _where(place: Place) -> gs.Tensor | None:
    """A Where whose condition is the same everywhere."""
    condition = place.array(0)
    if condition is None or not condition.size:
        return None
    slot = 1 if condition.all() else 2 if not condition.any() else 0
    return place.node.inputs[slot] if slot and place.keeps_shape(slot) else None


def _again(place: Place) -> gs.Tensor | None:
    """An operator applied to its own result that changes nothing the second time."""
    return place.node.inputs[0] if place.before(place.node.op) is not None else None


def _undone(place: Place) -> gs.Tensor | None:
    """An operator that takes itself back."""
    before = place.before(place.node.op)
    return None if before is None else before.inputs[0]


RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

BYPASSES: dict[str, Rule] = {
    "Identity": _identity,
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _single),
    "Dropout": _dropout,
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    "Transpose": _transpose,
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(("Expand", "Tile", "Split"), _keeps_shape),
    "Slice": _slice,
    "Pad": _pad,
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    "Add": _neutral((0, 1), 0),
    "Sub": _neutral((1,), 0),
    "Mul": _neutral((0, 1), 1),
    "Div": _neutral((1,), 1),
    "Pow": _neutral((1,), 1),
    "And": _neutral((0, 1), 1),
    "Or": _neutral((0, 1), 0),
    "Where": _where,
    **dict.fromkeys(("Relu", "Abs", "Ceil", "Floor", "Round", "Sign"), _again),
    **dict.fromkeys(("Not", "Neg"), _undone),
}
"""For each operator, the input that it gives out, if it does; a rule raises Skip where it nearly does."""
