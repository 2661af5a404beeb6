"""Shapes of outputs where ONNX's own inference gives up: computed targets, symbolic extents, sums of dimensions."""

from collections.abc import Callable, Sequence

import onnx_graphsurgeon as gs

from graphopt.graph.slicing import slice_indices
from graphopt.graph.symbolic import expression as ex
from graphopt.graph.symbolic.attributes import Value, attribute, integers, tuple_of
from graphopt.graph.symbolic.expression import Entry
from graphopt.graph.symbolic.values import SymbolicShape

Partial = tuple[Entry | None, ...] | None
"""A shape whose unknown dimensions are None."""

_END = 2**31 - 1
"""Exporters write this number, or a larger one, for the end of an axis."""

Rule = Callable[[gs.Node, Sequence[Value | None], Sequence[SymbolicShape], int], Partial]


def reshape_target(node: gs.Node, data: SymbolicShape, target: Partial) -> Partial:
    """Return the shape that Reshape makes of ``data``; ``target`` is the content of its shape input.

    A symbolic entry that turns out to be zero copies a dimension instead of being one. So it is taken at its word only
    where it cannot be zero, is the dimension that it would copy, or the target has as many elements as the data.
    """
    if target is None:
        return None
    copies = not attribute(node, "allowzero", 0)
    result: list[Entry | None] = []
    for index, entry in enumerate(target):
        if copies and entry == 0:
            result.append(data[index] if data is not None and index < len(data) else None)
        else:
            result.append(None if entry is None or not ex.nonnegative(entry) else entry)
    unknown = [index for index, entry in enumerate(result) if entry is None]
    if data is not None and len(unknown) == 1 and target[unknown[0]] == -1:
        rest = ex.product(entry for entry in result if entry is not None)
        result[unknown[0]] = ex.quotient(ex.product(data), rest)
    known = [entry for entry in result if entry is not None]
    if data is not None and len(known) == len(result) and ex.product(known) == ex.product(data):
        return tuple(result)
    for index, entry in enumerate(result):
        kept = data is not None and index < len(data) and entry == data[index]
        if copies and isinstance(entry, ex.Expression) and not ex.positive(entry) and not kept:
            result[index] = None
    return tuple(result)


def _reshape(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Partial:
    if opset < 5:
        return reshape_target(node, shapes[0], tuple(attribute(node, "shape", [])))
    target = tuple_of(values[1])
    if target is None and shapes[1] is not None and len(shapes[1]) == 1 and isinstance(shapes[1][0], int):
        target = (None,) * shapes[1][0]
    return reshape_target(node, shapes[0], target)


def _expand(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Partial:
    target = tuple_of(values[1])
    if shapes[0] is None or target is None:
        return None
    rank = max(len(shapes[0]), len(target))
    data = (1,) * (rank - len(shapes[0])) + shapes[0]
    wanted = (1,) * (rank - len(target)) + target
    return tuple(broadcast(a, b) for a, b in zip(data, wanted, strict=True))


def broadcast(a: Entry | None, b: Entry | None) -> Entry | None:
    """Return the extent of two dimensions that are broadcast together; None where it cannot be told."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    for known in (a, b):
        if isinstance(known, int) and known > 1:
            return known
    return None


def _constant_of_shape(
    node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int
) -> Partial:
    return tuple_of(values[0])


def _range(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Partial:
    start, limit, step = (None if value is None or value.size != 1 else value.reshape(-1)[0] for value in values)
    if start is None or limit is None or step != 1:
        return (None,)
    return (ex.maximum(ex.subtract(limit, start), 0),)


def _concat(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Partial:
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes) or len({len(shape) for shape in known}) != 1 or not known[0]:
        return None
    axis = attribute(node, "axis", 1) % len(known[0])
    result: list[Entry | None] = list(next((s for s in known if all(isinstance(n, int) for n in s)), known[0]))
    total: Entry = 0
    for shape in known:
        total = ex.add(total, shape[axis])
    result[axis] = total
    return tuple(result)


def _flatten(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Partial:
    if shapes[0] is None:
        return (None, None)
    axis = attribute(node, "axis", 1)
    axis = axis + len(shapes[0]) if axis < 0 else axis
    return ex.product(shapes[0][:axis]), ex.product(shapes[0][axis:])


def slice_arguments(
    node: gs.Node, values: Sequence[Value | None], opset: int
) -> tuple[Partial, Partial, list[int] | None, list[int] | None]:
    """Return starts, ends, axes and steps of a Slice; empty axes or steps stand for the default."""
    if opset < 10:
        starts, ends = (tuple(attribute(node, key, [])) for key in ("starts", "ends"))
        return starts, ends, list(attribute(node, "axes", [])), []
    given = [*values, *[None] * (5 - len(values))]
    present = [len(node.inputs) > slot and bool(node.inputs[slot].name) for slot in range(5)]
    axes, steps = (integers(given[slot]) if present[slot] else [] for slot in (3, 4))
    return tuple_of(given[1]), tuple_of(given[2]), axes, steps


def _slice(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Partial:
    data = shapes[0]
    starts, ends, axes, steps = slice_arguments(node, values, opset)
    if data is None:
        return None
    if axes is None or starts is None or ends is None:
        return tuple(None for _ in data) if axes is None else _blank(data, axes or list(range(len(data))))
    result: list[Entry | None] = list(data)
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[index] if axes else index
        step = steps[index] if steps else 1 if steps is not None else None
        result[axis] = _cut(data[axis], start, end) if step == 1 else _stepped(data[axis], start, end, step)
    return tuple(result)


def _blank(data: tuple[Entry, ...], axes: list[int]) -> Partial:
    touched = {axis % len(data) for axis in axes}
    return tuple(None if axis in touched else extent for axis, extent in enumerate(data))


def _cut(extent: Entry, start: Entry | None, end: Entry | None) -> Entry | None:
    """Return how many of ``extent`` elements lie between start and end, both clamped as Slice does."""
    if start is None or end is None:
        return None
    edges = []
    for edge in (start, end):
        if isinstance(edge, int) and edge >= _END:
            edge = extent
        elif isinstance(edge, int) and edge < 0:
            edge = ex.add(extent, edge)
        elif not ex.nonnegative(edge):
            return None
        edges.append(ex.minimum(ex.maximum(edge, 0), extent))
    return ex.maximum(ex.subtract(edges[1], edges[0]), 0)


def _stepped(extent: Entry, start: Entry | None, end: Entry | None, step: int | None) -> Entry | None:
    if isinstance(extent, int) and isinstance(start, int) and isinstance(end, int) and step:
        return len(slice_indices(extent, start, end, step))
    return None


def _tile(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Partial:
    repeats = tuple_of(values[1])
    if shapes[0] is None or repeats is None or len(repeats) != len(shapes[0]):
        return None
    return tuple(None if r is None else ex.multiply(n, r) for n, r in zip(shapes[0], repeats, strict=True))


def _pad(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Partial:
    pads = tuple_of(values[1]) if opset >= 11 else tuple(attribute(node, "pads", attribute(node, "paddings", [])))
    if (
        shapes[0] is None
        or pads is None
        or len(pads) != 2 * len(shapes[0])
        or (len(node.inputs) > 3 and node.inputs[3].name)
    ):
        return None
    ends = zip(shapes[0], pads, pads[len(shapes[0]) :], strict=False)
    return tuple(None if a is None or b is None else ex.add(ex.add(n, a), b) for n, a, b in ends)


def _resize(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Partial:
    if len(values) < 4 or "axes" in node.attrs or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    return tuple_of(values[3])


def _windows(node: gs.Node, values: Sequence[Value | None], shapes: Sequence[SymbolicShape], opset: int) -> Partial:
    """Return the extents of a convolution or pooling over symbolic space, with explicit pads and no ceil_mode."""
    data = shapes[0]
    if data is None or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    kernel: Sequence[Entry] = attribute(node, "kernel_shape", [])
    channels = data[1]
    if node.op == "Conv":
        if shapes[1] is None:
            return None
        kernel, channels = shapes[1][2:], shapes[1][0]
    space = len(data) - 2
    if len(kernel) != space or attribute(node, "ceil_mode", 0):
        return None
    explicit = attribute(node, "auto_pad", "NOTSET") == "NOTSET"
    pads = attribute(node, "pads", [0] * 2 * space) if explicit else [0] * 2 * space
    strides, dilations = (attribute(node, key, [1] * space) for key in ("strides", "dilations"))
    result: list[Entry | None] = [data[0], channels]
    for axis in range(space):
        reach = ex.multiply(ex.subtract(kernel[axis], 1), dilations[axis])
        room = ex.subtract(ex.add(data[2 + axis], pads[axis] + pads[space + axis]), ex.add(reach, 1))
        result.append(ex.divide(ex.add(room, strides[axis]), strides[axis]))
    return tuple(result)


RULES: dict[str, Rule] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Concat": _concat,
    "Flatten": _flatten,
    "Slice": _slice,
    "Tile": _tile,
    "Pad": _pad,
    "Resize": _resize,
    "Conv": _windows,
    "MaxPool": _windows,
    "AveragePool": _windows,
}
"""How to compute the first output's shape; an operator that is absent is left to ONNX."""
