"""fold-batchnorm: a model per case, with values that break careless arithmetic, and every refusal with its reason."""

import importlib.util
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphopt.passes.fold_batchnorm import FoldBatchNorm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.numerics.compare import Comparer
from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, assert_skips, count_ops, model, random_feeds, run_alone

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
        "g (float[N,3,8,8] x) => (float[N,6,1,1] y) { c = Conv(x, w) p = AveragePool<kernel_shape=[2,2], "
        "pads=[1,1,1,1]>(c) "
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
    "pixel shuffle, DCR": (
        "g (float[N,3,4,4] x) => (float[N,3,8,8] y) "
        "{ c = Conv(x, w) d = DepthToSpace<blocksize=2>(c) y = BatchNormalization(d, g, b, m, v) }",
        {"w": draw(12, 3, 1, 1), **statistics(3)},
        {"Conv": 1, "DepthToSpace": 1},
    ),
    "pixel shuffle, CRD": (
        "g (float[N,3,4,4] x) => (float[N,3,8,8] y) "
        '{ c = Conv(x, w) d = DepthToSpace<blocksize=2, mode="CRD">(c) y = BatchNormalization(d, g, b, m, v) }',
        {"w": draw(12, 3, 1, 1), **statistics(3)},
        {"Conv": 1, "DepthToSpace": 1},
    ),
    "before space to depth and back": (
        "g (float[N,3,4,4] x) => (float[N,5,4,4] y) { n = BatchNormalization(x, g, b, m, v) "
        "d = SpaceToDepth<blocksize=2>(n) e = DepthToSpace<blocksize=2>(d) y = Conv(e, w) }",
        {"w": draw(5, 3, 1, 1), **statistics(3)},
        {"Conv": 1, "DepthToSpace": 1, "SpaceToDepth": 1},
    ),
    "enlarged": (
        "g (float[N,3,4,4] x) => (float[N,6,8,8] y) { c = Conv(x, w) "
        'd = Resize<mode="linear">(c, , sizes) y = BatchNormalization(d, g, b, m, v) }',
        {"w": draw(6, 3, 1, 1), "sizes": np.float32([1, 1, 2, 2]), **statistics(6)},
        {"Conv": 1, "Resize": 1},
    ),
    "padded behind the conv": (
        "g (float[N,1,4,4] x) => (float[N,1,6,4] y) "
        "{ c = Conv(x, w) d = Pad(c, pads, value) y = BatchNormalization(d, g, b, m, v) }",
        {"w": draw(1, 1, 1, 1), "pads": np.array([0, 0, 1, 0, 0, 0, 1, 0]), "value": np.float32(0.7), **statistics(1)}
        | {"g": np.float32([-2])},
        {"Conv": 1, "Pad": 1},
    ),
    "reflected behind the conv": (
        "g (float[N,3,4,4] x) => (float[N,4,6,4] y) "
        '{ c = Conv(x, w) d = Pad<mode="reflect">(c, pads) y = BatchNormalization(d, g, b, m, v) }',
        {"w": draw(4, 3, 1, 1), "pads": np.array([0, 0, 1, 0, 0, 0, 1, 0]), **statistics(4)},
        {"Conv": 1, "Pad": 1},
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
        {"w": draw(1, 12, 4), "r": draw(1, 12, 3), **statistics(4)},
        {"Transpose": 1, "LSTM": 1},
    ),
    "before a GRU, both ways": (
        "g (float[N,4,5] x) => (float[5,2,N,3] y, float[2,N,3] h) { n = BatchNormalization(x, g, b, m, v) "
        "t = Transpose<perm=[2,0,1]>(n) "
        'y, h = GRU<hidden_size=3, linear_before_reset=1, direction="bidirectional">(t, w, r, k) }',
        {"w": draw(2, 9, 4), "r": draw(2, 9, 3), "k": draw(2, 18), **statistics(4)},
        {"Transpose": 1, "GRU": 1},
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
        "g (float[N,4,8,8] x) => (float[N,6,6,6] y) { n = BatchNormalization(x, g, b, m, v) y = Conv<group=2>(n, w) }",
        {"w": draw(6, 2, 3, 3), **statistics(4)},
        {"Conv": 1},
    ),
    "before a conv with bias, auto_pad VALID": (
        "g (float[N,4,8] x) => (float[N,6,6] y) { n = BatchNormalization(x, g, b, m, v) y = "
        'Conv<auto_pad="VALID">(n, w, cb) }',
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
        "g (float[N,4,3,3] x) => (float[N,5] y) { n = BatchNormalization(x, g, b, m, v) f = Flatten(n) y = "
        "Gemm(f, w) }",
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
        "g (float[N,4,6,6] x) => (float[N,4,6,6] y) { c = Conv<pads=[1,1,1,1]>(x, w) p = BatchNormalization(c, "
        "g, b, m, v) "
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
        "g (float[N,3,4] x) => (float[N,3,4] y) { r = Relu(x) y = BatchNormalization<epsilon=0.0>(r, one, b, m, one) }",
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
    return name in text.replace("(", " ").replace(")", " ").replace(",", " ").split("=>", 1)[1].split()


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
        "^'g' is not constant$",
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
            **{key: value.astype(np.float16) for key, value in statistics(4).items()},
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
        {"k": draw(4, 2, 1, 1), **statistics(8)},
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
    everything = {"w": draw(4, 3, 3, 3), **statistics(4), **weights}
    inputs = text.split("=>")[0].replace(")", " ").replace(",", " ").split()[1:]
    used = {name: values for name, values in everything.items() if reads(text, name)}
    used = {name: values for name, values in used.items() if name in weights or name not in inputs}
    assert_skips(FoldBatchNorm(), model(text, **used), reason)


@pytest.mark.parametrize(("opset", "attrs"), [(7, "<spatial=1>"), (8, "<momentum=0.5>"), (9, ""), (13, ""), (15, "")])
def test_rewrites_in_every_opset_that_runs(opset: int, attrs: str) -> None:
    proto = model(CONV.format(attrs=attrs), opset=opset, w=draw(4, 3, 3, 3), **statistics(4))
    assert_rewrites(FoldBatchNorm(), proto, ops={"Conv": 1})


def test_rewrites_before_opset_7() -> None:
    proto = model(CONV.format(attrs="<is_test=1>"), opset=6, w=draw(4, 3, 3, 3), **statistics(4))
    after, result = run_alone(FoldBatchNorm(), proto)
    assert [node.op_type for node in after.graph.node] == ["Conv"]
    folded = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    gain = proto_array(proto, "g") / np.sqrt(proto_array(proto, "v") + np.float64(np.float32(1e-5)))
    np.testing.assert_allclose(folded["w"], proto_array(proto, "w") * gain.reshape(4, 1, 1, 1), rtol=2e-7)
    assert result.rewritten[0].site == "y"


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
    assert_skips(FoldBatchNorm(), model(text, opset=opset, w=draw(4, 3, 3, 3), **statistics(4)), reason)


def test_skips_statistics_per_element() -> None:
    values = {key: np.ones((4, 6, 6), np.float32) for key in "gbmv"}
    proto = model(CONV.format(attrs="<spatial=0>"), opset=7, w=draw(4, 3, 3, 3), **values)
    assert_skips(FoldBatchNorm(), proto, "spatial=0: the statistics are per element")


def proto_array(proto: onnx.ModelProto, name: str) -> NDArray[Any]:
    return next(onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer if t.name == name)


def test_folds_float16_with_float32_statistics() -> None:
    text = "g (float16[N,3,8,8] x) => (float16[N,4,6,6] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }"
    proto = model(text, w=draw(4, 3, 3, 3, dtype=np.float16), **statistics(4))
    after, _ = run_alone(FoldBatchNorm(), proto)
    assert [node.op_type for node in after.graph.node] == ["Conv"]
    assert {tensor.data_type for tensor in after.graph.initializer} == {onnx.TensorProto.FLOAT16}
    gain = proto_array(proto, "g") / np.sqrt(proto_array(proto, "v") + np.float64(np.float32(1e-5)))
    exact = proto_array(proto, "w") * gain.reshape(4, 1, 1, 1)
    assert np.array_equal(proto_array(after, "w"), exact.astype(np.float16).astype(np.float64))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16], ids=["float64", "float16", "bfloat16"])
def test_folds_every_float_type_with_one_rounding(dtype: Any) -> None:
    kind = {"float64": "double", "float16": "float16", "bfloat16": "bfloat16"}[np.dtype(dtype).name]
    text = f"g ({kind}[N,3,8,8] x) => ({kind}[N,4,6,6] y) {{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }}"
    values = {**statistics(4, dtype=dtype), "v": np.array([0.5, 1, 2, 4], dtype)}
    proto = model(text, opset=22, ir_version=10, w=draw(4, 3, 3, 3, dtype=dtype), **values)
    after, _ = run_alone(FoldBatchNorm(), proto)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node] == ["Conv"]
    gain = proto_array(proto, "g") / np.sqrt(proto_array(proto, "v") + np.float64(np.float32(1e-5)))
    exact = (proto_array(proto, "w") * gain.reshape(4, 1, 1, 1)).astype(dtype)
    assert np.array_equal(proto_array(after, "w"), exact.astype(np.float64))
    assert exact.any()
    shift = proto_array(proto, "b") - proto_array(proto, "m") * gain
    bias = next(tensor for tensor in after.graph.initializer if tensor.name == after.graph.node[0].input[2])
    assert np.array_equal(onnx.numpy_helper.to_array(bias), shift.astype(dtype))


def test_zero_filters_stay_zero() -> None:
    weight = draw(4, 3, 3, 3)
    weight[[0, 2]] = 0
    proto = model(CONV.format(attrs=""), w=weight, **{**statistics(4), "g": np.float32([-3, 0, -1, 1])})
    after = assert_rewrites(FoldBatchNorm(), proto, ops={"Conv": 1})
    folded = proto_array(after, "w")
    assert [bool(folded[index].any()) for index in range(4)] == [False, False, False, True]
    assert not np.signbit(folded[:3]).any(), "a zero has become negative"


def test_parameters_in_constant_nodes_and_behind_identity() -> None:
    text = (
        "g (float[N,3,4] x) => (float[N,2,4] y) { w = Constant<value = float[2,3,1] {1,2,3,4,5,6}>() wi = Identity(w) "
        "c = Conv(x, wi) g = Constant<value_floats = [1.5, -0.5]>() gi = Identity(g) "
        "b = Constant<value = float[2] {3, 4}>() v = Constant<value = float[2] {0.5, 2}>() "
        "y = BatchNormalization(c, gi, b, b, v) }"
    )
    after = assert_rewrites(FoldBatchNorm(), model(text), ops={"Conv": 1})
    assert len(after.graph.node) == 1, "dead Constant nodes are left behind"


def test_computed_parameters_are_evaluated() -> None:
    text = (
        "g (float[N,3,4] x) => (float[N,2,4] y) { r = Reshape(k, shape) w = Transpose<perm=[1,0,2]>(r) s = "
        "Shape<start=0, end=1>(w) one = Constant<value = float {1.0}>() "
        "g = Expand(one, s) zero = Constant<value = double {0.25}>() z = CastLike(zero, x) b = Expand(z, s) "
        "v = ConstantOfShape<value = float[1] {4}>(s) "
        "c = Conv(x, w, b) y = BatchNormalization(c, g, b, b, v) }"
    )
    proto = model(text, k=draw(6), shape=np.array([3, 2, 1]))
    assert len(assert_rewrites(FoldBatchNorm(), proto, ops={"Conv": 1}).graph.node) == 1


def test_a_shared_weight_is_copied() -> None:
    text = (
        "g (float[N,3,8,8] x, float[N,3,8,8] z) => (float[N,4,6,6] y, float[N,4,6,6] u, float[N,4,6,6] r) "
        "{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) d = Conv(z, w) u = BatchNormalization(d, b, b, m, v) "
        "r = Conv(z, w) }"
    )
    proto = model(text, w=draw(4, 3, 3, 3), **statistics(4))
    after = assert_rewrites(FoldBatchNorm(), proto, ops={"Conv": 3}, rewritten=2)
    assert len({node.input[1] for node in after.graph.node}) == 3
    assert np.array_equal(proto_array(after, "w"), proto_array(proto, "w"))


def test_layers_that_share_weight_and_statistics_go_on_sharing() -> None:
    text = (
        "g (float[N,3,8,8] x, float[N,3,9,9] z) => (float[N,4,6,6] y, float[N,4,7,7] u) "
        "{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) d = Conv(z, w) u = BatchNormalization(d, g, b, m, v) }"
    )
    after = assert_rewrites(FoldBatchNorm(), model(text, w=draw(4, 3, 3, 3), **statistics(4)), ops={"Conv": 2})
    assert len(after.graph.initializer) == 2


def test_folds_inside_of_subgraphs() -> None:
    text = (
        "g (float[2,3,8,8] x, bool k) => (float[2,4,6,6] z) { z = If(k) "
        "<then_branch = t () => (float[2,4,6,6] p) { c = Conv(x, w) p = BatchNormalization(c, g, b, m, v) }, "
        "else_branch = e () => (float[2,4,6,6] q) { d = Conv(x, w) n = BatchNormalization(d, b, g, m, v) q = "
        "Relu(n) }> }"
    )
    proto = model(text, w=draw(4, 3, 3, 3), **statistics(4))
    for flag in (True, False):
        feeds = {"x": draw(2, 3, 8, 8), "k": np.array(flag)}
        after = assert_rewrites(FoldBatchNorm(), proto, ops={"If": 1}, feeds=feeds, rewritten=2)
    ops = [[node.op_type for node in attribute.g.node] for attribute in after.graph.node[0].attribute]
    assert sorted(ops) == [["Conv"], ["Conv", "Relu"]]


def test_folds_inside_of_a_loop() -> None:
    text = (
        "g (float[2,4,6,6] x) => (float[2,4,6,6] z) { z = Loop(n, , x) "
        "<body = l (int64 i, bool k, float[2,4,6,6] s) => (bool k2, float[2,4,6,6] t) "
        "{ k2 = Identity(k) c = Conv(s, w) t = BatchNormalization(c, g, b, m, v) }> }"
    )
    proto = model(text, w=draw(4, 4, 1, 1), n=np.int64(3), **statistics(4))
    after = assert_rewrites(FoldBatchNorm(), proto, ops={"Loop": 1})
    assert [node.op_type for node in after.graph.node[0].attribute[0].g.node] == ["Identity", "Conv"]


def test_folds_inside_of_a_local_function() -> None:
    text = (
        "g (float[2,3,4] x) => (float[2,2,4] y) { y = local.block(x) } "
        '<opset_import: ["" : 17], domain: "local"> block (x) => (y) '
        "{ w = Constant<value = float[2,3,1] {1,2,3,4,5,6}>() c = Conv(x, w) g = Constant<value_floats = [1.5, "
        "-0.5]>() "
        "b = Constant<value = float[2] {3, 4}>() v = Constant<value = float[2] {0.5, 2}>() "
        "y = BatchNormalization(c, g, b, b, v) }"
    )
    after = assert_rewrites(FoldBatchNorm(), model(text), ops={"block": 1}, rewritten=1)
    assert [node.op_type for node in after.functions[0].node if node.op_type != "Constant"] == ["Conv"]


EXTREMES = [0.0, 1.0, -40.0, 1e-30, -1e-12, 1e12, -1e30, 3e38]


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.lists(st.tuples(*[st.sampled_from(EXTREMES)] * 3), min_size=4, max_size=4), st.sampled_from([0.0, 1e-5, 1.0]))
def test_extreme_statistics_fold_exactly_or_not_at_all(rows: list[tuple[float, ...]], epsilon: float) -> None:
    gamma, mean, var = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    var = np.abs(var)
    weight, beta = draw(4, 3, 3, 3), draw(4)
    text = CONV.format(attrs=f"<epsilon={epsilon:.6f}>")
    after, result = run_alone(FoldBatchNorm(), model(text, w=weight, g=gamma, b=beta, m=mean, v=var))
    with np.errstate(all="ignore"):
        gain = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + np.float64(np.float32(epsilon)))
        exact_weight = (weight * gain.reshape(4, 1, 1, 1)).astype(np.float32)
        exact_shift = (beta - mean * gain).astype(np.float32)
    fits = np.isfinite(exact_weight).all() and np.isfinite(exact_shift).all()
    if not result.rewritten:
        assert not fits, result.skipped
        return
    assert np.array_equal(proto_array(after, "w"), exact_weight.astype(np.float64))
    assert np.array_equal(proto_array(after, "c_bias"), exact_shift.astype(np.float64))


def test_long_chains_are_given_up() -> None:
    steps = " ".join(f"c{i + 1} = Identity(c{i})" for i in range(700))
    text = (
        f"g (float[N,3,4] x) => (float[N,4,4] y) {{ c0 = Conv(x, w) {steps} y = BatchNormalization(c700, g, b, m, v) }}"
    )
    assert_skips(FoldBatchNorm(), model(text, w=draw(4, 3, 1), **statistics(4)), "among the 64 operators before it")
    steps = " ".join(f"c{i + 1} = Identity(c{i})" for i in range(700))
    text = (
        f"g (float[N,4,4] x) => (float[N,4,4] y) {{ c0 = BatchNormalization(x, g, b, m, v) {steps} y = Conv(c700, w) }}"
    )
    assert_skips(FoldBatchNorm(), model(text, w=draw(4, 4, 1), **statistics(4)), "more than 256 operators")


MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))


@pytest.mark.parametrize("path", MODELS, ids=[path.stem for path in MODELS])
def test_trained_networks_fold_completely(path: Path) -> None:
    proto = onnx.load(path)
    convs, gemms = (sum(node.op_type == op for node in proto.graph.node) for op in ("Conv", "Gemm"))
    after, result = run_alone(FoldBatchNorm(), proto)
    ops = count_ops(after)
    assert "BatchNormalization" not in ops
    assert (ops["Conv"], ops["Gemm"]) == (convs, gemms)
    assert not result.skipped
    for before_node, after_node in zip(convolutions(proto), convolutions(after), strict=True):
        zero = [~array.reshape(len(array), -1).any(axis=1) for array in (before_node, after_node)]
        assert (zero[1] | ~zero[0]).all(), "a zero filter is not zero any more"
    check_outputs(proto, after, random_feeds(proto, 0))


def convolutions(proto: onnx.ModelProto) -> list[NDArray[Any]]:
    return [proto_array(proto, node.input[1]) for node in proto.graph.node if node.op_type == "Conv"]


def check_outputs(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Arrays) -> None:
    comparer = Comparer(FoldBatchNorm.contract)
    comparer.add(Session(before, threads=1).run(feeds), Session(after, threads=1).run(feeds))
    assert comparer.result().holds, comparer.result().problem


def page(height: int, width: int) -> NDArray[np.float32]:
    """Two light pages with lines of dark strokes, as a detector of text wants to see them."""
    rng = np.random.default_rng(0)
    image = np.full((2, 3, height, width), 2.0)
    for top in range(12, height - 11, 26):
        strokes = np.repeat(rng.uniform(size=(2, 1, 1, width // 2)) < 0.4, 2, axis=3)
        image[:, :, top : top + 11, :] -= 3.5 * strokes
    return image.astype(np.float32)


OCR = [
    ("ch_PP-OCRv4_rec_infer", 48, 160),
    ("ch_ppocr_mobile_v2.0_cls_infer", 48, 192),
    ("ch_PP-OCRv4_det_infer", 160, 256),
]


@pytest.mark.parametrize(("name", "height", "width"), OCR, ids=["recognition", "direction", "detection"])
def test_paddle_ocr_networks_fold_completely(name: str, height: int, width: int) -> None:
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel of rapidocr-onnxruntime, which has these networks, is not installed")
    proto = onnx.load(Path(spec.origin).parent / "models" / f"{name}.onnx")
    after, result = run_alone(FoldBatchNorm(), proto)
    assert "BatchNormalization" not in count_ops(after)
    assert not result.skipped
    image = page(height, width)
    check_outputs(proto, after, {proto.graph.input[0].name: image})


def test_a_veto_is_kept() -> None:
    from graphopt.graph import GraphView
    from graphopt.model import from_proto

    proto = model(CONV.format(attrs=""), w=draw(4, 3, 3, 3), **statistics(4))
    result = FoldBatchNorm().apply(GraphView(from_proto(proto), vetoes={"y": "it lies"}))
    assert not result.rewritten
    assert [(skipped.site, skipped.reason) for skipped in result.skipped] == [("y", "it lies")]


def test_before_ir_version_4_initializers_are_inputs_too() -> None:
    values = {"w": draw(4, 3, 3, 3), **statistics(4)}
    proto = model(CONV.format(attrs=""), opset=8, **values)
    proto.ir_version = 3
    for name, array in values.items():
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape))
    after = assert_rewrites(FoldBatchNorm(), proto, ops={"Conv": 1})
    stored = {tensor.name for tensor in after.graph.initializer}
    assert {info.name for info in after.graph.input} == {"x", *stored}
    assert not stored & set("gbmv")


def test_attributes_that_the_caller_sets_are_left_alone() -> None:
    text = (
        "g (float[2,3,4] x) => (float[2,2,4] y) { y = local.block<e = 0.5>(x) } "
        '<opset_import: ["" : 17], domain: "local"> block <e> (x) => (y) '
        "{ w = Constant<value = float[2,3,1] {1,2,3,4,5,6}>() c = Conv(x, w) "
        "g = Constant<value_floats = [1.5, 0.5]>() y = BatchNormalization<epsilon: float = @e>(c, g, g, g, g) }"
    )
    assert_skips(FoldBatchNorm(), model(text), "'epsilon' of BatchNormalization 'y' is set by the caller")
