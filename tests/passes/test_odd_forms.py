"""Odd but legal graphs, most of them found by drawing thousands at random: a pass must not trip over their form."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import GraphView, create
from graphopt.errors import GraphoptError
from graphopt.model import from_proto, to_proto
from graphopt.registry import discover
from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, draw, model, random_feeds, run_alone

OPTIONS: dict[str, dict[str, Any]] = {"zero-channels": {"ratio": 0.5}, "zero-weights": {"ratio": 0.5}}
PASSES = sorted(set(discover()) - {"reconstruct", "quantize-activations"})


def with_dead_filters(weight: NDArray[Any], *dead: int) -> NDArray[Any]:
    weight[list(dead)] = 0
    return weight


FORMS: dict[str, onnx.ModelProto] = {
    "a convolution with strides that the caller of its function sets": model(
        "g (float[1,4,6,6] x) => (float[1,3,N,M] y) { y = local.f<s = [2, 2]>(x, w, v) }"
        '<domain: "local", opset_import: ["" : 17]> f <s> (a, p, q) => (c)'
        " { b = Conv<strides : ints = @s>(a, p) r = Relu(b) c = Conv(r, q) }",
        w=with_dead_filters(draw(6, 4, 1, 1), 1, 4),
        v=draw(3, 6, 1, 1),
    ),
    "a normalization with an axis that the caller of its function sets": model(
        "g (float[2,4] x) => (float[2,3] y) { y = local.f<k = -1>(x, w, s, v) }"
        '<domain: "local", opset_import: ["" : 17]> f <k> (a, p, t, q) => (c)'
        " { b = MatMul(a, p) n = LayerNormalization<axis : int = @k>(b, t) c = MatMul(n, q) }",
        w=draw(4, 6),
        s=draw(6),
        v=draw(6, 3),
    ),
    "a Gather of shapes along an axis that the caller of its function sets": model(
        "g (float[2,4] x) => (float[2,4] y) { y = local.f<k = 0, from = 0>(x, i) }"
        '<domain: "local", opset_import: ["" : 17]> f <k, from> (a, j) => (c)'
        " { s = Shape<start : int = @from>(a) t = Gather<axis : int = @k>(s, j) c = Reshape(a, t) }",
        i=np.array([0, 1], np.int64),
    ),
    "a convolution of float16 in a function": model(
        "g (float16[1,4,6,6] x) => (float16[1,3,6,6] y) { y = local.f(x, w, v) }"
        '<domain: "local", opset_import: ["" : 17]> f (a, p, q) => (c) { b = Conv(a, p) r = Relu(b) c = Conv(r, q) }',
        w=with_dead_filters(draw(6, 4, 1, 1, dtype=np.float16), 1, 4),
        v=draw(3, 6, 1, 1, dtype=np.float16),
    ),
    "floats of size nought": model(
        "g (float[2,3] x) => (float[2,3] y) { e = Transpose<perm = [1, 0]>(w) y = Concat<axis = 1>(x, e) }",
        w=np.zeros((0, 2), np.float32),
    ),
    "an axis of size nought in a Concat with a layer": model(
        "g (float[1,4] x) => (float[1,2,6] y)"
        " { a = Gemm<transB = 1>(x, w) c = Concat<axis = 1>(a, a, e) y = Reshape(c, h) }",
        w=draw(6, 4),
        e=np.zeros((1, 0), np.float32),
        h=np.array([1, 2, 6]),
    ),
    "a bias that holds Inf, behind dead filters": model(
        "g (float[1,3,4,4] x) => (float[1,2,4,4] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }",
        w=with_dead_filters(draw(6, 3, 1, 1), 1, 4),
        b=np.array([1, 0, np.inf, 1, 0, 1], np.float32),
        v=draw(2, 6, 1, 1),
    ),
    "a quantized weight in a convolution that nothing reads": model(
        "g (float[1,3,4,4] x) => (float[1,3,4,4] y) {"
        " q = QuantizeLinear<axis = 0>(w, s, z) d = DequantizeLinear<axis = 0>(q, s, z)"
        " a = Conv<kernel_shape = [3, 2]>(x, d) y = Relu(x) }",
        w=draw(6, 3, 3, 2),
        s=np.full(6, 0.02, np.float32),
        z=np.zeros(6, np.int8),
    ),
    "a quantized weight in a grouped convolution that nothing reads": model(
        "g (float[1,4,4,4] x) => (float[1,4,4,4] y) {"
        " d = DequantizeLinear<axis = 0>(w, s) a = Conv<kernel_shape = [3, 2], group = 2>(x, d) y = Relu(x) }",
        w=np.ones((6, 2, 3, 2), np.int8),
        s=np.full(6, 0.02, np.float32),
    ),
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("form", FORMS)
def test_the_model_still_runs(form: str, name: str) -> None:
    """Each pass alone, unchecked: it does not crash, and what comes out is valid and gives outputs as before."""
    proto = FORMS[form]
    pass_ = create(name, **OPTIONS.get(name, {}))
    after, _ = run_alone(pass_, proto)
    onnx.checker.check_model(after, full_check=True)
    feeds = random_feeds(proto, 0)
    before, result = Session(proto).run(feeds), Session(after).run(feeds)
    assert {key: value.shape for key, value in before.items()} == {key: value.shape for key, value in result.items()}
    if not name.startswith(("quantize", "zero")):
        near = 2e-3 if "float16" in form else 2e-6
        for key, value in before.items():
            np.testing.assert_allclose(result[key], value, rtol=near, atol=near)


def test_channels_go_in_functions_of_float16() -> None:
    """The types of what a function is called with are known inside, so that shapes are, and dead filters go."""
    proto = model(
        "g (float16[1,4,6,6] x) => (float16[1,3,6,6] y) { y = local.f(x) }"
        '<domain: "local", opset_import: ["" : 17]> f (a) => (c) {'
        " p = Identity(a) q = Identity(a) b = Conv(a, p) r = Relu(b) c = Conv(r, q) }"
    )
    weights = {"p": with_dead_filters(draw(6, 4, 1, 1), 1, 4), "q": draw(3, 6, 1, 1)}
    for node, (name, values) in zip(proto.functions[0].node, weights.items(), strict=False):
        node.CopyFrom(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values.astype(np.float16)))
        )
    after = assert_rewrites(create("prune-channels"), proto, ops={"f": 1}, rewritten=1)
    shapes = [list(node.attribute[0].t.dims) for node in after.functions[0].node[:2]]
    assert shapes == [[4, 4, 1, 1], [3, 4, 1, 1]]


LOOP = (
    't = Constant<value_int = 1>() l = Loop(t, "") <body = b (int64 i, bool k) =>'
    " (bool o, float[2,3] r) { o = Identity(k) r = Exp(x) }> a = Constant<value_ints = [0]>() s = Squeeze(l, a)"
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"g (float[2,3] x) => (float[2,3] y) {{ {LOOP} y = Neg(s) }}", id="the stack of one run"),
        pytest.param(
            "g (float[2,3] x) => (float[2,3] y) { c = Constant<value = bool {1}>() h = Constant<value_ints = [2, 3]>()"
            " a = If (c) <then_branch = t () => (float[2,3] p) { p = Exp(x) }, else_branch = e () => (float[3,2] q)"
            " { q = Transpose<perm = [1, 0]>(x) }> s = Reshape(a, h) y = Neg(s) }",
            id="branches of different shape",
        ),
    ],
)
def test_inlining_tells_more_of_shapes(text: str) -> None:
    """What an inlined body gives out has a known shape, so what restores it does nothing, in the same run."""
    assert_rewrites(create("eliminate-noops"), model(text), ops={"Exp": 1, "Neg": 1})


def test_absent_inputs_at_the_end_are_left_alone() -> None:
    """Some exporters name all inputs of an operator, the absent ones with nothing; that alone is nothing to change."""
    proto = model(
        'g (float[3,2,4] x) => (float[1,2,5] y) { "", y = LSTM<hidden_size = 5>(x, w, r, b, "", "", "", "") }',
        w=draw(1, 20, 4),
        r=draw(1, 20, 5),
        b=draw(1, 40),
    )
    for name in ("eliminate-noops", "eliminate-dead", "merge-duplicates", "fold-constants", "prune-channels"):
        after, result = run_alone(create(name), proto)
        assert not result.rewritten
        assert after.SerializeToString() == proto.SerializeToString(), name


def branch(name: str, out: str, weight: NDArray[Any]) -> onnx.GraphProto:
    """Two layers in a branch, whose weight has the same name in all branches."""
    nodes = [helper.make_node("Mul", ["x", "w"], [out])]
    return helper.make_graph(
        nodes,
        name,
        [],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(weight, "w")],
    )


def test_equal_weights_of_sibling_branches_get_a_name_of_their_own() -> None:
    """Branches may name their initializers alike; one that moves out of its branch must not meet another there."""
    first, second = draw(4), draw(4, seed=1)
    nodes = [
        helper.make_node("If", ["c"], ["a"], then_branch=branch("t", "p", first), else_branch=branch("e", "q", second)),
        helper.make_node("If", ["d"], ["b"], then_branch=branch("u", "r", first), else_branch=branch("f", "s", second)),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in "cd"]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    after = assert_rewrites(create("merge-duplicates"), proto, ops={"If": 2, "Add": 1}, rewritten=2)
    assert len({tensor.name for tensor in after.graph.initializer}) == 2


def test_equal_constants_that_a_pass_made_in_a_function_are_one() -> None:
    """A function stores constants as nodes; what is merged does not depend on whether it was written in between."""
    subject = from_proto(
        model(
            "g (float[2,3] x) => (float[2,3] y) { y = local.f(x) }"
            '<domain: "local", opset_import: ["" : 17]> f (x) => (y)'
            f' {{ {LOOP} m = Loop(t, "") <body = d (int64 i2, bool k2) => (bool o2, float[2,3] r2)'
            " { o2 = Identity(k2) r2 = Sin(x) }> n = Add(l, m) y = Squeeze(n, a) }"
        )
    )
    create("eliminate-noops").apply(GraphView(subject))
    merged = create("merge-duplicates").apply(GraphView(subject))
    assert [(each.site, each.detail) for each in merged.rewritten] == [("m_axes", "is 'l_axes'")]
    written = to_proto(subject)
    again, result = run_alone(create("merge-duplicates"), written)
    assert not result.rewritten
    assert again.SerializeToString() == written.SerializeToString()


def static_matmul(target: str) -> tuple[graphopt.Result, onnx.ModelProto]:
    """A MatMul of three axes and its bias, quantized with int8 activations at an opset that has them from the start."""
    proto = model(
        "g (float[2,5,16] x) => (float[2,5,32] y) { a = MatMul(x, w) y = Add(a, b) }",
        21,
        10,
        w=draw(16, 32),
        b=draw(32),
    )
    pass_ = create("quantize-activations", target=target, samples=8)
    return graphopt.optimize(proto, [pass_], {"x": draw(64, 5, 16)}), proto


def test_static_matmuls_load_as_users_load_them() -> None:
    """ONNX Runtime's optimizations fail at a DequantizeLinear with an int8 zero point of opset 21."""
    result, proto = static_matmul("tensorrt")
    assert result.ok
    feeds = {"x": draw(2, 5, 16)}
    before, after = Session(proto).run(feeds)["y"], Session(result.model, optimize=True).run(feeds)["y"]
    assert np.square(after - before).mean() < 1e-3 * before.var()


def test_a_result_that_the_runtime_cannot_optimize_is_a_failure_in_one_line() -> None:
    result, _ = static_matmul("generic")
    if result.ok:
        pytest.skip("this ONNX Runtime can")
    with pytest.raises(GraphoptError) as refused:
        Session(result.model, optimize=True)
    told = f"with its graph optimizations on, {refused.value}"
    assert result.report.failures == (told,)
    again = graphopt.optimize(result.model, ["eliminate-dead"])
    assert again.ok
    assert f"{told}; the original neither" in again.report.notes


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_bias_that_a_pass_adds_has_the_type_of_its_layer(dtype: type[np.floating[Any]]) -> None:
    """The file does not say in what type the layer computes, but the graph does."""
    word = "float16" if dtype == np.float16 else "float"
    proto = model(
        f"g ({word}[N,3,8,8] x) => ({word}[N,6,6,6] y) {{ a = Relu(x) b = Conv(a, w) y = Relu(b) }}",
        w=draw(6, 3, 3, 3, dtype=dtype),
    )
    data = {"x": draw(40, 3, 8, 8, dtype=dtype) + dtype(1)}
    pass_ = create("quantize-weights", dtype="int4", representation="mul", bias_correction=True)
    result = graphopt.optimize(proto, [pass_], data)
    assert result.ok, result.report.failures
    conv = next(node for node in result.model.graph.node if node.op_type == "Conv")
    kinds = {each.name: onnx.helper.tensor_dtype_to_np_dtype(each.data_type) for each in result.model.graph.initializer}
    assert kinds[conv.input[2]] == dtype


def test_outputs_that_are_stored_do_not_hinder_recovery() -> None:
    """A graph may give out a weight; nothing of that is to be learnt."""
    proto = model(
        "g (float[N,6] x) => (float[N,4] y, float[4] b) { h = MatMul(x, w) r = Relu(h) m = MatMul(r, v)"
        " y = Add(m, b) }",
        w=draw(6, 12),
        v=draw(12, 4),
        b=draw(4),
    )
    passes = [create("zero-channels", ratio=0.5), create("prune-channels"), create("reconstruct", samples=64)]
    result = graphopt.optimize(proto, passes, {"x": draw(64, 6)})
    assert result.ok, result.report.failures
    assert result.report.passes[2].result.rewritten


def test_constant_channels_are_folded_in_double_precision() -> None:
    """What a channel holds goes through the operators in float64, so that models of float64 lose nothing."""
    w, b = draw(8, 6, dtype=np.float64), draw(6, dtype=np.float64)
    w[:, [1, 3, 4]] = 0
    proto = model(
        "g (double[5,8] x) => (double[5,3] y) { h = Gemm(x, w, b) d = Sub(k, h) s = Sigmoid(d) y = MatMul(s, v) }",
        w=w,
        b=b,
        k=draw(1, dtype=np.float64),
        v=draw(6, 3, dtype=np.float64),
    )
    after, result = run_alone(create("prune-channels"), proto)
    assert [each.detail for each in result.rewritten] == ["3 channels removed"]
    feeds = random_feeds(proto, 0)
    np.testing.assert_allclose(Session(after).run(feeds)["y"], Session(proto).run(feeds)["y"], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1, -1])
def test_recovery_behind_a_slice_to_the_end(end: int) -> None:
    """An exporter may write any large number for the end of an axis; it is nothing to count up to."""
    proto = model(
        "g (float[N,6] x) => (float[N,4] y) { h = MatMul(x, w) s = Slice(h, a, e, i) r = Relu(s) y = MatMul(r, v) }",
        w=draw(6, 13),
        v=draw(12, 4),
        a=np.array([1 if end > 0 else 0]),
        e=np.array([end]),
        i=np.array([1]),
    )
    passes = [create("zero-channels", ratio=0.5), create("prune-channels"), create("reconstruct", samples=64)]
    result = graphopt.optimize(proto, passes, {"x": draw(64, 6)})
    assert result.ok, result.report.failures


def test_what_a_fold_leaves_unread_is_in_nobodys_way() -> None:
    """An Expand of a constant keeps a Shape alive, which reads the Mul, until the constant is folded."""
    proto = model(
        "g (float[2,4] x) => (float[2,7] y)"
        " { m = Mul(x, s) h = Shape(m) e = Expand(b, h) a = Add(m, e) y = Gemm(a, w, c) }",
        s=draw(4),
        b=draw(4, seed=1),
        w=draw(4, 7),
        c=draw(7),
    )
    assert_rewrites(create("fold-affine"), proto, ops={"Gemm": 1}, rewritten=2)


def test_shapes_are_known_after_a_fold() -> None:
    """Moving a map past a convolution's padding adds a Pad; what is behind it still has a rank."""
    proto = model(
        "g (float[2,3,5,4] x) => (float[2,8,3,2] y) { d = Div(x, k) s = Sub(d, l)"
        ' c = Conv<auto_pad = "SAME_LOWER", kernel_shape = [3, 1]>(s, w, b)'
        " e = Conv<kernel_shape = [3, 1]>(c, v) m = MatMul(e, u) y = Mul(m, g) }",
        k=np.array(0.7, np.float32),
        l=np.array(0.4, np.float32),
        w=draw(4, 3, 3, 1),
        b=draw(4),
        v=draw(8, 4, 3, 1),
        u=draw(4, 2),
        g=draw(1, 1, 1, 1),
    )
    assert_rewrites(create("fold-affine"), proto, ops={"Pad": 1, "Conv": 2, "MatMul": 1}, rewritten=2)


@pytest.mark.parametrize("word", ["float16", "double"])
@pytest.mark.parametrize("inside", [False, True], ids=["main graph", "function"])
def test_a_constant_in_the_place_of_a_layer_has_its_type(inside: bool, word: str) -> None:
    """A branch of which every channel is constant becomes one, of the type that nothing but the graph tells."""
    body = "t = MatMul(x, w) r = Add(t, b) s = Sigmoid(x) y = Add(s, r)"
    heads = f"({word}[N,4] x) => ({word}[N,4] y)"
    text = f"g {heads} {{ {body} }}"
    if inside:
        text = (
            f"g {heads} {{ y = local.f(x, w, b) }}"
            f' <domain: "local", opset_import: ["" : 17]> f (x, w, b) => (y) {{ {body} }}'
        )
    dtype = np.float16 if word == "float16" else np.float64
    proto = model(text, w=np.zeros((4, 4), dtype), b=draw(4, dtype=dtype))
    after, result = run_alone(create("prune-channels"), proto)
    assert inside or result.rewritten
    onnx.checker.check_model(after, full_check=True)
    feeds = random_feeds(proto, 0)
    np.testing.assert_allclose(Session(after).run(feeds)["y"], Session(proto).run(feeds)["y"], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("layer", ["Conv", "Gemm", "MatMul"])
def test_a_bias_behind_a_quantized_weight_has_the_type_of_its_layer(layer: str) -> None:
    """Constant channels go into a new bias, whose type is that of the scales."""
    conv = layer == "Conv"
    shape, first = ("1,40,5,5", "Conv") if conv else ("5,40", "Gemm")
    text = f"g (float16[{shape}] x) => (float16[{shape.replace('40', '30')}] y)"
    w, v = (draw(60, 40, 1, 1), draw(30, 60, 1, 1)) if conv else (draw(40, 60), draw(60, 30))
    np.moveaxis(w, 0 if conv else 1, 0)[[1, 4]] = 0
    weights = {"w": w, "v": v, "b": np.abs(draw(60))}
    half = {name: values.astype(np.float16) for name, values in weights.items()}
    proto = model(f"{text} {{ a = {first}(x, w, b) r = Relu(a) y = {layer}(r, v) }}", 19, 9, **half)
    quantized, _ = run_alone(create("quantize-weights", representation="dq"), proto)
    after, result = run_alone(create("prune-channels", multiple=1), quantized)
    assert [each.detail for each in result.rewritten] == ["2 channels removed"]
    onnx.checker.check_model(after, full_check=True)
    feeds = random_feeds(proto, 0)
    np.testing.assert_allclose(Session(after).run(feeds)["y"], Session(quantized).run(feeds)["y"], rtol=0.02, atol=0.02)
