"""Biases of layers whose inputs and weights are quantized: found, corrected, and stored as int32 or float."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.added_bias import added_bias
from graphopt.graph.evaluate import evaluate
from graphopt.graph.view import GraphView, is_op
from graphopt.numerics.quantization import Floats, Quantized, with_scales

_LARGEST = 2**31 - 1


@dataclass
class Bias:
    """The constant that a layer adds, one value per channel.

    Attributes:
        node: The operator that reads it: the layer, or the Add behind a MatMul.
        slot: The input of ``node`` that it is.
        values: The bias.
        output: The tensor that the bias is part of.
        axis: The axis of ``output`` that holds the channels.
        rank: The rank of ``output``.
        fits: Whether it is added as it is, so that it can be int32 at the product of the scales.
        scale: The scales to store it with, as int32; None leaves it float.
        shift: What to add to it.
    """

    node: gs.Node
    slot: int
    values: Floats
    output: gs.Tensor
    axis: int
    rank: int
    fits: bool = True
    scale: Floats | None = None
    shift: Floats | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes it takes as an integer with its scales; 0 if it stays a float, as it was."""
        return 0 if self.scale is None else self.values.size * 8

    def write(self, view: GraphView) -> None:
        """Store it: int32 with DequantizeLinear, or as it was but for the shift."""
        values = self.values if self.shift is None else self.values + self.shift
        if self.scale is None:
            if self.shift is not None:
                stored = view.array(self.node.inputs[self.slot])
                view.edit.set_values(self.node, self.slot, values if stored is None else values.reshape(stored.shape))
            return
        name, scale = str(self.node.inputs[self.slot].name), self.scale.astype(np.float32)
        levels = np.clip(np.rint(values / scale.astype(np.float64)), -_LARGEST, _LARGEST).astype(np.int32)
        inputs = [view.edit.constant(f"{name}_q", levels), view.edit.constant(f"{name}_s", scale)]
        real = view.edit.variable(f"{name}_dq")
        view.edit.add_node(self.node, "DequantizeLinear", inputs, [real], {"axis": 0}).name = ""
        view.edit.set_input(self.node, self.slot, real)


def find_bias(view: GraphView, node: gs.Node, shape: tuple[int, ...], axis: int | None) -> Bias | None:
    """Return the bias of a layer of the main graph: constant, finite, one value per channel; None if there is none.

    Args:
        view: The model.
        node: The layer.
        shape: Of its weight.
        axis: The axis of the weight that holds the channels, if there is one.
    """
    channels = 0 if axis is None else shape[axis]
    if is_op(node, "MatMul"):
        return _added(view, node, channels)
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return None
    values = evaluate(view, node.inputs[2])
    if values is None or values.shape != (channels,) or not np.isfinite(values).all():
        return None
    factors = [node.attrs.get(name, 1.0) for name in ("alpha", "beta")]
    if factors[1] != 1.0:
        return None
    return Bias(node, 2, values.astype(np.float64), node.outputs[0], 1, len(shape), factors[0] == 1.0)


def _added(view: GraphView, node: gs.Node, channels: int) -> Bias | None:
    """Return the bias that an Add behind a MatMul brings.

    ONNX Runtime makes a Gemm of the two where the MatMul is of matrices, or all sizes are known, and computes that on
    integers only if the bias is int32; elsewhere the Add stays by itself, and so does a float bias.
    """
    given, shape = view.shape(node.inputs[0]), view.shape(node.outputs[0])
    found = added_bias(view, node, channels)
    if shape is None or found is None or not 0 < found.values.ndim <= len(shape):
        return None
    adder, slot, values = found
    if not np.isfinite(values).all() or view.edit.graph_of(adder) is not view.model.graph:
        return None
    fits = given is not None and (len(given) == 2 or all(isinstance(size, int) for size in given))
    return Bias(adder, slot, values.astype(np.float64).reshape(-1), adder.outputs[0], len(shape) - 1, len(shape), fits)


def with_room_for(values: NDArray[Any], quantized: Quantized, bias: Floats) -> Quantized:
    """Widen the scales of channels whose bias would overflow int32, and of empty ones, whose scale is free.

    Args:
        values: The weight.
        quantized: Its quantized form.
        bias: The largest absolute bias of each channel, in units of the scale of the layer's input.
    """
    scale = quantized.scale.astype(np.float64)
    least = bias / 2.0**30
    empty = _peak_levels(quantized) == 0
    usual = float(np.sort(scale[~empty])[(~empty).sum() // 2]) if (~empty).any() else 1.0
    wider = np.maximum(np.where(empty, usual, scale), least).astype(np.float32)
    return quantized if (wider == quantized.scale).all() else with_scales(values, quantized, wider)


def _peak_levels(quantized: Quantized) -> Floats:
    """Return the largest level of each channel."""
    axis = quantized.grouping.axis or 0
    others = tuple(other for other in range(quantized.levels.ndim) if other != axis)
    peak: Floats = np.abs(quantized.levels.astype(np.float64)).max(axis=others)
    return peak
