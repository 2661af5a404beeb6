"""fold-batchnorm into the layers that read it, into branches, and where nothing is around it."""

from typing import Any

import numpy as np
import pytest
from graphopt.passes.fold_batchnorm import FoldBatchNorm
from numpy.typing import NDArray

from graphopt.testing import assert_rewrites, draw, draw_batchnorm, model, read_by

Arrays = dict[str, NDArray[Any]]


CASES: dict[str, tuple[str, Arrays, dict[str, int]]] = {
    "before space to depth and back": (
        "g (float[N,3,4,4] x) => (float[N,5,4,4] y) { n = BatchNormalization(x, g, b, m, v) "
        "d = SpaceToDepth<blocksize=2>(n) e = DepthToSpace<blocksize=2>(d) y = Conv(e, w) }",
        {"w": draw(5, 3, 1, 1), **draw_batchnorm(3)},
        {"Conv": 1, "DepthToSpace": 1, "SpaceToDepth": 1},
    ),
    "before a pad and conv, one border": (
        "g (float[N,2,4,4] x) => (float[N,4,6,4] y) "
        "{ n = BatchNormalization<epsilon=0.0>(x, g, b, m, v) d = Pad(n, pads) y = Conv(d, w) }",
        {"w": draw(4, 2, 1, 1), "pads": np.array([0, 0, 1, 0, 0, 0, 1, 0]), "g": np.float32([2, -4])}
        | {"b": np.float32([3, -6]), "m": np.float32([0, 0]), "v": np.float32([1, 1])},
        {"Conv": 1, "Pad": 1},
    ),
    "before a transpose and LSTM": (
        "g (float[N,4,5] x) => (float[5,1,N,3] y) { n = BatchNormalization(x, g, b, m, v) "
        "t = Transpose<perm=[2,0,1]>(n) y = LSTM<hidden_size=3>(t, w, r) }",
        {"w": draw(1, 12, 4), "r": draw(1, 12, 3), **draw_batchnorm(4)},
        {"Transpose": 1, "LSTM": 1},
    ),
    "before a GRU, both ways": (
        "g (float[N,4,5] x) => (float[5,2,N,3] y, float[2,N,3] h) { n = BatchNormalization(x, g, b, m, v) "
        "t = Transpose<perm=[2,0,1]>(n) "
        'y, h = GRU<hidden_size=3, linear_before_reset=1, direction="bidirectional">(t, w, r, k) }',
        {"w": draw(2, 9, 4), "r": draw(2, 9, 3), "k": draw(2, 18), **draw_batchnorm(4)},
        {"Transpose": 1, "GRU": 1},
    ),
    "two in a row": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) n = BatchNormalization(c, g, b, m, v) "
        "y = BatchNormalization(n, g2, b2, m2, v2) }",
        {"w": draw(6, 3, 3, 3), **draw_batchnorm(6), **draw_batchnorm(6, 1, suffix="2")},
        {"Conv": 1},
    ),
    "two in a row, on an input": (
        "g (float[N,3,8,8] x) => (float[N,3,8,8] y) { n = BatchNormalization(x, g, b, m, v) "
        "y = BatchNormalization(n, g2, b2, m2, v2) }",
        {**draw_batchnorm(3), **draw_batchnorm(3, 1, suffix="2")},
        {"BatchNormalization": 1},
    ),
    "one before two": (
        "g (float[N,3,8,8] x) => (float[N,3,8,8] y, float[N,3,8,8] z) { n = BatchNormalization(x, g, b, m, v) "
        "y = BatchNormalization(n, g2, b2, m2, v2) z = BatchNormalization(n, g, b, m, v) }",
        {**draw_batchnorm(3), **draw_batchnorm(3, 1, suffix="2")},
        {"BatchNormalization": 2},
    ),
    "concat, one branch stays": (
        "g (float[N,3,8,8] x) => (float[N,9,8,8] y) { c = Conv(x, w) d = Conv(x, w2) e = Concat<axis=1>(c, x, d) "
        "y = BatchNormalization(e, g, b, m, v) }",
        {"w": draw(4, 3, 1, 1), "w2": draw(2, 3, 1, 1), **draw_batchnorm(9)},
        {"Conv": 2, "Concat": 1, "BatchNormalization": 1},
    ),
    "before a conv": (
        "g (float[N,4,8,8] x) => (float[N,6,6,6] y) { n = BatchNormalization(x, g, b, m, v) y = Conv<group=2>(n, w) }",
        {"w": draw(6, 2, 3, 3), **draw_batchnorm(4)},
        {"Conv": 1},
    ),
    "before a conv with bias, auto_pad VALID": (
        "g (float[N,4,8] x) => (float[N,6,6] y) { n = BatchNormalization(x, g, b, m, v) y = "
        'Conv<auto_pad="VALID">(n, w, cb) }',
        {"w": draw(6, 4, 3), "cb": draw(6), **draw_batchnorm(4)},
        {"Conv": 1},
    ),
    "before a padded conv, no shift": (
        "g (float[N,4,8,8] x) => (float[N,6,8,8] y) "
        "{ n = BatchNormalization(x, g, zero, zero, v) y = Conv<pads=[1,1,1,1]>(n, w) }",
        {"w": draw(6, 4, 3, 3), "zero": np.zeros(4, np.float32), **draw_batchnorm(4)},
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
        {"w": draw(6, 1, 2, 2), **draw_batchnorm(1), "g": np.float32([-3])},
        {"Conv": 1, "Pad": 1},
    ),
    "before a transposed conv, no shift": (
        "g (float[N,4,4,4] x) => (float[N,6,6,6] y) "
        "{ n = BatchNormalization(x, g, zero, zero, v) y = ConvTranspose<group=2>(n, w) }",
        {"w": draw(4, 3, 3, 3), "zero": np.zeros(4, np.float32), **draw_batchnorm(4)},
        {"ConvTranspose": 1},
    ),
    "before a gemm with alpha and beta": (
        "g (float[N,4] x) => (float[N,5] y) "
        "{ n = BatchNormalization(x, g, b, m, v) y = Gemm<alpha=0.5, beta=2.0>(n, w, cb) }",
        {"w": draw(4, 5), "cb": draw(1, 5), **draw_batchnorm(4)},
        {"Gemm": 1},
    ),
    "before a transposed gemm without C": (
        "g (float[N,4] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) y = Gemm<transB=1>(n, w) }",
        {"w": draw(5, 4), **draw_batchnorm(4)},
        {"Gemm": 1},
    ),
    "before a matmul": (
        "g (float[N,4] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) y = MatMul(n, w) }",
        {"w": draw(4, 5), **draw_batchnorm(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "before a matmul and add": (
        "g (float[N,4] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) c = MatMul(n, w) y = Add(c, a) }",
        {"w": draw(4, 5), "a": np.float32(0.3), **draw_batchnorm(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "before a matmul, weight left": (
        "g (float[N,4,5] x) => (float[N,6,5] y) { n = BatchNormalization(x, g, b, m, v) y = MatMul(w, n) }",
        {"w": draw(6, 4), **draw_batchnorm(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "before a matmul by a vector": (
        "g (float[N,4] x) => (float[N] y) { n = BatchNormalization(x, g, b, m, v) y = MatMul(n, w) }",
        {"w": draw(4), **draw_batchnorm(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "before a flatten and gemm": (
        "g (float[N,4,3,3] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) f = Flatten(n) y = "
        "Gemm(f, w) }",
        {"w": draw(36, 5), **draw_batchnorm(4)},
        {"Flatten": 1, "Gemm": 1},
    ),
    "before a reshape, transpose and matmul": (
        "g (float[N,4,3,3] x) => (float[N,9,5] y) { n = BatchNormalization(x, g, b, m, v) r = Reshape(n, s) "
        "t = Transpose<perm=[0,2,1]>(r) y = MatMul(t, w) }",
        {"w": draw(4, 5), "s": np.array([0, 4, -1]), **draw_batchnorm(4)},
        {"Reshape": 1, "Transpose": 1, "MatMul": 1, "Add": 1},
    ),
    "before global pooling and gemm": (
        "g (float[N,4,3,3] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) p = GlobalAveragePool(n) "
        "s = Squeeze(p, axes) y = Gemm(s, w) }",
        {"w": draw(4, 5), "axes": np.array([-1, -2]), **draw_batchnorm(4)},
        {"GlobalAveragePool": 1, "Squeeze": 1, "Gemm": 1},
    ),
    "before several layers": (
        "g (float[N,4] x) => (float[N,5] y, float[N,6] z, float[N,4] r) { n = BatchNormalization(x, g, b, m, v) "
        "y = Gemm(n, w) z = Gemm(n, w2) r = Relu(x) }",
        {"w": draw(4, 5), "w2": draw(4, 6), **draw_batchnorm(4)},
        {"Gemm": 2, "Relu": 1},
    ),
    "before a concat and conv": (
        "g (float[N,4,6] x, float[N,2,6] z) => (float[N,5,4] y) { n = BatchNormalization(x, g, b, m, v) "
        "k = Concat<axis=1>(z, n) y = Conv(k, w) }",
        {"w": draw(5, 6, 3), **draw_batchnorm(4)},
        {"Concat": 1, "Conv": 1},
    ),
    "identity branch beside convs": (
        "g (float[N,4,6,6] x) => (float[N,4,6,6] y) { c = Conv<pads=[1,1,1,1]>(x, w) p = BatchNormalization(c, "
        "g, b, m, v) "
        "d = Conv(x, w2) q = BatchNormalization(d, g2, b2, m2, v2) i = BatchNormalization(x, g3, b3, m3, v3) "
        "s = Add(p, q) t = Add(i, s) y = Relu(t) }",
        {
            "w": draw(4, 4, 3, 3),
            "w2": draw(4, 4, 1, 1),
            **draw_batchnorm(4),
            **draw_batchnorm(4, 1, suffix="2"),
            **draw_batchnorm(4, 2, suffix="3"),
        },
        {"Conv": 2, "Add": 1, "Relu": 1},
    ),
    "identity branch beside a grouped conv": (
        "g (float[N,6,5] x) => (float[N,6,5] y) { c = Conv<pads=[2,2], dilations=[2], group=2>(x, w, cb) "
        "i = BatchNormalization(x, g, b, m, v) y = Add(i, c) }",
        {"w": draw(6, 3, 3), "cb": draw(6), **draw_batchnorm(6)},
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
        {"zero": np.zeros(3, np.float32), **draw_batchnorm(3)},
        {"Relu": 1, "Mul": 1},
    ),
    "alone, only shifts": (
        "g (float[N,3,4] x) => (float[N,3,4] y) { r = Relu(x) y = BatchNormalization<epsilon=0.0>(r, one, b, m, one) }",
        {"one": np.ones(3, np.float32), **draw_batchnorm(3)},
        {"Relu": 1, "Add": 1},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rewrites(case: tuple[str, Arrays, dict[str, int]]) -> None:
    text, weights, ops = case
    assert_rewrites(FoldBatchNorm(), model(text, **read_by(text, weights)), ops=ops)
