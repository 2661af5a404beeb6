"""What small integer tensors hold, element by element, as far as it can be told without running the model."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.slicing import slice_of
from graphopt.graph.symbolic import expression as ex
from graphopt.graph.symbolic.attributes import Value, attribute, axes_of, integers
from graphopt.graph.symbolic.expression import Entry

LIMIT = 256
"""Tensors of more elements are not followed."""

SymbolicShape = tuple[Entry, ...] | None
Rule = Callable[[gs.Node, Sequence[Value | None], Sequence[SymbolicShape], int], Value | None]


def _each(operation: Callable[..., Any], *operands: Value | None) -> Value | None:
    """Apply an operation element by element, with broadcasting; unknown elements stay unknown."""
    if any(operand is None for operand in operands):
        return None
    result = np.frompyfunc(operation, len(operands), 1)(*operands)
    return result if isinstance(result, np.ndarray) else _scalar(result)


def _scalar(entry: object) -> Value:
    array = np.empty((), dtype=object)
    array[()] = entry
    return array


def _full(shape: Sequence[int], entry: object) -> Value:
    array = np.empty(tuple(shape), dtype=object)
    array[...] = entry
    return array


def _shape(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    if shapes[0] is None:
        return None
    entries = shapes[0][attribute(node, "start", 0) : attribute(node, "end", None)]
    result = np.empty(len(entries), dtype=object)
    result[:] = entries
    return result


def _size(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    return None if shapes[0] is None else _scalar(ex.product(shapes[0]))


def _same(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    return values[0]


def _cast(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    """Follow casts between the integer types that shapes are computed in, and to bool."""
    target = attribute(node, "to", 0)
    if values[0] is None or target not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL):
        return None
    if target == onnx.TensorProto.BOOL:
        return _each(lambda a: None if a is None else _invert(ex.equal(a, 0)), values[0])
    limit = 2 ** (63 if target == onnx.TensorProto.INT64 else 31)
    fits = all(not isinstance(entry, int) or -limit <= entry < limit for entry in values[0].reshape(-1))
    return _each(lambda a: int(a) if isinstance(a, bool) else a, values[0]) if fits else None


def _invert(truth: bool | None) -> bool | None:
    return None if truth is None else not truth


def _gather(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    data, picked = values[0], integers(values[1])
    axis = attribute(node, "axis", 0)
    if data is None or picked is None or values[1] is None or not -data.ndim <= axis < data.ndim:
        return None
    if any(not -data.shape[axis] <= index < data.shape[axis] for index in picked):
        return None
    taken = np.take(data, np.asarray(picked, dtype=np.int64).reshape(values[1].shape), axis=axis)
    return taken if isinstance(taken, np.ndarray) else _scalar(taken)


def _concat(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    """Join; an operand of unknown content but known static shape contributes unknown elements."""
    parts: list[Value] = []
    for value, shape in zip(values, shapes, strict=True):
        if value is None:
            if shape is None or not all(isinstance(n, int) for n in shape) or ex.product(shape) > LIMIT:  # type: ignore[operator]
                return None
            value = _full([n for n in shape if isinstance(n, int)], None)
        parts.append(value)
    return np.concatenate(parts, axis=attribute(node, "axis", 0)) if all(part.ndim for part in parts) else None


def _unsqueeze(
    node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int
) -> Value | None:
    axes = axes_of(node, values, 1)
    return None if values[0] is None or axes is None else np.expand_dims(values[0], tuple(axes))


def _squeeze(
    node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int
) -> Value | None:
    axes = axes_of(node, values, 1)
    return None if values[0] is None or axes is None else values[0].squeeze(tuple(axes) if axes else None)


def _reshape(
    node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int
) -> Value | None:
    target = integers(values[1]) if len(values) > 1 else None
    if values[0] is None or target is None or attribute(node, "allowzero", 0) or (0 in target and values[0].size == 0):
        return None
    copied = [values[0].shape[i] if n == 0 and i < values[0].ndim else n for i, n in enumerate(target)]
    return values[0].reshape(copied)


def _transpose(
    node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int
) -> Value | None:
    return None if values[0] is None else np.transpose(values[0], attribute(node, "perm", None))


def _slice(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    if values[0] is None:
        return None
    if opset < 10:
        starts, ends, axes = (attribute(node, key, []) for key in ("starts", "ends", "axes"))
        steps: list[int] | None = []
    else:
        given = [*values[1:], *[None] * (5 - len(values))]
        present = [len(node.inputs) > slot and bool(node.inputs[slot].name) for slot in range(1, 5)]
        starts, ends, axes, steps = (integers(v) if has else [] for v, has in zip(given, present, strict=True))
    if starts is None or ends is None or axes is None or steps is None:
        return None
    cuts = [slice(None)] * values[0].ndim
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = axes[index] if axes else index, steps[index] if steps else 1
        cuts[axis] = slice_of(values[0].shape[axis], start, end, step)
    return values[0][tuple(cuts)]


def _binary(operation: Callable[[Any, Any], Any]) -> Rule:
    lifted = ex.lift(operation)

    def rule(
        node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int
    ) -> Value | None:
        if len(values) < 2 or attribute(node, "fmod", 0):
            return None
        first, *rest = values
        return reduce(lambda a, b: _each(lifted, a, b), rest, first)

    return rule


def _not(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    return _each(_invert, values[0])


def _neg(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    return _each(lambda a: None if a is None else ex.multiply(a, -1), values[0])


def _where(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    def pick(condition: bool | None, a: Entry | None, b: Entry | None) -> Entry | None:
        if condition is None:
            return a if a == b else None
        return a if condition else b

    return _each(pick, *values)


def _constant_of_shape(
    node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int
) -> Value | None:
    shape, filler = integers(values[0]), node.attrs.get("value")
    if shape is None or not isinstance(filler, gs.Constant) or filler.dtype not in (np.int64, np.int32, np.bool_):
        return None
    if min(shape, default=0) < 0 or int(np.prod(shape)) > LIMIT:
        return None
    return _full(shape, np.asarray(filler._values.load() if hasattr(filler._values, "load") else filler._values).item())


def _range(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    ends = [integers(value) for value in values]
    if any(end is None or len(end) != 1 for end in ends):
        return None
    start, limit, step = (end[0] for end in ends if end is not None)
    if step == 0 or (count := len(range(start, limit, step))) > LIMIT:
        return None
    result = np.empty(count, dtype=object)
    result[:] = list(range(start, limit, step))
    return result


def _expand(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Value | None:
    target = integers(values[1])
    if values[0] is None or target is None or min(target, default=0) < 0:
        return None
    shape = np.broadcast_shapes(values[0].shape, tuple(target))
    return np.broadcast_to(values[0], shape) if int(np.prod(shape)) <= LIMIT else None


def _reduction(operation: Callable[[Any, Any], Any]) -> Rule:
    lifted = ex.lift(operation)

    def rule(
        node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int
    ) -> Value | None:
        axes = axes_of(node, values, 1)
        if values[0] is None or values[0].ndim != 1 or not values[0].size or axes is None:
            return None
        if not axes and attribute(node, "noop_with_empty_axes", 0):
            return None
        total = reduce(lifted, values[0].tolist())
        return _full([1] if attribute(node, "keepdims", 1) else [], total)

    return rule


def _above(a: Entry, b: Entry) -> bool | None:
    return True if ex.positive(ex.subtract(a, b)) else False if ex.nonnegative(ex.subtract(b, a)) else None


def _and(a: bool, b: bool) -> bool:
    return bool(a and b)


RULES: dict[str, Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Slice": _slice,
    "Transpose": _transpose,
    "Add": _binary(ex.add),
    "Sub": _binary(ex.subtract),
    "Mul": _binary(ex.multiply),
    "Div": _binary(ex.divide),
    "Mod": _binary(ex.modulo),
    "Max": _binary(ex.maximum),
    "Min": _binary(ex.minimum),
    "Neg": _neg,
    "Not": _not,
    "And": _binary(_and),
    "Or": _binary(lambda a, b: bool(a or b)),
    "Equal": _binary(ex.equal),
    "Greater": _binary(_above),
    "Less": _binary(lambda a, b: _above(b, a)),
    "GreaterOrEqual": _binary(lambda a, b: _invert(_above(b, a))),
    "LessOrEqual": _binary(lambda a, b: _invert(_above(a, b))),
    "Where": _where,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Expand": _expand,
    "ReduceProd": _reduction(ex.multiply),
    "ReduceSum": _reduction(ex.add),
    "ReduceMax": _reduction(ex.maximum),
    "ReduceMin": _reduction(ex.minimum),
}
"""How to follow each operator; ``opset`` decides where its arguments stand."""
