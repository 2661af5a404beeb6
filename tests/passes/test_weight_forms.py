"""quantize-weights, --representation auto: what each site is written with, and what ONNX Runtime makes of it."""

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

from graphopt.graph import GraphView
from graphopt.model import from_proto
from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, count_ops, initializers, model, random_feeds, run_alone


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> NDArray[Any]:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) / np.sqrt(shape[0])).astype(dtype)


def assert_agree(proto: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], tolerance: float) -> None:
    """Assert that ONNX Runtime, OpenVINO and, from opset 19, the reference evaluator give the same.

    With its optimizations on, ONNX Runtime may compute products in int8, and is allowed 2% of the largest value.
    """
    names = [output.name for output in proto.graph.output]
    expected = Session(proto).run(dict(feeds))
    found = {"optimized": Session(proto, optimize=True).run(dict(feeds))}
    if proto.opset_import[0].version >= 19:
        found["reference"] = dict(zip(names, ReferenceEvaluator(proto).run(None, dict(feeds)), strict=True))
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(proto.SerializeToString()), "CPU", settings)
    results = compiled(dict(feeds))
    found["openvino"] = {name: results[compiled.output(name)] for name in names}
    for runtime, outputs in found.items():
        for name in names:
            bound = (0.02 if runtime == "optimized" else tolerance) * float(np.abs(expected[name]).max())
            np.testing.assert_allclose(outputs[name], expected[name], rtol=0, atol=bound, err_msg=f"{runtime} {name}")


def optimized(proto: onnx.ModelProto, folder: Path) -> list[str]:
    """Return the operators that a default session runs, those of subgraphs included."""
    settings = ort.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    settings.log_severity_level = 4
    ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    graphs, found = [onnx.load(folder / "optimized.onnx").graph], []
    for graph in graphs:
        found += [node.op_type for node in graph.node]
        graphs += [each.g for node in graph.node for each in node.attribute if each.HasField("g")]
    return found


# -- matrix products ---------------------------------------------------------------------------------------------------

K, N = 1024, 512
FUSED = {
    "MatMul": "y = MatMul(x, w)",
    "MatMul and bias": "z = MatMul(x, w) y = Add(z, b)",
    "Gemm": "y = Gemm(x, w)",
    "Gemm with bias": "y = Gemm(x, w, b)",
    "Gemm, transposed": "y = Gemm<transB=1>(x, v, b)",
    "behind Transpose": "t = Transpose<perm=[1,0]>(v) y = MatMul(x, t)",
    "activation": "z = MatMul(x, w) y = Sigmoid(z)",
}
UNFUSED = {
    "Relu": "z = MatMul(x, w) y = Relu(z)",
    "bias and Relu": "z = MatMul(x, w) a = Add(z, b) y = Relu(a)",
    "Clip": "z = Gemm(x, w, b) y = Clip(z, c)",
    "alpha": "y = Gemm<alpha=0.5>(x, w, b)",
    "beta": "y = Gemm<beta=0.5>(x, w, b)",
    "transA": "t = Transpose(x) y = Gemm<transA=1>(t, w)",
    "bias for all": "y = Gemm(x, w, one)",
    "weight first": "t = Transpose(x) z = MatMul(v, t) y = Transpose(z)",
    "its shape is asked for": "z = MatMul(x, w) s = Shape(w) f = Cast<to=1>(s) "
    "r = ReduceSum<keepdims=0>(f) y = Add(z, r)",
    "both ways": "z = MatMul(x, w) t = Transpose(w) y = MatMul(z, t)",
    "handed to a branch": "k = Constant<value = bool {1}>() "
    "y = If(k) <then_branch = t () => (float[M,512] a) { a = MatMul(x, w) }, "
    "else_branch = e () => (float[M,512] d) { f = MatMul(x, w) d = Neg(f) }>",
}


def product(nodes: str, opset: int = 21) -> onnx.ModelProto:
    weights = {"w": normal(K, N), "v": normal(N, K), "b": normal(N, seed=1), "one": normal(1), "c": np.float32(0.1)}
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    outs = K if "MatMul(z, t)" in nodes else N
    text = f"g (float[M,{K}] x) => (float[M,{outs}] y) {{ {nodes} }}"
    return model(text, opset, 10, **{name: value for name, value in weights.items() if name in words})


@pytest.mark.parametrize("case", FUSED)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_large_product_is_computed_on_integers(case: str, dtype: Any, tmp_path: Path) -> None:
    before = product(FUSED[case])
    after, result = run_alone(QuantizeWeights(dtype=dtype), before)
    assert "blocks of 128" in result.rewritten[0].detail
    assert result.rewritten[0].detail.endswith("as DequantizeLinear, fused with the product")
    assert [initializers(after)[f"{'v' if 'v' in FUSED[case] else 'w'}_{part}"].shape for part in "qs"] == [
        (K, N),
        (8, N),
    ]
    ran = optimized(after, tmp_path)
    assert ran.count("MatMulNBits") == 1
    assert not {"DequantizeLinear", "MatMul", "Gemm", "Transpose"} & set(ran)
    assert_agree(after, random_feeds(before, 1), 1e-5)
    assert not run_alone(QuantizeWeights(dtype=dtype), after)[1].rewritten


@pytest.mark.parametrize("case", UNFUSED)
def test_what_onnx_runtime_does_not_fuse_is_folded(case: str, tmp_path: Path) -> None:
    before = product(UNFUSED[case])
    after, result = run_alone(QuantizeWeights(), before)
    assert result.rewritten
    assert all("as Cast and Mul, folded at load" in each.detail for each in result.rewritten)
    ran = optimized(after, tmp_path)
    assert not {"DequantizeLinear", "MatMulNBits", "Mul"} & set(ran)
    assert_agree(after, random_feeds(before, 1), 1e-5)


def test_a_branch_with_a_weight_of_its_own_is_fused(tmp_path: Path) -> None:
    before = product(
        """k = Constant<value = bool {1}>() v2 = Add(x, x) y = If(k) <
        then_branch = t () => (float[M,512] a) { a = MatMul(v2, w) },
        else_branch = e () => (float[M,512] d) { s, r = Split<axis=1, num_outputs=2>(x) d = Neg(s) }>"""
    )
    branch = next(each.g for each in before.graph.node[-1].attribute if each.name == "then_branch")
    branch.initializer.append(before.graph.initializer.pop(0))
    after, result = run_alone(QuantizeWeights(), before)
    assert [each.site for each in result.rewritten] == ["a"]
    assert result.rewritten[0].detail.endswith("fused with the product")
    assert_agree(after, random_feeds(before, 1), 1e-5)
    assert "DequantizeLinear" not in optimized(after, tmp_path)


def test_layers_that_share_a_matrix_are_folded(tmp_path: Path) -> None:
    """ONNX Runtime fuses no DequantizeLinear whose integers or scales another node reads."""
    text = "g (float[M,768] x) => (float[M,768] y) { a = MatMul(x, w) b = Tanh(a) y = MatMul(b, w) }"
    before = model(text, 21, 10, w=normal(768, 768))
    ops = {"MatMul": 2, "Tanh": 1, "Cast": 1, "Mul": 1}
    after = assert_rewrites(QuantizeWeights(), before, ops=ops, rewritten=2)
    assert not {"Cast", "Mul"} & set(optimized(after, tmp_path))


@pytest.mark.parametrize("shape", [(64, 10), (384, 384), (4096, 32), (720, 1024)], ids=str)
def test_small_narrow_and_odd_matrices_are_folded(shape: tuple[int, int]) -> None:
    before = model(
        f"g (float[M,{shape[0]}] x) => (float[M,{shape[1]}] y) {{ y = MatMul(x, w) }}", 21, 10, w=normal(*shape)
    )
    assert_rewrites(QuantizeWeights(), before, ops={"Cast": 1, "Mul": 1, "MatMul": 1})


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "channel"},
        {"granularity": "block"},
        {"granularity": "tensor"},
        {"dtype": "int16"},
        {"dtype": "float8"},
    ],
    ids=str,
)
def test_what_is_not_faster_on_integers_is_folded(options: dict[str, Any]) -> None:
    after, _ = run_alone(QuantizeWeights(**options), product(FUSED["MatMul"]))
    assert [node.op_type for node in after.graph.node][:2] == ["Cast", "Mul"]


def test_the_opset_is_raised_for_matrices_that_are_most_of_the_model() -> None:
    large, small = product(FUSED["MatMul"], 17), product(FUSED["MatMul and bias"], 13)
    more = model(
        f'g (float[M,{K}] x) => (float[M,{N}] y) {{ y = MatMul(x, w) a = Einsum<equation = "mk,kn->mn">(x, u) }}',
        17,
        8,
        w=normal(K, N),
        u=normal(K, 2 * N),
    )
    found = [QuantizeWeights().required_opset(GraphView(from_proto(each))) for each in (large, small, more)]
    assert found == [21, 21, 7]
    assert QuantizeWeights(granularity="channel").required_opset(GraphView(from_proto(large))) == 7
    assert QuantizeWeights(dtype="int4", granularity="channel").required_opset(GraphView(from_proto(large))) == 21
    after, _ = run_alone(QuantizeWeights(), large)
    assert after.opset_import[0].version == 17
    assert [node.op_type for node in after.graph.node] == ["Cast", "Mul", "MatMul"], "where it cannot be raised"


@pytest.mark.parametrize("layer", ["Conv", "MatMul", "Gather"])
def test_half_precision_goes_through_float_scales(layer: str, tmp_path: Path) -> None:
    """ONNX Runtime has no Mul in half precision on CPU, and so folds none."""
    text = {
        "Conv": "g (float16[1,8,9,9] x) => (float16[1,16,7,7] y) { y = Conv(x, w) }",
        "MatMul": "g (float16[2,32] x) => (float16[2,24] y) { y = MatMul(x, w) }",
        "Gather": "g (int64[3] x) => (float16[3,24] y) { y = Gather(w, x) }",
    }[layer]
    weight = normal(*{"Conv": (16, 8, 3, 3), "MatMul": (32, 24), "Gather": (32, 24)}[layer], dtype=np.float16)
    before = model(text, 17, 8, w=weight)
    after, result = run_alone(QuantizeWeights(), before)
    assert len(result.rewritten) == 1
    assert initializers(after)["w_s"].dtype == np.float32
    ran = optimized(after, tmp_path)
    assert ran.count("Mul") == (1 if layer == "Gather" else 0)
    assert_agree(after, random_feeds(before, 1), 3e-3)


@pytest.mark.parametrize(("op", "gates", "outs"), [("LSTM", 4, "y, h, c"), ("GRU", 3, "y, h"), ("RNN", 1, "y, h")])
def test_recurrent_weights_are_folded(op: str, gates: int, outs: str, tmp_path: Path) -> None:
    text = f"g (float[5,2,24] x) => (float[5,1,2,16] y) {{ {outs} = {op}<hidden_size=16>(x, w, r) }}"
    before = model(text, 17, 8, w=normal(1, gates * 16, 24) / 5, r=normal(1, gates * 16, 16) / 5)
    after = assert_rewrites(QuantizeWeights(), before, ops={op: 1, "Cast": 2, "Mul": 2}, rewritten=1)
    assert not {"Cast", "Mul"} & set(optimized(after, tmp_path))
    assert_agree(after, random_feeds(before, 1), 1e-5)


# -- look-ups ----------------------------------------------------------------------------------------------------------


def picked(
    options: dict[str, Any], text: str, table: NDArray[Any], opset: int = 21, **more: NDArray[Any]
) -> onnx.ModelProto:
    """Quantize a table that is looked up in, and assert that every runtime sees what the form mul gives."""
    before = model(text, opset, 10, t=table, **more)
    after, result = run_alone(QuantizeWeights(**options), before)
    assert "rows looked up as integers, then Cast and Mul" in result.rewritten[0].detail
    feeds = random_feeds(before, 1)
    assert_agree(after, feeds, 1e-5)
    if "axis=1" not in text:  # the form mul has one scale for all columns then
        plain, _ = run_alone(QuantizeWeights(representation="mul", **options), before)
        for name, expected in Session(plain).run(feeds).items():
            np.testing.assert_allclose(Session(after).run(feeds)[name], expected, rtol=1e-6, atol=1e-7)
    assert not run_alone(QuantizeWeights(**options), after)[1].rewritten
    return after


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int4", "uint4", "int3", "uint3"])
def test_rows_of_every_type(dtype: str, granularity: str, symmetric: bool) -> None:
    options = {"dtype": dtype, "granularity": granularity, "symmetric": symmetric}
    after = picked(options, "g (int64[B,L] i) => (float[B,L,96] y) { y = Gather(t, i) }", normal(40, 96))
    assert after.graph.node[-1].output[0] == "y"


@pytest.mark.parametrize(
    "text",
    [
        "g (int64 i) => (float[96] y) { y = Gather(t, i) }",
        "g (int64[2,3] i) => (float[2,3,96] y) { y = Gather<axis=-2>(t, i) }",
        "g (int64[3] i) => (float[40,3] y) { y = Gather<axis=1>(t, i) }",
        "g (int64[3] i) => (float[3,96] y, float[3,96] z) { y = Gather(t, i) j = Neg(i) z = Gather(t, j) }",
    ],
    ids=["one row", "negative axis", "columns", "twice"],
)
@pytest.mark.parametrize("options", [{}, {"granularity": "block"}], ids=str)
def test_rows_wherever_they_are_picked(text: str, options: dict[str, Any]) -> None:
    if "axis=1" in text and options:  # blocks would have to run along the axis of the columns
        after, _ = run_alone(QuantizeWeights(**options), model(text, 21, 10, t=normal(40, 96)))
        assert count_ops(after) == {"Cast": 1, "Mul": 1, "Reshape": 1, "Gather": 1}
    else:
        picked(options, text, normal(40, 96))


@pytest.mark.parametrize(("granularity", "lookups"), [("channel", 2), ("block", 1)])
def test_rows_at_indices_of_unknown_rank(granularity: Any, lookups: int) -> None:
    """What blocks are reshaped to could not be told."""
    before = model("g (int64[B,L] i) => (float[N,96] y) { k = Squeeze(i) y = Gather(t, k) }", 21, 10, t=normal(40, 96))
    after, _ = run_alone(QuantizeWeights(granularity=granularity), before)
    plain, _ = run_alone(QuantizeWeights(granularity=granularity, representation="mul"), before)
    assert count_ops(after)["Gather"] == lookups
    feeds = random_feeds(before, 1)
    np.testing.assert_allclose(Session(after).run(feeds)["y"], Session(plain).run(feeds)["y"], rtol=1e-6, atol=1e-7)


def test_positions_that_are_sliced() -> None:
    text = """g (float[B,L,32] x) => (float[B,L,32] y) {
        l = Shape<start=1, end=2>(x) p = Slice(t, n0, l, n0) a = Add(x, p) y = LayerNormalization(a, g) }"""
    after = picked({}, text, normal(64, 32), n0=np.array([0]), g=np.ones(32, np.float32))
    assert [node.op_type for node in after.graph.node].count("Slice") == 2
    picked(
        {"dtype": "int4", "granularity": "block", "block_size": 16},
        text,
        normal(64, 32),
        n0=np.array([0]),
        g=np.ones(32, np.float32),
    )


def test_a_tied_table_is_stored_once_and_each_reader_has_its_form(tmp_path: Path) -> None:
    text = "g (int64[2,3] i) => (float[2,3,24] y) { e = Gather(w, i) t = Transpose<perm=[1,0]>(w) y = MatMul(e, t) }"
    weight = normal(24, 32)
    ops = {"Gather": 2, "Cast": 2, "Mul": 2, "Transpose": 1, "MatMul": 1}
    after = assert_rewrites(QuantizeWeights(), model(text, 17, 8, w=weight), ops=ops, rewritten=2)
    assert sorted(initializers(after)) == ["w_q", "w_s"]
    ran = optimized(after, tmp_path)
    assert "Transpose" not in ran
    assert ran.count("Mul") == 1
    assert_agree(after, {"i": np.array([[0, 5, 23], [1, 2, 3]])}, 1e-5)


def test_a_look_up_in_a_branch() -> None:
    text = """g (int64[3] i, bool c) => (float[3,32] y) { y = If(c) <
        then_branch = t () => (float[3,32] a) { a = Gather(w, i) },
        else_branch = e () => (float[3,32] b) { d = Gather(w, i) b = Neg(d) }> }"""
    before = model(text, 17, 8, w=normal(24, 32))
    after, result = run_alone(QuantizeWeights(), before)
    assert sorted(each.site for each in result.rewritten) == ["a", "d"]
    for condition in (True, False):
        assert_agree(after, {"i": np.array([0, 5, 23]), "c": np.array(condition)}, 1e-5)
    assert not run_alone(QuantizeWeights(), after)[1].rewritten
