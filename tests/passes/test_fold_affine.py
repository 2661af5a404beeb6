"""fold-affine: arithmetic by constants and the affine parts of normalizations, a model per case and per refusal."""

from typing import Any

import numpy as np
import pytest
from graphopt.passes.fold_affine import FoldAffine
from numpy.typing import NDArray

from graphopt.testing import assert_rewrites, assert_skips, assert_untouched, draw, model, run_alone

Arrays = dict[str, NDArray[Any]]


CASES: dict[str, tuple[str, Arrays, dict[str, int]]] = {
    "mul and add behind a conv": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, w) d = Mul(c, s) y = Add(t, d) }",
        {"w": draw(4, 3, 3, 3), "s": draw(1, 4, 1, 1), "t": draw(4, 1, 1)},
        {"Conv": 1},
    ),
    "scalars": (
        "g (float[N,3,8] x) => (float[N,4,6] y) { c = Conv(x, w) d = Div(c, s) e = Sub(t, d) y = Neg(e) }",
        {"w": draw(4, 3, 3), "s": np.float32(-0.3), "t": np.float32([2])},
        {"Conv": 1, "Neg": 1},
    ),
    "mul and add before a conv": (
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { d = Mul(x, s) e = Add(t, d) y = Conv(e, w) }",
        {"w": draw(4, 3, 3, 3), "s": draw(3, 1, 1), "t": draw(1, 3, 1, 1)},
        {"Conv": 1},
    ),
    "normalized pixels before a padded conv": (
        "g (float[N,3,8,8] x) => (float[N,4,8,8] y) { d = Sub(x, t) e = Div(d, s) y = Conv<pads=[1,1,1,1]>(e, w) }",
        {"w": draw(4, 3, 3, 3), "s": np.array([51, 58, 57], np.float32).reshape(3, 1, 1), "t": np.float32(127.5)},
        {"Conv": 1, "Pad": 1},
    ),
    "scale of queries": (
        "g (float[N,5,4] x) => (float[N,5,5] y) { q = MatMul(x, w) r = Add(q, t) d = Div(r, s) k = MatMul(x, v) "
        "u = Transpose<perm=[0,2,1]>(k) p = MatMul(d, u) y = Softmax<axis=-1>(p) }",
        {"w": draw(4, 4), "v": draw(4, 4, seed=1), "t": draw(4), "s": np.float32(2.5)},
        {"MatMul": 3, "Add": 1, "Transpose": 1, "Softmax": 1},
    ),
    "scale of a gate": (
        "g (float[N,3,8] x) => (float[N,4,6] y) { c = Conv(x, w) u = Conv(x, w2) a = Sigmoid(u) p = Mul(a, c) "
        "y = Mul(p, s) }",
        {"w": draw(4, 3, 3), "w2": draw(4, 3, 3, seed=1), "s": draw(4, 1)},
        {"Conv": 2, "Sigmoid": 1, "Mul": 1},
    ),
    "mul behind a gemm": (
        "g (float[N,3] x) => (float[N,4] y) { c = Gemm<transB=1, beta=0.5>(x, w, t) y = Mul(c, s) }",
        {"w": draw(4, 3), "t": draw(4), "s": draw(1, 4)},
        {"Gemm": 1},
    ),
    "mul behind a batched matmul": (
        "g (float[2,N,3] x) => (float[2,N,4] y) { c = MatMul(x, w) y = Mul(c, s) }",
        {"w": draw(2, 3, 4), "s": draw(4)},
        {"MatMul": 1},
    ),
    "add before a matmul and add": (
        "g (float[N,5,3] x) => (float[N,5,4] y) { d = Add(x, s) c = MatMul(d, w) y = Add(c, t) }",
        {"w": draw(3, 4), "s": draw(3), "t": draw(4)},
        {"MatMul": 1, "Add": 1},
    ),
    "behind a layer normalization": (
        "g (float[N,5,4] x) => (float[N,5,4] y) { c = LayerNormalization(x, w, t) d = Mul(c, s) y = Add(d, u) }",
        {"w": draw(4), "t": draw(4), "s": draw(4, seed=1), "u": draw(4, seed=2)},
        {"LayerNormalization": 1},
    ),
    "behind a layer normalization without bias, two axes": (
        "g (float[N,5,4] x) => (float[N,5,4] y) { c = LayerNormalization<axis=1>(x, w) y = Add(c, u) }",
        {"w": draw(5, 4), "u": draw(5, 1)},
        {"LayerNormalization": 1},
    ),
    "behind an instance normalization": (
        "g (float[N,4,8] x) => (float[N,4,8] y) { c = InstanceNormalization(x, w, t) y = Mul(c, s) }",
        {"w": draw(4), "t": draw(4), "s": draw(4, 1)},
        {"InstanceNormalization": 1},
    ),
    "behind a batch normalization": (
        "g (float[N,4,8] x) => (float[N,4,8] y) { c = BatchNormalization(x, w, t, t, s) d = Mul(c, u) y = Sub(d, u) }",
        {"w": draw(4), "t": draw(4), "s": np.abs(draw(4)), "u": draw(4, 1)},
        {"BatchNormalization": 1},
    ),
    "before a batch normalization": (
        "g (float[N,4,8] x) => (float[N,4,8] y) { d = Sub(x, u) e = Mul(d, u) y = BatchNormalization(e, w, t, t, s) }",
        {"w": draw(4), "t": draw(4), "s": np.abs(draw(4)), "u": draw(4, 1)},
        {"BatchNormalization": 1},
    ),
    "layer normalization before gemm": (
        "g (float[N,4] x) => (float[N,5] y) { c = LayerNormalization(x, w, t) y = Gemm(c, u) }",
        {"w": draw(4), "t": draw(4), "u": draw(4, 5)},
        {"LayerNormalization": 1, "Gemm": 1},
    ),
    "layer normalization before queries, keys and values": (
        "g (float[N,6,4] x) => (float[N,6,4] q, float[N,6,4] k, float[N,6,4] v) { c = LayerNormalization(x, w, t) "
        "a = MatMul(c, u) q = Add(a, t) b = MatMul(c, u2) k = Add(t, b) d = MatMul(c, u) v = Add(d, w) }",
        {"w": draw(4), "t": draw(4, seed=3), "u": draw(4, 4), "u2": draw(4, 4, seed=2)},
        {"LayerNormalization": 1, "MatMul": 3, "Add": 3},
    ),
    "instance normalization before a conv": (
        "g (float[N,4,8] x) => (float[N,5,6] y) { c = InstanceNormalization(x, w, t) y = Conv(c, u) }",
        {"w": draw(4), "t": draw(4), "u": draw(5, 4, 3)},
        {"InstanceNormalization": 1, "Conv": 1},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rewrites(case: tuple[str, Arrays, dict[str, int]]) -> None:
    text, weights, ops = case
    assert_rewrites(FoldAffine(), model(text, **weights), ops=ops)


REFUSALS: dict[str, tuple[str, Arrays, str]] = {
    "bias of a matmul": (
        "g (float[N,5,3] x) => (float[N,5,4] y) { c = MatMul(x, w) y = Add(c, t) }",
        {"w": draw(3, 4), "t": draw(4)},
        "it would add as many nodes as it removes",
    ),
    "add before a matmul": (
        "g (float[N,5,3] x) => (float[N,5,4] y) { c = Add(x, t) y = MatMul(c, w) }",
        {"w": draw(3, 4), "t": draw(3)},
        "reads it: it would add as many nodes as it removes",
    ),
    "behind a transposed matmul": (
        "g (float[N,5,3] x) => (float[N,4,5] y) { c = MatMul(x, w) u = Transpose<perm=[0,2,1]>(c) y = Add(u, t) }",
        {"w": draw(3, 4), "t": draw(4, 1)},
        "it would add as many nodes as it removes",
    ),
    "constant has more axes": (
        "g (float[N,3] x) => (float[2,N,4] y) { c = Gemm(x, w) y = Mul(c, s) }",
        {"w": draw(3, 4), "s": draw(2, 1, 4)},
        "'s' has more axes than 'c'",
    ),
    "varies along the image": (
        "g (float[N,3,8] x) => (float[N,4,8] y) { c = Conv(x, w) y = Mul(c, s) }",
        {"w": draw(4, 3, 1), "s": draw(1, 8)},
        "it varies along axis 2, the layer's channels are axis 1",
    ),
    "quotient of a constant": (
        "g (float[N,3,8] x) => (float[N,4,8] y) { c = Conv(x, w) y = Div(s, c) }",
        {"w": draw(4, 3, 1), "s": np.float32(1)},
        "a constant divided by a tensor is not affine",
    ),
    "Inf": (
        "g (float[N,3,8] x) => (float[N,4,8] y) { c = Conv(x, w) y = Add(c, s) }",
        {"w": draw(4, 3, 1), "s": np.float32(-np.inf)},
        "'s' holds NaN or Inf",
    ),
    "overflow": (
        "g (float[N,3,8] x) => (float[N,4,8] y) { c = Conv(x, w) y = Mul(c, s) }",
        {"w": draw(4, 3, 1) + 9, "s": np.float32(3e38)},
        "'w' would overflow float32",
    ),
    "instance normalization is blind to what is before it": (
        "g (float[N,4,8] x) => (float[N,4,8] y) { c = Mul(x, s) y = InstanceNormalization(c, w, w) }",
        {"w": draw(4), "s": draw(4, 1)},
        "InstanceNormalization 'y' cannot take it in",
    ),
    "layer normalization with another reader": (
        "g (float[N,4] x) => (float[N,5] y, float[N,4] z) "
        "{ c = LayerNormalization(x, w, w) y = Gemm(c, u) z = Relu(c) }",
        {"w": draw(4), "u": draw(4, 5)},
        "Relu 'z' cannot take it in",
    ),
    "layer normalization that needs Adds": (
        "g (float[N,4] x) => (float[N,5] y) { c = LayerNormalization(x, w, w) y = MatMul(c, u) }",
        {"w": draw(4), "u": draw(4, 5)},
        "its readers would need an Add each",
    ),
    "layer normalization without an affine part": (
        "g (float[N,4] x) => (float[N,5] y) { c = LayerNormalization(x, w) y = Gemm(c, u) }",
        {"w": np.ones(4, np.float32), "u": draw(4, 5)},
        "it neither scales nor shifts",
    ),
    "another axis than the normalized one": (
        "g (float[N,5,4] x) => (float[N,5,4] y) { c = LayerNormalization(x, w) y = Mul(c, s) }",
        {"w": np.ones(4, np.float32), "s": draw(5, 1)},
        "it varies along axis 1, which 'c' does not normalize",
    ),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_skips(case: tuple[str, Arrays, str]) -> None:
    text, weights, reason = case
    assert_skips(FoldAffine(), model(text, **weights), reason)


def test_integers_are_no_sites() -> None:
    text = "g (int64[N] x) => (int64[N] y) { a = Mul(x, two) b = Div(a, three) y = Add(b, two) }"
    proto = model(text, two=np.int64(2), three=np.int64(3))
    assert not assert_untouched(FoldAffine(), proto).skipped


def test_norms_can_be_left_alone() -> None:
    text, weights, _ = CASES["layer normalization before gemm"]
    _, result = run_alone(FoldAffine(norms=False), model(text, **weights))
    assert result.rewritten == result.skipped == ()


def test_a_bias_that_moved_out_of_a_layer_normalization_is_gone() -> None:
    text, weights, ops = CASES["layer normalization before gemm"]
    after = assert_rewrites(FoldAffine(), model(text, **weights), ops=ops)
    assert [len(node.input) for node in after.graph.node] == [2, 3]
    assert "t" not in {tensor.name for tensor in after.graph.initializer}


def test_a_large_weight_that_others_read_too_is_not_stored_twice() -> None:
    text = (
        "g (int64[N] i, float[N,300] x) => (float[N,300] e, float[N,1000] y) "
        "{ e = Gather(w, i) t = Transpose(w) d = Mul(x, s) y = MatMul(d, t) }"
    )
    proto = model(text, w=draw(1000, 300), s=np.array(0.5, np.float32))
    assert_skips(FoldAffine(), proto, "weights are shared: it would store 1200000 bytes of them again")
    ops = {"Gather": 1, "MatMul": 1}
    assert_rewrites(FoldAffine(max_growth=1 << 21), proto, ops=ops)
