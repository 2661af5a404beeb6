"""What a Loop carries around unchanged is read from outside, and pruned there like any weight."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import model, run_alone

RNG = np.random.default_rng(5)
HEAD = "g (float[2,4] x, int64 n) => (float[2,4] y)"
WEIGHTS = {"w": RNG.standard_normal((4, 6)).astype(np.float32), "v": RNG.standard_normal((6, 4)).astype(np.float32)}


def loop(
    body: str, carried: str = "w, v, x", results: str = "wo, vo, y", rest: str = "", **more: Any
) -> onnx.ModelProto:
    text = f"{HEAD} {{ {results} = Loop (n, t, {carried}) <body = b {body}> {rest} }}"
    return model(text, t=np.asarray(True), **WEIGHTS, **more)


PLAIN = """(int64 i, bool c, float[4,6] wi, float[6,4] vi, float[2,4] s)
    => (bool d, float[4,6] wi, float[6,4] vi, float[2,4] r)
    { d = Identity(c) a = MatMul(s, wi) h = Tanh(a) r = MatMul(h, vi) }"""


def inner(proto: onnx.ModelProto) -> onnx.GraphProto:
    node = next(node for node in proto.graph.node if node.op_type == "Loop")
    return next(attribute.g for attribute in node.attribute if attribute.name == "body")


def carried(proto: onnx.ModelProto) -> int:
    return len(inner(proto).input) - 2


def clean(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Run the pass, and assert that nothing changes for any trip count and that a second run does nothing."""
    after, _ = run_alone(create("eliminate-noops"), proto)
    onnx.checker.check_model(after, full_check=True)
    for trips in (0, 1, 3):
        feeds: dict[str, NDArray[Any]] = {"x": RNG.standard_normal((2, 4)).astype(np.float32), "n": np.asarray(trips)}
        before = Session(proto).run(feeds)
        for name, values in Session(after).run(feeds).items():
            np.testing.assert_allclose(values, before[name], rtol=1e-5, atol=1e-6)
    assert not run_alone(create("eliminate-noops"), after)[1].rewritten
    return after


def test_weights_are_captured() -> None:
    after = clean(loop(PLAIN))
    assert carried(after) == 1
    assert [node.input[1] for node in inner(after).node if node.op_type == "MatMul"] == ["w", "v"]


def test_an_identity_does_not_change_a_value() -> None:
    body = PLAIN.replace("float[4,6] wi, float[6,4] vi, float[2,4] r", "float[4,6] p, float[6,4] q, float[2,4] r")
    after = clean(loop(body.replace("{ d", "{ k = Identity(wi) p = Identity(k) q = Identity(vi) d")))
    assert carried(after) == 1


def test_what_is_read_behind_the_loop_is_what_went_in() -> None:
    after = clean(loop(PLAIN, results="wo, vo, z", rest="u = MatMul(z, wo) y = MatMul(u, vo)"))
    assert carried(after) == 1
    assert [list(node.input[1:]) for node in after.graph.node if node.op_type == "MatMul"] == [["w"], ["v"]]


def test_a_value_that_changes_stays() -> None:
    body = PLAIN.replace("float[6,4] vi, float[2,4] r", "float[6,4] q, float[2,4] r").replace("{ d", "{ q = Neg(vi) d")
    assert carried(clean(loop(body))) == 2


def test_values_that_change_places_stay() -> None:
    body = """(int64 i, bool c, float[2,4] p, float[2,4] q) => (bool d, float[2,4] q, float[2,4] p)
      { d = Identity(c) }"""
    assert carried(clean(loop(body, carried="x, z", results="y, u", z=RNG.standard_normal((2, 4)).astype("f")))) == 2


def test_an_output_of_the_model_stays() -> None:
    proto = loop(PLAIN)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("wo", 1, [4, 6]))
    assert carried(clean(proto)) == 2


def test_what_is_collected_too_stays() -> None:
    body = PLAIN.replace("float[2,4] r)", "float[2,4] r, float[4,6] wi)").replace(
        "bool d, float[4,6] wi", "bool d, float[4,6] p"
    )
    read = "first = Sin(last) y = Identity(first)"
    sizes = "k = Shape(all) f = Cast<to = 1>(k) m = ReduceMax<keepdims = 0>(f) z = Mul(m, nil) y = Add(last, z)"
    body = body.replace("{ d", "{ p = Identity(wi) d")
    after = clean(loop(body, results="wo, vo, last, all", rest=sizes, nil=np.float32([0.5])))
    assert carried(after) == 2
    after = clean(loop(body, results="wo, vo, last, all", rest=read))
    assert carried(after) == 1, "what is collected for nobody is not in the way"


def test_a_name_that_means_something_else_inside_stays() -> None:
    body = PLAIN.replace("float[2,4] s)", "float[2,4] w)").replace("MatMul(s, wi)", "MatMul(w, wi)")
    assert carried(clean(loop(body))) == 2


def test_a_loop_goes_on_giving_something_out() -> None:
    body = "(int64 i, bool c, float[2,4] s) => (bool d, float[2,4] s) { d = Identity(c) }"
    proto = loop(body, carried="x", results="z", rest="y = Neg(z)")
    assert carried(clean(proto)) == 1


@pytest.mark.parametrize("opset", [13, 21])
def test_channels_of_captured_weights_are_cut(opset: int) -> None:
    proto = loop(PLAIN)
    for tensor, index in (("w", np.s_[:, 2:4]), ("v", np.s_[5])):
        stored = next(each for each in proto.graph.initializer if each.name == tensor)
        values = onnx.numpy_helper.to_array(stored).copy()
        values[index] = 0
        stored.CopyFrom(onnx.numpy_helper.from_array(values, tensor))
    proto.opset_import[0].version = opset
    assert not run_alone(create("prune-channels"), proto)[1].rewritten
    cleaned = clean(proto)
    after, result = run_alone(create("prune-channels"), cleaned)
    assert [each.detail for each in result.rewritten] == ["3 channels removed"]
    assert {tuple(each.dims) for each in after.graph.initializer if len(each.dims) == 2} == {(4, 3), (3, 4)}
    feeds = {"x": RNG.standard_normal((2, 4)).astype(np.float32), "n": np.asarray(2)}
    np.testing.assert_allclose(Session(after).run(feeds)["y"], Session(proto).run(feeds)["y"], rtol=1e-5, atol=1e-6)
