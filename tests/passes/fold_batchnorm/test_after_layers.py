"""fold-batchnorm into the layers before it: a model per case, with values that break careless arithmetic."""

from typing import Any

import numpy as np
import pytest
from graphopt.passes.fold_batchnorm import FoldBatchNorm
from numpy.typing import NDArray

from graphopt.testing import assert_rewrites, draw, draw_batchnorm, model, read_by

Arrays = dict[str, NDArray[Any]]


CASES: dict[str, tuple[str, Arrays, dict[str, int]]] = {
    "conv": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), **draw_batchnorm(6)},
        {"Conv": 1},
    ),
    "conv with bias, epsilon zero": (
        "g (float[N,3,8,8] x) => (float[N,6,4,4] y) "
        "{ c = Conv<strides=[2,2], pads=[1,1,0,0]>(x, w, cb) y = BatchNormalization<epsilon=0.0>(c, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), "cb": draw(6), **draw_batchnorm(6)},
        {"Conv": 1},
    ),
    "conv 1-D": (
        "g (float[N,3,16] x) => (float[N,4,14] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(4, 3, 3), **draw_batchnorm(4)},
        {"Conv": 1},
    ),
    "conv 3-D, grouped": (
        "g (float[N,4,5,5,5] x) => (float[N,6,4,4,4] y) "
        "{ c = Conv<group=2>(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(6, 2, 2, 2, 2), **draw_batchnorm(6)},
        {"Conv": 1},
    ),
    "conv, depthwise": (
        "g (float[N,5,6,6] x) => (float[N,5,6,6] y) "
        "{ c = Conv<group=5, pads=[1,1,1,1]>(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(5, 1, 3, 3), **draw_batchnorm(5)},
        {"Conv": 1},
    ),
    "transposed conv": (
        "g (float[N,3,4,4] x) => (float[N,5,9,9] y) "
        "{ c = ConvTranspose<strides=[2,2]>(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(3, 5, 3, 3), **draw_batchnorm(5)},
        {"ConvTranspose": 1},
    ),
    "transposed conv, grouped": (
        "g (float[N,4,4] x) => (float[N,6,6] y) "
        "{ c = ConvTranspose<group=2>(x, w, cb) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(4, 3, 3), "cb": draw(6), **draw_batchnorm(6)},
        {"ConvTranspose": 1},
    ),
    "gemm with alpha and beta": (
        "g (float[N,3] x) => (float[N,4] y) "
        "{ c = Gemm<alpha=0.5, beta=-2.0>(x, w, cb) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(3, 4), "cb": draw(4), **draw_batchnorm(4)},
        {"Gemm": 1},
    ),
    "gemm transposed, scalar C": (
        "g (float[3,N] x) => (float[N,4] y) "
        "{ c = Gemm<transA=1, transB=1, beta=3.0>(x, w, cb) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(4, 3), "cb": np.float32(0.7), **draw_batchnorm(4)},
        {"Gemm": 1},
    ),
    "gemm without C": (
        "g (float[N,3] x) => (float[N,4] y) { c = Gemm(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(3, 4), **draw_batchnorm(4)},
        {"Gemm": 1},
    ),
    "gemm with a matrix C": (
        "g (float[2,3] x) => (float[2,4] y) { c = Gemm(x, w, cb) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(3, 4), "cb": draw(2, 1), **draw_batchnorm(4)},
        {"Gemm": 1},
    ),
    "matmul": (
        "g (float[N,3] x) => (float[N,4] y) { c = MatMul(x, w) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(3, 4), **draw_batchnorm(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "matmul, weight left": (
        "g (float[N,3,5] x) => (float[N,4,5] y) { c = MatMul(w, x) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(4, 3), **draw_batchnorm(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "matmul and add": (
        "g (float[N,3] x) => (float[N,4] y) { c = MatMul(x, w) d = Add(a, c) y = BatchNormalization(d, g, b, m, v) }",
        {"w": draw(3, 4), "a": draw(4), **draw_batchnorm(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "matmul, transposed weight": (
        "g (float[N,3] x) => (float[N,4] y) "
        "{ t = Transpose<perm=[1,0]>(w) c = MatMul(x, t) y = BatchNormalization(c, g, b, m, v) }",
        {"w": draw(4, 3), **draw_batchnorm(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "conv and add": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) "
        "{ c = Conv(x, w) d = Add(c, a) y = BatchNormalization(d, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), "a": draw(6, 1, 1), **draw_batchnorm(6)},
        {"Conv": 1},
    ),
    "conv, mul, sub and div": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) d = Mul(s, c) e = Sub(a, d) f = Div(e, s) "
        "y = BatchNormalization(f, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), "a": draw(6, 1, 1), "s": draw(1, 6, 1, 1) + 3, **draw_batchnorm(6)},
        {"Conv": 1},
    ),
    "identity, dropout": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) "
        "{ c = Conv(x, w) d = Identity(c) e = Dropout(d) y = BatchNormalization(e, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), **draw_batchnorm(6)},
        {"Conv": 1, "Identity": 1, "Dropout": 1},
    ),
    "NHWC": (
        "g (float[N,8,8,3] x) => (float[N,6,6,6] y) { t = Transpose<perm=[0,3,1,2]>(x) c = Conv(t, w) "
        "u = Transpose<perm=[0,2,3,1]>(c) k = Transpose<perm=[0,3,1,2]>(u) n = BatchNormalization(k, g, b, m, v) "
        "y = Transpose<perm=[0,2,3,1]>(n) }",
        {"w": draw(6, 3, 3, 3), **draw_batchnorm(6)},
        {"Conv": 1, "Transpose": 4},
    ),
    "unsqueezed and squeezed": (
        "g (float[N,3] x) => (float[N,4] y) { c = MatMul(x, w) u = Unsqueeze(c, two) "
        "n = BatchNormalization(u, g, b, m, v) y = Squeeze(n, two) }",
        {"w": draw(3, 4), "two": np.array([2]), **draw_batchnorm(4)},
        {"MatMul": 1, "Add": 1, "Unsqueeze": 1, "Squeeze": 1},
    ),
    "reshaped rows": (
        "g (float[2,5,3] x) => (float[10,4] y) "
        "{ c = MatMul(x, w) r = Reshape(c, s) y = BatchNormalization(r, g, b, m, v) }",
        {"w": draw(3, 4), "s": np.array([-1, 4]), **draw_batchnorm(4)},
        {"MatMul": 1, "Add": 1, "Reshape": 1},
    ),
    "flattened image": (
        "g (float[N,3,4,4] x) => (float[N,6] y) "
        "{ c = Conv(x, w) r = Flatten(c) y = BatchNormalization(r, g, b, m, v) }",
        {"w": draw(6, 3, 4, 4), **draw_batchnorm(6)},
        {"Conv": 1, "Flatten": 1},
    ),
    "channels joined to features": (
        "g (float[N,4,1,1] x) => (float[N,2,2] y) "
        "{ c = Conv(x, w) r = Reshape(c, s) y = BatchNormalization(r, g, b, m, v) }",
        {"w": draw(4, 4, 1, 1), "s": np.array([0, 2, 2]), **draw_batchnorm(2)},
        {"Conv": 1, "Reshape": 1},
    ),
    "pooled": (
        "g (float[N,3,8,8] x) => (float[N,6,1,1] y) { c = Conv(x, w) p = AveragePool<kernel_shape=[2,2], "
        "pads=[1,1,1,1]>(c) "
        "q = GlobalAveragePool(p) y = BatchNormalization(q, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), **draw_batchnorm(6)},
        {"Conv": 1, "AveragePool": 1, "GlobalAveragePool": 1},
    ),
    "reduced": (
        "g (float[N,3,8] x) => (float[N,6] y) "
        "{ c = Conv(x, w) p = ReduceMean<axes=[-1], keepdims=0>(c) y = BatchNormalization(p, g, b, m, v) }",
        {"w": draw(6, 3, 3), **draw_batchnorm(6)},
        {"Conv": 1, "ReduceMean": 1},
    ),
    "max pool, positive scales": (
        "g (float[N,3,8,8] x) => (float[N,6,3,3] y) { c = Conv(x, w) "
        "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c) y = BatchNormalization(p, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), **draw_batchnorm(6), "g": np.abs(draw(6))},
        {"Conv": 1, "MaxPool": 1},
    ),
    "pixel shuffle, DCR": (
        "g (float[N,3,4,4] x) => (float[N,3,8,8] y) "
        "{ c = Conv(x, w) d = DepthToSpace<blocksize=2>(c) y = BatchNormalization(d, g, b, m, v) }",
        {"w": draw(12, 3, 1, 1), **draw_batchnorm(3)},
        {"Conv": 1, "DepthToSpace": 1},
    ),
    "pixel shuffle, CRD": (
        "g (float[N,3,4,4] x) => (float[N,3,8,8] y) "
        '{ c = Conv(x, w) d = DepthToSpace<blocksize=2, mode="CRD">(c) y = BatchNormalization(d, g, b, m, v) }',
        {"w": draw(12, 3, 1, 1), **draw_batchnorm(3)},
        {"Conv": 1, "DepthToSpace": 1},
    ),
    "enlarged": (
        "g (float[N,3,4,4] x) => (float[N,6,8,8] y) { c = Conv(x, w) "
        'd = Resize<mode="linear">(c, , sizes) y = BatchNormalization(d, g, b, m, v) }',
        {"w": draw(6, 3, 1, 1), "sizes": np.float32([1, 1, 2, 2]), **draw_batchnorm(6)},
        {"Conv": 1, "Resize": 1},
    ),
    "padded behind the conv": (
        "g (float[N,1,4,4] x) => (float[N,1,6,4] y) "
        "{ c = Conv(x, w) d = Pad(c, pads, value) y = BatchNormalization(d, g, b, m, v) }",
        {
            "w": draw(1, 1, 1, 1),
            "pads": np.array([0, 0, 1, 0, 0, 0, 1, 0]),
            "value": np.float32(0.7),
            **draw_batchnorm(1),
        }
        | {"g": np.float32([-2])},
        {"Conv": 1, "Pad": 1},
    ),
    "reflected behind the conv": (
        "g (float[N,3,4,4] x) => (float[N,4,6,4] y) "
        '{ c = Conv(x, w) d = Pad<mode="reflect">(c, pads) y = BatchNormalization(d, g, b, m, v) }',
        {"w": draw(4, 3, 1, 1), "pads": np.array([0, 0, 1, 0, 0, 0, 1, 0]), **draw_batchnorm(4)},
        {"Conv": 1, "Pad": 1},
    ),
    "concat": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) d = Conv(x, w2) e = Concat<axis=-3>(c, d) "
        "y = BatchNormalization(e, g, b, m, v) }",
        {"w": draw(4, 3, 3, 3), "w2": draw(2, 3, 3, 3), **draw_batchnorm(6)},
        {"Conv": 2, "Concat": 1},
    ),
    "sum of two convs": (
        "g (float[N,3,8,8] x) => (float[N,6,6,6] y) { c = Conv(x, w) d = Conv(x, w2) e = Add(c, d) "
        "y = BatchNormalization(e, g, b, m, v) }",
        {"w": draw(6, 3, 3, 3), "w2": draw(6, 3, 3, 3, seed=1), **draw_batchnorm(6)},
        {"Conv": 2, "Add": 1},
    ),
    "difference of a conv and a matmul": (
        "g (float[N,3,8] x) => (float[N,6,8] y) { c = Conv(x, w) d = MatMul(w2, x) e = Sub(c, d) "
        "y = BatchNormalization(e, g, b, m, v) }",
        {"w": draw(6, 3, 1), "w2": draw(6, 3), **draw_batchnorm(6)},
        {"Conv": 1, "MatMul": 1, "Sub": 1},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rewrites(case: tuple[str, Arrays, dict[str, int]]) -> None:
    text, weights, ops = case
    assert_rewrites(FoldBatchNorm(), model(text, **read_by(text, weights)), ops=ops)
