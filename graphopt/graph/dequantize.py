"""Puts a quantized weight into the graph, in place of the float tensor that it stands for."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.view import GraphView, is_op
from graphopt.numerics.quantization import Quantized

_ONNX_TYPES = {"float32": 1, "float16": 10, "float64": 11, "bfloat16": 16}
PREFERRED_OPSET = 19
FP16_SCALE_OPSET = 19
PER_AXIS_OPSET = 13
BLOCK_OPSET = 21


def replace_with_dequantize(
    view: GraphView, source: gs.Tensor, home: gs.Graph, quantized: Quantized, dtype: "np.dtype[np.generic]"
) -> None:
    """Make DequantizeLinear produce ``source``, which graph ``home`` stores as ``dtype``, from its quantized form.

    A Cast follows where the type of the scales is not the type of the tensor.
    """
    near, edit, name = home.nodes[0], view.edit, str(source.name)
    inputs = [edit.constant(f"{name}_q", quantized.levels), edit.constant(f"{name}_s", quantized.scale)]
    if quantized.zero_point is not None:
        inputs.append(edit.constant(f"{name}_z", quantized.zero_point))
    attrs = {}
    if quantized.grouping.axis is not None:
        attrs["axis"] = quantized.grouping.axis
    if quantized.grouping.block is not None:
        attrs["block_size"] = quantized.grouping.block
    result = source
    if isinstance(source, gs.Constant):
        result = gs.Variable(name)
        edit.replace_uses(source, result)
    else:
        edit.remove([source.inputs[0]])
    if quantized.scale.dtype == dtype:
        _add(view, near, "DequantizeLinear", inputs, result, attrs)
        return
    wide = edit.variable(f"{name}_f")
    _add(view, near, "DequantizeLinear", inputs, wide, attrs)
    _add(view, near, "Cast", [wide], result, {"to": _ONNX_TYPES[dtype.name]})


def _add(
    view: GraphView, near: gs.Node, op: str, inputs: list[gs.Tensor], output: gs.Tensor, attrs: dict[str, int]
) -> None:
    """Add a node without a name, which in a small net would be a percent of the file; its output is named."""
    view.edit.add_node(near, op, inputs, [output], attrs).name = ""


def overhead(name: str) -> int:
    """Return about how many bytes of graph a quantized weight of this name takes over the float one."""
    return 80 + 5 * len(name.encode())


def is_dequantized(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a tensor is computed from stored integers by DequantizeLinear, or by Cast and Mul."""
    node = view.producer(tensor)
    while node is not None and is_op(node, "DequantizeLinear", "Cast", "Mul", "Sub"):
        if is_op(node, "DequantizeLinear", "Cast") and (values := view.array(node.inputs[0])) is not None:
            return values.dtype.kind not in "f"
        node = view.producer(node.inputs[0])
    return False
