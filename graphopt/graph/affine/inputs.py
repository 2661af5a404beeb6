"""Layers that take an affine map of their input into their own weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.affine import algebra
from graphopt.graph.affine.algebra import Affine, Array, number
from graphopt.graph.affine.change import Change, assign, carry, together
from graphopt.graph.affine.extent import element_type, require_rank
from graphopt.graph.affine.outputs import add_behind, gemm_offset, set_gemm
from graphopt.graph.evaluate import evaluate, require_values
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip


def conv(view: GraphView, node: gs.Node, slot: int, affine: Affine) -> Change:
    """W[o, i, ...] becomes W * s[i], and b becomes b + the sum of W * t[i] over i and the kernel.

    The border of a padded Conv is zero *behind* the map; before the map it is -t / s. Where that is one number, a Pad
    with it stands in for the Conv's own padding.
    """
    (weight,) = require_values(view, node.inputs[1])
    group, width = int(number(node, "group", 1)), weight.shape[1]
    scale, shift = affine.along(1, width * group)
    grouped = weight.reshape(group, -1, width, *weight.shape[2:])
    scaled = grouped * scale.reshape(group, 1, width, *[1] * (weight.ndim - 2))
    values = {1: scaled.reshape(weight.shape)}
    if not affine.shifts:
        return assign(view, node, values)
    offset = np.einsum("goik,gi->go", grouped.reshape(*grouped.shape[:3], -1), shift.reshape(group, width)).reshape(-1)
    if len(node.inputs) > 2 and node.inputs[2].name:
        offset = offset + require_values(view, node.inputs[2])[0]
    change = assign(view, node, {**values, 2: offset})
    pads = _pads(node, weight.shape[2:])
    return _bordered(view, node, change, scale, shift, pads) if any(pads) else change


def conv_transpose(view: GraphView, node: gs.Node, slot: int, affine: Affine) -> Change:
    """W[i, ...] becomes W * s[i]; a shift would come out differently at each place of the output."""
    (weight,) = require_values(view, node.inputs[1])
    scale, shift = affine.along(1, weight.shape[0])
    if shift.any():
        raise Skip(f"ConvTranspose {node.outputs[0].name!r} would not shift its output evenly")
    return assign(view, node, {1: weight * scale.reshape(-1, *[1] * (weight.ndim - 1))})


def gemm(view: GraphView, node: gs.Node, slot: int, affine: Affine) -> Change:
    """The rows of B become B * s, and C becomes beta * C + alpha * t B with a beta of 1."""
    (weight,) = require_values(view, node.inputs[1])
    columns = bool(number(node, "transB", 0))
    scale, shift = affine.along(0 if number(node, "transA", 0) else 1, weight.shape[1 if columns else 0])
    old = gemm_offset(view, node)
    if not shift.any():
        return assign(view, node, {1: weight * (scale if columns else scale[:, None])})
    offset = number(node, "alpha", 1.0) * (weight @ shift if columns else shift @ weight)
    return set_gemm(view, node, weight * (scale if columns else scale[:, None]), old, old + offset)


def matmul(view: GraphView, node: gs.Node, slot: int, affine: Affine) -> Change:
    """The weight's rows (its columns, if it stands left) become W * s; t W goes into the Add behind, or a new one."""
    data, side = node.inputs[slot], 1 - slot
    (weight,) = require_values(view, node.inputs[side])
    axis = require_rank(view, data) - (1 if side else 2) if affine.varying() else 1
    if axis < 0 or not weight.ndim or (weight.ndim == 1 and not side):
        raise Skip(f"MatMul {node.outputs[0].name!r} takes a vector")
    if not affine.shifts:
        extent = weight.size if weight.ndim == 1 else weight.shape[-2 if side else -1]
        scale, _ = affine.along(axis, extent)
        return assign(view, node, {side: weight * (scale[:, None] if side and weight.ndim > 1 else scale)}, like=side)
    if weight.ndim == 1:
        scale, shift = affine.along(axis, weight.size)
        scaled, offset = weight * scale, weight @ shift
    elif side:
        scale, shift = affine.along(axis, weight.shape[-2])
        scaled, offset = weight * scale[:, None], (shift @ weight)
        offset = offset[..., None, :] if weight.ndim > 2 else offset
    else:
        scale, shift = affine.along(axis, weight.shape[-1])
        scaled, offset = weight * scale, (weight @ shift)[..., None]
    change = assign(view, node, {side: scaled}, like=side)
    return _offset_behind(view, node, change, np.asarray(offset), side) if np.any(offset) else change


def recurrent(view: GraphView, node: gs.Node, slot: int, affine: Affine) -> Change:
    """The input weights W[d, g, i] of RNN, GRU or LSTM become W * s[i]; the first half of B becomes Wb + W t."""
    (weight,) = require_values(view, node.inputs[1])
    scale, shift = affine.along(2, weight.shape[2])
    values = {1: weight * scale}
    if shift.any():
        given = len(node.inputs) > 3 and bool(node.inputs[3].name)
        bias = np.zeros((weight.shape[0], 2 * weight.shape[1]))
        if given:
            bias += require_values(view, node.inputs[3])[0]
        bias[:, : weight.shape[1]] += weight @ shift
        values[3] = bias
    return assign(view, node, values)


def batchnorm(view: GraphView, node: gs.Node, slot: int, affine: Affine) -> Change:
    """Two maps in a row are one; the mean becomes zero, which loses no digits to cancellation."""
    own = algebra.batchnorm(view, node)
    gamma, mean = require_values(view, node.inputs[1], node.inputs[3])
    scale, _ = affine.along(1, gamma.size)
    both = affine.then(own)
    _, shift = both.along(1, gamma.size)
    return together(
        assign(view, node, {1: gamma * scale, 2: np.array(shift)}), assign(view, node, {3: np.zeros_like(mean)}, like=3)
    )


def _pads(node: gs.Node, kernel: tuple[int, ...]) -> list[int]:
    """Return a Conv's padding, all begins before all ends."""
    spatial = len(kernel)
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return list(node.attrs.get("pads", [0] * 2 * spatial))
    if mode == "VALID":
        return [0] * 2 * spatial
    if any(stride != 1 for stride in node.attrs.get("strides", [1])):
        raise Skip(f"the padding of Conv {node.outputs[0].name!r} depends on the size of its input")
    dilations = node.attrs.get("dilations", [1] * spatial)
    totals = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return small + large if mode == "SAME_UPPER" else large + small


def _bordered(view: GraphView, node: gs.Node, change: Change, scale: Array, shift: Array, pads: list[int]) -> Change:
    """Agree on ``change`` and on a Pad with the border that the map takes to zero."""
    name = f"Conv {node.outputs[0].name!r}"
    kind = element_type(view, node.inputs[1])
    if ((scale == 0) & (shift != 0)).any():
        raise Skip(f"{name} pads with zero, which the map never gives in a channel of scale zero")
    live = scale != 0
    border = np.unique(carry(-shift[live] / scale[live], kind, f"border of {node.outputs[0].name}"))
    if border.size != 1 or min(pads) < 0:
        raise Skip(f"{name} pads with zero, and no constant border becomes zero in all its channels")
    if view.opset < 2:
        raise Skip(f"{name} pads with zero, and there is no Pad in opset 1")
    spatial = len(pads) // 2
    widths = [0, 0, *pads[:spatial], 0, 0, *pads[spatial:]]

    def make() -> None:
        change.make()
        source = node.inputs[0]
        padded = _add_pad(view, node, source, widths, border.reshape(()))
        view.edit.set_input(node, 0, padded)
        node.attrs.pop("auto_pad", None)
        node.attrs["pads"] = [0] * len(pads)

    return replace(change, make=make, adds=change.adds + 1)


def _add_pad(view: GraphView, node: gs.Node, source: gs.Tensor, widths: list[int], border: Any) -> gs.Tensor:
    if view.opset < 11:
        attrs = {"mode": "constant", "pads": widths, "value": float(border)}
        return view.edit.add_node(node, "Pad", [source], attrs=attrs).outputs[0]
    stem = f"{node.outputs[0].name}_border"
    inputs = [source, view.edit.constant(f"{stem}_pads", np.array(widths)), view.edit.constant(stem, border)]
    return view.edit.add_node(node, "Pad", inputs).outputs[0]


def _offset_behind(view: GraphView, node: gs.Node, change: Change, offset: Array, like: int) -> Change:
    """Agree on ``change`` and on an offset of the output, into the Add of a constant that follows or a new one."""
    out = node.outputs[0]
    readers = view.readers(out)
    if len(readers) == 1 and not view.is_output(out) and is_op(readers[0], "Add"):
        (reader,) = readers
        other = 0 if reader.inputs[1] is out else 1
        bias = evaluate(view, reader.inputs[other])
        if bias is not None and view.opset >= 7 and view.edit.graph_of(reader) is view.edit.graph_of(node):
            (wide,) = require_values(view, reader.inputs[other])
            return together(change, assign(view, reader, {other: wide + offset}, like=other))
    if view.opset < 7:
        raise Skip("Add before opset 7 broadcasts by attributes")
    return add_behind(view, node, change, offset, like)


TAKES: dict[str, Callable[[GraphView, gs.Node, int, Affine], Change]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batchnorm,
    "RNN": recurrent,
    "GRU": recurrent,
    "LSTM": recurrent,
}
