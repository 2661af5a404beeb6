"""The operators beside the layers that runtimes compute on integers, and the forms in which they do so."""

import onnx_graphsurgeon as gs

from graphopt.graph.slots import rank_of
from graphopt.graph.view import GraphView, is_op

SAME_SCALE = (
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Resize",
    "Identity", "DepthToSpace", "SpaceToDepth", "Expand", "Tile",
)  # fmt: skip
AVERAGES = ("GlobalAveragePool", "AveragePool")
CLAMPS = ("Relu", "Clip")


def takes_integers(view: GraphView, node: gs.Node) -> bool:
    """Whether an operator that is no layer has integer kernels in this form."""
    if is_op(node, *AVERAGES):
        return not is_misread(node)
    if is_op(node, "Add"):
        return len(node.inputs) == 2
    return is_op(node, *SAME_SCALE) and not _is_clamped(view, node)


def is_misread(node: gs.Node) -> bool:
    """Whether ONNX Runtime takes an operator between quantized tensors for one that it has, and is wrong.

    Its QLinearAveragePool knows no dilations (they came with opset 19), so the model does not load; and with both
    ``ceil_mode`` and ``count_include_pad`` it divides by another number of elements than AveragePool.
    """
    if not is_op(node, "AveragePool"):
        return False
    dilates = any(step != 1 for step in node.attrs.get("dilations", ()))
    return dilates or bool(node.attrs.get("ceil_mode", 0) and node.attrs.get("count_include_pad", 0))


def joins_rows(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a tensor of rows comes out of a Concat along axis 1: a class token and patches.

    OpenVINO 2026.4 loads no MatMul of such a tensor if it has a zero point: it quantizes before the Concat instead,
    where the zero points then differ from row to row.
    """
    node, rank = view.producer(tensor, "Concat"), rank_of(view, tensor)
    return node is not None and rank is not None and rank > 2 and node.attrs.get("axis", 1) % rank == 1


def normalize(node: gs.Node) -> None:
    """Take off the dilations of an AveragePool that does not dilate."""
    if is_op(node, "AveragePool") and not is_misread(node):
        node.attrs.pop("dilations", None)


def _is_clamped(view: GraphView, node: gs.Node) -> bool:
    """Whether a Relu or Clip alone reads what a Concat puts together.

    It is quantized behind that only: OpenVINO 2026.4 crashes where an unsigned QuantizeLinear stands before a Relu too.
    """
    readers = view.readers(node.outputs[0])
    return is_op(node, "Concat") and len(readers) == 1 and is_op(readers[0], *CLAMPS)
