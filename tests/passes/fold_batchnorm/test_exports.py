"""fold-batchnorm on odd exports: types, shared weights, subgraphs, functions; and on whole networks."""

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

from graphopt.graph import GraphView
from graphopt.model import from_proto
from graphopt.numerics.compare import Comparer
from graphopt.runtime.session import Session
from graphopt.testing import (
    assert_rewrites,
    assert_skips,
    count_ops,
    draw,
    draw_batchnorm,
    initializers,
    model,
    random_feeds,
    run_alone,
)

Arrays = dict[str, NDArray[Any]]

CONV = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) {{ c = Conv(x, w) y = BatchNormalization{attrs}(c, g, b, m, v) }}"


@pytest.mark.parametrize(("opset", "attrs"), [(7, "<spatial=1>"), (8, "<momentum=0.5>"), (9, ""), (13, ""), (15, "")])
def test_rewrites_in_every_opset_that_runs(opset: int, attrs: str) -> None:
    proto = model(CONV.format(attrs=attrs), opset=opset, w=draw(4, 3, 3, 3), **draw_batchnorm(4))
    assert_rewrites(FoldBatchNorm(), proto, ops={"Conv": 1})


def test_rewrites_before_opset_7() -> None:
    proto = model(CONV.format(attrs="<is_test=1>"), opset=6, w=draw(4, 3, 3, 3), **draw_batchnorm(4))
    after, result = run_alone(FoldBatchNorm(), proto)
    assert [node.op_type for node in after.graph.node] == ["Conv"]
    folded = initializers(after)
    gain = proto_array(proto, "g") / np.sqrt(proto_array(proto, "v") + np.float64(np.float32(1e-5)))
    np.testing.assert_allclose(folded["w"], proto_array(proto, "w") * gain.reshape(4, 1, 1, 1), rtol=2e-7)
    assert result.rewritten[0].site == "y"


def proto_array(proto: onnx.ModelProto, name: str) -> NDArray[Any]:
    return initializers(proto)[name].astype(np.float64)


def test_folds_float16_with_float32_statistics() -> None:
    text = "g (float16[N,3,8,8] x) => (float16[N,4,6,6] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }"
    proto = model(text, w=draw(4, 3, 3, 3, dtype=np.float16), **draw_batchnorm(4))
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
    values = {**draw_batchnorm(4, dtype=dtype), "v": np.array([0.5, 1, 2, 4], dtype)}
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
    proto = model(CONV.format(attrs=""), w=weight, **{**draw_batchnorm(4), "g": np.float32([-3, 0, -1, 1])})
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
    proto = model(text, w=draw(4, 3, 3, 3), **draw_batchnorm(4))
    after = assert_rewrites(FoldBatchNorm(), proto, ops={"Conv": 3}, rewritten=2)
    assert len({node.input[1] for node in after.graph.node}) == 3
    assert np.array_equal(proto_array(after, "w"), proto_array(proto, "w"))


def test_layers_that_share_weight_and_statistics_go_on_sharing() -> None:
    text = (
        "g (float[N,3,8,8] x, float[N,3,9,9] z) => (float[N,4,6,6] y, float[N,4,7,7] u) "
        "{ c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) d = Conv(z, w) u = BatchNormalization(d, g, b, m, v) }"
    )
    after = assert_rewrites(FoldBatchNorm(), model(text, w=draw(4, 3, 3, 3), **draw_batchnorm(4)), ops={"Conv": 2})
    assert len(after.graph.initializer) == 2


def test_folds_inside_of_subgraphs() -> None:
    text = (
        "g (float[2,3,8,8] x, bool k) => (float[2,4,6,6] z) { z = If(k) "
        "<then_branch = t () => (float[2,4,6,6] p) { c = Conv(x, w) p = BatchNormalization(c, g, b, m, v) }, "
        "else_branch = e () => (float[2,4,6,6] q) { d = Conv(x, w) n = BatchNormalization(d, b, g, m, v) q = "
        "Relu(n) }> }"
    )
    proto = model(text, w=draw(4, 3, 3, 3), **draw_batchnorm(4))
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
    proto = model(text, w=draw(4, 4, 1, 1), n=np.int64(3), **draw_batchnorm(4))
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
    assert_skips(FoldBatchNorm(), model(text, w=draw(4, 3, 1), **draw_batchnorm(4)), "among the 24 operators before it")
    steps = " ".join(f"c{i + 1} = Identity(c{i})" for i in range(700))
    text = (
        f"g (float[N,4,4] x) => (float[N,4,4] y) {{ c0 = BatchNormalization(x, g, b, m, v) {steps} y = Conv(c700, w) }}"
    )
    assert_skips(FoldBatchNorm(), model(text, w=draw(4, 4, 1), **draw_batchnorm(4)), "among the 24 operators behind it")


def test_many_readers_are_given_up() -> None:
    layers = " ".join(f"c{i} = Conv(a, w)" for i in range(257))
    outputs = ", ".join(f"float[N,4,4] c{i}" for i in range(257))
    text = f"g (float[N,4,4] x) => ({outputs}) {{ a = BatchNormalization(x, g, b, m, v) {layers} }}"
    assert_skips(FoldBatchNorm(), model(text, w=draw(4, 4, 1), **draw_batchnorm(4)), "more than 256 operators")


MODELS = sorted((Path(__file__).parents[3] / "models").glob("*.onnx"))


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
    proto = model(CONV.format(attrs=""), w=draw(4, 3, 3, 3), **draw_batchnorm(4))
    result = FoldBatchNorm().apply(GraphView(from_proto(proto), vetoes={"y": "it lies"}))
    assert not result.rewritten
    assert [(skipped.site, skipped.reason) for skipped in result.skipped] == [("y", "it lies")]


def test_before_ir_version_4_initializers_are_inputs_too() -> None:
    values = {"w": draw(4, 3, 3, 3), **draw_batchnorm(4)}
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
