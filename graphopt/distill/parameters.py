"""What of a model is trained: weights, biases and scales of its layers; stored as floats or quantized."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from graphopt.errors import ModelError
from graphopt.numerics.grouping import aligned

Array = NDArray[np.float32]

SLOTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
    "Gather": (0,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
}
"""The input slots that take trainable values, by operator; an Add behind a MatMul brings a bias too."""

RECURRENT = ("LSTM", "GRU", "RNN")
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)

MOVES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True)
class Grid:
    """How a quantized weight is stored: ``(level - zero) * scale``, with scale and zero in the weight's full shape."""

    stored: str
    scale: NDArray[np.float64]
    zero: NDArray[np.float64]
    low: int
    high: int
    dtype: "np.dtype[Any]"

    def levels(self, values: Array) -> NDArray[Any]:
        """Return the nearest levels, in the stored type."""
        return self._nearest(values).astype(self.dtype)

    def rounded(self, values: Array) -> Array:
        """Return what the model computes with when ``values`` are stored."""
        return ((self._nearest(values) - self.zero) * self.scale).astype(np.float32)

    def _nearest(self, values: Array) -> NDArray[np.float64]:
        return np.clip(np.round(values.astype(np.float64) / self.scale + self.zero), self.low, self.high)


@dataclass(frozen=True)
class Parameter:
    """One trained tensor.

    Attributes:
        name: Its name; for a quantized weight, of the tensor that DequantizeLinear gives out.
        value: Its values at the start.
        frozen: Where it must stay as it is: zeros of a weight, and whatever belongs to a channel without weights.
        is_weight: Whether it multiplies what a layer reads, so that decay and l1 apply.
        grid: How it is stored, if quantized.
    """

    name: str
    value: Array
    frozen: NDArray[np.bool_]
    is_weight: bool
    grid: Grid | None = None


def find_parameters(proto: onnx.ModelProto, keep_zeros: bool = True) -> list[Parameter]:
    """Return what can be trained in the main graph, in order of use.

    Args:
        proto: The model.
        keep_zeros: Whether zero weights stay zero, and channels without any weight stay as they are.

    Raises:
        ModelError: Nothing can be trained.
    """
    graph = proto.graph
    stored = stored_tensors(proto)
    overridable = {info.name for info in graph.input}
    makers = {name: node for node in graph.node for name in node.output}
    dead: dict[str, NDArray[np.bool_]] = {}
    found: dict[str, Parameter] = {}
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        for slot in _slots(node, makers, stored):
            name, moved = _origin(node.input[slot], makers)
            if name in found or name in overridable:
                continue
            maker = makers.get(name)
            if maker is not None and maker.op_type == "DequantizeLinear":
                parameter = _quantized(maker, stored)
            else:
                parameter = _float(name, stored, slot, node)
            if parameter is None:
                continue
            if keep_zeros:
                parameter = _frozen(parameter, node, slot, moved, dead, stored)
            found[name] = parameter
    if not found:
        raise ModelError("the student has no float32 or quantized weights that could be trained")
    return list(found.values())


def stored_tensors(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the tensors that the main graph stores, in initializers or Constant nodes, by name."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    return stored


def write_values(proto: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Store new values under these names, in place."""
    stored = stored_tensors(proto)
    for name, value in values.items():
        title = stored[name].name
        stored[name].CopyFrom(numpy_helper.from_array(np.asarray(value, order="C"), title))


def _slots(node: NodeProto, makers: Mapping[str, NodeProto], stored: Mapping[str, onnx.TensorProto]) -> list[int]:
    """Return the slots of a node that may take trainable values."""
    if node.op_type == "Add":
        for slot in (0, 1):
            other = makers.get(node.input[1 - slot])
            tensor = stored.get(node.input[slot])
            if tensor is not None and other is not None and other.op_type == "MatMul":
                return [slot] if np.prod(tensor.dims) == max([*tensor.dims, 0]) > 1 else []
        return []
    return [slot for slot in SLOTS.get(node.op_type, ()) if slot < len(node.input) and node.input[slot]]


def _origin(name: str, makers: Mapping[str, NodeProto]) -> tuple[str, bool]:
    """Follow a tensor back through nodes that only move values; tell whether there was one."""
    moved = False
    while (maker := makers.get(name)) is not None and maker.op_type in MOVES:
        name, moved = maker.input[0], moved or maker.op_type != "Identity"
    return name, moved


def _float(name: str, stored: Mapping[str, onnx.TensorProto], slot: int, node: NodeProto) -> Parameter | None:
    """Return a parameter that is stored as float32."""
    tensor = stored.get(name)
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or not np.prod(tensor.dims):
        return None
    value = numpy_helper.to_array(tensor).astype(np.float32)
    bias = 3 if node.op_type in RECURRENT else 2
    is_weight = value.ndim >= 2 and node.op_type in LAYERS and slot != bias
    if node.op_type in ("Gather", "MatMul") and value.ndim < 2:
        return None
    return Parameter(name, value, np.zeros(value.shape, bool), is_weight)


def _quantized(node: NodeProto, stored: Mapping[str, onnx.TensorProto]) -> Parameter | None:
    """Return a parameter that is stored as integers, through DequantizeLinear, with float32 scales."""
    if any(name and name not in stored for name in node.input):
        return None
    levels, scale, *zeros = (numpy_helper.to_array(stored[name]) for name in node.input if name)
    bits = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16}
    kind = levels.dtype.name
    if kind not in bits or scale.dtype != np.float32 or not levels.size:
        return None
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    wide, *given = (
        np.broadcast_to(aligned(each.astype(np.float64), levels.shape, axis, block), levels.shape)
        for each in (scale, *zeros)
    )
    zero = given[0] if given else np.zeros_like(wide)
    if not (wide > 0).all():
        return None
    unsigned = kind.startswith("u")
    width = bits[kind]
    # Three bits are held in four: levels that fit into three stay there.
    for count in (width,) if width != 4 else (4, 3):
        bottom, top = (0, 2**count - 1) if unsigned else (-(2 ** (count - 1)), 2 ** (count - 1) - 1)
        if bottom <= levels.min() and levels.max() <= top:
            low, high = bottom, top
    grid = Grid(node.input[0], wide, zero, low, high, levels.dtype)
    value = ((levels.astype(np.float64) - zero) * wide).astype(np.float32)
    return Parameter(node.output[0], value, np.zeros(value.shape, bool), value.ndim >= 2, grid)


def _frozen(
    parameter: Parameter,
    node: NodeProto,
    slot: int,
    moved: bool,
    dead: dict[str, NDArray[np.bool_]],
    stored: Mapping[str, onnx.TensorProto],
) -> Parameter:
    """Freeze the zeros of a weight, and the bias, scale and shift of channels that have no weight."""
    value = parameter.value
    frozen: NDArray[np.bool_] = np.zeros(value.shape, bool)
    axis = _channel_axis(node)
    if parameter.is_weight and axis is None:
        frozen = frozen if parameter.grid else value == 0
    elif parameter.is_weight and axis is not None:
        others = tuple(index for index in range(value.ndim) if index != axis % value.ndim)
        silent: NDArray[np.bool_] = np.asarray(~value.any(axis=others))
        # A quantized weight has noughts by rounding: only whole channels of them are meant.
        shape = [-1 if index == axis % value.ndim else 1 for index in range(value.ndim)]
        frozen |= silent.reshape(shape) if parameter.grid else value == 0
        if not moved:
            dead[node.output[0]] = silent
    elif node.op_type == "BatchNormalization":
        scale, shift = (numpy_helper.to_array(stored[name]) if name in stored else None for name in node.input[1:3])
        if scale is not None and shift is not None and scale.any():
            frozen = frozen | (scale == 0) & (shift == 0)
        if node.input[0] in dead:
            frozen |= dead[node.input[0]]
    elif slot == 2 or node.op_type == "Add":
        keys = [node.output[0], *node.input]
        known = next((dead[key] for key in keys if key in dead), None)
        if known is not None and known.size == value.size:
            frozen |= known.reshape(value.shape)
    return Parameter(parameter.name, value, frozen, parameter.is_weight, parameter.grid)


def _channel_axis(node: NodeProto) -> int | None:
    """Return the axis of a layer's weight that holds its output channels; None where groups spread them."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attributes.get("group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attributes.get("transB", 0) else 1
    return -1 if node.op_type == "MatMul" else None
