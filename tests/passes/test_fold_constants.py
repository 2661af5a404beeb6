"""fold-constants: what is computed, how shapes are followed symbolically, what must never be folded."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphopt.passes.fold_constants import FoldConstants
from numpy.typing import NDArray

from graphopt import GraphView
from graphopt.model import from_proto, to_proto
from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, assert_skips, assert_untouched, count_ops, model, run_alone

Arrays = dict[str, NDArray[Any]]
ADVERSARIAL = np.array([[0.0, -0.0, 1e-40], [np.inf, -np.inf, np.nan]], dtype=np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


CASES: dict[str, tuple[str, Arrays, dict[str, int]]] = {
    "arithmetic, NaN and infinities": (
        "g (float[2,3] x) => (float[2,3] y) { a = Mul(w, w) b = Neg(a) c = Sqrt(b) y = Add(x, c) }",
        {"w": ADVERSARIAL},
        {"Add": 1},
    ),
    "transposed weight": (
        "g (float[N,3] x) => (float[N,4] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }",
        {"w": np.arange(12, dtype=np.float32).reshape(4, 3)},
        {"MatMul": 1},
    ),
    "zero-size": (
        "g (float[2,3] x) => (float[2,3] y) { a = Abs(w) y = Concat<axis=0>(x, a) }",
        {"w": np.zeros((0, 3), dtype=np.float32)},
        {"Concat": 1},
    ),
    "a graph output that is constant": (
        "g (float[2] x) => (float[2] y, float[2] c) { c = Exp(w) y = Add(x, c) }",
        {"w": np.array([0.5, -2], dtype=np.float32)},
        {"Add": 1},
    ),
    "several outputs": (
        "g (float[2] x) => (float[2] y) { a, b = Split<axis=0>(w) c = Add(x, a) y = Mul(c, b) }",
        {"w": np.array([1, 2, 3, 4], dtype=np.float32)},
        {"Add": 1, "Mul": 1},
    ),
    "half precision": (
        "g (float16[2,3] x) => (float16[2,3] y) { a = Transpose(w) y = Add(x, a) }",
        {"w": np.array([[1, 2], [3, 65504], [6e-8, -0.0]], dtype=np.float16)},
        {"Add": 1},
    ),
    "static dimension of a computed tensor": (
        "g (float[N,3,4] x) => (float[N,3,4] y) {"
        " r = Relu(x) s = Shape(r) d = Gather(s, one) f = Cast<to=1>(d) y = Div(r, f) }",
        {"one": ints(1)},
        {"Relu": 1, "Div": 1},
    ),
    "slice of a shape": (
        "g (float[N,3,4] x) => (int64[2] y) { s = Shape<start=-2>(x) y = Identity(s) }",
        {},
        {"Identity": 1},
    ),
    "size of static tensor": ("g (float[2,3] x) => (int64 y) { s = Size(x) y = Neg(s) }", {}, {}),
    "reshape keeps batch": (
        "g (float[N,3,4] x) => (float[N,M] y) {"
        " s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, axes) t = Concat<axis=0>(u, rest) y = Reshape(x, t) }",
        {"zero": np.array(0, dtype=np.int64), "axes": ints(0), "rest": ints(-1)},
        {"Reshape": 1},
    ),
    "reshape folds batch": (
        "g (float[N,3,4] x) => (float[M,4] y) {"
        " s = Shape(x) n = Gather(s, zero) m = Mul(n, three) t = Concat<axis=0>(m, four) y = Reshape(x, t) }",
        {"zero": ints(0), "three": ints(3), "four": ints(4)},
        {"Reshape": 1},
    ),
    "reshape after arithmetic that cancels": (
        "g (float[N,H,8] x) => (float[N,H,2,4] y) { s = Shape(x) n = Slice(s, zero, two) h = Mul(n, two) "
        "k = Div(h, two) t = Concat<axis=0>(k, rest) y = Reshape(x, t) }",
        {"zero": ints(0), "two": ints(2), "rest": ints(2, 4)},
        {"Reshape": 1},
    ),
    "reshape with allowzero": (
        "g (float[N,3,4] x) => (float[N,12] y) {"
        " s = Shape<end=1>(x) t = Concat<axis=0>(s, rest) y = Reshape<allowzero=1>(x, t) }",
        {"rest": ints(12)},
        {"Reshape": 1},
    ),
    "reshape to another input's batch": (
        "g (float[N,6] x, float[N] z) => (float[P,2,3] y) { s = Shape(z) t = Concat<axis=0>(s, r, q) y ="
        " Reshape(x, t) }",
        {"r": ints(2), "q": ints(3)},
        {"Reshape": 1},
    ),
    "expand where it changes nothing": (
        "g (float[N,1,4] x) => (float[N,3,4] y) { s = Shape<end=1>(x) t = Concat<axis=0>(s, r) y = Expand(x, t) }",
        {"r": ints(3, 4)},
        {"Expand": 1},
    ),
    "PyTorch's expand: where, equal, constant of shape": (
        "g (float[N,1] x) => (float[N,3] y) { s = Shape<end=1>(x) t = Concat<axis=0>(s, r) e = Equal(t, minus) "
        "z = ConstantOfShape<value=int64[1] {1}>(two) w = Where(e, z, t) y = Expand(x, w) }",
        {"r": ints(3), "minus": ints(-1, -1), "two": ints(2)},
        {"Expand": 1},
    ),
    "range over a static dimension": (
        "g (float[N,5] x) => (float[N,5] y) { s = Shape(x) d = Gather(s, one) r = Range(zero, d, step) "
        "f = Cast<to=1>(r) y = Add(x, f) }",
        {
            "one": np.array(1, dtype=np.int64),
            "zero": np.array(0, dtype=np.int64),
            "step": np.array(1, dtype=np.int64),
        },
        {"Add": 1},
    ),
    "shape behind a convolution": (
        "g (float[N,3,9,9] x) => (float[N,P] y) { c = Conv<strides=[2,2]>(x, w) s = Shape(c) h = Slice(s, two, four) "
        "p = ReduceProd<keepdims=1>(h) f = Mul(p, six) n = Slice(s, zero, one) t = Concat<axis=0>(n, f) y ="
        " Reshape(c, t) }",
        {
            "w": np.ones((6, 3, 3, 3), dtype=np.float32),
            **{name: ints(n) for name, n in (("zero", 0), ("one", 1), ("two", 2), ("four", 4), ("six", 6))},
        },
        {"Conv": 1, "Reshape": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_folds(name: str) -> None:
    text, weights, ops = CASES[name]
    assert_rewrites(FoldConstants(), model(text, **weights), ops=ops)


def test_constant_nodes_become_initializers() -> None:
    proto = model("g (float[2] x) => (float[2] y) { w = Constant<value=float[2] {1.0, -0.0}>() y = Add(x, w) }")
    after = assert_rewrites(FoldConstants(), proto, ops={"Add": 1})
    assert [node.op_type for node in after.graph.node] == ["Add"]
    assert onnx.numpy_helper.to_array(after.graph.initializer[0]).tobytes() == np.float32([1.0, -0.0]).tobytes()


def test_constant_of_a_graph_output_stays_a_node() -> None:
    proto = model("g (float[2] x) => (float[2] y, float[1] c) { c = Constant<value=float[1] {1.0}>() y = Add(x, c) }")
    assert_untouched(FoldConstants(), proto)


def test_subgraphs_are_folded_too() -> None:
    proto = model(
        "g (bool c, float[N,3] x) => (float[N,3] y) { y = If (c) <"
        " then_branch = t () => (float[N,3] a) { d = Exp(w) a = Add(x, d) },"
        " else_branch = e () => (float[N,3] b) { s = Shape(x) k = Gather(s, one) f = Cast<to=1>(k) b = Mul(x, f) }> }",
        w=np.array([1, 2, 3], dtype=np.float32),
        one=np.array(1, dtype=np.int64),
    )
    after = assert_rewrites(
        FoldConstants(),
        proto,
        ops={"If": 1},
        feeds={"c": np.array(False), "x": np.ones((2, 3), np.float32)},
    )
    inner = [[node.op_type for node in a.g.node] for node in after.graph.node for a in node.attribute]
    assert sorted(inner) == [["Add"], ["Mul"]]


def test_local_functions_are_folded_too() -> None:
    proto = model(
        "g (float[2] x) => (float[2] y) { y = local.f(x) }"
        '<domain: "local", opset_import: ["" : 17]> f (a) => (b)'
        " { w = Constant<value=float[2] {1.0, 2.0}>() v = Exp(w) u = Neg(v) b = Add(a, u) }"
    )
    after = assert_rewrites(FoldConstants(), proto, ops={"f": 1})
    assert sorted(node.op_type for node in after.functions[0].node) == ["Add", "Constant"]


SKIPS: dict[str, tuple[str, Arrays, str]] = {
    "random": (
        "g (float[2] x) => (float[2] y) { r = RandomUniformLike(w) y = Add(x, r) }",
        {"w": np.zeros(2, dtype=np.float32)},
        "RandomUniformLike gives something else each time",
    ),
    "bernoulli": (
        "g (float[2] x) => (float[2] y) { r = Bernoulli(w) y = Add(x, r) }",
        {"w": np.full(2, 0.5, dtype=np.float32)},
        "Bernoulli gives something else",
    ),
    "dequantize": (
        "g (float[4] x) => (float[4] y) { d = DequantizeLinear(q, s) y = Add(x, d) }",
        {"q": np.array([1, -2, 3, -4], dtype=np.int8), "s": np.array(0.5, dtype=np.float32)},
        "DequantizeLinear keeps low-bit values small",
    ),
    "grows": (
        "g (float[1024,1024] x) => (float[1024,1024] y) { e = ConstantOfShape(n) y = Add(x, e) }",
        {"n": ints(1024, 1024)},
        r"would add 41942\d\d bytes",
    ),
    "weight that another reads": (
        "g (float[N,1024] x) => (float[N,1024] y) { t = Transpose(w) a = MatMul(x, t) y = MatMul(a, w) }",
        {"w": np.ones((1024, 1024), dtype=np.float32)},
        "would add 4194304 bytes",
    ),
    "beyond all bounds": (
        "g (float[1] x) => (float y) { e = ConstantOfShape(n) r = ReduceSum<keepdims=0>(e) y = Add(x, r) }",
        {"n": ints(1 << 20, 1 << 20)},
        "would take 4398046511104 bytes",
    ),
    "bfloat16": (
        "g (bfloat16[2] x) => (bfloat16[2] y) { e = Neg(w) y = Add(x, e) }",
        {"w": np.array([1, 2], dtype=ml_dtypes.bfloat16)},
        "holds bfloat16",
    ),
}


@pytest.mark.parametrize("name", SKIPS)
def test_skips(name: str) -> None:
    text, weights, reason = SKIPS[name]
    assert_skips(FoldConstants(), model(text, **weights), reason)


UNTOUCHED: dict[str, tuple[str, Arrays]] = {
    "overridable initializer": (
        "g (float[2] x, float[2] w = {1.0, 2.0}) => (float[2] y) { a = Neg(w) y = Add(x, a) }",
        {},
    ),
    "two symbolic dimensions cannot both be derived": (
        "g (float[N,M,K] x, int64[1] k) => (float[P,Q] y) { s = Shape<end=1>(x) a = Mul(s, k) m = Neg(k) "
        "t = Concat<axis=0>(a, m) y = Reshape(x, t) }",
        {},
    ),
    "batch could be zero beside a derived entry": (
        "g (float[N,6] x, float[M,2] z) => (float[P,Q,R] y) { s = Shape<end=1>(z) n = Shape<end=1>(x) "
        "t = Concat<axis=0>(n, s, r) y = Reshape(x, t) }",
        {"r": ints(3)},
    ),
    "another domain": (
        "g (float[2] x) => (float[2] y) { a = local.Twice(w) y = Add(x, a) }"
        '<domain: "local", opset_import: ["" : 17]> Twice (a) => (b) { b = Add(a, a) }',
        {"w": np.ones(2, dtype=np.float32)},
    ),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_untouched(name: str) -> None:
    text, weights = UNTOUCHED[name]
    proto = model(text, **weights)
    after, result = run_alone(FoldConstants(), proto)
    assert not result.rewritten
    assert count_ops(after) == count_ops(proto)


def test_max_growth_is_a_bound_on_each_value() -> None:
    proto = model("g (float[8,8] x) => (float[8,8] y) { e = ConstantOfShape(n) y = Add(x, e) }", n=ints(8, 8))
    assert_skips(FoldConstants(max_growth=64), proto, "would add 240 bytes")
    assert_rewrites(FoldConstants(max_growth=256), proto, ops={"Add": 1})


def test_small_result_of_something_too_big_to_store() -> None:
    proto = model(
        "g (float[1] x) => (float[1] y) { e = ConstantOfShape<value=float[1] {0.5}>(n) r = ReduceSum<keepdims=0>(e) "
        "y = Add(x, r) }",
        n=ints(1024, 1024),
    )
    assert_rewrites(FoldConstants(), proto, ops={"Add": 1})


def test_vetoed_site_stays_and_what_follows_too() -> None:
    proto = model("g (float[2] x) => (float[2] y) { a = Neg(w) b = Exp(a) y = Add(x, b) }", w=np.ones(2, np.float32))
    subject = from_proto(proto)
    result = FoldConstants().apply(GraphView(subject, {"a": "not this one"}))
    assert not result.rewritten
    assert [(skipped.site, skipped.reason) for skipped in result.skipped] == [("a", "not this one")]
    assert count_ops(to_proto(subject)) == {"Neg": 1, "Exp": 1, "Add": 1}


def test_a_node_that_onnx_runtime_cannot_run_costs_only_itself() -> None:
    proto = model(
        "g (float[2] x) => (float[2] y, int64[2] z) { a = Neg(w) b = Gather(k, far) y = Add(x, a) z = Neg(b) }",
        w=np.ones(2, np.float32),
        k=np.arange(400, dtype=np.int64),
        far=ints(7, 900),
    )
    after, result = run_alone(FoldConstants(), proto)
    assert count_ops(after) == {"Add": 1, "Gather": 1, "Neg": 1}
    assert any("ONNX Runtime cannot run" in skipped.reason for skipped in result.skipped)


def test_declared_shapes_in_the_middle_are_not_believed() -> None:
    """Somebody made the batch dynamic and left the declarations behind."""
    proto = model(
        "g (float[N,3] x) => (float[N,3] y) { r = Relu(x) s = Shape(r) n = Gather(s, zero) f = Cast<to=1>(n)"
        " y = Div(r, f) }",
        zero=np.array(0, dtype=np.int64),
    )
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("r", 1, [1, 3]))
    after, result = run_alone(FoldConstants(), proto)
    assert not result.rewritten
    assert Session(after).run({"x": np.ones((4, 3), np.float32)})["y"][0, 0] == np.float32(0.25)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_derived_targets_hold_for_every_batch(batch: int) -> None:
    for name in ("reshape folds batch", "reshape with allowzero", "reshape after arithmetic that cancels"):
        text, weights, ops = CASES[name]
        proto = model(text, **weights)
        rank = len(proto.graph.input[0].type.tensor_type.shape.dim)
        shape = {"reshape after arithmetic that cancels": (batch, 3, 8)}.get(name, (batch, 3, 4))
        assert len(shape) == rank
        feeds = {"x": np.random.default_rng(batch).standard_normal(shape).astype(np.float32)}
        assert_rewrites(FoldConstants(), proto, ops=ops, feeds=feeds)
