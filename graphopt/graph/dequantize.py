"""Puts a quantized weight into the graph, in place of the float tensor that it stands for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
_PICKABLE_BITS = 8
_CAST_OPSETS = {"int4": 21, "uint4": 21, "int3": 21, "uint3": 21, "int2": 25, "float8": 19}


def lowest_opset(kind: str, dequantize_opset: int, grouping: Grouping, form: Representation) -> int:
    """Return the first opset in which a weight of this type and grouping can be written in this form."""
    if form == "mul":
        return _CAST_OPSETS.get(kind, 7)
    axis = 0 if grouping.axis is None else PER_AXIS_OPSET if grouping.block is None else BLOCK_OPSET
    return max(dequantize_opset, axis)


@dataclass(frozen=True)
class Lookup:
    """A Gather or Slice that picks from a table.

    Attributes:
        node: The operator.
        axis: The axis that it picks along, counted from the front; None where that plays no part.
        shape: What to reshape its result to, if the table's blocks have an axis of their own; 0 keeps a dimension.
    """

    node: gs.Node
    axis: int | None = None
    shape: tuple[int, ...] | None = None


class Writer:
    """Writes one quantized weight in place of the stored tensor ``source`` of graph ``home``, which is of ``dtype``."""

    def __init__(self, view: GraphView, source: gs.Tensor, home: gs.Graph, dtype: "np.dtype[np.generic]") -> None:
        self._view = view
        self._source = source
        self._near = home.nodes[0]
        self._name = str(source.name)
        self._dtype = dtype
        self._stored: dict[tuple[str, tuple[int, ...]], gs.Constant] = {}

    def write(self, quantized: Quantized, form: Representation, rank: int | None = None) -> None:
        """Make the readers of the tensor read its quantized form; the float tensor stays only in the form ``qdq``.

        A Cast follows where the type of the scales is not the type of the tensor. ``rank`` stores integers of that rank
        (in the form ``qdq`` floats), with more axes of size one in front, or without those in front or at the end; a
        Reshape follows.
        """
        result = whole = self._result(form)
        if rank is not None:
            result = self._view.edit.variable(f"{self._name}_m")
            self._add("Reshape", [result, self._constant("h", np.array(quantized.levels.shape, np.int64))], whole)
            quantized = _of_rank(quantized, rank)
        same = quantized.scale.dtype == self._dtype
        last = result if same else self._view.edit.variable(f"{self._name}_f")
        {"dq": self._dq, "qdq": self._qdq, "mul": self._mul}[form](quantized, last)
        if not same:
            self._add("Cast", [last], result, to=_onnx_type(self._dtype))

    def write_product(self, quantized: Quantized, layer: gs.Node, transposed: bool) -> None:
        """Give a MatMul or Gemm, the only reader, a DequantizeLinear as its input 1.

        ``transposed`` stores the matrix the other way round, so that neither a Transpose nor a Gemm has to turn it.
        """
        quantized = _turned(quantized) if transposed else quantized
        inputs = [self._constant("q", quantized.levels), *self._parameters(quantized)]
        result = self._view.edit.variable(f"{self._name}_d")
        node = self._view.edit.add_node(layer, "DequantizeLinear", inputs, [result], _axis(quantized.grouping))
        node.name = ""
        self._view.edit.set_input(layer, 1, result)
        if transposed:
            layer.attrs.pop("transB", None)

    def write_rows(self, quantized: Quantized, lookups: Sequence[Lookup]) -> None:
        """Let look-ups pick integers and scales, and multiply what they picked.

        The table stays small in memory, and only the picked rows are computed. ONNX Runtime cannot pick from types of
        fewer than 8 bits: these are cast to 8 bits, which it does once, when it loads the model.
        """
        levels, scale, zero = broadcastable(quantized)
        parameters = [self._constant("s", scale), *([] if zero is None else [self._pickable(quantized, "z", zero)])]
        table = self._pickable(quantized, "q", levels)
        for lookup in lookups:
            self._pick(lookup, table, parameters)

    def _pickable(self, quantized: Quantized, suffix: str, values: NDArray[Any]) -> gs.Tensor:
        """Store levels or zero points, and cast them to 8 bits if they have fewer."""
        stored, kind = self._constant(suffix, values), quantized.affine.kind
        if kind.stored_bits >= _PICKABLE_BITS or not values.ndim:
            return stored
        wide = np.dtype(np.int8 if kind.signed else np.uint8)
        result = self._view.edit.variable(f"{self._name}_{suffix}w", gs.Variable("", wide))
        self._add("Cast", [stored], result, to=_onnx_type(wide))
        return result

    def _pick(self, lookup: Lookup, table: gs.Tensor, parameters: Sequence[gs.Tensor]) -> None:
        """Replace one Gather or Slice: what it picked is cast, shifted and scaled."""
        edit, node, out = self._view.edit, lookup.node, lookup.node.outputs[0]
        where, attrs, kind = list(node.inputs)[1:], dict(node.attrs), parameters[0].dtype
        if lookup.axis is not None and node.op == "Gather":
            attrs["axis"] = lookup.axis
        elif lookup.axis is not None:
            where[2] = self._constant("a", np.array([lookup.axis], np.int64))
        edit.remove([node])
        same = kind == self._dtype

        def add(op: str, inputs: list[gs.Tensor], last: bool = False, **more: Any) -> gs.Tensor:
            result = out if last else edit.variable(f"{out.name}_r")
            edit.add_node(node, op, inputs, [result], more).name = ""
            return result

        def picked(tensor: gs.Tensor) -> gs.Tensor:
            return tensor if tensor.shape == () else add(node.op, [tensor, *where], **attrs)

        rows = add("Cast", [picked(table)], to=_onnx_type(kind))
        for zero in parameters[1:]:
            rows = add("Sub", [rows, add("Cast", [picked(zero)], to=_onnx_type(kind))])
        rows = add("Mul", [rows, picked(parameters[0])], last=same and lookup.shape is None)
        if lookup.shape is not None:
            rows = add("Reshape", [rows, self._constant("h", np.array(lookup.shape, np.int64))], last=same)
        if not same:
            add("Cast", [rows], last=True, to=_onnx_type(self._dtype))

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
        floats = self._source
        if self._view.shape(floats) not in (None, quantized.levels.shape):
            floats = self._view.edit.variable(f"{self._name}_r")
            shape = self._constant("hr", np.array(quantized.levels.shape, np.int64))
            self._add("Reshape", [self._source, shape], floats)
        wide = floats
        if quantized.scale.dtype != self._dtype:
            wide = self._view.edit.variable(f"{self._name}_w")
            self._add("Cast", [floats], wide, to=_onnx_type(quantized.scale.dtype))
        levels = self._view.edit.variable(f"{self._name}_q")
        self._add("QuantizeLinear", [wide, *parameters], levels, **_axis(quantized.grouping))
        self._add("DequantizeLinear", [levels, *parameters], out, **_axis(quantized.grouping))

    def _mul(self, quantized: Quantized, out: gs.Tensor) -> None:
        """Integers, Cast and Mul, with Sub before it if there is a zero point; blocks get an axis of their own."""
        shape = quantized.levels.shape
        levels, scale, zero = broadcastable(quantized)
        real = self._cast("q", levels, scale.dtype)
        if zero is not None:
            shift = self._cast("z", zero, scale.dtype)
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

    def _constant(self, suffix: str, values: NDArray[Any]) -> gs.Constant:
        """Store values, once for all who ask for them in this shape."""
        key = (suffix, values.shape)
        if key not in self._stored:
            self._stored[key] = self._view.edit.constant(f"{self._name}_{suffix}", values)
        return self._stored[key]

    def _add(self, op: str, inputs: list[gs.Tensor], output: gs.Tensor, **attrs: int) -> None:
        """Add a node without a name, which in a small net would be a percent of the file; its output is named."""
        self._view.edit.add_node(self._near, op, inputs, [output], attrs).name = ""


def broadcastable(quantized: Quantized) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Return levels, scales and zero points in shapes that broadcast; blocks get an axis of their own.

    Not if one block fills the axis: OpenVINO 2026.4 could not load it as float8. Equal zero points become one.
    """
    shape, grouping = quantized.levels.shape, quantized.grouping
    levels, scale, zero = quantized.levels, quantized.scale, quantized.zero_point
    if zero is not None and (zero == zero.reshape(-1)[0]).all():
        zero = np.asarray(zero.reshape(-1)[0])
    if grouping.axis is None or grouping.block == shape[grouping.axis]:
        return levels, scale, zero
    if grouping.block is not None:
        axis = grouping.axis + 1
        levels = levels.reshape(*shape[: grouping.axis], -1, grouping.block, *shape[axis:])
        split = np.expand_dims(scale, axis)
        return levels, split, zero if zero is None or not zero.ndim else np.expand_dims(zero, axis)
    ends = [-1 if axis == grouping.axis else 1 for axis in range(len(shape))]
    return levels, scale.reshape(ends), zero if zero is None or not zero.ndim else zero.reshape(ends)


def _turned(quantized: Quantized) -> Quantized:
    """Transpose a matrix with its scales and zero points."""
    zero, axis = quantized.zero_point, quantized.grouping.axis
    return replace(
        quantized,
        levels=np.ascontiguousarray(quantized.levels.T),
        scale=np.ascontiguousarray(quantized.scale.T),
        zero_point=None if zero is None else np.ascontiguousarray(zero.T),
        grouping=replace(quantized.grouping, axis=None if axis is None else 1 - axis),
    )


def _of_rank(quantized: Quantized, rank: int) -> Quantized:
    """Put axes of size one in front, or drop those at the end or else those in front."""
    shape, grouping, zero = quantized.levels.shape, quantized.grouping, quantized.zero_point
    at_end = len(shape) > rank and all(size == 1 for size in shape[rank:])
    more = 0 if at_end else rank - len(shape)

    def fitted(values: NDArray[Any]) -> NDArray[Any]:
        if values.ndim != len(shape):
            return values
        if at_end:
            return values.reshape(values.shape[:rank])
        return values.reshape((1,) * more + values.shape[max(-more, 0) :])

    return replace(
        quantized,
        levels=fitted(quantized.levels),
        scale=fitted(quantized.scale),
        zero_point=None if zero is None else fitted(zero),
        grouping=replace(grouping, axis=None if grouping.axis is None else grouping.axis + more),
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
