"""Multiply-accumulates of single nodes: counted, known to be none, or not known."""

import math
from collections.abc import Callable, Sequence

import onnx_graphsurgeon as gs

from graphopt.graph.shapes import Shape
from graphopt.graph.view import is_op

Shapes = Callable[[gs.Tensor], Shape]
Factors = Sequence[int | str | None] | None

_CONTRIB = "com.microsoft"
_NAMED = ("Attention", "FlexAttention", "LinearAttention", "DFT", "STFT", "CausalConvWithState")
"""Operators of ONNX that multiply and add, but that no rule below counts."""

_FREE = (
    *("BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "CropAndResize", "FastGelu"),
    *("DequantizeLinear", "EmbedLayerNormalization", "ExpandDims", "Gelu", "GatherBlockQuantized", "GatherND", "Pad"),
    *("GroupNorm", "Inverse", "Irfft", "MaxpoolWithMask", "NhwcMaxPool", "QLinearAdd", "QLinearAveragePool", "Unique"),
    *("QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "Range"),
    *("QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear", "QuickGelu", "ReduceSumInteger", "Rfft"),
    *("RotaryEmbedding", "Sampling", "SkipGroupNorm", "SkipLayerNormalization", "Tokenizer", "Trilu"),
    *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "LayerNormalization", "BifurcationDetector"),
)
"""Operators of ONNX Runtime's own domain that multiply element by element at most."""

_PRODUCTS_ML = ("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor")


def node_macs(node: gs.Node, shape: Shapes) -> int | None:
    """Return the multiply-accumulates of one node; an unknown batch counts as 1; None if they are not known.

    Args:
        node: A node that is no call of a local function; what it has subgraphs for counts there.
        shape: Gives the shape of a tensor.
    """
    rule = _rule(node)
    if rule is None:
        return None
    factors = rule(node, shape)
    if factors is None:
        return None
    sizes = [1 if index == 0 and not isinstance(size, int) else size for index, size in enumerate(factors)]
    numbers = [size for size in sizes if isinstance(size, int)]
    return math.prod(numbers) if len(numbers) == len(sizes) else None


def is_free(node: gs.Node) -> bool:
    """Whether a node multiplies no matrices and sums no windows, so that it counts as nothing."""
    return _rule(node) is _nothing


def _rule(node: gs.Node) -> Callable[[gs.Node, Shapes], Factors] | None:
    """Return what counts a node: factors whose product it is, the batch first; None if nothing does."""
    op = str(node.op)
    if is_op(node, op):
        return None if op in _NAMED else _RULES.get(op, _nothing)
    if node.domain == _CONTRIB:
        return _nothing if op in _FREE else _CONTRIB_RULES.get(op)
    if node.domain in ("ai.onnx.ml", "ai.onnx.training"):
        return None if op in _PRODUCTS_ML else _nothing
    return None


def _nothing(node: gs.Node, shape: Shapes) -> Factors:
    """No multiply-accumulates."""
    return (0,)


def _convolution(weight: int) -> Callable[[gs.Node, Shapes], Factors]:
    """Every output sums over the inner sizes of the weight, which is the given input."""

    def factors(node: gs.Node, shape: Shapes) -> Factors:
        out, kernel = shape(node.outputs[0]), shape(node.inputs[weight])
        return None if out is None or kernel is None or not out else [*out, *kernel[1:]]

    return factors


def _transposed(node: gs.Node, shape: Shapes) -> Factors:
    """ConvTranspose: every input goes into all that the weight has for it."""
    given, kernel = shape(node.inputs[0]), shape(node.inputs[1])
    return None if given is None or kernel is None else [*given, *kernel[1:]]


def _product(node: gs.Node, shape: Shapes) -> Factors:
    """MatMul and its kind, Gemm: every output sums over the inner size of the left side."""
    left, out = shape(node.inputs[0]), shape(node.outputs[0])
    if left is None or out is None or not left:
        return None
    turned = node.attrs.get("transA", 0)
    if not isinstance(turned, int) or node.attrs.get("transBatchA", 0):
        return None
    return [*(out or (1,)), left[-2 if turned and len(left) > 1 else -1]]


def _einsum(node: gs.Node, shape: Shapes) -> Factors:
    """Einsum of two operands: the sizes of all indices; of one operand: nothing is multiplied."""
    equation = node.attrs.get("equation")
    if len(node.inputs) < 2:
        return (0,)
    if not isinstance(equation, str) or len(node.inputs) > 2 or "." in equation:
        return None
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int | str | None] = {}
    for term, tensor in zip(terms, node.inputs, strict=True):
        own = shape(tensor)
        if own is None or len(own) != len(term):
            return None
        for index, size in zip(term, own, strict=True):
            if not isinstance(sizes.get(index), int) or sizes[index] == 1:
                sizes[index] = size
    return list(sizes.values())


def _recurrent(node: gs.Node, shape: Shapes) -> Factors:
    """LSTM, GRU, RNN: each step of each sample goes through all of W and R."""
    given, *weights = (shape(tensor) for tensor in node.inputs[:3])
    if given is None or len(given) != 3 or any(weight is None for weight in weights) or len(weights) < 2:
        return None
    steps, batch = (given[1], given[0]) if node.attrs.get("layout", 0) else (given[0], given[1])
    sizes = [[size for size in weight or () if isinstance(size, int)] for weight in weights]
    if any(len(own) != 3 for own in sizes) or not isinstance(steps, int):
        return None
    return [batch, steps, sum(math.prod(own) for own in sizes)]


def _blocks(node: gs.Node, shape: Shapes) -> Factors:
    """MatMulNBits: every output sums over K."""
    out = shape(node.outputs[0])
    return None if out is None else [*out, node.attrs.get("K")]


_RULES: dict[str, Callable[[gs.Node, Shapes], Factors]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "DeformConv": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "Gemm": _product,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
_CONTRIB_RULES: dict[str, Callable[[gs.Node, Shapes], Factors]] = {
    "FusedConv": _convolution(1),
    "FusedGemm": _product,
    "FusedMatMul": _product,
    "FusedMatMulActivation": _product,
    "GemmFastGelu": _product,
    "QGemm": _product,
    "MatMulIntegerToFloat": _product,
    "DynamicQuantizeMatMul": _product,
    "MatMulNBits": _blocks,
}
