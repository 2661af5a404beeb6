"""The clean preset over opsets, subgraphs and local functions: sound, as small as promised, and at rest afterwards."""

from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import create
from graphopt.presets import preset_passes
from graphopt.runtime.session import Session
from graphopt.testing import model, random_feeds

TAIL = """agraph (float[N,3,8,8] x) => (float[N,M] y, float[N,4,8,8] middle) {
    p = Identity(w)
    c = Conv<pads = [1,1,1,1]>(x, p)
    n = BatchNormalization(c, g, b, m, v)
    middle = Identity(n)
    d = Dropout(middle)
    a = Relu(d)
    t = Transpose<perm = [0,2,3,1]>(a)
    u = Transpose<perm = [0,3,1,2]>(t)
    s = Shape(u)
    zero = Constant<value = int64 {0}>()
    size = Gather<axis = 0>(s, zero)
    UNSQUEEZE
    rest = Constant<value = int64[1] {-1}>()
    target = Concat<axis = 0>(sizes, rest)
    y = Reshape(u, target)
}"""
BRANCH = """agraph (float[N,4] x) => (float[N,4] y)
<bool c = {CONDITION}, float[4] s = {1,2,3,4}, float[4] z = {0,0,0,0}> {
    i = Identity(x)
    h = If (c) <
        then_branch = then () => (float[N,4] a) { k = Mul(i, s) a = Identity(k) },
        else_branch = other () => (float[N,4] d) { q = Add(i, z) d = Neg(q) }
    >
    y = Relu(h)
}"""
LOOP = """agraph (float[4] x) => (float[4] y, float[K,4] z) <int64 n = {3}, bool c = {1}, float[4] k = {1,1,1,1}> {
    y, z = Loop(n, c, x) <body = body (int64 i, bool ci, float[4] s) => (bool co, float[4] so, float[4] o) {
        co = Identity(ci) t = Mul(s, k) u = Identity(t) so = Add(u, k) o = Identity(so)
    }>
}"""
FUNCTION = """<ir_version: 8, opset_import: ["": OPSET, "l": 1]>
agraph (float[N,4,8,8] x) => (float[N,4,8,8] y)
<float[4] g = {1,2,3,4}, float[4] b = {1,2,3,4}, float[4] m = {1,0,3,4}, float[4] v = {1,2,3,0.001}> {
    h = l.f(x, g, b, m, v)
    q = l.f(h, g, b, m, v)
    y = Identity(q)
}
<domain: "l", opset_import: ["": OPSET]> f (x, g, b, m, v) => (y) {
    i = Identity(x) d = Dropout(i) n = BatchNormalization(d, g, b, m, v)
    one = Constant<value = float {1.0}>() u = Mul(n, one) y = Relu(u)
}"""


def assert_clean(proto: onnx.ModelProto, keep: tuple[str, ...] = ()) -> dict[str, int]:
    """Clean a model; assert that its outputs hold and that nothing is left to do; return the operators that remain."""
    passes, repeat = preset_passes("clean")
    passes[0] = create("inline-functions", keep=keep)
    result = graphopt.optimize(proto, passes, fixed_point=repeat)
    assert result.ok, result.report.failures
    onnx.checker.check_model(result.model, full_check=True)
    feeds = random_feeds(proto, 1)
    before, after = Session(proto).run(feeds), Session(result.model).run(feeds)
    assert before.keys() == after.keys()
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-5)
    again = graphopt.optimize(result.model, passes, fixed_point=repeat, check=False)
    assert not [each.name for each in again.report.passes if each.result.rewritten]
    return result.report.after.ops


@pytest.mark.parametrize("opset", range(7, 24))
def test_convolution_tail(opset: int) -> None:
    rng = np.random.default_rng(0)
    unsqueeze = "sizes = Unsqueeze(size, axes)" if opset >= 13 else "sizes = Unsqueeze<axes = [0]>(size)"
    weights: dict[str, Any] = {name: rng.normal(size=4).astype(np.float32) for name in "gbm"}
    weights |= {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "v": np.float32([1e-4, 0.5, 1, 2])}
    weights |= {"axes": np.array([0])} if opset >= 13 else {}
    found = assert_clean(model(TAIL.replace("UNSQUEEZE", unsqueeze), opset, 10, **weights))
    assert found == {"Conv": 1, "Relu": 1, "Reshape": 1}


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, 23])
@pytest.mark.parametrize("condition", ["0", "1"])
def test_branches_of_a_constant_condition(opset: int, condition: str) -> None:
    found = assert_clean(model(BRANCH.replace("CONDITION", condition), opset, 10))
    assert found == ({"Mul": 1, "Relu": 1} if condition == "1" else {"Neg": 1, "Relu": 1})


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, 23])
def test_loop(opset: int) -> None:
    found = assert_clean(model(LOOP, opset, 10))
    assert found == {"Add": 1, "Identity": 2, "Loop": 1, "Mul": 1}


@pytest.mark.parametrize("opset", [13, 15, 18, 21, 23])
def test_local_function(opset: int) -> None:
    proto = onnx.parser.parse_model(FUNCTION.replace("OPSET", str(opset)))
    assert assert_clean(proto) == {"BatchNormalization": 2, "Relu": 2}
    assert assert_clean(proto, keep=("l",)) == {"BatchNormalization": 2, "Relu": 2}


def test_an_output_that_a_node_takes_over_is_looked_at_again() -> None:
    text = """g (float[N,4] x) => (float[A,B] y, float[C,D] z) {
        c = Concat<axis = 1>(x, x)
        k = Loop(none, , c) <body = b (int64 i, bool p, float[N,8] v) => (bool q, float[N,8] w) {
            q = Identity(p) w = Neg(v)
        }>
        y = Identity(k)
        s = Shape(y)
        z = Expand(y, s)
    }"""
    found = assert_clean(model(text, none=np.array(0)))
    assert found == {"Concat": 1, "Identity": 1}
