"""What fold-batchnorm refuses: every reason, with the model bit for bit as it was."""

from typing import Any

import numpy as np
import pytest
from graphopt.passes.fold_batchnorm import FoldBatchNorm
from numpy.typing import NDArray

from graphopt.testing import assert_skips, draw, draw_batchnorm, model, read_by

Arrays = dict[str, NDArray[Any]]

CONV = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) {{ c = Conv(x, w) y = BatchNormalization{attrs}(c, g, b, m, v) }}"

REFUSALS: dict[str, tuple[str, Arrays, str]] = {
    "training mode": (
        "g (float[2,3,8,8] x) => (float[2,4,6,6] y) "
        "{ c = Conv(x, w) y, p, q = BatchNormalization<training_mode=1>(c, g, b, m, v) }",
        {},
        "training mode: the statistics come from the batch",
    ),
    "statistics are inputs": (
        "g (float[N,3,8,8] x, float[4] m) => (float[N,4,6,6] y) "
        "{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {},
        "^'m' is not constant$",
    ),
    "gamma can be overridden": (
        "g (float[N,3,8,8] x, float[4] g) => (float[N,4,6,6] y) "
        "{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"g": draw(4)},
        "^'g' can be overridden by the caller, freeze-initializers ends that$",
    ),
    "weight is computed": (
        "g (float[N,3,8,8] x, float[4,3,3,3] w) => (float[N,4,6,6] y) "
        "{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {},
        "before it: 'w' is not constant",
    ),
    "bias is computed": (
        "g (float[N,3,8,8] x, float[4] k) => (float[N,4,6,6] y) "
        "{ c = Conv(x, w, k) y = BatchNormalization(c, g, b, m, v) }",
        {},
        "before it: 'k' is not constant",
    ),
    "conv output has two readers": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z) "
        "{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) z = Relu(c) }",
        {},
        "before it: 'c' has 2 readers",
    ),
    "conv output is a graph output": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] c) "
        "{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {},
        "before it: 'c' is a graph output",
    ),
    "conv output is read in a subgraph": (
        "g (float[N,3,8,8] x, bool k) => (float[N,4,6,6] y, float[N,4,6,6] z) "
        "{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) z = If(k) "
        "<then_branch = t () => (float[N,4,6,6] p) { p = Relu(c) }, "
        "else_branch = e () => (float[N,4,6,6] q) { q = Sigmoid(c) }> }",
        {},
        "before it: 'c' has 3 readers",
    ),
    "conv is outside of the branch": (
        "g (float[N,3,8,8] x, bool k) => (float[N,4,6,6] z) { c = Conv(x, w) z = If(k) "
        "<then_branch = t () => (float[N,4,6,6] p) { p = BatchNormalization(c, g, b, m, v) }, "
        "else_branch = e () => (float[N,4,6,6] q) { q = Constant<value = float[1,4,1,1] {1,2,3,4}>() }> }",
        {},
        "before it: 'c' is computed in another graph",
    ),
    "negative variance": (
        CONV.format(attrs=""),
        {"v": np.float32([1, 2, -1e-9, 1])},
        "negative variance -1e-09 in 'v'",
    ),
    "zero variance and epsilon": (
        CONV.format(attrs="<epsilon=0.0>"),
        {"v": np.float32([1, 0, 1, 1])},
        "variance plus epsilon is 0 in 'v'",
    ),
    "NaN": (CONV.format(attrs=""), {"b": np.float32([1, np.nan, 1, 1])}, "^'b' holds NaN or Inf$"),
    "Inf in the weight": (CONV.format(attrs=""), {"w": np.full((4, 3, 3, 3), np.inf, "f")}, "'w' holds NaN or Inf"),
    "gain overflows": (CONV.format(attrs=""), {"g": np.float32([1, 3e38, 1, 1])}, "'w' would overflow float32"),
    "gain underflows": (
        "g (float16[N,3,8,8] x) => (float16[N,4,6,6] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {
            **{key: value.astype(np.float16) for key, value in draw_batchnorm(4).items()},
            "w": draw(4, 3, 3, 3, dtype=np.float16),
            "g": np.float16([1e-6, 0, -1e-6, 1e-6]),
            "v": np.ones(4, np.float16),
        },
        "'w' would underflow float16",
    ),
    "graph input before, relu behind": (
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) { n = BatchNormalization(x, g, b, m, v) y = Relu(n) }",
        {},
        "before it: 'x' is a graph input; into what reads it: Relu 'y' cannot take it in; alone: .* no gain",
    ),
    "padded conv behind": (
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) "
        "{ n = BatchNormalization(x, g, b, m, v) y = Conv<pads=[1,1,1,1]>(n, k) }",
        {"k": draw(4, 4, 3, 3)},
        "Conv 'y' pads with zero, which the map never gives in a channel of scale zero",
    ),
    "padded conv behind, several borders": (
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) "
        "{ n = BatchNormalization(x, g, b, m, v) y = Conv<pads=[1,1,1,1]>(n, k) }",
        {"k": draw(4, 4, 3, 3), "g": draw(4)},
        "Conv 'y' pads with zero, and no constant border becomes zero in all its channels",
    ),
    "conv behind, padding depends on the size": (
        "g (float[N,4,8,8] x) => (float[N,4,4,4] y) "
        '{ n = BatchNormalization(x, g, b, m, v) y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(n, k) }',
        {"k": draw(4, 4, 3, 3), "g": draw(4)},
        "the padding of Conv 'y' depends on the size of its input",
    ),
    "transposed conv behind": (
        "g (float[N,4,8,8] x) => (float[N,4,10,10] y) { n = BatchNormalization(x, g, b, m, v) y = "
        "ConvTranspose(n, k) }",
        {"k": draw(4, 4, 3, 3)},
        "ConvTranspose 'y' would not shift its output evenly",
    ),
    "gives itself out": (
        "g (float[N,4,8,8] x) => (float[N,4,6,6] y, float[N,4,8,8] n) "
        "{ n = BatchNormalization(x, g, b, m, v) y = Conv(n, k) }",
        {"k": draw(4, 4, 3, 3)},
        "reads it: 'n' is a graph output",
    ),
    "one reader cannot": (
        "g (float[N,4,8,8] x) => (float[N,4,6,6] y, float[N,4,8,8] z) "
        "{ n = BatchNormalization(x, g, b, m, v) y = Conv(n, k) z = Relu(n) }",
        {"k": draw(4, 4, 3, 3)},
        "reads it: Relu 'z' cannot take it in",
    ),
    "a term of a sum cannot": (
        "g (float[N,3,8,8] x, float[N,4,6,6] r) => (float[N,4,6,6] y) "
        "{ c = Conv(x, w) d = Add(c, r) y = BatchNormalization(d, g, b, m, v) }",
        {},
        "Add 'd' needs both of its terms scaled: 'r' is a graph input",
    ),
    "two ways to one conv": (
        "g (float[N,4,8,8] x) => (float[N,4,6,6] y) { n = BatchNormalization(x, g, b, m, v) i = Identity(n) "
        "j = Concat<axis=1>(n, i) y = Conv(j, k) }",
        {"k": draw(4, 8, 3, 3)},
        "Concat 'j' would get it by two ways",
    ),
    "a tensor added to itself": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) "
        "{ c = Conv(x, w) d = Add(c, c) y = BatchNormalization(d, g, b, m, v) }",
        {},
        "Add 'd' needs both of its terms scaled: 'c' has 2 readers",
    ),
    "a term of a sum is broadcast": (
        "g (float[N,3,8,8] x, float[6] u) => (float[N,4,6,6] y) "
        "{ c = Conv(x, w) e = MatMul(u, k) d = Add(c, e) y = BatchNormalization(d, g, b, m, v) }",
        {"k": draw(6, 6)},
        "Add 'd' broadcasts one of its terms",
    ),
    "two branches cannot": (
        "g (float[N,2,8,8] x, float[N,2,8,8] z) => (float[N,8,8,8] y) { c = Conv(x, k) d = Concat<axis=1>(x, c, z) "
        "y = BatchNormalization(d, g, b, m, v) }",
        {"k": draw(4, 2, 1, 1), **draw_batchnorm(8)},
        "2 of 3 branches of its Concat cannot take it, as 'x' has 2 readers",
    ),
    "maximum and a negative scale": (
        "g (float[N,3,8,8] x) => (float[N,4,5,5] y) "
        "{ c = Conv(x, w) p = MaxPool<kernel_shape=[2,2]>(c) y = BatchNormalization(p, g, b, m, v) }",
        {"g": np.float32([1, 2, -1, 1])},
        "MaxPool 'p' does not commute with a negative scale",
    ),
    "average that counts its border": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w) "
        "p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(c) "
        "y = BatchNormalization(p, g, b, m, v) }",
        {},
        "AveragePool 'p' counts its zero padding",
    ),
    "constant makes the operand larger": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) "
        "{ c = Conv(x, k) d = Mul(c, a) y = BatchNormalization(d, g, b, m, v) }",
        {"k": draw(1, 3, 3, 3), "a": draw(4, 1, 1)},
        "'a' may broadcast 'c' along axis 1",
    ),
    "division by zero": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) "
        "{ c = Conv(x, w) d = Div(c, a) y = BatchNormalization(d, g, b, m, v) }",
        {"a": np.float32(0)},
        "'a' divides by zero",
    ),
    "channels are not the weight's columns": (
        "g (float[N,4,3] x) => (float[N,4,5] y) { c = MatMul(x, k) y = BatchNormalization(c, g, b, m, v) }",
        {"k": draw(3, 5)},
        "it varies along axis 1, the layer's channels are axis 2",
    ),
    "reshape mixes channels": (
        "g (float[N,6,A,B] x) => (float[N,4,M] y) "
        "{ c = Conv(x, k) d = Reshape(c, s) y = BatchNormalization(d, g, b, m, v) }",
        {"k": draw(6, 6, 1, 1), "s": np.array([0, 4, -1])},
        "its channels cannot be followed through Reshape 'd'",
    ),
    "border of its own for each channel": (
        "g (float[N,3,8,8] x) => (float[N,4,6,8] y) "
        "{ c = Conv(x, w) d = Pad(c, pads) y = BatchNormalization(d, g, b, m, v) }",
        {"pads": np.array([0, 0, 0, 1, 0, 0, 0, 1])},
        "Pad 'd' would need a border of its own for each channel",
    ),
    "padded channels": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) "
        "{ c = Conv(x, k) d = Pad(c, pads) y = BatchNormalization(d, g, b, m, v) }",
        {"pads": np.array([0, 1, 0, 0, 0, 0, 0, 0]), "k": draw(3, 3, 3, 3)},
        "Pad 'd' pads an axis that it varies along",
    ),
    "resized channels": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) "
        "{ c = Conv(x, k) d = Resize(c, , sizes) y = BatchNormalization(d, g, b, m, v) }",
        {"sizes": np.float32([1, 2, 1, 1]), "k": draw(2, 3, 3, 3)},
        "Resize 'd' may resize axis 1, which it varies along",
    ),
    "pixel unshuffle mixes channels": (
        "g (float[N,3,4,4] x) => (float[N,4,2,2] y) "
        "{ c = Conv(x, k) d = SpaceToDepth<blocksize=2>(c) y = BatchNormalization(d, g, b, m, v) }",
        {"k": draw(1, 3, 1, 1)},
        "SpaceToDepth 'd' would mix channels that it treats differently",
    ),
    "dropout may be training": (
        "g (float[N,3,8,8] x, bool k) => (float[N,4,6,6] y) "
        "{ c = Conv(x, w) d = Dropout(c, , k) y = BatchNormalization(d, g, b, m, v) }",
        {},
        "Dropout 'd' may be in training mode",
    ),
    "conv beside it changes the shape": (
        "g (float[N,4,1,1] x) => (float[N,4,5,5] y) { c = Conv<pads=[2,2,2,2]>(x, k) "
        "n = BatchNormalization(x, g, b, m, v) y = Add(n, c) }",
        {"k": draw(4, 4, 1, 1)},
        "into a parallel Conv: Conv 'c' beside it changes the shape",
    ),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_skips(case: tuple[str, Arrays, str]) -> None:
    text, weights, reason = case
    everything = {"w": draw(4, 3, 3, 3), **draw_batchnorm(4), **weights}
    inputs = text.split("=>")[0].replace(")", " ").replace(",", " ").split()[1:]
    used = {name: values for name, values in read_by(text, everything).items() if name in weights or name not in inputs}
    assert_skips(FoldBatchNorm(), model(text, **used), reason)


@pytest.mark.parametrize(
    ("opset", "text", "reason"),
    [
        (6, CONV.format(attrs=""), "training mode: is_test is not set"),
        (
            8,
            CONV.format(attrs="").replace("y = Batch", "y, p, q, r, s = Batch"),
            "it gives out the statistics of the batch",
        ),
        (13, CONV.format(attrs="").replace("y = Batch", "y, p, q, r, s = Batch"), "it gives out the statistics"),
    ],
    ids=["opset 6 without is_test", "opset 8 with five outputs", "opset 13 with five outputs"],
)
def test_skips_old_training_modes(opset: int, text: str, reason: str) -> None:
    assert_skips(FoldBatchNorm(), model(text, opset=opset, w=draw(4, 3, 3, 3), **draw_batchnorm(4)), reason)


def test_skips_statistics_per_element() -> None:
    values = {key: np.ones((4, 6, 6), np.float32) for key in "gbmv"}
    proto = model(CONV.format(attrs="<spatial=0>"), opset=7, w=draw(4, 3, 3, 3), **values)
    assert_skips(FoldBatchNorm(), proto, "spatial=0: the statistics are per element")
