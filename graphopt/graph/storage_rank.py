"""Which weights need their integers stored in another rank, as a runtime fails at or misreads them in their own."""

import onnx_graphsurgeon as gs

from graphopt.graph.view import GraphView, is_op
from graphopt.numerics.quantization import Quantized

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")


def other_rank(view: GraphView, layer: gs.Node, quantized: Quantized) -> int | None:
    """Return the rank to store a weight's integers in where runtimes do not bear its own; None if they do."""
    shape = quantized.levels.shape
    if _turns_into_a_matrix_product(view, layer, shape):
        return 2
    if _leads_with_ones(layer, shape):
        return len(shape) - _leading_ones(shape)
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


def _leads_with_ones(layer: gs.Node, shape: tuple[int, ...]) -> bool:
    """Whether OpenVINO (2026.4) could not load a matrix product whose integers have two axes of size one in front.

    It computes such a product on the integers, and counts one axis of size one at most.
    """
    return is_op(layer, "MatMul") and _leading_ones(shape) > 1


def _leading_ones(shape: tuple[int, ...]) -> int:
    """Return how many axes of size one are in front of a matrix."""
    batch = shape[:-2]
    return next((axis for axis, size in enumerate(batch) if size != 1), len(batch))


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
