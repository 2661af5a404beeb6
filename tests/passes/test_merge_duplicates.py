"""merge-duplicates: one of equals stays; what only looks equal is left alone."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphopt.passes.merge_duplicates import MergeDuplicates
from numpy.typing import NDArray

from graphopt import GraphView
from graphopt.model import from_proto, load, save
from graphopt.testing import assert_rewrites, assert_skips, assert_untouched, initializers, model, run_alone

Arrays = dict[str, NDArray[Any]]


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


CASES: dict[str, tuple[str, Arrays, dict[str, int]]] = {
    "equal nodes": ("g (float[2] x) => (float[2] y) { a = Exp(x) b = Exp(x) y = Sub(a, b) }", {}, {"Exp": 1, "Sub": 1}),
    "chains": (
        "g (float[2] x) => (float[2] y) { a = Exp(x) b = Exp(x) c = Neg(b) d = Neg(a) y = Sub(c, d) }",
        {},
        {"Exp": 1, "Neg": 1, "Sub": 1},
    ),
    "either order": (
        "g (float[2] x, float[2] z) => (float[2] y) { a = Add(x, z) b = Add(z, x) y = Sub(a, b) }",
        {},
        {"Add": 1, "Sub": 1},
    ),
    "equal attributes": (
        "g (float[2,3] x) => (float[3,3] y) { a = Transpose<perm=[1,0]>(x) b = Transpose<perm=[1,0]>(x) c ="
        " Transpose(b) "
        "y = MatMul(a, c) }",
        {},
        {"Transpose": 2, "MatMul": 1},
    ),
    "equal constants in attributes": (
        "g (int64[2] n) => (float[P,Q] y) { a = ConstantOfShape<value=float[1] {2.0}>(n) "
        "b = ConstantOfShape<value=float[1] {2.0}>(n) y = Sub(a, b) }",
        {},
        {"ConstantOfShape": 1, "Sub": 1},
    ),
    "several outputs": (
        "g (float[4] x) => (float[2] y) { a, b = Split<axis=0>(x) c, d = Split<axis=0>(x) e = Add(a, d) y ="
        " Sub(e, b) }",
        {},
        {"Split": 1, "Add": 1, "Sub": 1},
    ),
    "one is a graph output": (
        "g (float[2] x) => (float[2] y, float[2] b) { a = Exp(x) b = Exp(x) y = Neg(a) }",
        {},
        {"Exp": 1, "Neg": 1},
    ),
    "equal through equal initializers": (
        "g (float[2] x) => (float[2] y) { a = Add(x, v) b = Add(x, w) y = Sub(a, b) }",
        {"v": np.float32([1, np.nan]), "w": np.float32([1, np.nan])},
        {"Add": 1, "Sub": 1},
    ),
    "batch read twice": (
        "g (float[N,3] x) => (int64[2] y) { a = Relu(x) s = Shape<end=1>(x) t = Shape<end=1>(a) y ="
        " Concat<axis=0>(s, t) "
        "}",
        {},
        {"Shape": 1, "Concat": 1},
    ),
    "arithmetic that comes to the same": (
        "g (float[N,3] x) => (int64[1] y) { s = Shape<end=1>(x) a = Add(s, s) b = Mul(s, two) y = Max(a, b) }",
        {"two": ints(2)},
        {"Shape": 1, "Add": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_merges(name: str) -> None:
    text, weights, ops = CASES[name]
    feeds = {"n": ints(2, 3)} if "int64[2] n" in text else None
    assert_rewrites(MergeDuplicates(), model(text, **weights), ops=ops, feeds=feeds)


UNTOUCHED: dict[str, tuple[str, Arrays]] = {
    "other attribute": (
        "g (float[3,3] x) => (float[3,3] y) { a = Softmax<axis=0>(x) b = Softmax<axis=1>(x) y = Sub(a, b) }",
        {},
    ),
    "other order": (
        "g (float[2] x, float[2] z) => (float[2] y) { a = Sub(x, z) b = Sub(z, x) y = Mul(a, b) }",
        {},
    ),
    "random": (
        "g (float[2] x) => (float[2] y) { a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b) }",
        {},
    ),
    "random with a seed": (
        "g (float[2] x) => (float[2] y) { a = RandomNormalLike<seed=1.0>(x) b ="
        " RandomNormalLike<seed=1.0>(x) y = Sub(a, b) }",
        {},
    ),
    "another domain": (
        "g (float[2] x) => (float[2] y) { a = local.f(x) b = local.f(x) y = Sub(a, b) }"
        '<domain: "local", opset_import: ["" : 17]> f (a) => (b) { b = Neg(a) }',
        {},
    ),
    "zeros of other signs": (
        "g (float[2] x) => (float[2] y) { a = Div(x, v) b = Div(x, w) y = Sub(a, b) }",
        {"v": np.float32([0.0, 1]), "w": np.float32([-0.0, 1])},
    ),
    "equal bytes, other type": (
        "g (float[2] x, int64[2] k) => (float[2] y, int64[2] z) { y = Add(x, v) z = Mul(k, w) }",
        {"v": np.zeros(2, np.float32), "w": np.zeros(2, np.int64)},
    ),
    "equal bytes, other shape": (
        "g (float[2,2] x) => (float[2,2] y) { a = Add(x, v) y = Sub(a, w) }",
        {"v": np.zeros((2, 1), np.float32), "w": np.zeros((1, 2), np.float32)},
    ),
    "overridable": (
        "g (float[2] x, float[2] v = {1.0, 2.0}) => (float[2] y) { a = Add(x, v) y = Mul(a, w) }",
        {"w": np.float32([1, 2])},
    ),
    "dimensions of other names": (
        "g (float[N] x, float[M] z) => (int64[2] y) { s = Shape(x) t = Shape(z) y = Concat<axis=0>(s, t) }",
        {},
    ),
    "dimensions without a name": (
        "g (float[?] x, float[?] z) => (int64[2] y) { s = Shape(x) t = Shape(z) y = Concat<axis=0>(s, t) }",
        {},
    ),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_untouched(name: str) -> None:
    text, weights = UNTOUCHED[name]
    proto = model(text, **weights)
    assert_untouched(MergeDuplicates(), proto)


def test_two_graph_outputs_stay() -> None:
    proto = model("g (float[2] x) => (float[2] y, float[2] z) { y = Exp(x) z = Exp(x) }")
    assert_skips(MergeDuplicates(), proto, "'y' and 'z', which are equal, are both graph outputs")


def test_nodes_with_subgraphs_stay() -> None:
    branches = [
        f"then_branch = t () => (float[2] p{n}) {{ p{n} = Neg(x) }},"
        f" else_branch = e () => (float[2] q{n}) {{ q{n} = Exp(x) }}"
        for n in (1, 2)
    ]
    nodes = f"a = If (c) <{branches[0]}> b = If (c) <{branches[1]}> y = Sub(a, b)"
    proto = model(f"g (bool c, float[2] x) => (float[2] y) {{ {nodes} }}")
    _, result = run_alone(MergeDuplicates(), proto)
    assert not result.rewritten


def test_an_initializer_in_a_branch_is_shared_with_the_main_graph() -> None:
    proto = model(
        "g (bool c, float[2] x) => (float[2] y) { a = Add(x, w) y = If (c) <"
        " then_branch = t () => (float[2] p) <float[2] v = {3.0, 4.0}> { p = Add(a, v) },"
        " else_branch = e () => (float[2] q) { q = Neg(a) }> }",
        w=np.float32([3, 4]),
    )
    feeds = {"c": np.array(True), "x": np.float32([1, 2])}
    after = assert_rewrites(MergeDuplicates(), proto, ops={"Add": 1, "If": 1}, feeds=feeds, rewritten=1)
    assert [tensor.name for tensor in after.graph.initializer] == ["w"]
    assert not after.graph.node[1].attribute[0].g.initializer


def test_big_weights_of_a_file(tmp_path: Any) -> None:
    """Mapped weights: three equal, one that differs in its last byte only, one that differs in the middle."""
    same = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    last, middle = same.copy(), same.copy()
    last[-1, -1] = np.nextafter(last[-1, -1], np.float32(9))
    middle[17, 3] = 0
    weights = {"a": same, "b": same, "c": last, "d": middle, "e": same}
    body = " ".join(f"y{name} = Add(x, {name})" for name in weights)
    outputs = ", ".join(f"float[64,64] y{name}" for name in weights)
    proto = model(f"g (float[64,64] x) => ({outputs}) {{ {body} }}", **weights)
    onnx.save(proto, tmp_path / "m.onnx")
    subject = load(tmp_path / "m.onnx")
    result = MergeDuplicates().apply(GraphView(subject))
    assert [rewritten.site for rewritten in result.rewritten] == ["b", "e"]
    save(subject, tmp_path / "n.onnx")
    stored = initializers(onnx.load(tmp_path / "n.onnx"))
    assert sorted(stored) == ["a", "c", "d"]
    assert all(np.array_equal(stored[name], weights[name]) for name in stored)


def test_low_bit_weights() -> None:
    """Equal int4 weights are one; equal bytes of another low-bit type are not the same."""
    values = np.array([1, -2, 3, -4], dtype=ml_dtypes.int4)
    proto = model(
        "g (float[4] x) => (float[4] y) { a = DequantizeLinear(u, s) b = DequantizeLinear(v, s) c = Add(x,"
        " a) y = Sub(c, b) }",
        opset=21,
        ir_version=10,
        u=values,
        v=values,
        s=np.float32(0.5),
    )
    assert_rewrites(MergeDuplicates(), proto, ops={"DequantizeLinear": 1, "Add": 1, "Sub": 1})
    proto.graph.initializer[1].data_type = onnx.TensorProto.UINT4
    _, result = run_alone(MergeDuplicates(), proto)
    assert not result.rewritten


def test_vetoed_site_stays() -> None:
    subject = from_proto(model("g (float[2] x) => (float[2] y) { a = Exp(x) b = Exp(x) y = Sub(a, b) }"))
    result = MergeDuplicates().apply(GraphView(subject, {"b": "not this one"}))
    assert not result.rewritten
    assert [(skipped.site, skipped.reason) for skipped in result.skipped] == [("b", "not this one")]
