"""Layers that multiply their input with a stored weight and add a bias, seen as matrices."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.added_bias import added_bias
from graphopt.graph.dequantize import is_dequantized
from graphopt.graph.symbolic.fact import element_type
from graphopt.graph.view import GraphView
from graphopt.numerics.patches import output_rows, patch_rows, same_pads, windows
from graphopt.result import Skip

Array = NDArray[np.float64]
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class LinearLayer(ABC):
    """One layer: outputs = rows of the input times ``weight`` transposed, plus ``bias``, group by group.

    Attributes:
        node: The operator.
        output: What the layer gives out, its bias included.
        axis: The axis of ``output`` that holds its channels.
        weight: [G, M, K]; None if it is not to be written (quantized, or of an operator whose rows are not known).
        bias: [G, M]; zeros if the layer has none yet, None if it cannot be given one.
    """

    node: gs.Node
    output: gs.Tensor
    axis: int
    weight: Array | None
    bias: Array | None

    @property
    def input(self) -> gs.Tensor:
        """What the layer reads."""
        return self.node.inputs[0]

    @abstractmethod
    def rows(
        self, x: NDArray[Any], y: NDArray[Any], limit: int, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return matching rows [G, rows, K] and [G, rows, M] of input and output values, about ``limit`` of them."""

    @abstractmethod
    def write(self, view: GraphView, weight: Array | None, bias: Array | None) -> None:
        """Store new parameters, of the shapes of ``weight`` and ``bias``; None leaves them.

        Raises:
            Skip: They overflow the type of the stored ones; nothing has been changed then.
        """


def read_layer(view: GraphView, node: gs.Node) -> LinearLayer:
    """Return a layer's parameters.

    Raises:
        Skip: Its weight or bias is computed, shared with another layer, or of a form that is not handled.
    """
    if node.op == "Gemm":
        return _read_gemm(view, node)
    return _read_matmul(view, node) if node.op == "MatMul" else _read_conv(view, node)


def channel_rows(layer: LinearLayer, values: NDArray[Any]) -> NDArray[Any]:
    """Return an output's values channel by channel, [channels, rows, 1]."""
    moved = np.moveaxis(values, layer.axis, 0)
    return moved.reshape(moved.shape[0], -1, 1)


# -- convolutions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Convolution(LinearLayer):
    """Conv; a ConvTranspose too, but only its bias. ``shape`` is that of the weight as it is stored."""

    shape: tuple[int, ...] = ()

    def rows(
        self, x: NDArray[Any], y: NDArray[Any], limit: int, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Take the patches at randomly chosen positions, the same for all samples of the batch."""
        attributes, rank = self.node.attrs, x.ndim - 2
        groups, kernel = int(attributes.get("group", 1)), self.shape[2:]
        strides = attributes.get("strides") or [1] * rank
        dilations = attributes.get("dilations") or [1] * rank
        mode = attributes.get("auto_pad", "NOTSET")
        pads = attributes.get("pads") or [0] * 2 * rank
        if mode != "NOTSET":
            same = mode in ("SAME_UPPER", "SAME_LOWER")
            pads = same_pads(mode, x.shape[2:], kernel, strides, dilations) if same else [0] * 2 * rank
        count = math.prod(y.shape[2:])
        positions = np.arange(count)
        if (fitting := max(1, limit // max(1, len(x)))) < count:
            positions = np.sort(rng.choice(count, fitting, replace=False))
        seen = windows(x, kernel, strides, dilations, pads)
        return patch_rows(seen, groups, positions), output_rows(y, groups, positions)

    def write(self, view: GraphView, weight: Array | None, bias: Array | None) -> None:
        """Write in the shapes [M, C / G, *kernel] and [M]."""
        flat = None if bias is None else bias.reshape(-1)
        if weight is not None and flat is not None:
            view.edit.replace_weights(self.node, weight.reshape(self.shape), flat)
        elif flat is not None:
            _write_bias(view, self.node, 2, flat)


def _read_conv(view: GraphView, node: gs.Node) -> LinearLayer:
    outputs, groups = _channels(view, node.outputs[0]), node.attrs.get("group", 1)
    if not isinstance(groups, int):
        raise Skip("the number of groups is an attribute of a function")
    weight = None if node.op == "ConvTranspose" else _weight(view, node, 1)
    declared = view.shape(node.inputs[1]) if weight is None else weight.shape
    shape = tuple(size for size in declared or () if isinstance(size, int))
    if weight is not None:
        outputs, weight = len(weight), weight.reshape(groups, len(weight) // groups, -1)
    bias = _bias(view, node, 2, outputs)
    shaped = bias if weight is None else bias.reshape(weight.shape[:2])
    return _Convolution(node, node.outputs[0], 1, weight, shaped, shape)


# -- dense layers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Dense(LinearLayer):
    """Gemm, or MatMul with the Add behind it that brings its bias; ``adder`` is the node and slot of the bias."""

    transposed: bool = False
    factors: tuple[float, float] = (1.0, 1.0)
    adder: tuple[gs.Node, int] | None = None

    def rows(
        self, x: NDArray[Any], y: NDArray[Any], limit: int, rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Take randomly chosen rows."""
        inputs, outputs = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        if limit < len(inputs):
            chosen = np.sort(rng.choice(len(inputs), limit, replace=False))
            inputs, outputs = inputs[chosen], outputs[chosen]
        return inputs[None], outputs[None]

    def write(self, view: GraphView, weight: Array | None, bias: Array | None) -> None:
        """Write in the layout of the operator, its factors divided out."""
        alpha, beta = self.factors
        matrix = None if weight is None else weight[0] / alpha
        if matrix is not None and not self.transposed:
            matrix = matrix.T
        flat = None if bias is None else bias.reshape(-1) / beta
        if self.node.op == "Gemm" and matrix is not None and flat is not None:
            view.edit.replace_weights(self.node, matrix, flat)
            return
        if flat is not None and self.adder is not None:
            _write_bias(view, *self.adder, flat)
        if matrix is not None:
            view.edit.set_values(self.node, 1, matrix)


def _read_gemm(view: GraphView, node: gs.Node) -> LinearLayer:
    transposed, alpha, beta = (node.attrs.get(k, d) for k, d in (("transB", 0), ("alpha", 1.0), ("beta", 1.0)))
    if node.attrs.get("transA", 0):
        raise Skip("its input is transposed (transA)")
    if not all(isinstance(factor, (int, float)) for factor in (transposed, alpha, beta)) or not alpha or not beta:
        raise Skip(f"alpha is {alpha!r} and beta {beta!r}")
    weight = _weight(view, node, 1)
    matrix = None if weight is None else (weight if transposed else weight.T) * alpha
    bias = _bias(view, node, 2, _channels(view, node.outputs[0]) if matrix is None else len(matrix)) * beta
    shaped = None if matrix is None else matrix[None]
    return _Dense(
        node, node.outputs[0], -1, shaped, bias[None], bool(transposed), (float(alpha), float(beta)), (node, 2)
    )


def _read_matmul(view: GraphView, node: gs.Node) -> LinearLayer:
    weight = _weight(view, node, 1)
    if weight is not None and weight.ndim != 2:
        raise Skip(f"its weight has rank {weight.ndim}")
    matrix = None if weight is None else weight.T[None]
    outputs = _channels(view, node.outputs[0]) if matrix is None else matrix.shape[1]
    found = added_bias(view, node, outputs)
    if found is not None and view.array(found.node.inputs[found.slot]) is not None:
        bias = _bias(view, found.node, found.slot, outputs)
        return _Dense(node, found.node.outputs[0], -1, matrix, bias[None], adder=(found.node, found.slot))
    return _Dense(node, node.outputs[0], -1, matrix, None)


# -- parameters --------------------------------------------------------------------------------------------------------


def _weight(view: GraphView, node: gs.Node, slot: int) -> Array | None:
    """Return a weight that only this layer reads; None if it is stored quantized."""
    tensor = node.inputs[slot]
    if view.array(tensor) is None and is_dequantized(view, tensor):
        return None
    (weight,) = view.require_constants(tensor)
    _require_own(view, tensor)
    return weight


def _bias(view: GraphView, node: gs.Node, slot: int, outputs: int) -> Array:
    """Return a bias as [outputs]; zeros if the slot is empty."""
    if slot >= len(node.inputs) or node.inputs[slot].is_empty():
        return np.zeros(outputs)
    tensor = node.inputs[slot]
    (bias,) = view.require_constants(tensor)
    if bias.size not in (1, outputs):
        raise Skip(f"its bias {tensor.name!r} has shape {list(bias.shape)}")
    return np.broadcast_to(bias.reshape(-1), outputs).astype(np.float64)


def _write_bias(view: GraphView, node: gs.Node, slot: int, bias: Array) -> None:
    """Write a bias in its own type, or in that of the layer's float weight where there was none."""
    if slot < len(node.inputs) and not node.inputs[slot].is_empty():
        view.edit.set_values(node, slot, bias)
        return
    view.edit.set_values(node, slot, bias, dtype=_element_type(view, node))


def _element_type(view: GraphView, node: gs.Node) -> "np.dtype[Any]":
    """Return the element type that a layer computes in; float32 if neither the file nor the graph tells."""
    around = [node.outputs[0], *node.inputs[:2]]
    told = [element_type(tensor) or view.facts.type(tensor) for tensor in around]
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(next(filter(None, told), onnx.TensorProto.FLOAT)))


def _require_own(view: GraphView, tensor: gs.Tensor) -> None:
    """Raise Skip if another node reads a weight."""
    if view.is_output(tensor):
        raise Skip(f"its weight {tensor.name!r} is a graph output")
    if (count := len(view.readers(tensor))) > 1:
        raise Skip(f"its weight {tensor.name!r} is shared by {count} nodes")


def _channels(view: GraphView, tensor: gs.Tensor) -> int:
    """Return how many channels the output of a layer has whose weight is not at hand."""
    shape = view.shape(tensor)
    axis = 1 if view.producer(tensor, "Conv", "ConvTranspose") else -1
    size = None if shape is None or len(shape) < 2 else shape[axis]
    if not isinstance(size, int):
        raise Skip(f"the number of channels of {tensor.name!r} is unknown")
    return size
