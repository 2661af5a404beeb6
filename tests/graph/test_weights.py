"""Where weights are found: handed to loops and functions, computed from constants, tables that are sliced."""

from typing import Any

import numpy as np
import onnx
import pytest
from graphopt.passes.quantize_activations import QuantizeActivations
from graphopt.passes.quantize_weights import QuantizeWeights
from numpy.typing import NDArray

from graphopt.testing import assert_rewrites, assert_skips, assert_untouched, model, run_alone


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def loop(given_back: str, body: str = "", start: str = "w", more: str = "", opset: int = 19) -> onnx.ModelProto:
    """A recurrence whose weight travels as a state of the loop, as tf2onnx writes it."""
    text = f"""g (float[2,24] x) => (float[2,24] y) {{
        {more} n = Constant<value = int64 {{3}}>()
        y, kept = Loop(n, , x, {start}) <body = b (int64 i, bool c, float[2,24] h, float[24,24] v)
            => (bool d, float[2,24] k, float[24,24] {given_back})
            {{ d = Identity(c) m = MatMul(h, v) k = Tanh(m) {body} }}> }}"""
    return model(text, opset, w=draw(24, 24))


@pytest.mark.parametrize(
    ("given_back", "body"),
    [("v", ""), ("u", "u = Identity(v)"), ("u", "t = Identity(v) u = Identity(t)")],
    ids=["as it came", "through Identity", "through two"],
)
def test_weight_that_a_loop_hands_on(given_back: str, body: str) -> None:
    before = loop(given_back, body)
    after = assert_rewrites(
        QuantizeWeights(representation="dq"), before, ops={"DequantizeLinear": 1, "Loop": 1}, rewritten=1
    )
    assert after.ByteSize() < 0.6 * before.ByteSize()
    assert [len(each.dims) for each in after.graph.initializer if each.name == "w_s"] == [1], "one scale per channel"


@pytest.mark.parametrize(
    "case",
    [
        loop("u", "u = Neg(v)"),
        loop("u", "u = Neg(v)", start="kept_first", more="kept_first = Identity(w)"),
    ],
    ids=["a state that changes", "and comes through Identity"],
)
def test_state_that_changes_is_no_weight(case: onnx.ModelProto) -> None:
    assert not assert_untouched(QuantizeWeights(representation="dq"), case).skipped


def test_weight_that_is_also_the_start_of_a_state() -> None:
    text = """g (float[24,24] x) => (float[24,24] y) {
        n = Constant<value = int64 {3}>()
        y, kept = Loop(n, , w, w) <body = b (int64 i, bool c, float[24,24] h, float[24,24] v)
            => (bool d, float[24,24] k, float[24,24] v) { d = Identity(c) m = MatMul(h, v) k = Add(m, x) }> }"""
    assert_skips(QuantizeWeights(representation="dq"), model(text, 19, w=draw(24, 24)), "'w' is also read by Loop 'y'")


def test_what_the_loop_gives_out_counts_as_reading() -> None:
    text = """g (float[2,24] x) => (float[2,24] z) {
        n = Constant<value = int64 {3}>()
        y, kept = Loop(n, , x, w) <body = b (int64 i, bool c, float[2,24] h, float[24,24] v)
            => (bool d, float[2,24] k, float[24,24] v) { d = Identity(c) k = MatMul(h, v) }>
        z = Add(y, kept) }"""
    proto = model(text.replace("[2,24]", "[24,24]"), 19, w=draw(24, 24))
    assert_skips(QuantizeWeights(representation="dq"), proto, "'kept' is also read by Add 'z'")


def test_static_quantization_leaves_a_loop_alone() -> None:
    assert_skips(QuantizeActivations(), loop("v"), "'w' is read in a subgraph or function: main graph only")


FUNCTION = """ <domain: "local", opset_import: ["" : 19]> dense (a, v) => (b) { m = MatMul(a, v) b = Relu(m) }"""


def test_weights_that_are_arguments_of_a_function() -> None:
    text = f"""g (float[2,24] x) => (float[2,16] y) {{ z = local.dense(x, w) y = local.dense(z, u) }} {FUNCTION}"""
    before = model(text, 19, w=draw(24, 32), u=draw(32, 16, seed=1))
    after = assert_rewrites(
        QuantizeWeights(representation="dq"), before, ops={"DequantizeLinear": 2, "dense": 2}, rewritten=1
    )
    assert after.ByteSize() < 0.5 * before.ByteSize()


def test_argument_that_one_call_computes() -> None:
    text = f"""g (float[24,24] x) => (float[24,24] y) {{ z = local.dense(x, w) y = local.dense(z, x) }} {FUNCTION}"""
    proto = model(text, 19, w=draw(24, 24))
    assert_untouched(QuantizeWeights(representation="dq"), proto)


WEIGHT_NORM = """n = ReduceL2<axes = [1, 2], keepdims = 1>(v) u = Div(v, n) w = Mul(u, g)"""
VALUES: dict[str, Any] = {"v": draw(16, 8, 3), "g": np.abs(draw(16, 1, 1, seed=1)) + 0.1}


def convolution(weight: str, more: str = "", outputs: str = "float[N,16,10] y", **values: Any) -> onnx.ModelProto:
    text = f"g (float[N,8,12] x) => ({outputs}) {{ {weight} y = Conv(x, w) {more} }}"
    return model(text, 17, **(values or VALUES))


def test_weight_that_is_arithmetic_on_constants() -> None:
    before = convolution(WEIGHT_NORM)
    after = assert_rewrites(
        QuantizeWeights(representation="dq"), before, ops={"DequantizeLinear": 1, "Conv": 1}, rewritten=1
    )
    assert {each.name for each in after.graph.initializer} == {"w_q", "w_s"}
    assert after.ByteSize() < before.ByteSize()


def test_computed_weight_in_a_subgraph() -> None:
    text = f"""g (float[2,8,12] x, float[2,16,10] z, bool c) => (float[2,16,10] y) {{
        y = If(c) <then_branch = t () => (float[2,16,10] a) {{ {WEIGHT_NORM} a = Conv(x, w) }},
                   else_branch = e () => (float[2,16,10] b) {{ b = Neg(z) }}> }}"""
    feeds = {"x": draw(2, 8, 12), "z": draw(2, 16, 10), "c": np.array(True)}
    after = assert_rewrites(
        QuantizeWeights(representation="dq"), model(text, 17, **VALUES), ops={"If": 1}, feeds=feeds, rewritten=1
    )
    assert not {"v", "g"} & {each.name for each in after.graph.initializer}


def test_constant_that_others_read_too_is_not_saved() -> None:
    proto = convolution(WEIGHT_NORM, "y2 = Conv(x, v) z = Add(y, y2)", "float[N,16,10] z")
    _, result = run_alone(QuantizeWeights(representation="dq"), proto)
    assert not result.rewritten
    assert {told.site: told.reason for told in result.skipped} == {
        "y": "'w' is computed from 64 bytes of constants",
        "y2": "'v' is also read by ReduceL2 'n'",
    }


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (convolution(WEIGHT_NORM, "z = Add(y, n)", "float[N,16,10] z"), "'w' is computed"),
        (convolution(WEIGHT_NORM, "z = Identity(w)", "float[N,16,10] y, float[16,8,3] z"), "'z' is a graph output"),
        (convolution("r = RandomNormalLike(v) w = Mul(v, r)", v=VALUES["v"]), "'w' is computed"),
        (
            convolution("w = Expand(v, s)", v=draw(1, 8, 1), s=np.array([16, 8, 3])),
            "'w' is computed from 56 bytes of const",
        ),
        (convolution("u = Neg(v) w = Log(u)", v=np.abs(VALUES["v"]) + 1), "'w' holds NaN or Inf"),
    ],
    ids=["read in between", "is an output", "random", "small where it is stored", "not finite"],
)
def test_refuses_computed_weights(proto: onnx.ModelProto, reason: str) -> None:
    assert_skips(QuantizeWeights(representation="dq"), proto, reason)


@pytest.mark.parametrize("shape", [(64, 12), (1, 64, 12)], ids=["rows", "with a batch axis"])
def test_table_that_is_sliced_as_long_as_the_input(shape: tuple[int, ...]) -> None:
    axis = len(shape) - 2
    text = f"""g (float[B,T,12] x) => (float[B,T,12] y) {{
        length = Shape<start = 1, end = 2>(x) zero = Constant<value_ints = [0]>()
        axes = Constant<value_ints = [{axis}]>() p = Slice(table, zero, length, axes) y = Add(x, p) }}"""
    before = model(text, 17, table=draw(*shape))
    after = assert_rewrites(
        QuantizeWeights(representation="dq", tables="all"),
        before,
        ops={"Shape": 1, "DequantizeLinear": 1, "Slice": 1, "Add": 1},
        rewritten=1,
    )
    scale = next(each for each in after.graph.initializer if each.name == "table_s")
    assert list(scale.dims) == ([64] if axis == 0 else [])


def test_slice_of_an_activation_is_no_site() -> None:
    text = """g (float[B,T,12] x, int64[1] n) => (float[B,U,12] y) { zero = Constant<value_ints = [0]>()
        axes = Constant<value_ints = [1]>() y = Slice(x, zero, n, axes) }"""
    _, result = run_alone(QuantizeWeights(representation="dq"), model(text, 17))
    assert not result.rewritten
    assert not result.skipped
