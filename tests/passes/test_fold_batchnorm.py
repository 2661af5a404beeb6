"""fold-batchnorm: a model per case, with values that break careless arithmetic, and every refusal with its reason."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from graphopt.passes.fold_batchnorm import FoldBatchNorm
from graphopt.testing import assert_rewrites, assert_skips, model, run_alone

Arrays = dict[str, NDArray[Any]]


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> NDArray[Any]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def statistics(channels: int, seed: int = 0, dtype: Any = np.float32, prefix: str = "") -> Arrays:
    """Gammas of both signs, one zero and one large; a tiny and a large variance; means away from zero."""
    rng = np.random.default_rng(seed)
    gamma, var = rng.uniform(-2, 2, channels), rng.uniform(0.5, 2, channels)
    gamma[0], var[-1] = 0, 1e-4
    if channels > 2:
        gamma[1], var[2] = 40, 300
    values = {"g": gamma, "b": rng.standard_normal(channels), "m": rng.standard_normal(channels), "v": var}
    return {prefix + key: value.astype(dtype) for key, value in values.items()}


BN = "BatchNormalization"
CASES: dict[str, tuple[str, Arrays, dict[str, int]]] = {
    "conv": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), **statistics(6)},
        {"Conv": 1},
    ),
    "conv with bias, epsilon zero": (
        "g (float[N,3,8,8] x) => (float[N,6,4,4] y) "
        "{ c = Conv<strides=[2,2], pads=[1,1,0,0]>(x, w, cb) y = BatchNormalization<epsilon=0.0>(c, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), "cb": draw(6), **statistics(6)},
        {"Conv": 1},
    ),
    "conv 1-D": (
        "g (float[N,3,16] x) => (float[N,4,14] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(4, 3, 3), **statistics(4)},
        {"Conv": 1},
    ),
    "conv 3-D, grouped": (
        "g (float[N,4,5,5,5] x) => (float[N,6,4,4,4] y) "
        "{ c = Conv<group=2>(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(6, 2, 2, 2, 2), **statistics(6)},
        {"Conv": 1},
    ),
    "conv, depthwise": (
        "g (float[N,5,6,6] x) => (float[N,5,6,6] y) "
        "{ c = Conv<group=5, pads=[1,1,1,1]>(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(5, 1, 3, 3), **statistics(5)},
        {"Conv": 1},
    ),
    "transposed conv": (
        "g (float[N,3,4,4] x) => (float[N,5,9,9] y) "
        "{ c = ConvTranspose<strides=[2,2]>(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(3, 5, 3, 3), **statistics(5)},
        {"ConvTranspose": 1},
    ),
    "transposed conv, grouped": (
        "g (float[N,4,4] x) => (float[N,6,6] y) "
        "{ c = ConvTranspose<group=2>(x, w, cb) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(4, 3, 3), "cb": draw(6), **statistics(6)},
        {"ConvTranspose": 1},
    ),
    "gemm with alpha and beta": (
        "g (float[N,3] x) => (float[N,4] y) "
        "{ c = Gemm<alpha=0.5, beta=-2.0>(x, w, cb) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(3, 4), "cb": draw(4), **statistics(4)},
        {"Gemm": 1},
    ),
    "gemm transposed, scalar C": (
        "g (float[3,N] x) => (float[N,4] y) "
        "{ c = Gemm<transA=1, transB=1, beta=3.0>(x, w, cb) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(4, 3), "cb": np.float32(0.7), **statistics(4)},
        {"Gemm": 1},
    ),
    "gemm without C": (
        "g (float[N,3] x) => (float[N,4] y) { c = Gemm(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(3, 4), **statistics(4)},
        {"Gemm": 1},
    ),
    "gemm with a matrix C": (
        "g (float[2,3] x) => (float[2,4] y) { c = Gemm(x, w, cb) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(3, 4), "cb": draw(2, 1), **statistics(4)},
        {"Gemm": 1},
    ),
    "matmul": (
        "g (float[N,3] x) => (float[N,4] y) { c = MatMul(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(3, 4), **statistics(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "matmul, weight left": (
        "g (float[N,3,5] x) => (float[N,4,5] y) { c = MatMul(w, x) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(4, 3), **statistics(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "matmul and add": (
        "g (float[N,3] x) => (float[N,4] y) { c = MatMul(x, w) d = Add(a, c) y = BatchNormalization(d, g, b, m, v) }",
        {"w": draw(3, 4), "a": draw(4), **statistics(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "matmul, transposed weight": (
        "g (float[N,3] x) => (float[N,4] y) "
        "{ t = Transpose<perm=[1,0]>(w) c = MatMul(x, t) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(4, 3), **statistics(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "conv and add": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) "
        "{ c = Conv(x, w) d = Add(c, a) y = BatchNormalization(d, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), "a": draw(6, 1, 1), **statistics(6)},
        {"Conv": 1},
    ),
    "conv, mul, sub and div": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) d = Mul(s, c) e = Sub(a, d) f = Div(e, s) "
        "y = BatchNormalization(f, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), "a": draw(6, 1, 1), "s": draw(1, 6, 1, 1) + 3, **statistics(6)},
        {"Conv": 1},
    ),
    "identity, dropout": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) "
        "{ c = Conv(x, w) d = Identity(c) e = Dropout(d) y = BatchNormalization(e, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), **statistics(6)},
        {"Conv": 1, "Identity": 1, "Dropout": 1},
    ),
    "NHWC": (
        "g (float[N,8,8,3] x) => (float[N,6,6,6] y) { t = Transpose<perm=[0,3,1,2]>(x) c = Conv(t, w) "
        "u = Transpose<perm=[0,2,3,1]>(c) k = Transpose<perm=[0,3,1,2]>(u) n = BatchNormalization(k, g, b, m, v) "
        "y = Transpose<perm=[0,2,3,1]>(n) }",
        {"w": draw(6, 3, 3, 3), **statistics(6)},
        {"Conv": 1, "Transpose": 4},
    ),
    "unsqueezed and squeezed": (
        "g (float[N,3] x) => (float[N,4] y) { c = MatMul(x, w) u = Unsqueeze(c, two) "
        "n = BatchNormalization(u, g, b, m, v) y = Squeeze(n, two) }",
        {"w": draw(3, 4), "two": np.array([2]), **statistics(4)},
        {"MatMul": 1, "Add": 1, "Unsqueeze": 1, "Squeeze": 1},
    ),
    "reshaped rows": (
        "g (float[2,5,3] x) => (float[10,4] y) "
        "{ c = MatMul(x, w) r = Reshape(c, s) y = BatchNormalization(r, g, b, m, v) }",
        {"w": draw(3, 4), "s": np.array([-1, 4]), **statistics(4)},
        {"MatMul": 1, "Add": 1, "Reshape": 1},
    ),
    "flattened image": (
        "g (float[N,3,4,4] x) => (float[N,6] y) "
        "{ c = Conv(x, w) r = Flatten(c) y = BatchNormalization(r, g, b, m, v) }",
        {"w": draw(6, 3, 4, 4), **statistics(6)},
        {"Conv": 1, "Flatten": 1},
    ),
    "channels joined to features": (
        "g (float[N,4,1,1] x) => (float[N,2,2] y) "
        "{ c = Conv(x, w) r = Reshape(c, s) y = BatchNormalization(r, g, b, m, v) }",
        {"w": draw(4, 4, 1, 1), "s": np.array([0, 2, 2]), **statistics(2)},
        {"Conv": 1, "Reshape": 1},
    ),
    "pooled": (
        "g (float[N,3,8,8] x) => (float[N,6,1,1] y) { c = Conv(x, w) p = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1]>(c) "
        "q = GlobalAveragePool(p) y = BatchNormalization(q, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), **statistics(6)},
        {"Conv": 1, "AveragePool": 1, "GlobalAveragePool": 1},
    ),
    "reduced": (
        "g (float[N,3,8] x) => (float[N,6] y) "
        "{ c = Conv(x, w) p = ReduceMean<axes=[-1], keepdims=0>(c) y = BatchNormalization(p, g, b, m, v) }",
        {"w": draw(6, 3, 3), **statistics(6)},
        {"Conv": 1, "ReduceMean": 1},
    ),
    "max pool, positive scales": (
        "g (float[N,3,8,8] x) => (float[N,6,3,3] y) { c = Conv(x, w) "
        "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) y = BatchNormalization(p, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), **statistics(6), "g": np.abs(draw(6))},
        {"Conv": 1, "MaxPool": 1},
    ),
    "two in a row": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) n = BatchNormalization(c, g, b, m, v) "
        "y = BatchNormalization(n, g2, b2, m2, v2) }",
        {"w": draw(6, 3, 3, 3), **statistics(6), **{k + "2": a for k, a in statistics(6, 1).items()}},
        {"Conv": 1},
    ),
    "two in a row, on an input": (
        "g (float[N,3,8,8] x) => (float[N,3,8,8] y) { n = BatchNormalization(x, g, b, m, v) "
        "y = BatchNormalization(n, g2, b2, m2, v2) }",
        {**statistics(3), **{k + "2": a for k, a in statistics(3, 1).items()}},
        {BN: 1},
    ),
    "one before two": (
        "g (float[N,3,8,8] x) => (float[N,3,8,8] y, float[N,3,8,8] z) { n = BatchNormalization(x, g, b, m, v) "
        "y = BatchNormalization(n, g2, b2, m2, v2) z = BatchNormalization(n, g, b, m, v) }",
        {**statistics(3), **{k + "2": a for k, a in statistics(3, 1).items()}},
        {BN: 2},
    ),
    "concat": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) d = Conv(x, w2) e = Concat<axis=-3>(c, d) "
        "y = BatchNormalization(e, g, b, m, v) }",
        {"w": draw(4, 3, 3, 3), "w2": draw(2, 3, 3, 3), **statistics(6)},
        {"Conv": 2, "Concat": 1},
    ),
    "concat, one branch stays": (
        "g (float[N,3,8,8] x) => (float[N,9,8,8] y) { c = Conv(x, w) d = Conv(x, w2) e = Concat<axis=1>(c, x, d) "
        "y = BatchNormalization(e, g, b, m, v) }",
        {"w": draw(4, 3, 1, 1), "w2": draw(2, 3, 1, 1), **statistics(9)},
        {"Conv": 2, "Concat": 1, BN: 1},
    ),
    "sum of two convs": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) d = Conv(x, w2) e = Add(c, d) "
        "y = BatchNormalization(e, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), "w2": draw(6, 3, 3, 3, seed=1), **statistics(6)},
        {"Conv": 2, "Add": 1},
    ),
    "difference of a conv and a matmul": (
        "g (float[N,3,8] x) => (float[N,6,8] y) { c = Conv(x, w) d = MatMul(w2, x) e = Sub(c, d) "
        "y = BatchNormalization(e, g, b, m, v) }",
        {"w": draw(6, 3, 1), "w2": draw(6, 3), **statistics(6)},
        {"Conv": 1, "MatMul": 1, "Sub": 1},
    ),
    "before a conv": (
        "g (float[N,4,8,8] x) => (float[N,6,6,6] y) "
        "{ n = BatchNormalization(x, g, b, m, v) y = Conv<group=2>(n, w) }",
        {"w": draw(6, 2, 3, 3), **statistics(4)},
        {"Conv": 1},
    ),
    "before a conv with bias, auto_pad VALID": (
        'g (float[N,4,8] x) => (float[N,6,6] y) { n = BatchNormalization(x, g, b, m, v) y = Conv<auto_pad="VALID">(n, w, cb) }',
        {"w": draw(6, 4, 3), "cb": draw(6), **statistics(4)},
        {"Conv": 1},
    ),
    "before a padded conv, no shift": (
        "g (float[N,4,8,8] x) => (float[N,6,8,8] y) "
        "{ n = BatchNormalization(x, g, zero, zero, v) y = Conv<pads=[1,1,1,1]>(n, w) }",
        {"w": draw(6, 4, 3, 3), "zero": np.zeros(4, np.float32), **statistics(4)},
        {"Conv": 1},
    ),
    "before a padded conv, one border": (
        "g (float[N,3,8,8] x) => (float[N,6,8,8] y) "
        "{ n = BatchNormalization(x, g, b, m, v) y = Conv<pads=[1,1,0,0]>(n, w) }",
        {
            "w": draw(6, 3, 2, 2),
            "g": np.array([0.5, -2, 8], np.float32),
            "b": np.array([1.5, -6, 24], np.float32),
            "m": np.zeros(3, np.float32),
            "v": np.ones(3, np.float32),
        },
        {"Conv": 1, "Pad": 1},
    ),
    "before a conv with auto_pad, one border": (
        "g (float[N,1,8,7] x) => (float[N,6,8,7] y) "
        '{ n = BatchNormalization(x, g, b, m, v) y = Conv<auto_pad="SAME_LOWER">(n, w) }',
        {"w": draw(6, 1, 2, 2), **statistics(1), "g": np.float32([-3])},
        {"Conv": 1, "Pad": 1},
    ),
    "before a transposed conv, no shift": (
        "g (float[N,4,4,4] x) => (float[N,6,6,6] y) "
        "{ n = BatchNormalization(x, g, zero, zero, v) y = ConvTranspose<group=2>(n, w) }",
        {"w": draw(4, 3, 3, 3), "zero": np.zeros(4, np.float32), **statistics(4)},
        {"ConvTranspose": 1},
    ),
    "before a gemm with alpha and beta": (
        "g (float[N,4] x) => (float[N,5] y) "
        "{ n = BatchNormalization(x, g, b, m, v) y = Gemm<alpha=0.5, beta=2.0>(n, w, cb) }",
        {"w": draw(4, 5), "cb": draw(1, 5), **statistics(4)},
        {"Gemm": 1},
    ),
    "before a transposed gemm without C": (
        "g (float[N,4] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) y = Gemm<transB=1>(n, w) }",
        {"w": draw(5, 4), **statistics(4)},
        {"Gemm": 1},
    ),
    "before a matmul": (
        "g (float[N,4] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) y = MatMul(n, w) }",
        {"w": draw(4, 5), **statistics(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "before a matmul and add": (
        "g (float[N,4] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) c = MatMul(n, w) y = Add(c, a) }",
        {"w": draw(4, 5), "a": np.float32(0.3), **statistics(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "before a matmul, weight left": (
        "g (float[N,4,5] x) => (float[N,6,5] y) { n = BatchNormalization(x, g, b, m, v) y = MatMul(w, n) }",
        {"w": draw(6, 4), **statistics(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "before a matmul by a vector": (
        "g (float[N,4] x) => (float[N] y) { n = BatchNormalization(x, g, b, m, v) y = MatMul(n, w) }",
        {"w": draw(4), **statistics(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "before a flatten and gemm": (
        "g (float[N,4,3,3] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) f = Flatten(n) y = Gemm(f, w) }",
        {"w": draw(36, 5), **statistics(4)},
        {"Flatten": 1, "Gemm": 1},
    ),
    "before a reshape, transpose and matmul": (
        "g (float[N,4,3,3] x) => (float[N,9,5] y) { n = BatchNormalization(x, g, b, m, v) r = Reshape(n, s) "
        "t = Transpose<perm=[0,2,1]>(r) y = MatMul(t, w) }",
        {"w": draw(4, 5), "s": np.array([0, 4, -1]), **statistics(4)},
        {"Reshape": 1, "Transpose": 1, "MatMul": 1, "Add": 1},
    ),
    "before global pooling and gemm": (
        "g (float[N,4,3,3] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) p = GlobalAveragePool(n) "
        "s = Squeeze(p, axes) y = Gemm(s, w) }",
        {"w": draw(4, 5), "axes": np.array([-1, -2]), **statistics(4)},
        {"GlobalAveragePool": 1, "Squeeze": 1, "Gemm": 1},
    ),
    "before several layers": (
        "g (float[N,4] x) => (float[N,5] y, float[N,6] z, float[N,4] r) { n = BatchNormalization(x, g, b, m, v) "
        "y = Gemm(n, w) z = Gemm(n, w2) r = Relu(x) }",
        {"w": draw(4, 5), "w2": draw(4, 6), **statistics(4)},
        {"Gemm": 2, "Relu": 1},
    ),
    "before a concat and conv": (
        "g (float[N,4,6] x, float[N,2,6] z) => (float[N,5,4] y) { n = BatchNormalization(x, g, b, m, v) "
        "k = Concat<axis=1>(z, n) y = Conv(k, w) }",
        {"w": draw(5, 6, 3), **statistics(4)},
        {"Concat": 1, "Conv": 1},
    ),
    "identity branch beside convs": (
        "g (float[N,4,6,6] x) => (float[N,4,6,6] y) { c = Conv<pads=[1,1,1,1]>(x, w) p = BatchNormalization(c, g, b, m, v) "
        "d = Conv(x, w2) q = BatchNormalization(d, g2, b2, m2, v2) i = BatchNormalization(x, g3, b3, m3, v3) "
        "s = Add(p, q) t = Add(i, s) y = Relu(t) }",
        {
            "w": draw(4, 4, 3, 3),
            "w2": draw(4, 4, 1, 1),
            **statistics(4),
            **{k + "2": a for k, a in statistics(4, 1).items()},
            **{k + "3": a for k, a in statistics(4, 2).items()},
        },
        {"Conv": 2, "Add": 1, "Relu": 1},
    ),
    "identity branch beside a grouped conv": (
        "g (float[N,6,5] x) => (float[N,6,5] y) { c = Conv<pads=[2,2], dilations=[2], group=2>(x, w, cb) "
        "i = BatchNormalization(x, g, b, m, v) y = Add(i, c) }",
        {"w": draw(6, 3, 3), "cb": draw(6), **statistics(6)},
        {"Conv": 1},
    ),
    "alone, does nothing": (
        "g (float[N,3,4] x) => (float[N,3,4] y) "
        "{ r = Relu(x) y = BatchNormalization<epsilon=0.0>(r, one, zero, zero, one) }",
        {"one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)},
        {"Relu": 1},
    ),
    "alone, only scales": (
        "g (float[N,3,4] x) => (float[N,3,4] y) { r = Relu(x) y = BatchNormalization(r, g, zero, zero, v) }",
        {"zero": np.zeros(3, np.float32), **statistics(3)},
        {"Relu": 1, "Mul": 1},
    ),
    "alone, only shifts": (
        "g (float[N,3,4] x) => (float[N,3,4] y) "
        "{ r = Relu(x) y = BatchNormalization<epsilon=0.0>(r, one, b, m, one) }",
        {"one": np.ones(3, np.float32), **statistics(3)},
        {"Relu": 1, "Add": 1},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rewrites(case: tuple[str, Arrays, dict[str, int]]) -> None:
    text, weights, ops = case
    used = {name: values for name, values in weights.items() if reads(text, name)}
    assert_rewrites(FoldBatchNorm(), model(text, **used), ops=ops)


def reads(text: str, name: str) -> bool:
    return name in text.replace("(", " ").replace(")", " ").replace(",", " ").split("=>")[1].split()
