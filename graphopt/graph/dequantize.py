"""Puts a quantized weight into the graph, in place of the float tensor that it stands for."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.view import GraphView, is_op
from graphopt.numerics.grouping import Grouping
from graphopt.numerics.quantization import Quantized

Representation = Literal["dq", "qdq", "mul"]

PREFERRED_OPSET = 19
FP16_SCALE_OPSET = 19
PER_AXIS_OPSET = 13
BLOCK_OPSET = 21
_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
_CAST_OPSETS = {"int4": 21, "uint4": 21, "int3": 21, "uint3": 21, "int2": 25, "float8": 19}


def lowest_opset(kind: str, dequantize_opset: int, grouping: Grouping, form: Representation) -> int:
    """Return the first opset in which a weight of this type and grouping can be written in this form."""
    if form == "mul":
        return _CAST_OPSETS.get(kind, 7)
    axis = 0 if grouping.axis is None else PER_AXIS_OPSET if grouping.block is None else BLOCK_OPSET
    return max(dequantize_opset, axis)


class Writer:
    """Writes one quantized weight in place of the stored tensor ``source`` of graph ``home``, which is of ``dtype``."""

    def __init__(self, view: GraphView, source: gs.Tensor, home: gs.Graph, dtype: "np.dtype[np.generic]") -> None:
        self._view = view
        self._source = source
        self._near = home.nodes[0]
        self._name = str(source.name)
        self._dtype = dtype

    def write(self, quantized: Quantized, form: Representation, rank: int | None = None) -> None:
        """Make the readers of the tensor read its quantized form; the float tensor stays only in the form ``qdq``.

        A Cast follows where the type of the scales is not the type of the tensor. ``rank`` (not in the form ``qdq``)
        stores integers of that rank, with axes of size one in front or without those at the end; a Reshape follows.
        """
        result = whole = self._result(form)
        if rank is not None and form != "qdq":
            result = self._view.edit.variable(f"{self._name}_m")
            self._add("Reshape", [result, self._constant("h", np.array(quantized.levels.shape, np.int64))], whole)
            quantized = _of_rank(quantized, rank)
        same = quantized.scale.dtype == self._dtype
        last = result if same else self._view.edit.variable(f"{self._name}_f")
        {"dq": self._dq, "qdq": self._qdq, "mul": self._mul}[form](quantized, last)
        if not same:
            self._add("Cast", [last], result, to=_onnx_type(self._dtype))

    def _result(self, form: Representation) -> gs.Tensor:
        """Return the tensor that readers are to read, and free it from what produced it."""
        if form == "qdq":
            result = self._view.edit.variable(f"{self._name}_dq")
            self._view.edit.replace_uses(self._source, result)
            return result
        if isinstance(self._source, gs.Constant):
            result = gs.Variable(self._name)
            self._view.edit.replace_uses(self._source, result)
            return result
        self._view.edit.remove([self._source.inputs[0]])
        return self._source

    def _dq(self, quantized: Quantized, out: gs.Tensor) -> None:
        """Integers and DequantizeLinear."""
        levels = self._constant("q", quantized.levels)
        self._add("DequantizeLinear", [levels, *self._parameters(quantized)], out, **_axis(quantized.grouping))

    def _qdq(self, quantized: Quantized, out: gs.Tensor) -> None:
        """Float weight, QuantizeLinear and DequantizeLinear; the zero point tells the type, so it is never left out."""
        zero = quantized.zero_point
        if zero is None:
            zero = np.zeros(quantized.scale.shape, quantized.affine.kind.dtype)
        parameters = [self._constant("s", quantized.scale), self._constant("z", zero)]
        wide = self._source
        if quantized.scale.dtype != self._dtype:
            wide = self._view.edit.variable(f"{self._name}_w")
            self._add("Cast", [self._source], wide, to=_onnx_type(quantized.scale.dtype))
        levels = self._view.edit.variable(f"{self._name}_q")
        self._add("QuantizeLinear", [wide, *parameters], levels, **_axis(quantized.grouping))
        self._add("DequantizeLinear", [levels, *parameters], out, **_axis(quantized.grouping))

    def _mul(self, quantized: Quantized, out: gs.Tensor) -> None:
        """Integers, Cast and Mul, with Sub before it if there is a zero point; blocks get an axis of their own.

        Not if one block fills the axis: OpenVINO 2026.4 could not load it as float8.
        """
        shape, grouping = quantized.levels.shape, quantized.grouping
        levels, scale, zero = quantized.levels, quantized.scale, quantized.zero_point
        if grouping.axis is not None and grouping.block == shape[grouping.axis]:
            pass
        elif grouping.axis is not None and grouping.block is not None:
            axis = grouping.axis + 1
            levels = levels.reshape(*shape[: grouping.axis], -1, grouping.block, *shape[axis:])
            scale = np.expand_dims(scale, axis)
            zero = None if zero is None else np.expand_dims(zero, axis)
        elif grouping.axis is not None:
            ends = [-1 if axis == grouping.axis else 1 for axis in range(len(shape))]
            scale, zero = scale.reshape(ends), None if zero is None else zero.reshape(ends)
        real = self._cast("q", levels, scale.dtype)
        if zero is not None:
            even = zero.reshape(-1)[0] if (zero == zero.reshape(-1)[0]).all() else None
            shift = self._cast("z", zero if even is None else np.asarray(even), scale.dtype)
            centred = self._view.edit.variable(f"{self._name}_c")
            self._add("Sub", [real, shift], centred)
            real = centred
        product = out if levels.shape == shape else self._view.edit.variable(f"{self._name}_b")
        self._add("Mul", [real, self._constant("s", scale)], product)
        if product is not out:
            self._add("Reshape", [product, self._constant("h", np.array(shape, np.int64))], out)

    def _cast(self, suffix: str, values: NDArray[Any], dtype: "np.dtype[Any]") -> gs.Tensor:
        """Store values and cast them to a float type."""
        real = self._view.edit.variable(f"{self._name}_{suffix}f")
        self._add("Cast", [self._constant(suffix, values)], real, to=_onnx_type(dtype))
        return real

    def _parameters(self, quantized: Quantized) -> list[gs.Tensor]:
        scale = self._constant("s", quantized.scale)
        return [scale] if quantized.zero_point is None else [scale, self._constant("z", quantized.zero_point)]

    def _constant(self, suffix: str, values: NDArray[Any]) -> gs.Tensor:
        return self._view.edit.constant(f"{self._name}_{suffix}", values)

    def _add(self, op: str, inputs: list[gs.Tensor], output: gs.Tensor, **attrs: int) -> None:
        """Add a node without a name, which in a small net would be a percent of the file; its output is named."""
        self._view.edit.add_node(self._near, op, inputs, [output], attrs).name = ""


def _of_rank(quantized: Quantized, rank: int) -> Quantized:
    """Put axes of size one in front, or drop those at the end."""
    more, grouping, zero = rank - quantized.levels.ndim, quantized.grouping, quantized.zero_point

    def fitted(values: NDArray[Any]) -> NDArray[Any]:
        whole = values.ndim == quantized.levels.ndim
        return values if not whole else values.reshape((1,) * more + values.shape if more > 0 else values.shape[:rank])

    return replace(
        quantized,
        levels=fitted(quantized.levels),
        scale=fitted(quantized.scale),
        zero_point=None if zero is None else fitted(zero),
        grouping=replace(grouping, axis=None if grouping.axis is None else grouping.axis + max(more, 0)),
    )


def _axis(grouping: Grouping) -> dict[str, int]:
    """Return the attributes of QuantizeLinear and DequantizeLinear."""
    attrs = {} if grouping.axis is None else {"axis": grouping.axis}
    return attrs if grouping.block is None else {**attrs, "block_size": grouping.block}


def _onnx_type(dtype: "np.dtype[Any]") -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


def overhead(name: str) -> int:
    """Return about how many bytes of graph a quantized weight of this name takes over the float one."""
    return 80 + 5 * len(name.encode())


def other_rank(view: GraphView, layer: gs.Node, quantized: Quantized) -> int | None:
    """Return the rank to store a weight's integers in where runtimes do not bear its own; None if they do."""
    shape = quantized.levels.shape
    if _turns_into_a_matrix_product(view, layer, shape):
        return 2
    return 3 if _is_misread(layer, quantized) else None


def _is_misread(layer: gs.Node, quantized: Quantized) -> bool:
    """Whether ONNX Runtime (1.32), optimizing, would compute something else: with int2 that do not fill whole bytes.

    It makes MatMulNBits of a DequantizeLinear before a matrix product, and packs rows anew as if they began on a byte.
    """
    shape = quantized.levels.shape
    return (
        quantized.affine.kind.bits == 2
        and len(shape) == 2
        and shape[1] % 4 != 0
        and is_op(layer, "MatMul", "Gemm")
        and not layer.attrs.get("transB", 0)
    )


def _turns_into_a_matrix_product(view: GraphView, layer: gs.Node, shape: tuple[int, ...]) -> bool:
    """Whether OpenVINO (2026.4) could not load this layer if its weight of this shape were integers of the same shape.

    It turns a convolution with a kernel of 1 x 1 into a matrix product where a Split comes before it and its output is
    reshaped, as in the attention of YOLO 11, and fails at the Split; a Reshape behind the integers keeps it from that.
    """
    if len(shape) != 4 or shape[2:] != (1, 1) or not is_op(layer, "Conv") or layer.attrs.get("group", 1) != 1:
        return False
    before = view.producer(layer.inputs[0])
    while before is not None and is_op(before, "Identity", *_RESHAPES):
        before = view.producer(before.inputs[0])
    if before is None or sum(bool(out.name) for out in before.outputs) < 2:
        return False
    behind = view.readers(layer.outputs[0])
    while len(behind) == 1 and is_op(behind[0], "Identity", "Add"):
        behind = view.readers(behind[0].outputs[0])
    return any(is_op(node, *_RESHAPES) for node in behind)


def is_dequantized(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a tensor is computed in one of the forms that a weight is written in."""
    node = view.producer(tensor)
    while node is not None and is_op(node, "DequantizeLinear", "Cast", "Mul", "Sub", "Reshape"):
        if is_op(node, "DequantizeLinear") and view.producer(node.inputs[0], "QuantizeLinear"):
            return view.array(node.inputs[0].inputs[0].inputs[0]) is not None
        if is_op(node, "DequantizeLinear", "Cast") and (values := view.array(node.inputs[0])) is not None:
            return values.dtype.kind not in "f"
        node = view.producer(node.inputs[0])
    return False
