"""Layers that take an affine map of their output into their own weights."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.affine.algebra import Affine, Array, number, require_inference
from graphopt.graph.affine.change import Change, assign, carry
from graphopt.graph.affine.extent import element_type, require_rank
from graphopt.graph.evaluate import evaluate, require_values
from graphopt.graph.view import GraphView
from graphopt.model.links import trim
from graphopt.result import Skip


def conv(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """W[o, ...] becomes W * s[o] and b becomes b * s + t."""
    (weight,) = require_values(view, node.inputs[1])
    scale, shift = affine.along(1, weight.shape[0])
    own = weight if weight.flags.writeable else None  # the copy that was made for float64 takes the product
    scaled = np.multiply(weight, scale.reshape(-1, *[1] * (weight.ndim - 1)), out=own)
    return _weight_and_bias(view, node, scaled, scale, shift)


def conv_transpose(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """W[i, o within the group, ...] becomes W * s[o] and b becomes b * s + t; the groups divide the first axis."""
    (weight,) = require_values(view, node.inputs[1])
    group, width = int(number(node, "group", 1)), weight.shape[1]
    scale, shift = affine.along(1, width * group)
    scaled = weight.reshape(group, -1, *weight.shape[1:]) * scale.reshape(group, 1, width, *[1] * (weight.ndim - 2))
    return _weight_and_bias(view, node, scaled.reshape(weight.shape), scale, shift)


def gemm(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """With Y = alpha * A B + beta * C: B becomes B * s and C becomes beta * C * s + t, with a beta of 1."""
    (weight,) = require_values(view, node.inputs[1])
    rows = bool(number(node, "transB", 0))
    scale, shift = affine.along(1, weight.shape[0 if rows else 1])
    offset = gemm_offset(view, node)
    return set_gemm(view, node, weight * (scale[:, None] if rows else scale), offset, offset * scale + shift)


def matmul(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """The weight's columns (its rows, if it stands left) become W * s; a shift becomes an Add behind the MatMul."""
    side = constant_side(view, node)
    (weight,) = require_values(view, node.inputs[side])
    if weight.ndim < 2:
        raise Skip(f"{node.inputs[side].name!r} is a vector")
    axis = require_rank(view, node.outputs[0]) - (1 if side else 2) if affine.varying() else 1
    scale, shift = affine.along(axis, weight.shape[-1 if side else -2])
    change = assign(view, node, {side: weight * (scale if side else scale[:, None])}, like=side)
    return add_behind(view, node, change, shift if side else shift[:, None], side) if shift.any() else change


def batchnorm(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """Gamma becomes gamma * s and beta becomes beta * s + t."""
    require_inference(view, node)
    return channel_norm(view, node, affine)


def channel_norm(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """A normalization's scale becomes scale * s and its bias becomes bias * s + t."""
    own_scale, own_shift = require_values(view, node.inputs[1], node.inputs[2])
    scale, shift = affine.along(1, own_scale.size)
    return assign(view, node, {1: own_scale * scale, 2: own_shift * scale + shift})


def layer_norm(view: GraphView, node: gs.Node, affine: Affine) -> Change:
    """As for the others, but scale and bias lie along the normalized axes, and the bias may be absent."""
    own_scale, *own_shift = require_values(view, node.inputs[1], *[t for t in list(node.inputs)[2:] if t.name])
    first = int(number(node, "axis", -1))
    rank = require_rank(view, node.inputs[0]) if affine.varying() or first < 0 else affine.scale.ndim
    first %= max(rank, 1)
    if affine.varying() & set(range(first)):
        raise Skip(f"it varies along axis {min(affine.varying())}, which {node.outputs[0].name!r} does not normalize")
    scale, shift = (values.reshape(values.shape[first:]) for values in affine.padded(rank))
    if np.broadcast_shapes(scale.shape, own_scale.shape) != own_scale.shape:
        raise Skip(f"{node.inputs[1].name!r} has the shape {own_scale.shape}, the map {scale.shape}")
    values = {1: own_scale * scale}
    if own_shift or shift.any():
        if node.op == "RMSNormalization":
            raise Skip(f"RMSNormalization {node.outputs[0].name!r} has no bias")
        values[2] = np.broadcast_to((own_shift[0] if own_shift else 0.0) * scale + shift, own_scale.shape)
    return assign(view, node, values)


def neutralize(view: GraphView, node: gs.Node) -> Change:
    """Agree on a scale of one and a bias of zero for a normalization; a bias that may be absent goes."""
    scale, *bias = require_values(view, node.inputs[1], *[tensor for tensor in list(node.inputs)[2:] if tensor.name])
    if node.op != "LayerNormalization":
        return assign(view, node, {1: np.ones_like(scale), 2: np.zeros_like(bias[0])})
    change = assign(view, node, {1: np.ones_like(scale)})

    def make() -> None:
        change.make()
        if bias:
            view.edit.set_input(node, 2, gs.Variable.empty())
            trim(node.inputs)

    return replace(change, make=make)


def gemm_offset(view: GraphView, node: gs.Node) -> Array:
    """Return beta * C of a Gemm; zero if it has no C."""
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return np.zeros(1)
    (offset,) = require_values(view, node.inputs[2])
    return offset * number(node, "beta", 1.0)


def set_gemm(view: GraphView, node: gs.Node, weight: Array, old: Array, offset: Array) -> Change:
    """Agree on a Gemm's new B and C, where C counts fully."""
    if not offset.any() and (len(node.inputs) < 3 or not node.inputs[2].name):
        return assign(view, node, {1: weight})
    if view.opset < 7 and old.shape != offset.shape:
        raise Skip("Gemm before opset 7 broadcasts by attributes")
    change = assign(view, node, {1: weight, 2: offset})

    def make() -> None:
        change.make()
        node.attrs.pop("beta", None)

    return replace(change, make=make)


def constant_side(view: GraphView, node: gs.Node) -> int:
    """Return the slot of a MatMul's constant operand."""
    for side in (1, 0):
        if evaluate(view, node.inputs[side]) is not None:
            return side
    raise Skip(f"neither operand of MatMul {node.outputs[0].name!r} is constant")


def add_behind(view: GraphView, node: gs.Node, change: Change, shift: Array, like: int) -> Change:
    """Agree on ``change`` and on an Add of a constant behind ``node``."""
    narrow = carry(shift, element_type(view, node.inputs[like]), f"bias of {node.outputs[0].name}")

    def make() -> None:
        change.make()
        out = node.outputs[0]
        inner = view.variable_like(f"{out.name}_{node.op}", out)
        view.edit.set_output(node, 0, inner)
        view.edit.add_node(node, "Add", [inner, view.edit.constant(f"{out.name}_bias", narrow)], [out])

    return replace(change, make=make, adds=change.adds + 1)


def _weight_and_bias(view: GraphView, node: gs.Node, weight: Array, scale: Array, shift: Array) -> Change:
    """Agree on a convolution's new weight, and on its bias if it had or now needs one."""
    values = {1: weight}
    if len(node.inputs) > 2 and node.inputs[2].name:
        (bias,) = require_values(view, node.inputs[2])
        values[2] = bias * scale + shift
    elif shift.any():
        values[2] = np.array(shift)
    return assign(view, node, values)


TAKES: dict[str, Callable[[GraphView, gs.Node, Affine], Change]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "BatchNormalization": batchnorm,
    "InstanceNormalization": channel_norm,
    "GroupNormalization": channel_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": layer_norm,
}
