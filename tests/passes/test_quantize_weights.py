"""quantize-weights: what is written, bit by bit, against an independent computation; where it runs; what it refuses."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino
import pytest
from graphopt.passes.quantize_weights import QuantizeWeights
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from graphopt.errors import OptionError
from graphopt.graph import GraphView
from graphopt.model import from_proto, to_proto
from graphopt.numerics.grouping import Grouping
from graphopt.numerics.ladder import blocks
from graphopt.numerics.quantization import TYPES, Affine, dequantize, quantize
from graphopt.runtime.feeds import from_arrays
from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, assert_skips, assert_untouched, initializers, random_feeds, run_alone
from graphopt.testing import model as parse

Arrays = dict[str, NDArray[Any]]


def model(text: str, opset: int = 19, ir_version: int = 9, **weights: NDArray[Any]) -> onnx.ModelProto:
    return parse(text, opset, ir_version, **weights)


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> NDArray[Any]:
    """Normal values, with a different spread in every slice of every axis."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    for axis, size in enumerate(shape):
        values *= rng.uniform(0.3, 3.0, size).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return values.astype(dtype)


def is_grouped_transpose(proto: onnx.ModelProto) -> bool:
    """ONNX's reference evaluator does not compute a ConvTranspose of several groups with several channels each."""
    return any(node.op_type == "ConvTranspose" and "group" in str(node.attribute) for node in proto.graph.node)


def run_everywhere(proto: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Arrays]:
    """Run a model on every runtime that it is meant for; outputs by runtime and name."""
    names = [output.name for output in proto.graph.output]
    results = {
        "ort": Session(proto).run(dict(feeds)),
        "ort optimized": Session(proto, optimize=True).run(dict(feeds)),
    }
    if proto.opset_import[0].version >= 19 and not is_grouped_transpose(proto):
        values = ReferenceEvaluator(proto).run(None, dict(feeds))
        results["reference"] = dict(zip(names, values, strict=True))
    if proto.functions:  # OpenVINO does not read local functions
        return results
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    compiled = core.compile_model(core.read_model(proto.SerializeToString()), "CPU")
    request = compiled.create_infer_request()
    request.infer(dict(feeds))
    results["openvino"] = {name: request.get_tensor(compiled.output(name)).data.copy() for name in names}
    return results


def assert_agree(proto: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], tolerance: float) -> None:
    """Assert that all runtimes give the same outputs, to a share of each output's largest value.

    With optimizations on, ONNX Runtime computes a matrix product with a two-dimensional int8 weight in int8.
    """
    results = run_everywhere(proto, feeds)
    fused = any(op in str(proto) for op in ("MatMul", "Gemm"))
    for runtime, outputs in results.items():
        for name, expected in results["ort"].items():
            share = 0.02 if runtime == "ort optimized" and fused else tolerance
            bound = share * float(np.abs(expected.astype(np.float64)).max())
            np.testing.assert_allclose(outputs[name], expected, rtol=0, atol=bound, err_msg=f"{runtime} {name}")


def expected_int8(weight: NDArray[Any], axis: int | None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The definition, channel by channel."""
    channels = [weight] if axis is None else [weight.take(i, axis) for i in range(weight.shape[axis])]
    levels, scales = [], []
    for channel in channels:
        wide = channel.astype(np.float64)
        scale = np.float32(np.abs(wide).max() / 127)
        scales.append(scale)
        levels.append(np.array([min(127, max(-127, round(v / float(scale)))) for v in wide.flat]).reshape(wide.shape))
    if axis is None:
        return levels[0].astype(np.int8), np.array(scales[0])
    return np.stack(levels, axis).astype(np.int8), np.array(scales)


LAYERS = {
    "conv": ("g (float[2,6,9,9] x) => (float[2,8,7,7] y) { y = Conv(x, w) }", (8, 6, 3, 3), 0),
    "conv 1-D with bias": ("g (float[1,6,9] x, float[8] b) => (float[1,8,7] y) { y = Conv(x, w, b) }", (8, 6, 3), 0),
    "conv 3-D": ("g (float[1,4,5,5,5] x) => (float[1,8,3,3,3] y) { y = Conv(x, w) }", (8, 4, 3, 3, 3), 0),
    "grouped conv": ("g (float[1,8,7,7] x) => (float[1,16,5,5] y) { y = Conv<group=2>(x, w) }", (16, 4, 3, 3), 0),
    "depthwise conv": ("g (float[1,32,7,7] x) => (float[1,32,5,5] y) { y = Conv<group=32>(x, w) }", (32, 1, 3, 3), 0),
    "conv transpose": ("g (float[1,8,5,5] x) => (float[1,6,7,7] y) { y = ConvTranspose(x, w) }", (8, 6, 3, 3), 1),
    "grouped conv transpose": (
        "g (float[1,8,5,5] x) => (float[1,12,7,7] y) { y = ConvTranspose<group=2>(x, w) }",
        (8, 6, 3, 3),
        0,
    ),
    "depthwise conv transpose": (
        "g (float[1,32,5,5] x) => (float[1,32,7,7] y) { y = ConvTranspose<group=32>(x, w) }",
        (32, 1, 3, 3),
        0,
    ),
    "gemm": ("g (float[3,16] x) => (float[3,24] y) { y = Gemm(x, w) }", (16, 24), 1),
    "gemm transB": ("g (float[3,16] x) => (float[3,24] y) { y = Gemm<transB=1>(x, w) }", (24, 16), 0),
    "gemm weight on the left": ("g (float[16,3] x) => (float[24,3] y) { y = Gemm(w, x) }", (24, 16), 0),
    "gemm weight on the left, transA": (
        "g (float[16,3] x) => (float[24,3] y) { y = Gemm<transA=1>(w, x) }",
        (16, 24),
        1,
    ),
    "matmul": ("g (float[2,3,16] x) => (float[2,3,24] y) { y = MatMul(x, w) }", (16, 24), 1),
    "matmul 3-D weight": ("g (float[4,3,16] x) => (float[4,3,24] y) { y = MatMul(x, w) }", (4, 16, 24), 2),
    "matmul weight on the left": ("g (float[2,16,3] x) => (float[2,24,3] y) { y = MatMul(w, x) }", (24, 16), 0),
    "matmul vector weight": ("g (float[2,300] x) => (float[2] y) { y = MatMul(x, w) }", (300,), None),
    "gather": ("g (int64[2,3] x) => (float[2,3,32] y) { y = Gather(w, x) }", (24, 32), 0),
    "gather axis 1": ("g (int64[3] x) => (float[24,3] y) { y = Gather<axis=1>(w, x) }", (24, 32), None),
    "einsum": ('g (float[2,3,16] x) => (float[2,3,24] y) { y = Einsum<equation="bld,dh->blh">(x, w) }', (16, 24), 1),
    "einsum weight first": (
        'g (float[2,3,16] x) => (float[2,3,24] y) { y = Einsum<equation="hd, bld -> blh">(w, x) }',
        (24, 16),
        0,
    ),
    "behind transpose": (
        "g (float[2,16] x) => (float[2,24] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }",
        (24, 16),
        0,
    ),
    "behind transpose without perm": (
        "g (float[2,16] x) => (float[2,24] y) { t = Transpose(w) y = MatMul(x, t) }",
        (24, 16),
        0,
    ),
    "behind reshape": (
        "g (float[2,6,9,9] x) => (float[2,8,7,7] y) "
        "{ s = Constant<value_ints=[8,6,3,3]>() r = Reshape(w, s) y = Conv(x, r) }",
        (8, 54),
        0,
    ),
    "behind identity twice": (
        "g (float[2,16] x) => (float[2,24] y) { i = Identity(w) j = Identity(i) y = MatMul(x, j) }",
        (16, 24),
        1,
    ),
    "behind slice": (
        "g (float[2,16] x) => (float[2,12] y) { s = Constant<value_ints=[12]>() e = Constant<value_ints=[24]>() "
        "a = Constant<value_ints=[1]>() p = Slice(w, s, e, a) y = MatMul(x, p) }",
        (16, 24),
        1,
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_writes_the_definition(case: str) -> None:
    text, shape, axis = LAYERS[case]
    weight = draw(*shape)
    before = model(text, w=weight)
    ops = {node.op_type: 1 for node in before.graph.node if node.op_type != "Constant"}
    ops |= {"Identity": 2} if "twice" in case else {}
    after = assert_rewrites(
        QuantizeWeights(representation="dq"), before, ops={**ops, "DequantizeLinear": 1}, rewritten=1
    )
    levels, scales = expected_int8(weight, axis)
    stored = initializers(after)
    assert "w" not in stored
    assert stored["w_q"].dtype == np.int8
    np.testing.assert_array_equal(stored["w_q"], levels)
    np.testing.assert_array_equal(stored["w_s"], scales)
    assert stored["w_s"].dtype == np.float32
    node = next(node for node in after.graph.node if node.op_type == "DequantizeLinear")
    assert [(a.name, a.i) for a in node.attribute] == ([] if axis is None else [("axis", axis)])
    assert {node.domain for node in after.graph.node} == {""}
    assert after.ByteSize() < before.ByteSize()
    assert_agree(after, random_feeds(before, 1), 1e-5)


def optimized(proto: onnx.ModelProto, folder: Path) -> list[str]:
    """Return the operators that a default session runs."""
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    settings.log_severity_level = 4
    ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("case", LAYERS)
def test_a_default_session_computes_no_weight(case: str, tmp_path: Path) -> None:
    text, shape, axis = LAYERS[case]
    before = model(text, 19, 9, w=draw(*shape))
    after, result = run_alone(QuantizeWeights(), before)
    assert len(result.rewritten) == 1
    ran = optimized(after, tmp_path)
    assert "DequantizeLinear" not in ran
    assert ran.count("Gather") == (2 if "gather" in case else 0)
    assert ran.count("Mul") == ran.count("Gather") / 2, ran
    axis = 1 if case == "gather axis 1" else axis
    levels, scales = expected_int8(draw(*shape), axis)
    np.testing.assert_array_equal(initializers(after)["w_q"], levels)
    np.testing.assert_array_equal(initializers(after)["w_s"].reshape(-1), scales.reshape(-1))
    assert after.ByteSize() < before.ByteSize()
    assert_agree(after, random_feeds(before, 1), 1e-5)
    assert not run_alone(QuantizeWeights(), after)[1].rewritten


RECURRENT = {
    "lstm": ("LSTM", 4, "y, h, c"),
    "gru": ("GRU", 3, "y, h"),
    "rnn": ("RNN", 1, "y, h"),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_have_two_weights(kind: str) -> None:
    op, gates, outputs = RECURRENT[kind]
    text = f"""g (float[5,2,24] x) => (float[5,2,2,16] y) {{
        {outputs} = {op}<hidden_size=16, direction="bidirectional">(x, w, r) }}"""
    w, r = draw(2, gates * 16, 24) * 0.2, draw(2, gates * 16, 16, seed=1) * 0.2
    before = model(text, w=w, r=r)
    after = assert_rewrites(
        QuantizeWeights(representation="dq"), before, ops={op: 1, "DequantizeLinear": 2}, rewritten=1
    )
    for name, weight in (("w", w), ("r", r)):
        levels, scales = expected_int8(weight, 1)
        np.testing.assert_array_equal(initializers(after)[f"{name}_q"], levels)
        np.testing.assert_array_equal(initializers(after)[f"{name}_s"], scales)
    assert_agree(after, random_feeds(before, 1), 1e-5)


def test_tied_weights_stay_tied() -> None:
    text = """g (int64[2,3] i) => (float[2,3,24] y) {
        e = Gather(w, i)
        t = Transpose<perm=[1,0]>(w)
        y = MatMul(e, t) }"""
    weight = draw(24, 32)
    after = assert_rewrites(
        QuantizeWeights(representation="dq"),
        model(text, w=weight),
        ops={"Gather": 1, "Transpose": 1, "MatMul": 1, "DequantizeLinear": 1},
    )
    np.testing.assert_array_equal(initializers(after)["w_s"], expected_int8(weight, 0)[1])
    assert_agree(after, {"i": np.array([[0, 5, 23], [1, 2, 3]])}, 1e-5)


def test_tied_weights_of_different_axes_have_one_scale() -> None:
    text = """g (float[2,24] x) => (float[2,24] y, float[2,24] z) {
        y = MatMul(x, w)
        z = Gemm<transB=1>(x, w) }"""
    weight = draw(24, 24)
    after = assert_rewrites(
        QuantizeWeights(representation="dq"),
        model(text, w=weight),
        ops={"MatMul": 1, "Gemm": 1, "DequantizeLinear": 1},
        rewritten=2,
    )
    np.testing.assert_array_equal(initializers(after)["w_s"], expected_int8(weight, None)[1])


def test_shape_of_a_weight_may_be_asked() -> None:
    text = "g (float[2,24] x) => (float[2,24] y, int64[2] s) { y = MatMul(x, w) s = Shape(w) }"
    before = model(text, w=draw(24, 24))
    after = assert_rewrites(
        QuantizeWeights(representation="dq"), before, ops={"MatMul": 1, "Shape": 1, "DequantizeLinear": 1}
    )
    assert_agree(after, random_feeds(before, 1), 1e-5)


def test_weight_put_together_from_several() -> None:
    text = """g (float[2,32] x) => (float[2,24] y) {
        w = Concat<axis=0>(w1, w2)
        t = Transpose(w)
        y = MatMul(x, t) }"""
    w1, w2 = draw(12, 32), draw(12, 32, seed=1)
    after = assert_rewrites(
        QuantizeWeights(representation="dq"),
        model(text, w1=w1, w2=w2),
        ops={"Concat": 1, "Transpose": 1, "MatMul": 1, "DequantizeLinear": 2},
        rewritten=1,
    )
    np.testing.assert_array_equal(initializers(after)["w1_s"], expected_int8(w1, 0)[1])
    np.testing.assert_array_equal(initializers(after)["w2_s"], expected_int8(w2, 0)[1])


def test_weight_in_a_constant_node() -> None:
    before = model("g (float[2,24] x) => (float[2,24] y) { y = MatMul(x, w) }", w=draw(24, 24))
    constant = onnx.helper.make_node("Constant", [], ["w"], value=before.graph.initializer.pop())
    before.graph.node.insert(0, constant)
    after = assert_rewrites(QuantizeWeights(representation="dq"), before, ops={"MatMul": 1, "DequantizeLinear": 1})
    assert not [node for node in after.graph.node if node.op_type == "Constant"]
    assert after.ByteSize() < before.ByteSize()
    assert_agree(after, random_feeds(before, 1), 1e-5)


SUBGRAPHS = {
    "weight of the main graph": ("", "w"),
    "weight of the branch": ("float[24,24] w = {" + ",".join(f"{v:.4f}" for v in draw(24, 24).flat) + "}", ""),
}


@pytest.mark.parametrize("case", SUBGRAPHS)
def test_layers_in_subgraphs(case: str) -> None:
    inner, outer = SUBGRAPHS[case]
    text = f"""g (float[2,24] x, bool c) => (float[2,24] y) {{
        y = If(c) <then_branch = t () => (float[2,24] a) {"<" + inner + ">" if inner else ""} {{ a = MatMul(x, w) }},
                   else_branch = e () => (float[2,24] b) {{ b = Relu(x) }}> }}"""
    before = model(text, **({"w": draw(24, 24)} if outer else {}))
    after, result = run_alone(QuantizeWeights(representation="dq"), before)
    assert [done.site for done in result.rewritten] == ["a"]
    assert after.ByteSize() < before.ByteSize()
    for condition in (True, False):
        feeds = {"x": draw(2, 24, seed=3), "c": np.array(condition)}
        assert_agree(after, feeds, 1e-5)
        expected, got = Session(before).run(feeds)["y"], Session(after).run(feeds)["y"]
        np.testing.assert_allclose(got, expected, rtol=0, atol=0.02 * np.abs(expected).max())


def test_layer_in_a_local_function() -> None:
    values = ",".join(f"{v:.4f}" for v in draw(24, 24).flat)
    text = f"""g (float[2,24] x) => (float[2,24] y) {{ y = local.dense(x) }}
        <domain: "local", opset_import: ["" : 19]> dense (x) => (y) {{
            w = Constant<value = float[24,24] {{{values}}}>()
            y = MatMul(x, w) }}"""
    before = model(text)
    after, result = run_alone(QuantizeWeights(representation="dq"), before)
    assert len(result.rewritten) == 1
    assert after.ByteSize() < before.ByteSize()
    feeds = {"x": draw(2, 24, seed=3)}
    assert_agree(after, feeds, 1e-5)
    expected, got = Session(before).run(feeds)["y"], Session(after).run(feeds)["y"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("opset", [13, 17, 21, 25])
def test_other_opsets(opset: int) -> None:
    weight = draw(8, 6, 3, 3)
    text = "g (float[2,6,9,9] x) => (float[2,8,7,7] y) { y = Conv(x, w) }"
    before = model(text, opset=opset, ir_version={13: 7, 17: 8, 21: 10, 25: 13}[opset], w=weight)
    after = assert_rewrites(QuantizeWeights(representation="dq"), before, ops={"Conv": 1, "DequantizeLinear": 1})
    np.testing.assert_array_equal(initializers(after)["w_s"], expected_int8(weight, 0)[1])
    results = Session(after).run(random_feeds(before, 1))
    assert results["y"].shape == (2, 8, 7, 7)


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_one_scale_below_opset_13(opset: int) -> None:
    weight = draw(8, 6, 3, 3)
    before = model("g (float[2,6,9,9] x) => (float[2,8,7,7] y) { y = Conv(x, w) }", opset=opset, ir_version=5, w=weight)
    after = assert_rewrites(QuantizeWeights(representation="dq"), before, ops={"Conv": 1, "DequantizeLinear": 1})
    np.testing.assert_array_equal(initializers(after)["w_q"], expected_int8(weight, None)[0])
    assert_agree(after, random_feeds(before, 1), 1e-5)


@pytest.mark.parametrize(("opset", "ops"), [(17, {"Cast": 1}), (19, {})])
def test_half_precision(opset: int, ops: dict[str, int]) -> None:
    weight = draw(24, 24, dtype=np.float16)
    text = "g (float16[2,24] x) => (float16[2,24] y) { y = MatMul(x, w) }"
    before = model(text, opset=opset, ir_version=9, w=weight)
    after = assert_rewrites(
        QuantizeWeights(representation="dq"), before, ops={"MatMul": 1, "DequantizeLinear": 1, **ops}
    )
    assert initializers(after)["w_s"].dtype == (np.float32 if ops else np.float16)
    assert_agree(after, random_feeds(before, 1), 3e-3)


def test_asks_for_the_opset_that_runs_everywhere() -> None:
    text = "g (float[2,24] x) => (float[2,24] y) { y = MatMul(x, w) }"
    assert (
        QuantizeWeights(representation="dq").required_opset(
            GraphView(from_proto(model(text, opset=11, w=draw(24, 24))))
        )
        == 19
    )
    nothing = model("g (float[2,24] x) => (float[2,24] y) { y = Relu(x) }", opset=11)
    assert QuantizeWeights(representation="dq").required_opset(GraphView(from_proto(nothing))) == 0


EDGES = {
    "a channel of zeros": lambda w: np.multiply(w, np.arange(24) != 3, out=w),
    "all zeros": lambda w: w.fill(0),
    "subnormal channel": lambda w: np.multiply(w, np.where(np.arange(24) == 3, 1e-41, 1.0), out=w),
    "largest floats": lambda w: np.copyto(w[:, 3], np.float32(3.4028235e38)),
    "huge range in a channel": lambda w: np.copyto(w[5, 3:4], np.float32(1e30)),
}


@pytest.mark.parametrize("case", EDGES)
def test_extreme_values(case: str) -> None:
    weight = draw(24, 24)
    EDGES[case](weight)
    before = model("g (float[2,24] x) => (float[2,24] y) { y = MatMul(x, w) }", w=weight)
    after, result = run_alone(QuantizeWeights(representation="dq"), before)
    assert len(result.rewritten) == 1
    stored = initializers(after)
    levels, scales = stored["w_q"].astype(np.float64), stored["w_s"].astype(np.float64)
    assert (scales > 0).all()
    with np.errstate(over="raise"):
        real = stored["w_q"].astype(np.float32) * stored["w_s"]
    assert np.isfinite(real).all()
    assert (np.abs(levels * scales - weight) <= 0.5000001 * scales).all()


def quantized_matmul(**changes: Any) -> onnx.ModelProto:
    text = "g (float[2,24] x) => (float[2,24] y) { y = MatMul(x, w) }"
    return model(**{"text": text, "w": draw(24, 24), **changes})


def poisoned(value: float) -> NDArray[np.float32]:
    weight = draw(24, 24)
    weight[3, 4] = value
    return weight


def overridable() -> onnx.ModelProto:
    proto = quantized_matmul()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [24, 24]))
    return proto


def sparse() -> onnx.ModelProto:
    """A MatMul whose weight is stored sparse; it is no graph input, so nobody can override it."""
    proto = quantized_matmul()
    del proto.graph.initializer[:]
    values = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [200], draw(200))
    places = onnx.helper.make_tensor("at", onnx.TensorProto.INT64, [200], np.arange(0, 400, 2))
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [24, 24]))
    return proto


REFUSALS = {
    "stored sparse": (sparse(), "^'w' is stored sparse$"),
    "nan": (quantized_matmul(w=poisoned(np.nan)), "'w' holds NaN or Inf"),
    "inf": (quantized_matmul(w=poisoned(-np.inf)), "'w' holds NaN or Inf"),
    "overridable": (overridable(), "'w' can be overridden by the caller"),
    "also added": (
        quantized_matmul(text="g (float[24,24] x) => (float[24,24] y) { z = MatMul(x, w) y = Add(z, w) }"),
        "'w' is also read by Add 'y'",
    ),
    "behind a transpose that is also added": (
        quantized_matmul(
            text="g (float[24,24] x) => (float[24,24] y) { t = Transpose(w) z = MatMul(x, t) y = Add(z, t) }"
        ),
        "'t' is also read by Add 'y'",
    ),
    "graph output": (
        quantized_matmul(
            text="g (float[2,24] x) => (float[2,24] y, float[24,24] t) { t = Transpose(w) y = MatMul(x, t) }"
        ),
        "'t' is a graph output",
    ),
    "too small": (
        quantized_matmul(text="g (float[2,2] x) => (float[2,2] y) { y = MatMul(x, w) }", w=draw(2, 2)),
        "'w' of 16 bytes would not get smaller",
    ),
    "empty": (
        quantized_matmul(text="g (float[2,0] x) => (float[2,24] y) { y = MatMul(x, w) }", w=draw(0, 24)),
        "'w' is empty",
    ),
    "computed": (
        model("g (float[1,6,9,9] x, float[8,6,3,3] w) => (float[1,8,7,7] y) { v = Relu(w) y = Conv(x, v) }"),
        "'v' is computed",
    ),
    "opset 9": (
        quantized_matmul(opset=9, ir_version=4),
        "opset 9 has no DequantizeLinear for int8 weights, it needs 10",
    ),
    "argument of a function": (
        quantized_matmul(
            text="""g (float[2,24] x) => (float[2,24] y) { z = MatMul(x, w) y = local.add(z, w) }
            <domain: "local", opset_import: ["" : 19]> add (a, b) => (c) {
                s = ReduceSum<keepdims=0>(b)
                c = Add(a, s) }"""
        ),
        "'b' is also read by ReduceSum 's'",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    proto, reason = REFUSALS[case]
    assert_skips(QuantizeWeights(representation="dq"), proto, reason)


def test_refuses_what_is_quantized_already() -> None:
    after, _ = run_alone(QuantizeWeights(representation="dq"), quantized_matmul())
    assert_skips(QuantizeWeights(representation="dq"), after, "'w' is quantized already")


@pytest.mark.parametrize("more", ["", "s = Squeeze(b, n0) b2 = Unsqueeze(s, n0)"], ids=["at once", "moved"])
@pytest.mark.parametrize(
    "options",
    [{}, {"representation": "mul", "symmetric": False}, {"dtype": "int4", "granularity": "block", "block_size": 4}],
    ids=["dq", "mul", "blocks"],
)
def test_small_kernel_between_a_split_and_a_reshape_loads_everywhere(options: dict[str, Any], more: str) -> None:
    before = model(
        f"""g (float[1,16,5,5] x) => (float[1,4,4,25] y) {{
        k = Constant<value_ints = [8, 8]>() n0 = Constant<value_ints = [0]>() h = Constant<value_ints = [1, 4, 4, 25]>()
        a, b = Split<axis = 1>(x, k) {more} c = Conv({"b2" if more else "b"}, w, d) y = Reshape(c, h) }}""",
        opset=21,
        ir_version=10,
        w=draw(16, 8, 1, 1),
        d=draw(16, seed=1),
    )
    after, result = run_alone(QuantizeWeights(**options), before)
    assert [told.site for told in result.rewritten] == ["c"]
    assert {"w_q"} <= {each.name for each in after.graph.initializer}
    assert len(run_everywhere(after, random_feeds(before, 0))) == 4
    assert not run_alone(QuantizeWeights(**options), after)[1].rewritten


def test_refuses_layers_that_compute_on_integers() -> None:
    text = "g (uint8[2,24] x) => (int32[2,24] y) { y = MatMulInteger(x, w) }"
    before = model(text, w=np.arange(24 * 24, dtype=np.int32).reshape(24, 24).astype(np.int8))
    assert_skips(QuantizeWeights(representation="dq"), before, "'w' holds int8 values for MatMulInteger")


def test_a_veto_holds_for_all_who_share_the_weight() -> None:
    text = """g (float[2,24] x) => (float[2,24] y, float[2,24] z, float[2,24] v) {
        y = MatMul(x, w)
        z = Gemm<transB=1>(x, w)
        v = MatMul(x, u) }"""
    subject = from_proto(model(text, w=draw(24, 24), u=draw(24, 24, seed=1)))
    result = QuantizeWeights(representation="dq").apply(GraphView(subject, vetoes={"y": "it breaks the model"}))
    assert [done.site for done in result.rewritten] == ["v"]
    reasons = {skipped.site: skipped.reason for skipped in result.skipped}
    assert reasons == {"y": "it breaks the model", "z": "'w' is shared with 'y': it breaks the model"}


def test_what_is_not_a_weight_is_no_site() -> None:
    text = """g (float[2,3,16] x, int64[2] i) => (float[2,4,4] y, int64[2] p) {
        c = Concat<axis=1>(x, token)
        t = Transpose<perm=[0,2,1]>(c)
        y = MatMul(c, t)
        p = Gather(table, i) }"""
    proto = model(text, token=draw(2, 1, 16), table=np.arange(300).reshape(300))
    assert not assert_untouched(QuantizeWeights(representation="dq"), proto).skipped


FORMS = [
    (kind, granularity, form)
    for kind in ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int3", "uint3", "int2", "float8")
    for granularity in ("tensor", "channel", "block")
    for form in ("dq", "qdq", "mul")
    if (kind, form) not in (("int2", "qdq"), ("int3", "qdq"), ("uint3", "qdq"))
]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("kind", "granularity", "form"), FORMS)
@pytest.mark.parametrize("case", ["conv", "gemm transB", "gather"])
def test_every_type_granularity_and_form(case: str, kind: str, granularity: Any, form: Any, symmetric: bool) -> None:
    """The weight that the model computes is the one that the numbers stand for, and every runtime computes it."""
    text, shape, axis = LAYERS[case]
    opset, ir_version = (25, 13) if kind == "int2" else (21, 10)
    before = model(text, opset, ir_version, w=draw(*shape))
    options: dict[str, Any] = {"dtype": kind, "granularity": granularity, "block_size": 16, "representation": form}
    each = QuantizeWeights(symmetric=symmetric, **options)
    after, result = run_alone(each, before)
    assert len(result.rewritten) == 1
    onnx.checker.check_model(after, full_check=True)
    assert after.ByteSize() < before.ByteSize() or form == "qdq"
    summed = {"conv": 1, "gemm transB": 1, "gather": 1}[case]
    block = blocks(shape, summed, 16) if granularity == "block" else None
    grouping = block or (Grouping() if granularity == "tensor" else Grouping(axis))
    affine = Affine(TYPES[kind], symmetric, negative_scales=form != "qdq")
    weight = dequantize(quantize(draw(*shape), affine, grouping)).astype(np.float32)
    feeds = random_feeds(before, 1)
    expected = Session(model(text, opset, ir_version, w=weight)).run(feeds)["y"]
    # ONNX Runtime's QuantizeLinear divides in float32, so a value between two levels may fall to the other one.
    bound = (1e-4 if form == "qdq" else 2e-6) * float(np.abs(expected).max())
    np.testing.assert_allclose(Session(after).run(feeds)["y"], expected, rtol=0, atol=bound)
    if kind != "int2" and (kind, form) != ("float8", "qdq"):  # OpenVINO has no int2 and rounds to float8 differently
        assert_agree(after, feeds, 1e-4)
    assert not run_alone(each, after)[1].rewritten


@pytest.mark.parametrize("kind", ["int4", "int3", "int2"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
@pytest.mark.parametrize("columns", [1, 7, 10, 12])
@pytest.mark.parametrize("product", ["MatMul(x, w)", "Gemm(x, w)", "Gemm<transB=1>(x, w)"])
def test_columns_that_fill_no_byte(product: str, columns: int, granularity: Any, kind: Any) -> None:
    """Optimizing, ONNX Runtime 1.32 packs the rows of a matrix of int2 as if each began on a byte."""
    weight = draw(100, columns)
    text = f"g (float[3,100] x) => (float[3,{columns}] y) {{ y = {product} }}"
    before = model(text, 25, 13, w=np.ascontiguousarray(weight.T) if "transB" in product else weight)
    after, result = run_alone(QuantizeWeights(dtype=kind, granularity=granularity), before)
    assert len(result.rewritten) == 1
    onnx.checker.check_model(after, full_check=True)
    feeds = random_feeds(before, 1)
    expected, optimized = (Session(after, optimize=choice).run(feeds)["y"] for choice in (False, True))
    assert np.abs(optimized - expected).max() < 0.05 * np.abs(expected).max()
    assert not run_alone(QuantizeWeights(dtype=kind, granularity=granularity), after)[1].rewritten


@pytest.mark.parametrize("kind", ["int8", "uint8", "int4"])
@pytest.mark.parametrize("form", ["dq", "mul", "qdq"])
@pytest.mark.parametrize("length", [50, 72, 75, 200])
def test_openvino_computes_blocks_of_any_matrix(length: int, form: Any, kind: Any) -> None:
    """Blocks of 25, 24, 25 and 40 would be the largest divisors, of which it bears 24 alone."""
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
    for product in ("y = MatMul(x, w)", "t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)", "y = Gemm<transB=1>(x, w)"):
        weight = draw(length, 64)
        stored = weight if product == "y = MatMul(x, w)" else np.ascontiguousarray(weight.T)
        before = model(f"g (float[3,{length}] x) => (float[3,64] y) {{ {product} }}", 21, 10, w=stored)
        each = QuantizeWeights(dtype=kind, representation=form, granularity="block", block_size=40)
        after, result = run_alone(each, before)
        assert len(result.rewritten) == 1
        feeds = random_feeds(before, 1)
        found = core.compile_model(core.read_model(after.SerializeToString()), "CPU", settings)(feeds)[0]
        expected = Session(after).run(feeds)["y"]
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("form", ["dq", "mul", "qdq"])
@pytest.mark.parametrize("kind", ["int8", "uint4", "int16"])
def test_one_block_that_fills_its_axis(kind: Any, form: Any) -> None:
    """It is a scale for each channel: OpenVINO would not load such blocks of 16 bits as qdq, nor of float8 as mul."""
    before = model("g (float[3,16] x) => (float[3,200] y) { y = MatMul(x, w) }", 21, 10, w=draw(16, 200))
    each = QuantizeWeights(dtype=kind, granularity="block", representation=form, symmetric=False)
    after, result = run_alone(each, before)
    assert re.search("per channel of axis 1", result.rewritten[0].detail)
    assert_agree(after, random_feeds(before, 1), 1e-4)


def test_one_block_of_each_of_several_matrices() -> None:
    before = model("g (float[2,3,16] x) => (float[2,3,50] y) { y = MatMul(x, w) }", 21, 10, w=draw(2, 16, 50))
    each = QuantizeWeights(dtype="float8", granularity="block", representation="mul")
    after = assert_rewrites(each, before, ops={"Cast": 1, "Mul": 1, "MatMul": 1})
    assert_agree(after, random_feeds(before, 1), 1e-4)


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrent_layer_takes_no_qdq(op: str, gates: int) -> None:
    before = model(
        f"g (float[3,2,8] x) => (float[3,1,2,16] y) {{ y = {op}<hidden_size = 16>(x, w, r) }}",
        w=draw(1, gates * 16, 8),
        r=draw(1, gates * 16, 16),
    )
    assert_skips(QuantizeWeights(representation="qdq"), before, f"OpenVINO loads no {op} that reads 'w' behind")


@pytest.mark.parametrize("form", ["dq", "mul"])
def test_a_recurrent_layer_beside_quantized_activations_stays_float(form: Any) -> None:
    before = model(
        """g (float[3,2,8] x) => (float[3,1,2,16] y, float[3,2,24] z) {
            q = QuantizeLinear(x, s, i)
            d = DequantizeLinear(q, s, i)
            z = MatMul(d, v)
            y = GRU<hidden_size = 16>(x, w, r) }""",
        s=np.array(0.03, np.float32),
        i=np.array(0, np.int8),
        v=draw(8, 24),
        w=draw(1, 48, 8) / 20,
        r=draw(1, 48, 16) / 20,
    )
    after, result = run_alone(QuantizeWeights(representation=form), before)
    assert [done.site for done in result.rewritten] == ["z"]
    reason = "OpenVINO loads no GRU with 'w' as integers where activations are quantized"
    assert [(each.site, each.reason.split("; ")[0]) for each in result.skipped] == [("y", reason)]
    assert_agree(after, random_feeds(before, 1), 0.02)


def test_mul_is_folded_when_onnx_runtime_loads_the_model(tmp_path: Path) -> None:
    before = model(LAYERS["conv"][0], w=draw(8, 6, 3, 3))
    after = assert_rewrites(QuantizeWeights(representation="mul"), before, ops={"Conv": 1, "Cast": 1, "Mul": 1})
    kinds = optimized(after, tmp_path)
    assert "Conv" in kinds
    assert not {"Cast", "Mul"} & set(kinds)


def test_mul_needs_no_new_opset() -> None:
    before = model("g (float[2,24] x) => (float[2,24] y) { y = MatMul(x, w) }", 9, 4, w=draw(24, 24))
    assert QuantizeWeights(representation="mul").required_opset(GraphView(from_proto(before))) == 7
    assert_rewrites(QuantizeWeights(representation="mul"), before, ops={"MatMul": 1, "Cast": 1, "Mul": 1})


def outlier() -> NDArray[np.float32]:
    weight = draw(64, 48)
    weight[::32] *= 30
    return weight


def test_falls_back_to_finer_blocks_then_more_bits_then_float() -> None:
    text = "g (float[2,64] x) => (float[2,48] y) { y = MatMul(x, w) }"
    before = model(text, 21, 10, w=outlier())
    floors = (30.0, 38.0, 60.0, 200.0)
    told = [run_alone(QuantizeWeights(representation="dq", min_sqnr=floor), before)[1] for floor in floors]
    assert "to int8 per channel of axis 1" in told[0].rewritten[0].detail
    assert re.search(r"to int8 blocks of \d+ on axis 0, .* after int8 per channel", told[1].rewritten[0].detail)
    assert re.search(r"to int16 .* after int8 per channel", told[2].rewritten[0].detail)
    assert re.search(r"'w' keeps [\d.]+ dB at best, less than 200", told[3].skipped[0].reason)
    each = QuantizeWeights(representation="dq", min_sqnr=30.0)
    assert each.required_opset(GraphView(from_proto(before))) == 21


def correlated(seed: int = 5) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((256, 4)) @ rng.standard_normal((4, 32)) + 1.0).astype(np.float32)


@pytest.mark.parametrize("text", ["Gemm<transB=1>(x, w, b)", "Gemm<alpha=2.0, beta=0.5>(x, w, b)", "MatMul(x, w)"])
def test_gptq_and_bias_correction_lose_less_on_the_data(text: str) -> None:
    weights = {"w": draw(24, 32) if "transB" in text else draw(32, 24)} | ({"b": draw(24)} if "b)" in text else {})
    proto = model(f"g (float[N,32] x) => (float[N,24] y) {{ y = {text} }}", 21, 10, **weights)
    lost = []
    tries: list[dict[str, Any]] = [{}, {"rounding": "gptq"}, {"rounding": "gptq", "bias_correction": True}]
    for options in tries:
        subject = from_proto(proto)
        data = from_arrays({"x": correlated()}, subject)
        result = QuantizeWeights(dtype="int4", **options).apply(GraphView(subject, calibration=data))
        assert len(result.rewritten) == 1
        y = Session(to_proto(subject)).run({"x": correlated()})["y"]
        lost.append(float(np.square(y - Session(proto).run({"x": correlated()})["y"]).sum()))
    assert lost[1] < 0.5 * lost[0]
    assert lost[2] <= lost[1] * 1.0001


def test_gptq_on_a_convolution_whose_weight_lies_in_a_constant_node() -> None:
    before = model("g (float[N,6,8,8] x) => (float[N,8,6,6] y) { y = Conv(x, w) }", 21, 10, w=draw(8, 6, 3, 3))
    before.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=before.graph.initializer.pop()))
    subject, x = from_proto(before), correlated()[:32, None, :24].repeat(16, 1).reshape(32, 6, 8, 8)
    QuantizeWeights(dtype="int4", rounding="gptq").apply(GraphView(subject, calibration=from_arrays({"x": x}, subject)))
    plain, _ = run_alone(QuantizeWeights(dtype="int4"), before)
    wanted = Session(before).run({"x": x})["y"]
    lost = [np.square(Session(each).run({"x": x})["y"] - wanted).sum() for each in (to_proto(subject), plain)]
    assert lost[0] < 0.5 * lost[1]


@pytest.mark.parametrize("kind", ["int2", "int3", "uint3"])
def test_qdq_cannot_be_of_two_or_three_bits(kind: Any) -> None:
    with pytest.raises(OptionError, match=kind):
        QuantizeWeights(dtype=kind, representation="qdq")


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["int3", "uint3"])
@pytest.mark.parametrize(
    "options", [{}, {"range": "mse"}, {"rounding": "gptq", "range": "mse"}, {"bias_correction": True}], ids=str
)
def test_three_bits_are_eight_levels_held_in_four(kind: Any, symmetric: bool, options: dict[str, Any]) -> None:
    proto = model(f"g (float[N,32] x) => (float[N,24] y) {{ {THREE} }}", 21, 10, w=draw(24, 32), b=draw(24))
    sizes, stored = [], {}
    for name in (kind, kind.replace("3", "4")):
        subject = from_proto(proto)
        data = from_arrays({"x": correlated()}, subject)
        pass_ = QuantizeWeights(dtype=name, symmetric=symmetric, **options)
        told = pass_.apply(GraphView(subject, calibration=data)).rewritten[0].detail
        after = to_proto(subject)
        sizes.append(after.ByteSize())
        held = next(tensor for tensor in after.graph.initializer if tensor.name == "w_q")
        stored[name] = onnx.numpy_helper.to_array(held)
        assert f"to {name} {'held in ' + name.replace('3', '4') + ' ' if '3' in name else ''}per channel" in told
    levels = stored[kind].astype(np.int64)
    assert levels.min() == TYPES[kind].low
    assert levels.max() == TYPES[kind].high
    assert stored[kind].dtype.name == kind.replace("3", "4")
    assert sizes[0] == sizes[1]


THREE = "y = Gemm<transB = 1>(x, w, b)"
