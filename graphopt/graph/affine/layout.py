"""Follows an affine map through operators that only move values: Transpose, Reshape, Squeeze and their kind."""

import math
from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.affine.algebra import Affine, Array, number
from graphopt.graph.affine.extent import dimension, rank, require_rank
from graphopt.graph.evaluate import evaluate
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip

Size = int | str
_MANY = 16


def through_layout(view: GraphView, node: gs.Node, affine: Affine, *, forward: bool) -> Affine | None:
    """Return the same map as seen on the other side of ``node``; None if the node does not just move values.

    ``forward`` takes a map of the node's input to its output; otherwise a map of its output to its input.

    Raises:
        Skip: The node moves values, but where the map's axes go cannot be told.
    """
    if not is_op(node, *_RULES):
        return None
    return _RULES[node.op](view, node, affine, forward)


def _identity(view: GraphView, node: gs.Node, affine: Affine, forward: bool) -> Affine:
    return affine


def _dropout(view: GraphView, node: gs.Node, affine: Affine, forward: bool) -> Affine:
    if len(node.inputs) > 2 and node.inputs[2].name:
        mode = view.array(node.inputs[2])
        if mode is None or mode.any():
            raise Skip(f"Dropout {node.outputs[0].name!r} may be in training mode")
    if view.opset < 7 and not number(node, "is_test", 0):
        raise Skip(f"Dropout {node.outputs[0].name!r} is in training mode")
    return affine


def _transpose(view: GraphView, node: gs.Node, affine: Affine, forward: bool) -> Affine:
    order = node.attrs.get("perm")
    if not isinstance(order, list):
        if not affine.varying():
            return affine
        order = list(range(require_rank(view, node.inputs[0])))[::-1]
    scale, shift = affine.padded(len(order))
    order = order if forward else np.argsort(order).tolist()
    return Affine.of(scale.transpose(order), shift.transpose(order))


def _unsqueeze(view: GraphView, node: gs.Node, affine: Affine, forward: bool) -> Affine:
    axes = _axes(view, node)
    if min(axes) < 0:
        axes = [axis % (require_rank(view, node.inputs[0]) + len(axes)) for axis in axes]
    return affine.insert_axes(axes) if forward else affine.delete_axes(axes)


def _squeeze(view: GraphView, node: gs.Node, affine: Affine, forward: bool) -> Affine:
    source = node.inputs[0]
    if "axes" not in node.attrs and len(node.inputs) < 2:
        sizes = [dimension(view, source, axis) for axis in range(require_rank(view, source))]
        if None in sizes:
            raise Skip(f"Squeeze {node.outputs[0].name!r} names no axes and {source.name!r} has unknown ones")
        axes = [axis for axis, size in enumerate(sizes) if size == 1]
    else:
        axes = _axes(view, node)
        if min(axes) < 0:
            axes = [axis % require_rank(view, source) for axis in axes]
    return affine.delete_axes(axes) if forward else affine.insert_axes(axes)


def _axes(view: GraphView, node: gs.Node) -> list[int]:
    """Return the axes of a Squeeze or Unsqueeze, which are an input from opset 13 on."""
    values = evaluate(view, node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("axes")
    if values is None or not len(values):
        raise Skip(f"the axes of {node.op} {node.outputs[0].name!r} are not constant")
    return [int(axis) for axis in values]


def _depth_to_space(view: GraphView, node: gs.Node, affine: Affine, forward: bool) -> Affine:
    """Blocks of an image are groups of channels: axis 1 is (block, channel) in DCR order, else (channel, block)."""
    name = f"{node.op} {node.outputs[0].name!r}"
    if affine.varying() - {0, 1}:
        raise Skip(f"it varies along an axis that {name} rearranges")
    if 1 not in affine.varying():
        return affine
    blocks = int(number(node, "blocksize", 1)) ** 2
    inner_first = node.op == "SpaceToDepth" or node.attrs.get("mode", "DCR") == "DCR"
    if forward == (node.op == "SpaceToDepth"):
        return Affine.of(*(_spread(values, blocks, inner_first) for values in (affine.scale, affine.shift)))
    size = affine.scale.shape[1] // blocks
    narrow = Affine(
        *(values[:, :size] if inner_first else values[:, ::blocks] for values in (affine.scale, affine.shift))
    )
    for before, after in ((affine.scale, narrow.scale), (affine.shift, narrow.shift)):
        if not np.array_equal(before, _spread(after, blocks, inner_first)):
            raise Skip(f"{name} would mix channels that it treats differently")
    return Affine.of(narrow.scale, narrow.shift)


def _spread(values: Array, blocks: int, inner_first: bool) -> Array:
    return np.tile(values, (1, blocks)) if inner_first else np.repeat(values, blocks, axis=1)


def _reshape(view: GraphView, node: gs.Node, affine: Affine, forward: bool) -> Affine:
    if not affine.varying():
        return affine
    inside, outside = _sizes(view, node)
    moved = regroup(affine, inside, outside) if forward else regroup(affine, outside, inside)
    if moved is None:
        raise Skip(f"its channels cannot be followed through {node.op} {node.outputs[0].name!r}")
    return moved


def _sizes(view: GraphView, node: gs.Node) -> tuple[list[Size], list[Size]]:
    """Return a Reshape's or Flatten's sizes before and after; a size that is not known gets a mark of its own."""
    source, out = node.inputs[0], node.outputs[0]
    axes = rank(view, source)
    shape = view.shape(source) or (None,) * (axes or _MANY)
    before: list[Size] = [
        size or (dimension(view, source, axis) if axes else None) or f"?{axis}" for axis, size in enumerate(shape)
    ]
    known = view.shape(out)
    wanted = _wanted(view, node, before)
    if known is None and wanted is None:
        raise Skip(f"the shape of {out.name!r} is unknown")
    count = len(known) if known is not None else len(wanted or [])
    after: list[Size] = []
    for axis in range(count):
        size = known[axis] if known is not None else None
        if not isinstance(size, int) and wanted is not None and axis < len(wanted):
            size = wanted[axis] or size
        after.append(size or f"!{axis}")
    return before, after


def _wanted(view: GraphView, node: gs.Node, before: list[Size]) -> list[Size | None] | None:
    """Return the sizes after, as far as the operator itself says them."""
    if node.op == "Flatten":
        axis = int(number(node, "axis", 1))
        return [before[0] if axis == 1 else None, None]
    values = evaluate(view, node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("shape")
    if values is None:
        return None
    copies = not node.attrs.get("allowzero", 0)
    sizes: list[Size | None] = []
    for axis, size in enumerate(int(value) for value in values):
        copied = before[axis] if size == 0 and copies and axis < len(before) else None
        sizes.append(size if size > 0 else copied)
    return sizes


def regroup(affine: Affine, before: list[Size], after: list[Size]) -> Affine | None:
    """Return a map along the axes ``before`` a reshape as one along those ``after``, or None if that cannot be told.

    Either the leading axes stay as they are, up to the last one that the map varies along; or a block of trailing axes
    of the same total size, from the first one that it varies along, is cut up in another way.
    """
    first, last = min(affine.varying()), max(affine.varying())
    if before[: last + 1] == after[: last + 1] and last < len(after):
        return affine
    if len(before) < affine.scale.ndim:
        return None
    for start in range(first, -1, -1):
        block = _product(before[start:])
        if block is None:
            return None
        for cut in range(len(after) - 1, -1, -1):
            if _product(after[cut:]) == block:
                return _cut_up(affine, before, start, after, cut)
    return None


def _cut_up(affine: Affine, before: list[Size], start: int, after: list[Size], cut: int) -> Affine:
    sizes = [int(size) for size in before[start:]]

    def moved(values: Array) -> Array:
        block = np.broadcast_to(values.reshape(values.shape[start:]), sizes)
        return block.reshape([1] * cut + [int(size) for size in after[cut:]])

    scale, shift = affine.padded(len(before))
    return Affine.of(moved(scale), moved(shift))


def _product(sizes: list[Size]) -> int | None:
    whole = [size for size in sizes if isinstance(size, int)]
    return math.prod(whole) or None if len(whole) == len(sizes) else None


_RULES: dict[str, Callable[[GraphView, gs.Node, Affine, bool], Affine]] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _depth_to_space,
}
