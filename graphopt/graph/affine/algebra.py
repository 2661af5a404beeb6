"""Affine maps along a tensor's axes: y = scale * x + shift, however an exporter has written them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike, NDArray

from graphopt.graph.affine.extent import dimension, require_rank
from graphopt.graph.evaluate import evaluate, require_values
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip

Array = NDArray[np.float64]

FARTHEST = 24
"""A layer that takes a map is looked for among so many operators one behind the other."""

_PLAIN = (int, float, str, list, gs.Tensor, gs.Graph)
_EPSILON = float(np.float32(1e-5))


@dataclass(frozen=True, eq=False)
class Affine:
    """One elementwise map y = scale * x + shift.

    Both arrays have the same shape, lined up with the *leading* axes of the tensor: a dimension of 1, or one that is
    missing at the end, means that the map does not vary along that axis. So the rank need not be known.
    """

    scale: Array
    shift: Array

    @staticmethod
    def of(scale: ArrayLike, shift: ArrayLike) -> "Affine":
        """Build a map from arrays that are lined up with the leading axes; axes along which nothing varies shrink."""
        wide_scale, wide_shift = (np.asarray(values, dtype=np.float64) for values in (scale, shift))
        rank = max(wide_scale.ndim, wide_shift.ndim)
        both = np.stack(np.broadcast_arrays(_trailing_ones(wide_scale, rank), _trailing_ones(wide_shift, rank)))
        for axis in range(1, both.ndim):
            first = both.take([0], axis) if both.shape[axis] > 1 else both
            if both.shape[axis] > 1 and (both == first).all():
                both = first
        while both.ndim > 1 and both.shape[-1] == 1:
            both = both[..., 0]
        return Affine(both[0], both[1])

    @staticmethod
    def per_channel(scale: ArrayLike, shift: ArrayLike) -> "Affine":
        """Build the map of a vector along axis 1."""
        return Affine.of(np.asarray(scale)[None], np.asarray(shift)[None])

    def then(self, after: "Affine") -> "Affine":
        """Return the map that applies this one first and ``after`` second."""
        rank = max(self.scale.ndim, after.scale.ndim)
        scale, shift = self.padded(rank)
        after_scale, after_shift = after.padded(rank)
        return Affine.of(scale * after_scale, shift * after_scale + after_shift)

    def padded(self, rank: int) -> tuple[Array, Array]:
        """Return scale and shift with ``rank`` dimensions.

        Raises:
            Skip: The map varies along an axis that a tensor of this rank does not have.
        """
        if self.scale.ndim > rank:
            raise Skip(f"it varies along axis {self.scale.ndim - 1} of a tensor of rank {rank}")
        return _trailing_ones(self.scale, rank), _trailing_ones(self.shift, rank)

    def along(self, axis: int, size: int) -> tuple[Array, Array]:
        """Return scale and shift as vectors of ``size`` along one axis.

        Raises:
            Skip: The map varies along another axis, or has another size.
        """
        if self.varying() - {axis}:
            raise Skip(f"it varies along axis {min(self.varying() - {axis})}, the layer's channels are axis {axis}")
        scale, shift = self.scale.reshape(-1), self.shift.reshape(-1)
        if scale.size not in (1, size):
            raise Skip(f"it has {scale.size} channels, the layer {size}")
        return np.broadcast_to(scale, size), np.broadcast_to(shift, size)

    def insert_axes(self, axes: Sequence[int]) -> "Affine":
        """Return the map along the axes that there are after ``axes`` of size 1 came in (positions after)."""
        wide = self.padded(max(self.scale.ndim, max(axes, default=0) + 1))
        return Affine.of(*(np.expand_dims(values, tuple(axes)) for values in wide))

    def delete_axes(self, axes: Sequence[int]) -> "Affine":
        """Return the map along the axes that remain when ``axes`` go.

        Raises:
            Skip: The map varies along one of them.
        """
        if self.varying() & set(axes):
            raise Skip(f"it varies along axis {min(self.varying() & set(axes))}, which goes")
        wide = self.padded(max(self.scale.ndim, max(axes, default=0) + 1))
        return Affine.of(*(np.squeeze(values, tuple(axes)) for values in wide))

    def varying(self) -> set[int]:
        """Return the axes along which the map varies."""
        return {axis for axis, size in enumerate(self.scale.shape) if size > 1}

    def aligned(self, rank: int) -> tuple[Array, Array]:
        """Return scale and shift as constants that broadcast against a tensor of this rank, as Mul and Add do."""
        first = min(self.varying(), default=rank)
        scale, shift = self.padded(rank)
        return scale.reshape(scale.shape[first:]), shift.reshape(shift.shape[first:])

    @property
    def scales(self) -> bool:
        """Whether any scale is not one."""
        return bool((self.scale != 1).any())

    @property
    def shifts(self) -> bool:
        """Whether any shift is not zero."""
        return bool(self.shift.any())


def batchnorm(view: GraphView, node: gs.Node) -> Affine:
    """Return the map along axis 1 that an inference-mode BatchNormalization is.

    With s = gamma / sqrt(var + epsilon): scale is s and shift is beta - mean * s.

    Raises:
        Skip: It is in training mode, has per-element statistics, or its parameters are not constant or not usable.
    """
    require_plain(node)
    require_inference(view, node)
    gamma, beta, mean, var = require_values(view, *list(node.inputs)[1:5])
    if not number(node, "spatial", 1) and gamma.ndim > 1:
        raise Skip("spatial=0: the statistics are per element, not per channel")
    if not gamma.shape == beta.shape == mean.shape == var.shape or gamma.ndim != 1:
        raise Skip(f"its parameters have shapes {gamma.shape}, {beta.shape}, {mean.shape}, {var.shape}")
    if (var < 0).any():
        raise Skip(f"negative variance {var.min():.3g} in {node.inputs[4].name!r}")
    spread = var + number(node, "epsilon", _EPSILON)
    if not (spread > 0).all():
        raise Skip(f"variance plus epsilon is {spread.min():.3g} in {node.inputs[4].name!r}")
    scale = gamma / np.sqrt(spread)
    return Affine.per_channel(scale, beta - mean * scale)


def normalization(view: GraphView, node: gs.Node) -> Affine:
    """Return the affine part of an InstanceNormalization or LayerNormalization: what it applies after normalizing.

    Raises:
        Skip: Its parameters are not constant, or the rank of its input is unknown.
    """
    require_plain(node)
    scale, *bias = require_values(view, node.inputs[1], *[tensor for tensor in list(node.inputs)[2:] if tensor.name])
    shift = bias[0] if bias else np.zeros(1)
    if node.op == "InstanceNormalization":
        return Affine.per_channel(scale, shift)
    first = int(number(node, "axis", -1)) % require_rank(view, node.inputs[0])
    wide = np.broadcast_arrays(scale, shift)
    return Affine.of(*(values.reshape((1,) * first + values.shape) for values in wide))


def require_inference(view: GraphView, node: gs.Node) -> None:
    """Raise Skip if a BatchNormalization takes its statistics from the batch."""
    if number(node, "training_mode", 0):
        raise Skip("training mode: the statistics come from the batch")
    if any(out.name for out in list(node.outputs)[1:]):
        raise Skip("training mode: it gives out the statistics of the batch")
    if view.opset < 7 and not number(node, "is_test", 0):
        raise Skip("training mode: is_test is not set")


def require_plain(node: gs.Node) -> None:
    """Raise Skip if an attribute of ``node`` is set by the caller of its function, or empty."""
    for name, value in node.attrs.items():
        if not isinstance(value, _PLAIN):
            cause = "set by the caller of its function" if isinstance(value, gs.Node.AttributeRef) else "empty"
            raise Skip(f"attribute {name!r} of {node.op} {node.outputs[0].name!r} is {cause}")


def number(node: gs.Node, name: str, default: float) -> float:
    """Return a numeric attribute.

    Raises:
        Skip: It is no number.
    """
    value = node.attrs.get(name, default)
    if not isinstance(value, (int, float)):
        raise Skip(f"attribute {name!r} is not a plain number")
    return value


def arithmetic(view: GraphView, node: gs.Node) -> tuple[gs.Tensor, Affine] | None:
    """Read Add, Sub, Mul or Div by a constant, or Neg, as a map of the operand that is not constant.

    Returns:
        The operand and its map, or None if the node is nothing of the kind.

    Raises:
        Skip: It is, but its constant holds NaN, Inf or zero to divide by, or would broadcast the operand.
    """
    if is_op(node, "Neg"):
        return node.inputs[0], Affine.of(-1.0, 0.0)
    if not is_op(node, "Add", "Sub", "Mul", "Div"):
        return None
    left, right = node.inputs
    known = [evaluate(view, left) is not None, evaluate(view, right) is not None]
    if not has_constant_operand(view, node) or (node.op == "Div" and known[0]):
        return None
    operand, constant = (right, left) if known[0] else (left, right)
    if view.opset < 7:
        raise Skip(f"{node.op} before opset 7 broadcasts by attributes")
    (raw,) = require_values(view, constant)
    values = _lead_aligned(view, operand, raw, constant)
    if node.op == "Add":
        return operand, Affine.of(1.0, values)
    if node.op == "Sub":
        return operand, Affine.of(-1.0, values) if known[0] else Affine.of(1.0, -values)
    if node.op == "Mul":
        return operand, Affine.of(values, 0.0)
    if not values.all():
        raise Skip(f"{constant.name!r} divides by zero")
    return operand, Affine.of(1.0 / values, 0.0)


def has_constant_operand(view: GraphView, node: gs.Node) -> bool:
    """Whether one of the two operands of ``node`` is a floating-point constant, and the other is not constant."""
    left, right = (evaluate(view, tensor) for tensor in node.inputs)
    return (left is None) != (right is None) and (is_float(left) or is_float(right))


def is_float(values: NDArray[np.generic] | None) -> bool:
    """Whether values are of a floating-point type; integer arithmetic is no affine algebra."""
    return values is not None and (values.dtype.kind == "f" or values.dtype.name == "bfloat16")


def _lead_aligned(view: GraphView, operand: gs.Tensor, values: Array, constant: gs.Tensor) -> Array:
    """Line a constant up with the operand's leading axes; refuse one that makes the operand larger."""
    if values.ndim == 0:
        return values
    axes = require_rank(view, operand)
    if values.ndim > axes:
        raise Skip(f"{constant.name!r} has more axes than {operand.name!r}")
    values = values.reshape((1,) * (axes - values.ndim) + values.shape)
    for axis, size in enumerate(values.shape):
        if size > 1 and dimension(view, operand, axis) != size:
            raise Skip(f"{constant.name!r} may broadcast {operand.name!r} along axis {axis}")
        if size == 0:
            raise Skip(f"{constant.name!r} is empty")
    return values


def _trailing_ones(values: Array, rank: int) -> Array:
    return values.reshape(values.shape + (1,) * (rank - values.ndim))
