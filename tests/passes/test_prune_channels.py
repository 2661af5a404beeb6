"""prune-channels: what goes, what stays and why."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.graph import GraphView
from graphopt.model import from_proto, load, to_proto
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, assert_skips, assert_untouched, model, run_alone

MODELS = Path(__file__).parents[2] / "models"
RNG = np.random.default_rng(0)


def weight(*shape: int, dead: tuple[int, ...] = (), axis: int = 0) -> np.ndarray:
    """Draw a weight; some indices of one axis are nought."""
    values = RNG.standard_normal(shape).astype(np.float32)
    values[(slice(None),) * axis + (list(dead),)] = 0
    return values


def shape_of(proto: onnx.ModelProto, name: str) -> tuple[int, ...]:
    """Return the shape of an initializer."""
    return next(tuple(tensor.dims) for tensor in proto.graph.initializer if tensor.name == name)


HEAD = "g (float[N,3,8,8] x) => (float[N,K,H,W] y)"


def test_dead_filters_go_with_their_readers() -> None:
    proto = model(
        HEAD + " { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv(r, v) }",
        w=weight(6, 3, 3, 3, dead=(1, 4)),
        b=weight(6, dead=(1, 4)),
        v=weight(5, 6, 3, 3),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 2, "Relu": 1}, rewritten=1)
    assert shape_of(after, "w") == (4, 3, 3, 3)
    assert shape_of(after, "v") == (5, 4, 3, 3)


def test_channels_that_nothing_reads_go() -> None:
    proto = model(
        HEAD + " { a = Conv(x, w) r = Sigmoid(a) y = Conv(r, v) }",
        w=weight(6, 3, 3, 3),
        v=weight(5, 6, 3, 3, dead=(0, 5), axis=1),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 2, "Sigmoid": 1})
    assert shape_of(after, "w") == (4, 3, 3, 3)


def test_constant_channels_go_into_the_next_bias() -> None:
    proto = model(
        HEAD + " { a = Conv(x, w) r = Sigmoid(a) y = Conv(r, v) }",
        w=weight(6, 3, 3, 3, dead=(2, 3)),
        v=weight(5, 6, 3, 3),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 2, "Sigmoid": 1})
    assert shape_of(after, "v") == (5, 4, 3, 3)
    assert len(after.graph.node[-1].input) == 3


def test_constant_channels_merge_where_padding_sees_them() -> None:
    proto = model(
        HEAD + " { a = Conv(x, w) r = Sigmoid(a) y = Conv<pads=[1,1,1,1]>(r, v) }",
        w=weight(6, 3, 3, 3, dead=(1, 2, 5)),
        v=weight(5, 6, 3, 3),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 2, "Sigmoid": 1})
    assert shape_of(after, "v") == (5, 4, 3, 3)


def test_a_dead_residual_branch_goes_with_its_addition() -> None:
    proto = model(
        HEAD + " { a = Conv(x, s) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w) c = Add(r, b) y = Conv(c, v) }",
        s=weight(4, 3, 3, 3),
        w=np.zeros((4, 4, 3, 3), np.float32),
        v=weight(5, 4, 1, 1),
    )
    assert_rewrites(create("prune-channels"), proto, ops={"Conv": 2, "Relu": 1})


def test_both_sides_of_an_addition() -> None:
    proto = model(
        HEAD + " { a = Conv(x, s) b = Conv(x, w) c = Add(a, b) y = Conv(c, v) }",
        s=weight(6, 3, 3, 3, dead=(0, 1)),
        w=weight(6, 3, 3, 3, dead=(1, 2)),
        v=weight(5, 6, 1, 1),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 3, "Add": 1})
    assert shape_of(after, "s") == (5, 3, 3, 3)
    _, result = run_alone(create("prune-channels"), proto)
    reasons = {skipped.reason for skipped in result.skipped}
    assert reasons == {
        "1 idle channel stays: coupled with another channel of 'a', which is needed and not constant",
        "1 idle channel stays: coupled with 'b', which is needed and not constant there",
    }


def test_groups_lose_equally_many() -> None:
    proto = model(
        HEAD + " { a = Conv(x, w) b = Conv<group=2>(a, u) y = Conv(b, v) }",
        w=weight(8, 3, 3, 3, dead=(0, 6, 7)),
        u=weight(6, 4, 1, 1, dead=(2, 3)),
        v=weight(5, 6, 1, 1),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 3})
    assert shape_of(after, "w") == (6, 3, 3, 3)
    assert shape_of(after, "u") == (4, 3, 1, 1)


def test_a_channel_shuffle_follows() -> None:
    proto = model(
        HEAD
        + """ { a = Conv(x, w) b = Reshape(a, wide) c = Transpose<perm=[0,2,1,3,4]>(b) d = Reshape(c, flat)
        y = Conv(d, v) }""",
        w=weight(8, 3, 3, 3, dead=(1, 5)),
        wide=np.array([0, 2, 4, 6, 6]),
        flat=np.array([0, 8, 6, 6]),
        v=weight(5, 8, 1, 1),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 2, "Reshape": 2, "Transpose": 1})
    assert shape_of(after, "w") == (6, 3, 3, 3)


def test_attention_loses_a_head() -> None:
    heads = [slice(8 * head, 8 * head + 8) for head in range(3)]
    weights = {name: weight(24, 24) for name in "qkvo"}
    weights["v"][:, heads[1]] = 0
    proto = model(
        """g (float[N,5,24] x) => (float[N,5,24] y) {
        a = MatMul(x, q) b = MatMul(x, k) c = MatMul(x, v)
        d = Reshape(a, s) e = Reshape(b, s) f = Reshape(c, s)
        h = Transpose<perm=[0,2,1,3]>(d) i = Transpose<perm=[0,2,3,1]>(e) j = Transpose<perm=[0,2,1,3]>(f)
        l = MatMul(h, i) m = Softmax<axis=-1>(l) n = MatMul(m, j) p = Transpose<perm=[0,2,1,3]>(n)
        r = Reshape(p, t) y = MatMul(r, o) }""",
        s=np.array([0, 5, 3, 8]),
        t=np.array([0, 5, 24]),
        **weights,
    )
    after = assert_rewrites(
        create("prune-channels"), proto, ops={"MatMul": 6, "Reshape": 4, "Transpose": 4, "Softmax": 1}
    )
    assert [shape_of(after, name) for name in "qkvo"] == [(24, 16)] * 3 + [(16, 24)]


def test_constants_behind_a_matmul_go_into_the_next_addition() -> None:
    proto = model(
        """g (float[N,4] x) => (float[N,3] y) { a = MatMul(x, w) b = Add(a, c) d = Sigmoid(b) e = MatMul(d, v)
        y = Add(e, f) }""",
        w=weight(4, 6, dead=(0, 3), axis=1),
        c=weight(6),
        v=weight(6, 3),
        f=weight(3),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"MatMul": 2, "Add": 2, "Sigmoid": 1})
    assert shape_of(after, "v") == (4, 3)


def of_a_shared_weight(reader: np.ndarray) -> onnx.ModelProto:
    """Return two layers of one weight, of which one has a reader."""
    return model(
        "g (float[N,3,4,4] x, float[N,3,4,4] z) => (float[N,3,H,W] y, float[N,6,I,J] u)"
        " { a = Conv(x, w) y = Conv(a, v) u = Conv(z, w) }",
        w=weight(6, 3, 1, 1),
        v=reader,
    )


def test_a_shared_weight_is_copied_on_write() -> None:
    proto = of_a_shared_weight(weight(3, 6, 3, 3, dead=(1,), axis=1))
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 3})
    assert shape_of(after, "w") == (6, 3, 1, 1)
    assert shape_of(after, "v") == (3, 5, 3, 3)


def test_a_shared_weight_stays_where_copies_would_be_larger() -> None:
    proto = of_a_shared_weight(weight(3, 6, 1, 1, dead=(1,), axis=1))
    reason = "layers share its weights, and copies without it would add 12 elements"
    assert_skips(create("prune-channels"), proto, reason)


def test_subgraphs_are_pruned_too() -> None:
    proto = model(
        """g (float[N,3,4,4] x, bool c) => (float[N,3,H,W] y) {
        a = Conv(x, w)
        y = If (c) <
          then_branch = t () => (float[N,3,H,W] p) { p = Conv(a, v) },
          else_branch = e () => (float[N,3,H,W] q) { d = Conv(x, w2) q = Conv(d, v2) }
        > }""",
        w=weight(6, 3, 1, 1, dead=(0, 1)),
        v=weight(3, 6, 1, 1),
        w2=weight(5, 3, 1, 1, dead=(2,)),
        v2=weight(3, 5, 1, 1),
    )
    for choice in (True, False):
        feeds = {"x": weight(2, 3, 4, 4), "c": np.array(choice)}
        after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 1, "If": 1}, feeds=feeds)
        assert shape_of(after, "w") == (4, 3, 1, 1)
        assert shape_of(after, "w2") == (4, 3, 1, 1)


def test_recurrent_units_go() -> None:
    arrays = {"w": weight(1, 16, 3), "r": weight(1, 16, 4), "b": weight(1, 32)}
    for array in arrays.values():
        array[:, 1::4] = 0
    proto = model(
        """g (float[5,N,3] x) => (float[5,1,N,2] z) { y, h, c = LSTM<hidden_size=4>(x, w, r, b) z = MatMul(y, v) }""",
        v=weight(4, 2),
        **arrays,
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"LSTM": 1, "MatMul": 1})
    assert shape_of(after, "r") == (1, 12, 3)


def test_sizes_that_are_computed_follow() -> None:
    proto = model(
        HEAD
        + """ { a = Conv(x, w) s = Shape(a) n = Gather(s, zero) m = Unsqueeze(n, zeros) q = Concat<axis=0>(m, rest)
        r = Reshape(a, q) t = Transpose<perm=[0,2,1,3,4]>(r) f = Reshape(t, s) y = Conv(f, v) }""",
        w=weight(8, 3, 3, 3, dead=(1, 5)),
        zero=np.array(0),
        zeros=np.array([0]),
        rest=np.array([2, 4, 6, 6]),
        v=weight(5, 8, 1, 1),
    )
    after, result = run_alone(create("prune-channels"), proto)
    assert result.rewritten
    assert shape_of(after, "w") == (6, 3, 3, 3)
    feeds = {"x": weight(2, 3, 8, 8)}
    before = Session(proto).run(feeds)["y"]
    assert np.abs(before - Session(after).run(feeds)["y"]).max() <= 1e-5


SKIPPED = {
    "coupled with an output": (
        HEAD + " { y = Conv(x, w) }",
        {"w": weight(6, 3, 3, 3, dead=(1,))},
        "'y' is an output of the model",
    ),
    "one side of an addition alive": (
        HEAD + " { a = Conv(x, w) b = Conv(x, u) c = Add(a, b) y = Conv(c, v) }",
        {"w": weight(6, 3, 1, 1, dead=(1,)), "u": weight(6, 3, 1, 1), "v": weight(5, 6, 1, 1)},
        "coupled with 'b', which is needed and not constant there",
    ),
    "normalized across": (
        "g (float[N,3] x) => (float[N,5] y) { a = MatMul(x, w) b = LayerNormalization(a, s) y = MatMul(b, v) }",
        {"w": weight(3, 6, dead=(1,), axis=1), "s": weight(6), "v": weight(6, 5)},
        "LayerNormalization 'b' works along axis 1",
    ),
    "softmax across": (
        "g (float[N,3] x) => (float[N,5] y) { a = MatMul(x, w) b = Softmax<axis=1>(a) y = MatMul(b, v) }",
        {"w": weight(3, 6, dead=(1,), axis=1), "v": weight(6, 5)},
        "Softmax 'b' works along axis 1",
    ),
    "mean across channels": (
        "g (float[N,3,4,4] x) => (float[N,1,4,4] y) { a = Conv(x, w) y = ReduceMean<axes=[1]>(a) }",
        {"w": weight(6, 3, 1, 1, dead=(1,))},
        "ReduceMean 'y' reduces axis 1",
    ),
    "unknown operator": (
        "g (float[N,3,4,4] x) => (float[N,6,4,4] y) { a = Conv(x, w) y = LRN<size=3>(a) }",
        {"w": weight(6, 3, 1, 1, dead=(1,))},
        "read by LRN 'y', of which the analysis knows nothing",
    ),
    "a constant before padding": (
        "g (float[N,3,4,4] x) => (float[N,5,4,4] y) { a = Conv(x, w) b = Sigmoid(a) y = Conv<pads=[1,1,1,1]>(b, v) }",
        {"w": weight(6, 3, 1, 1, dead=(1,)), "v": weight(5, 6, 3, 3)},
        "'b' holds a constant there that Conv 'y' cannot absorb",
    ),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_skips(name: str) -> None:
    text, weights, reason = SKIPPED[name]
    assert_skips(create("prune-channels"), model(text, **weights), reason)


def test_overridable_weights_stay() -> None:
    proto = model(
        "g (float[N,3,4,4] x, float[6,3,1,1] w) => (float[N,5,4,4] y) { a = Conv(x, w) y = Conv(a, v) }",
        w=weight(6, 3, 1, 1, dead=(1,)),
        v=weight(5, 6, 1, 1),
    )
    assert_untouched(create("prune-channels"), proto)


def test_a_vetoed_site_stays() -> None:
    proto = model(
        HEAD + " { a = Conv(x, w) b = Conv(a, u) y = Conv(b, v) }",
        w=weight(6, 3, 1, 1, dead=(1,)),
        u=weight(6, 6, 1, 1, dead=(2,)),
        v=weight(5, 6, 1, 1),
    )
    subject = from_proto(proto)
    result = create("prune-channels").apply(GraphView(subject, {"a": "not this one"}))
    assert [rewritten.site for rewritten in result.rewritten] == ["b"]
    assert ("a", "1 idle channel stays: not this one") in [(s.site, s.reason) for s in result.skipped]
    assert shape_of(to_proto(subject), "w") == (6, 3, 1, 1)


@pytest.mark.parametrize("fold", [False, True], ids=["with batch norms", "folded"])
@pytest.mark.parametrize(
    ("name", "share"),
    [("fmnist_resnet14_zeroed", 0.60), ("fmnist_resnet14_filterzero", 0.48), ("fmnist_mobilenetv2s_zeroed", 0.33)],
)
@pytest.mark.parametrize(("multiple", "less"), [(1, 0.0), (4, 0.01)], ids=["all", "by default"])
def test_zeroed_networks(name: str, share: float, fold: bool, multiple: int, less: float) -> None:
    subject = load(MODELS / f"{name}.onnx")
    before = to_proto(subject)
    if fold:
        create("fold-batchnorm").apply(GraphView(subject))
    create("prune-channels", multiple=multiple).apply(GraphView(subject))
    after = to_proto(subject)
    onnx.checker.check_model(after, full_check=True)
    assert parameters(after) <= (1 - share + less) * parameters(before)
    feeds = {"image": np.random.default_rng(0).standard_normal((16, 1, 28, 28)).astype(np.float32)}
    assert np.abs(Session(before).run(feeds)["logits"] - Session(after).run(feeds)["logits"]).max() <= 1e-4


def parameters(proto: onnx.ModelProto) -> int:
    """Count the floats that are stored."""
    stored = [tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    return sum(int(np.prod(tensor.dims)) for tensor in stored)


def test_group_normalization_loses_whole_groups() -> None:
    scale, shift = weight(6), weight(6)
    scale[3:] = shift[3:] = 0
    proto = model(
        HEAD + " { a = Conv(x, w) b = GroupNormalization<num_groups=3>(a, s, t) y = Conv(b, v) }",
        opset=21,
        w=weight(6, 3, 1, 1),
        s=scale,
        t=shift,
        v=weight(5, 6, 1, 1),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 2, "GroupNormalization": 1}, rewritten=1)
    assert shape_of(after, "w") == (4, 3, 1, 1)
    assert shape_of(after, "s") == (4,)


def test_quantized_weights_are_cut_as_they_are() -> None:
    integers = RNG.integers(-100, 100, (6, 3, 3, 3)).astype(np.int8)
    integers[[1, 4]] = 0
    proto = model(
        HEAD + " { w = DequantizeLinear<axis=0>(q, s) a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) y = Conv(r, v) }",
        q=integers,
        s=np.abs(weight(6)) + 0.01,
        v=weight(5, 6, 3, 3),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"DequantizeLinear": 1, "Conv": 2, "Relu": 1})
    assert shape_of(after, "q") == (4, 3, 3, 3)
    assert shape_of(after, "s") == (4,)
    assert next(t.data_type for t in after.graph.initializer if t.name == "q") == onnx.TensorProto.INT8


def test_a_quantized_depthwise_weight_is_cut_too() -> None:
    integers = RNG.integers(1, 100, (6, 1, 3, 3)).astype(np.int8)
    proto = model(
        HEAD
        + " { a = Conv(x, w) r = Relu(a) d = DequantizeLinear<axis=0>(q, s) b = Conv<group=6>(r, d) y = Conv(b, v) }",
        w=weight(6, 3, 1, 1, dead=(0, 5)),
        q=integers,
        s=np.abs(weight(6)) + 0.01,
        v=weight(5, 6, 1, 1),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"DequantizeLinear": 1, "Conv": 3, "Relu": 1})
    assert shape_of(after, "q") == (4, 1, 3, 3)


def test_half_precision() -> None:
    half = {"w": weight(6, 3, 3, 3, dead=(2, 3)), "v": weight(5, 6, 3, 3), "b": weight(5)}
    proto = model(
        "g (float16[N,3,8,8] x) => (float16[N,5,H,W] y) { a = Conv(x, w) r = Sigmoid(a) y = Conv(r, v, b) }",
        **{name: array.astype(np.float16) for name, array in half.items()},
    )
    after, result = run_alone(create("prune-channels"), proto)
    assert [rewritten.detail for rewritten in result.rewritten] == ["2 channels removed"]
    assert {tensor.data_type for tensor in after.graph.initializer} == {onnx.TensorProto.FLOAT16}
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float16)}
    before = Session(proto).run(feeds)["y"].astype(np.float64)
    assert np.abs(before - Session(after).run(feeds)["y"]).max() <= 4e-3 * np.abs(before).max()


def test_a_bias_that_would_overflow_stays() -> None:
    huge = np.full((5, 6, 3, 3), 6e4, np.float16)
    proto = model(
        "g (float16[N,3,8,8] x) => (float16[N,5,H,W] y) { a = Conv(x, w) r = Sigmoid(a) y = Conv(r, v) }",
        w=weight(6, 3, 3, 3, dead=(2, 3)).astype(np.float16),
        v=huge,
    )
    assert_skips(create("prune-channels"), proto, "would overflow float16")


def test_an_old_opset_keeps_its_attributes() -> None:
    proto = model(
        HEAD
        + " { a = Conv(x, w) b, c = Split<axis=1, split=[4,2]>(a) y = Conv(b, v) z = Conv(c, u) }".replace("z", "y2"),
        opset=11,
        w=weight(6, 3, 1, 1, dead=(1, 5)),
        v=weight(5, 4, 1, 1),
        u=weight(5, 2, 1, 1),
    )
    proto.graph.output.append(onnx.helper.make_tensor_value_info("y2", 1, ["N", 5, 8, 8]))
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 3, "Split": 1})
    assert shape_of(after, "v") == (5, 3, 1, 1)


def test_constants_that_are_no_layer_s_go_untold() -> None:
    """Anchors: what they are nought in is idle, but nothing that anybody calls a channel."""
    text = "g (float[N,5,4] x) => (float[N,5,4] y) { a = Mul(x, m) b = Add(a, s) y = Relu(b) }"
    for m, s in ((weight(5, 4, dead=(1,)), weight(5, 4, dead=(1, 2))), (weight(4, dead=(3,)), weight(4, dead=(3,)))):
        after, result = run_alone(create("prune-channels"), model(text, m=m, s=s))
        assert not result.rewritten
        assert not result.skipped
        assert after.SerializeToString() == model(text, m=m, s=s).SerializeToString()


# -- bodies ------------------------------------------------------------------------------------------------------------

BODY = {"w": weight(6, 3, 3, 3, dead=(1, 4)), "v": weight(3, 6, 3, 3)}
LAYERS = "a = Conv(p, w) r = Sigmoid(a) q = Conv(r, v)"


def stored(*names: str) -> list[onnx.NodeProto]:
    """Return Constant nodes for weights inside a body."""
    return [
        onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(BODY[name], name))
        for name in names
    ]


def with_functions(
    calls: str, *functions: tuple[str, list[str]], opset: int = 17, **weights: np.ndarray
) -> onnx.ModelProto:
    """Return a model that calls local functions; each is given as text and the weights that lie in it."""
    head = '<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N,3,12,12] x) => (float[N,3,H,W] y)'
    proto = onnx.parser.parse_model(f"{head} {{ {calls} }}")
    for body, inside in functions:
        function = onnx.parser.parse_function(f'<domain: "local", opset_import: ["": {opset}]> {body}')
        layers = list(function.node)
        del function.node[:]
        function.node.extend([*stored(*inside), *layers])
        proto.functions.append(function)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return proto


@pytest.mark.parametrize(
    "calls", ["y = local.f(x)", "z = local.f(x) y = local.f(z)"], ids=["called once", "called twice"]
)
def test_layers_in_a_local_function_are_cut(calls: str) -> None:
    proto = with_functions(calls, (f"f (p) => (q) {{ {LAYERS} }}", ["w", "v"]))
    after = assert_rewrites(create("prune-channels"), proto, ops={"f": calls.count("local.f")}, rewritten=1)
    sizes = [tuple(node.attribute[0].t.dims) for node in after.functions[0].node if node.op_type == "Constant"]
    assert sizes[:2] == [(4, 3, 3, 3), (3, 4, 3, 3)]


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (
            with_functions("y = local.f(x, w, v)", (f"f (p, w, v) => (q) {{ {LAYERS} }}", []), **BODY),
            "2 idle channels stay: the weight 'w' of Conv 'a' is handed in from outside of its body",
        ),
        (
            with_functions(
                "m = local.f1(x) y = local.f2(m)",
                ("f1 (p) => (a) { a = Conv(p, w) }", ["w"]),
                ("f2 (a) => (q) { r = Sigmoid(a) q = Conv(r, v) }", ["v"]),
            ),
            "2 idle channels stay: 'a' is an output of a body",
        ),
    ],
    ids=["weights are arguments", "layers of two functions"],
)
def test_layers_that_a_function_parts_stay(proto: onnx.ModelProto, reason: str) -> None:
    assert_skips(create("prune-channels"), proto, reason)


def test_a_function_of_another_opset_is_left_alone() -> None:
    proto = with_functions("y = local.f(x)", (f"f (p) => (q) {{ {LAYERS} }}", ["w", "v"]), opset=16)
    assert_untouched(create("prune-channels"), proto)


def test_layers_in_the_body_of_a_loop_are_cut() -> None:
    proto = model(
        """g (float[1,3,8,8] x, int64 n) => (float[1,3,8,8] y) { y = Loop (n, t, x) <body = b
        (int64 i, bool c, float[1,3,8,8] s) => (bool d, float[1,3,8,8] u) {
        d = Identity(c) a = Conv<pads=[1,1,1,1]>(s, w) r = Relu(a) u = Conv<pads=[1,1,1,1]>(r, v) }> }""",
        t=np.array(True),
        w=weight(6, 3, 3, 3, dead=(1, 4)),
        v=weight(3, 6, 3, 3),
    )
    feeds = {"x": weight(1, 3, 8, 8), "n": np.array(2)}
    after = assert_rewrites(create("prune-channels"), proto, ops={"Loop": 1}, feeds=feeds, rewritten=1)
    assert {tuple(t.dims) for t in after.graph.initializer} == {(), (4, 3, 3, 3), (3, 4, 3, 3)}


def test_what_a_loop_carries_stays() -> None:
    proto = model(
        """g (float[1,3,8,8] x, int64 n) => (float[1,3,8,8] y) { a = Conv(x, w) z = Loop (n, t, a) <body = b
        (int64 i, bool c, float[1,6,8,8] s) => (bool d, float[1,6,8,8] u) { d = Identity(c) u = Relu(s) }>
        y = Conv(z, v) }""",
        t=np.array(True),
        w=weight(6, 3, 1, 1, dead=(1, 4)),
        v=weight(3, 6, 1, 1),
    )
    assert_skips(create("prune-channels"), proto, "read by Loop 'z', of which the analysis knows nothing")


# -- blocks of convolutions --------------------------------------------------------------------------------------------


def pair(width: int, idle: int, kernel: int, rank: int = 4) -> onnx.ModelProto:
    """Return two convolutions with so many channels between them, of which the first ones are nought."""
    sizes = ",".join("8" * (rank - 2))
    pads = ",".join(str(kernel // 2) for _ in range(2 * (rank - 2)))
    space, window = (1,) * (rank - 2), (kernel,) * (rank - 2)
    return model(
        f"g (float[N,3,{sizes}] x) => (float[N,5,{sizes}] y) {{"
        f" a = Conv(x, w) r = Relu(a) y = Conv<pads=[{pads}]>(r, v) }}",
        w=weight(width, 3, *space, dead=tuple(range(idle))),
        v=weight(5, width, *window),
    )


@pytest.mark.parametrize(
    ("width", "idle", "kernel", "multiple", "left"),
    [
        (32, 1, 3, 4, 32),
        (32, 4, 3, 4, 28),
        (32, 5, 3, 4, 28),
        (32, 31, 3, 4, 1),
        (32, 25, 3, 4, 7),
        (32, 24, 3, 4, 8),
        (32, 23, 3, 4, 12),
        (32, 4, 3, 8, 32),
        (32, 9, 3, 8, 24),
        (32, 9, 3, 16, 32),
        (32, 9, 3, 1, 23),
        (24, 9, 3, 16, 16),
        (20, 3, 3, 16, 20),
        (20, 4, 3, 16, 16),
        (30, 1, 3, 4, 29),
        (30, 1, 3, 6, 29),
        (36, 7, 3, 12, 36),
        (31, 3, 3, 4, 28),
        (32, 31, 1, 4, 16),
        (32, 12, 1, 4, 20),
        (16, 4, 1, 4, 16),
        (12, 4, 1, 4, 8),
        (12, 3, 1, 4, 12),
        (12, 5, 1, 4, 7),
    ],
)
def test_counts_that_convolutions_read_stay_divisible(
    width: int, idle: int, kernel: int, multiple: int, left: int
) -> None:
    proto = pair(width, idle, kernel)
    if left == width:
        reason = f"{idle} dead channel{'s' * (idle > 1)} kept to fill blocks: convolutions would be slower"
        assert_skips(create("prune-channels", multiple=multiple), proto, reason)
        return
    after = assert_rewrites(create("prune-channels", multiple=multiple), proto, ops={"Conv": 2, "Relu": 1})
    assert shape_of(after, "w") == (left, 3, 1, 1)
    assert shape_of(after, "v") == (5, left, kernel, kernel)
    _, result = run_alone(create("prune-channels", multiple=multiple), proto)
    kept = left - width + idle
    detail = f"{width - left} channel{'s' * (width - left > 1)} removed"
    told = f"; {kept} dead channel{'s' * (kept > 1)} kept to fill blocks of convolutions" if kept else ""
    assert [(each.site, each.detail) for each in result.rewritten] == [("a", detail + told)]
    assert not result.skipped
    assert not run_alone(create("prune-channels", multiple=multiple), after)[1].rewritten


def test_the_last_dead_channels_stay() -> None:
    """Of 16 channels four of five dead ones go, and the one at 12 stays, which is 8 then."""
    proto = model(
        HEAD + " { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }",
        w=weight(16, 3, 3, 3, dead=(1, 4, 5, 9, 12)),
        v=weight(5, 16, 3, 3),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 2, "Relu": 1})
    stored = onnx.numpy_helper.to_array(next(t for t in after.graph.initializer if t.name == "w"))
    assert [index for index, row in enumerate(stored) if not row.any()] == [8]


@pytest.mark.parametrize("rank", [3, 5])
def test_other_convolutions_than_2d_have_no_blocks(rank: int) -> None:
    after = assert_rewrites(create("prune-channels"), pair(32, 1, 3, rank), ops={"Conv": 2, "Relu": 1})
    assert shape_of(after, "w")[0] == 31


def test_what_only_a_matrix_product_reads_is_cut_whole() -> None:
    proto = model(
        """g (float[N,3,8,8] x) => (float[N,4] y) { a = Conv(x, w) r = Relu(a) p = GlobalAveragePool(r)
        f = Flatten(p) m = MatMul(f, u) s = Relu(m) y = MatMul(s, v) }""",
        w=weight(32, 3, 3, 3, dead=(3,)),
        u=weight(32, 16, dead=(5,), axis=1),
        v=weight(16, 4),
    )
    ops = {"Conv": 1, "Relu": 2, "GlobalAveragePool": 1, "Flatten": 1, "MatMul": 2}
    after = assert_rewrites(create("prune-channels"), proto, ops=ops)
    assert shape_of(after, "w") == (31, 3, 3, 3)
    assert shape_of(after, "u") == (31, 15)


def test_depthwise_convolutions_stay_divisible_and_full() -> None:
    for width, idle, left in ((32, 3, 32), (32, 5, 28), (32, 20, 16), (12, 5, 8), (12, 9, 4), (8, 3, 8), (6, 1, 5)):
        proto = model(
            HEAD + f" {{ a = Conv(x, w) b = Conv<group={width}>(a, u) y = ConvTranspose(b, v) }}",
            w=weight(width, 3, 1, 1, dead=tuple(range(idle))),
            u=weight(width, 1, 3, 3),
            v=weight(width, 5, 1, 1),
        )
        after, _ = run_alone(create("prune-channels"), proto)
        assert shape_of(after, "w") == (left, 3, 1, 1), (width, idle)
        assert shape_of(after, "u") == (left, 1, 3, 3)
        assert shape_of(after, "v") == (left, 5, 1, 1)


@pytest.mark.parametrize(
    ("per_group", "idle", "left"), [(32, 4, 32), (32, 17, 16), (16, 8, 16), (8, 2, 8), (24, 9, 16), (4, 1, 3)]
)
def test_groups_of_a_convolution_stay_whole_blocks(per_group: int, idle: int, left: int) -> None:
    width = 2 * per_group
    proto = model(
        HEAD + " { a = Conv(x, w) b = Conv<group=2>(a, u) y = ConvTranspose(b, v) }",
        w=weight(width, 3, 1, 1, dead=tuple(group * per_group + index for group in range(2) for index in range(idle))),
        u=weight(6, per_group, 1, 1),
        v=weight(6, 5, 1, 1),
    )
    after, _ = run_alone(create("prune-channels"), proto)
    assert shape_of(after, "w") == (2 * left, 3, 1, 1)
    assert shape_of(after, "u") == (6, left, 1, 1)


def test_whole_groups_go_all_the_same() -> None:
    proto = model(
        HEAD + " { a = Conv(x, w) b = Conv<group=4>(a, u) y = ConvTranspose(b, v) }",
        w=weight(64, 3, 1, 1, dead=tuple(range(16, 32))),
        u=weight(32, 16, 1, 1, dead=tuple(range(8, 16))),
        v=weight(32, 5, 1, 1),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 2, "ConvTranspose": 1})
    assert shape_of(after, "w") == (48, 3, 1, 1)
    assert shape_of(after, "u") == (24, 16, 1, 1)


def test_a_concatenation_is_filled_from_its_end() -> None:
    """The parts are 30 and 34 wide, so that only their sum is divisible; of 5 dead ones the last stays."""
    text = HEAD + " { a = Conv(x, w) b = Conv(x, u) c = Concat<axis=1>(a, b) y = Conv<pads=[1,1,1,1]>(c, v) }"
    first, second, reader = weight(30, 3, 1, 1, dead=(0, 1)), weight(34, 3, 1, 1, dead=(0, 1, 2)), weight(5, 64, 3, 3)
    after = assert_rewrites(
        create("prune-channels"), model(text, w=first, u=second, v=reader), ops={"Conv": 3, "Concat": 1}
    )
    assert [shape_of(after, name)[0] for name in "wu"] == [28, 32]
    assert shape_of(after, "v") == (5, 60, 3, 3)


def test_what_is_coupled_stays_together() -> None:
    """One channel of a residual stream that stays keeps a filter in every layer that adds into it."""
    proto = model(
        HEAD
        + """ { s = Conv(x, w0) a = Conv<pads=[1,1,1,1]>(s, w1) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w2)
        t = Add(s, b) y = Conv(t, w3) }""",
        w0=weight(32, 3, 1, 1, dead=(0, 1, 2, 3, 4, 5)),
        w1=weight(20, 32, 3, 3, dead=(7,)),
        w2=weight(32, 20, 3, 3, dead=(0, 1, 2, 3, 4, 5)),
        w3=weight(4, 32, 3, 3),
    )
    after = assert_rewrites(create("prune-channels"), proto, ops={"Conv": 4, "Relu": 1, "Add": 1}, rewritten=1)
    sizes = [shape_of(after, name)[:2] for name in ("w0", "w1", "w2", "w3")]
    assert sizes == [(28, 3), (20, 28), (28, 20), (4, 28)]
    _, result = run_alone(create("prune-channels"), proto)
    assert [each.detail for each in result.rewritten] == [
        "4 channels removed; 2 dead channels kept to fill blocks of convolutions"
    ]
    reason = "1 dead channel kept to fill blocks: convolutions would be slower (--multiple 1 cuts them)"
    assert [(each.site, each.reason) for each in result.skipped] == [("a", reason)]
