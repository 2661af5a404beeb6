"""Layers that take an affine map of their output into their own weights."""

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.affine.algebra import Affine, Array, number, require_inference
from graphopt.graph.affine.change import Change, assign, carry, element_type
from graphopt.graph.affine.extent import require_rank
from graphopt.graph.view import GraphView
from graphopt.result import Skip


def conv(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """W[o, ...] becomes W * s[o] and b becomes b * s + t."""
    (weight,) = view.require_constants(node.inputs[1])
    scale, shift = affine.along(1, weight.shape[0])
    return _weight_and_bias(view, node, weight * _column(scale, weight.ndim), scale, shift)


def conv_transpose(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """W[i, o within the group, ...] becomes W * s[o] and b becomes b * s + t; the groups divide the first axis."""
    (weight,) = view.require_constants(node.inputs[1])
    group = int(number(node, "group", 1))
    scale, shift = affine.along(1, weight.shape[1] * group)
    grouped = weight.reshape(group, -1, *weight.shape[1:]) * scale.reshape(
        group, 1, weight.shape[1], *[1] * (weight.ndim - 2)
    )
    return _weight_and_bias(view, node, grouped.reshape(weight.shape), scale, shift)


def gemm(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """With Y = alpha * A B + beta * C: the columns of B become B * s and C becomes beta * C * s + t with a beta of 1."""
    (weight,) = view.require_constants(node.inputs[1])
    rows = bool(number(node, "transB", 0))
    scale, shift = affine.along(1, weight.shape[0 if rows else 1])
    offset = gemm_offset(view, node)
    return _set_gemm(view, node, weight * (scale[:, None] if rows else scale), offset, offset * scale + shift)


def matmul(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """The weight's columns (its rows, if it stands left) become W * s; a shift becomes an Add behind the MatMul."""
    side = constant_side(view, node)
    (weight,) = view.require_constants(node.inputs[side])
    if weight.ndim < 2:
        raise Skip(f"{node.inputs[side].name!r} is a vector")
    axis = require_rank(view, node.outputs[0]) - (1 if side else 2) if affine.varying() else 1
    scale, shift = affine.along(axis, weight.shape[-1 if side else -2])
    change = assign(view, node, {side: weight * (scale if side else scale[:, None])}, like=side)
    if not shift.any():
        return change
    return _and_add_behind(view, node, change, shift if side else shift[:, None], side)


def batchnorm(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """Gamma becomes gamma * s and beta becomes beta * s + t."""
    require_inference(view, node)
    scale, shift, (gamma, beta) = _norm_parameters(view, node, affine)
    return assign(view, node, {1: gamma * scale, 2: beta * scale + shift})


def gemm_offset(view: GraphView, node: gs.Node) -> Array:
    """Return beta * C of a Gemm; zero if it has no C."""
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return np.zeros(1)
    (offset,) = view.require_constants(node.inputs[2])
    return offset * number(node, "beta", 1.0)


def constant_side(view: GraphView, node: gs.Node) -> int:
    """Return the slot of a MatMul's constant operand."""
    for side in (1, 0):
        if view.array(node.inputs[side]) is not None:
            return side
    raise Skip(f"neither operand of {node.outputs[0].name!r} is constant")


def _weight_and_bias(view: GraphView, node: gs.Node, weight: Array, scale: Array, shift: Array) -> Change:
    """Agree on a convolution's new weight, and on its bias if it had or now needs one."""
    values = {1: weight}
    if len(node.inputs) > 2 and node.inputs[2].name:
        (bias,) = view.require_constants(node.inputs[2])
        values[2] = bias * scale + shift
    elif shift.any():
        values[2] = np.array(shift)
    return assign(view, node, values)


def _set_gemm(view: GraphView, node: gs.Node, weight: Array, old: Array, offset: Array) -> Change:
    """Agree on a Gemm's new B and C; C then counts fully."""
    present = len(node.inputs) > 2 and bool(node.inputs[2].name)
    if not present and not offset.any():
        return assign(view, node, {1: weight})
    if view.opset < 7 and old.shape != offset.shape:
        raise Skip("Gemm before opset 7 broadcasts by attributes")
    change = assign(view, node, {1: weight, 2: offset})

    def with_beta() -> None:
        change()
        node.attrs.pop("beta", None)

    return with_beta


def _and_add_behind(view: GraphView, node: gs.Node, change: Change, shift: Array, side: int) -> Change:
    """Also agree on an Add of a constant behind ``node``."""
    narrow = carry(shift, element_type(view, node.inputs[side]), f"bias of {node.outputs[0].name}")

    def with_add() -> None:
        change()
        out = node.outputs[0]
        inner = view.edit.variable(f"{out.name}_{node.op}", out)
        view.edit.set_output(node, 0, inner)
        view.edit.add_node(node, "Add", [inner, view.edit.constant(f"{out.name}_bias", narrow)], [out])

    return with_add


def _norm_parameters(view: GraphView, node: gs.Node, affine: Affine) -> tuple[Array, Array, list[Array]]:
    """Return scale and shift per channel and a normalization's own two parameters."""
    parameters = view.require_constants(node.inputs[1], node.inputs[2])
    scale, shift = affine.along(1, parameters[0].size)
    return scale, shift, parameters


def _column(values: Array, rank: int) -> Array:
    return values.reshape(-1, *[1] * (rank - 1))


TAKES: dict[str, Callable[[GraphView, gs.Node, Affine], Change]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batchnorm,
}
