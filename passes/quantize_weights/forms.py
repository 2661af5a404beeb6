"""Chooses the operators that a weight is written with, so that it loses no time in ONNX Runtime's default session.

ONNX Runtime (1.32) computes Cast and Mul of constants once, when it loads a model, so that the layer runs as in float.
It never folds a DequantizeLinear. It makes MatMulNBits, which computes with int8 activations, of a DequantizeLinear and
a MatMul or Gemm where all of these hold (read in its QDQ selectors, and tried):

1. the weight is a matrix of 8, 4 or 2 bits, stored in the graph of its layer, and no other node reads its integers,
   scales or zero points, or what DequantizeLinear makes of them;
2. it is the second input of a MatMul, or of a Gemm with transA = transB = 0, alpha = beta = 1 and a bias [N] or none;
3. scales are one for all, one for each column, or one for blocks of 16, 32, 64 ... values of a column;
4. no Relu, Clip or QuantizeLinear reads the result, and the layer's input does not come from a DequantizeLinear.

Time against float on one thread with AVX-512 VNNI, for 1, 4, 16 and 128 rows:

    1024 x 1024, int8 per channel          0.44  0.65  1.00  1.14
    1024 x 1024, int8 in blocks of 128     0.37  0.54  0.74  0.76
    1024 x 1024, int4 in blocks of 32      0.31  0.62  1.01  1.20
    1024 x 1024, int4 in blocks of 128     0.25  0.47  0.73  0.88
    384 x 1536,  int8 in blocks of 128     0.42  0.61  0.99  1.00
    384 x 384,   int8 in blocks of 128     0.51  0.76  1.18  1.13
    128 x 512,   int8 in blocks of 128     0.93  1.19  1.31  1.81

So 8 bits are left to MatMulNBits in blocks of 128 or more of a matrix of at least 2^19 values, which loses no time at
any number of rows. Fewer bits are left to it in any blocks of such a matrix: a language model's next token takes a
third of the time. It costs 1 to 2 dB of the layer's output.
"""

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.graph.dequantize import Lookup, lowest_opset
from graphopt.graph.slots import rank_of
from graphopt.graph.view import GraphView, is_op
from graphopt.graph.weights import LOOKUPS, Weight, WeightUse
from graphopt.numerics.grouping import Grouping
from graphopt.numerics.quantization import Quantized, QuantizedType

FAST_BLOCK = 128
_FAST_SIZE = 1 << 19
_FAST_SUMMED = 384
_FAST_CHANNELS = 256
_LEAST_BLOCK = 16


@dataclass(frozen=True)
class Product:
    """A layer that ONNX Runtime could compute on its weight's integers; ``transposed``: on the transposed matrix."""

    layer: gs.Node
    transposed: bool
    opset: int

    def take(self, weight: Weight, shape: tuple[int, ...], kind: QuantizedType, grouping: Grouping) -> bool:
        """Whether ONNX Runtime makes MatMulNBits of this type and grouping, and no slower than float."""
        summed = weight.summed_axis
        if summed is None or kind.is_float or kind.stored_bits > 8:
            return False
        if self.opset < lowest_opset(kind.name, kind.opset, grouping, "dq"):
            return False
        return _is_fused(grouping, summed, kind, shape) and _is_fast(grouping, summed, kind, shape)


def _is_fused(grouping: Grouping, summed: int, kind: QuantizedType, shape: tuple[int, ...]) -> bool:
    """Whether the layout is one that ONNX Runtime fuses; it misreads 2 bits where columns do not fill whole bytes."""
    block, columns = grouping.block, shape[1 - summed]
    if kind.stored_bits == 2 and columns % 4:
        return False
    if block is None:
        return grouping.axis is None or grouping.axis == 1 - summed
    return grouping.axis == summed and block >= _LEAST_BLOCK and block & (block - 1) == 0 and not shape[summed] % block


def _is_fast(grouping: Grouping, summed: int, kind: QuantizedType, shape: tuple[int, ...]) -> bool:
    """Whether MatMulNBits takes no longer than MatMul, see the measurements above."""
    length, columns = shape[summed], shape[1 - summed]
    if length < _FAST_SUMMED or columns < _FAST_CHANNELS or length * columns < _FAST_SIZE:
        return False
    return kind.stored_bits < 8 or (grouping.block or 0) >= FAST_BLOCK


def product(view: GraphView, weight: Weight, dtype: str) -> Product | None:
    """Return the layer that reads a weight, if ONNX Runtime could compute it on the weight's integers.

    It reads the weight directly or through a Transpose, and nothing else does.
    """
    if dtype != "float32" or len(weight.uses) != 1:
        return None
    layer, turned = weight.uses[0].layer, _orientation(view, weight, weight.uses[0])
    if turned is None or view.edit.graph_of(layer) is not weight.home or not _is_plain(view, layer):
        return None
    return None if len(view.readers(weight.source)) != 1 else Product(layer, turned, weight.home.opset)


def _orientation(view: GraphView, weight: Weight, use: WeightUse) -> bool | None:
    """Return whether a layer multiplies with the transposed matrix; None if it does something else."""
    layer = use.layer
    if use.slot != 1 or not is_op(layer, "MatMul", "Gemm") or rank_of(view, weight.source) != 2:
        return None
    if (turned := layer.attrs.get("transB", 0) if layer.op == "Gemm" else 0) not in (0, 1):
        return None
    if layer.inputs[1] is weight.source:
        return bool(turned)
    between = view.producer(layer.inputs[1], "Transpose")
    if between is None or between.inputs[0] is not weight.source or turned:
        return None
    others = [node for node in view.readers(between.outputs[0]) if node is not layer]
    return None if others or view.is_output(between.outputs[0]) else True


def _is_plain(view: GraphView, layer: gs.Node) -> bool:
    """Whether what stands before and behind a layer, and its attributes, leave it to MatMulNBits."""
    if layer.op == "Gemm":
        if layer.attrs.get("transA", 0) != 0 or layer.attrs.get("alpha", 1.0) != 1.0:
            return False
        bias = layer.inputs[2] if len(layer.inputs) > 2 and layer.inputs[2].name else None
        if bias is not None and (layer.attrs.get("beta", 1.0) != 1.0 or not _has_a_value_each(view, layer, bias)):
            return False
    if view.producer(layer.inputs[0], "DequantizeLinear") is not None:
        return False
    behind = view.readers(layer.outputs[0])
    if len(behind) == 1 and is_op(behind[0], "Add"):  # ONNX Runtime makes a Gemm of a MatMul and the Add behind it
        behind = [*behind, *view.readers(behind[0].outputs[0])]
    return not any(is_op(node, "Relu", "Clip", "QuantizeLinear") for node in behind)


def _has_a_value_each(view: GraphView, layer: gs.Node, bias: gs.Tensor) -> bool:
    """Whether a Gemm's bias is a vector of one value for each column."""
    shape, weight = view.shape(bias), view.shape(layer.inputs[1])
    columns = None if weight is None else weight[0 if layer.attrs.get("transB", 0) else 1]
    return shape is not None and len(shape) == 1 and isinstance(columns, int) and shape[0] == columns


def lookups(view: GraphView, weight: Weight, quantized: Quantized) -> list[Lookup]:
    """Return the Gather and Slice that can pick rows of a weight's integers, and of its scales."""
    direct = (use for use in weight.uses if is_lookup(weight, use))
    found = ((use, _shape_behind(view, use, quantized)) for use in direct)
    return [
        Lookup(use.layer, use.channel if shape else None, shape or None) for use, shape in found if shape is not None
    ]


def is_lookup(weight: Weight, use: WeightUse) -> bool:
    """Whether a use picks directly from the stored table."""
    return use.slot == 0 and is_op(use.layer, *LOOKUPS) and use.layer.inputs[0] is weight.source


def _shape_behind(view: GraphView, use: WeightUse, quantized: Quantized) -> tuple[int, ...] | None:
    """Return what picked rows are reshaped to: empty if they need not be, None if the scales cannot be picked alike."""
    grouping, shape = quantized.grouping, quantized.levels.shape
    if quantized.affine.kind.is_float:  # ONNX Runtime picks from no float8
        return None
    if grouping.axis is None:
        return ()
    if use.channel is None or (grouping.block is None and grouping.axis != use.channel):
        return None
    if grouping.block is None or grouping.block == shape[grouping.axis]:
        return ()
    if use.channel >= grouping.axis:
        return None
    rank = 1 if use.layer.op == "Slice" else rank_of(view, use.layer.inputs[1])
    return None if rank is None else (*[0] * (use.channel + rank), *shape[use.channel + 1 :])
