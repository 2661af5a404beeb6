"""Reads off a graph what an input is for: an index into a table, a mask, a length; and how long an axis must be."""

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray

# fmt: off
_SAME_VALUES = {
    "Cast", "CastLike", "Clip", "Dropout", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze",
}
_SAME_AXES = {
    "Add", "BatchNormalization", "Cast", "CastLike", "Clip", "DequantizeLinear", "Div", "Dropout", "Identity",
    "InstanceNormalization", "LayerNormalization", "Mul", "Pad", "QuantizeLinear", "Relu", "Sub",
}
# fmt: on
_SHAPE_SLOTS = {("Reshape", 1), ("Expand", 1), ("Tile", 1), ("ConstantOfShape", 0), ("Resize", 3), ("TopK", 1)}
_SHAPE_SLOTS |= {("Range", slot) for slot in range(3)}
_MAX_STEPS = 200
_MALFORMED = (IndexError, TypeError, ValueError, OverflowError)
"""What reading a node raises that a runtime would refuse."""


@dataclass
class Role:
    """What an input's values stand for.

    Attributes:
        high: Values are indices below this.
        is_shape: Values are sizes.
        is_mask: Values are 0 or 1.
        is_length: Values are numbers of steps.
        axes: The length that the graph's weights demand of an axis.
        choices: Values that the graph compares it with: a mode, such as a sampling rate.
    """

    high: int | None = None
    is_mask: bool = False
    is_length: bool = False
    is_shape: bool = False
    axes: dict[int, int] = field(default_factory=dict)
    choices: set[int] = field(default_factory=set)


class Roles:
    """Follows each input of a graph forward to the operators that tell what it is."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        """Index a graph; its large weights may be stubs, their shapes are enough."""
        self._readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._values: dict[str, NDArray[np.generic]] = {}
        for info in (*graph.input, *graph.value_info, *graph.output):
            dims = info.type.tensor_type.shape.dim
            self._shapes[info.name] = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
        for tensor in graph.initializer:
            self._add_constant(tensor.name, tensor)
        for node in graph.node:
            for slot, name in enumerate(node.input):
                self._readers[name].append((node, slot))
            if node.op_type == "Constant" and (tensor := _constant(node)) is not None:
                self._add_constant(node.output[0], tensor)
            if (
                node.op_type in ("Identity", "DequantizeLinear", "Cast")
                and node.input
                and node.input[0] in self._shapes
            ):
                self._shapes.setdefault(node.output[0], self._shapes[node.input[0]])

    def _add_constant(self, name: str, tensor: onnx.TensorProto) -> None:
        """Remember a constant's shape, and its values if they are few."""
        self._shapes[name] = tuple(tensor.dims)
        small = int(np.prod(tensor.dims)) <= 16 and tensor.data_type != onnx.TensorProto.STRING
        if small and tensor.data_location != onnx.TensorProto.EXTERNAL:
            self._values[name] = onnx.numpy_helper.to_array(tensor)

    def of(self, name: str, rank: int | None) -> Role:
        """Return the role of an input."""
        role = Role()
        self._follow_values(name, role)
        if rank:
            self._follow_axes(name, rank, role)
        low = name.lower()
        role.is_mask = role.is_mask or (role.high is None and "mask" in low)
        role.is_length = role.is_length or (role.high is None and ("length" in low or low.endswith(("_len", "_lens"))))
        return role

    def rank(self, name: str) -> int | None:
        """Return the rank that the first operators demand of an input that declares none."""
        waiting, seen = [name], {name}
        while waiting and len(seen) < _MAX_STEPS:
            tensor = waiting.pop(0)
            for node, slot in self._readers[tensor]:
                weight = self._shapes.get(node.input[1]) if slot == 0 and len(node.input) > 1 else None
                if node.op_type in ("Conv", "ConvTranspose") and weight:
                    return len(weight)
                if node.op_type in ("LSTM", "GRU", "RNN"):
                    return 3
                if node.op_type in ("Gemm", "MatMul") and weight:
                    return 2
                if node.op_type == "Transpose" and (perm := _attribute(node, "perm", [])):
                    return len(perm)
                if node.op_type in _SAME_AXES and node.output[0] not in seen:
                    seen.add(node.output[0])
                    waiting.append(node.output[0])
        return None

    def _follow_values(self, name: str, role: Role) -> None:
        """Walk forward while the values stay what they are, up to where they are used as indices, lengths or sizes."""
        waiting, seen = [(name, 0)], {name}
        while waiting and len(seen) < _MAX_STEPS:
            tensor, shift = waiting.pop()
            for node, slot in self._readers[tensor]:
                with suppress(*_MALFORMED):
                    self._note_use(node, slot, shift, role)
                step = self._shift(node, slot)
                if step is None:
                    continue
                for out in node.output:
                    if out and out not in seen:
                        seen.add(out)
                        waiting.append((out, shift + step))

    def _shift(self, node: onnx.NodeProto, slot: int) -> int | None:
        """Return what a node adds to the values that it passes on, or None if it does not pass them on."""
        if node.op_type in _SAME_VALUES:
            return 0 if slot == 0 else None
        if node.op_type in ("Concat", "Max", "Min"):
            return 0
        if node.op_type == "Where" and slot > 0:
            return 0
        if node.op_type in ("Add", "Sub") and len(node.input) == 2:
            other = self._values.get(node.input[1 - slot])
            if other is None or other.dtype.kind not in "iu":  # a float is no shift of indices
                return None
            if other.size == 1 and (node.op_type == "Add" or slot == 0):
                return int(other.reshape(())) * (1 if node.op_type == "Add" else -1)
        return None

    def _note_use(self, node: onnx.NodeProto, slot: int, shift: int, role: Role) -> None:
        """Take from one reader what it says of the values."""
        high: int | None = None
        data = self._shapes.get(node.input[0]) if node.input else None
        if node.op_type in ("Gather", "GatherElements", "GatherND") and slot == 1 and data:
            high = data[_attribute(node, "axis", 0)] if node.op_type != "GatherND" else min(data)
        elif node.op_type == "OneHot" and slot == 0:
            depth = self._values.get(node.input[1])
            high = int(depth.reshape(-1)[0]) if depth is not None and np.isfinite(depth).all() and depth.size else None
        elif (node.op_type in ("LSTM", "GRU", "RNN") and slot == 4) or (
            node.op_type == "ReverseSequence" and slot == 1
        ):
            role.is_length = True
        elif node.op_type == "Equal":
            other = self._values.get(node.input[1 - slot])
            if other is not None and other.size == 1 and other.dtype.kind in "iu":
                role.choices.add(int(other.reshape(())) - shift)
        elif (node.op_type, slot) in _SHAPE_SLOTS:
            role.is_shape = True
        if high is not None and high > 0:
            high = max(1, high - shift)
            role.high = high if role.high is None else min(role.high, high)

    def _follow_axes(self, name: str, rank: int, role: Role) -> None:
        """Walk forward while axes can be told apart, up to weights that say how long one must be."""
        waiting, seen = [(name, tuple(range(rank)))], {name}
        while waiting and len(seen) < _MAX_STEPS:
            tensor, axes = waiting.pop()
            for node, slot in self._readers[tensor]:
                with suppress(*_MALFORMED):
                    found = self._demand(node, slot, len(axes))
                    if found is not None and found[1] > 0 and axes[found[0]] >= 0:
                        role.axes.setdefault(axes[found[0]], found[1])
                if node.op_type == "Transpose":
                    perm = _attribute(node, "perm", list(range(len(axes)))[::-1])
                    passed = tuple(axes[axis] for axis in perm) if sorted(perm) == list(range(len(axes))) else None
                else:
                    passed = axes if node.op_type in _SAME_AXES and self._keeps_rank(node, slot, len(axes)) else None
                if passed is not None and node.output[0] not in seen:
                    seen.add(node.output[0])
                    waiting.append((node.output[0], passed))

    def _keeps_rank(self, node: onnx.NodeProto, slot: int, rank: int) -> bool:
        """Whether a binary node's other operand does not add axes in front."""
        others = [self._shapes.get(each, ()) for index, each in enumerate(node.input[:2]) if index != slot]
        return node.op_type not in ("Add", "Sub", "Mul", "Div") or all(len(other) <= rank for other in others)

    def _demand(self, node: onnx.NodeProto, slot: int, rank: int) -> tuple[int, int] | None:
        """Return which axis of its data input a node's weights fix, and at what length."""
        if len(node.input) < 2 or slot > 1:
            return None
        weight = self._shapes.get(node.input[1 - slot if node.op_type == "MatMul" else 1])
        if not weight or any(dim < 0 for dim in weight):
            return None
        if node.op_type == "MatMul" and len(weight) >= 2:
            return (rank - 1, weight[-2]) if slot == 0 else (max(rank - 2, 0), weight[-1])
        if slot:
            return None
        if node.op_type in ("Conv", "ConvTranspose") and len(weight) == rank:
            return 1, weight[1] * _attribute(node, "group", 1) if node.op_type == "Conv" else weight[0]
        if node.op_type == "Gemm" and len(weight) == 2:
            return 1 - _attribute(node, "transA", 0), weight[1 if _attribute(node, "transB", 0) else 0]
        if node.op_type in ("LSTM", "GRU", "RNN") and rank == 3:
            return 2, weight[-1]
        if node.op_type in ("BatchNormalization", "InstanceNormalization") and rank >= 2:
            return 1, weight[0]
        if node.op_type == "LayerNormalization" and len(weight) == 1:
            return rank - 1, weight[0]
        return None


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the tensor that a Constant node gives; None for strings and sparse tensors."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return cast(onnx.TensorProto, attribute.t)
        if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            return onnx.numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(attribute)))
    return None


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute's value."""
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default
