"""What a normalization hands on: channels that cannot be cut in front of it are picked behind it."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from graphopt.graph import GraphView
from graphopt.graph.channels import Channels, channel_groups
from graphopt.graph.channels.importance import saliency_scores
from graphopt.graph.correspondence import Correspondence
from graphopt.graph.kept import KeptChannels
from graphopt.model import from_proto
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, assert_skips, initializers, model, random_feeds, run_alone

PRUNE = "prune-channels"
RNG = np.random.default_rng(4)


@pytest.fixture(autouse=True)
def drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on which ones ran before it."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(4))


def weight(*shape: int, dead: tuple[int, ...] = (), axis: int = 0) -> NDArray[np.float32]:
    values = RNG.standard_normal(shape).astype(np.float32)
    values[(slice(None),) * axis + (list(dead),)] = 0
    return values


def shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


TOKENS = "g (float[N,7,8] x) => (float[N,7,64] y)"
FUSED = "n = LayerNormalization(x, g, b)"
WRITTEN = """m = ReduceMean<axes=[-1]>(x) c = Sub(x, m) q = Pow(c, two) v = ReduceMean<axes=[-1]>(q) e = Add(v, eps)
  s = Sqrt(e) d = Div(c, s) k = Mul(d, g) n = Add(k, b)"""
RMS = """q = Mul(x, x) v = ReduceMean<axes=[-1]>(q) e = Add(v, eps) s = Sqrt(e) i = Reciprocal(s) d = Mul(x, i)
  n = Mul(g, d)"""
CONSTANTS = {"two": np.asarray(2, np.float32), "eps": np.asarray(1e-5, np.float32)}


def normalized(how: str, rest: str = "y = MatMul(n, w)", **weights: NDArray[Any]) -> onnx.ModelProto:
    given = {"g": weight(8, dead=(1, 4)), "b": weight(8, dead=(1, 4)), "w": weight(8, 64)} | weights
    used: dict[str, Any] = CONSTANTS | given if how != FUSED else given
    if how == RMS:
        used = {name: value for name, value in used.items() if name not in ("b", "two")}
    return model(f"{TOKENS} {{ {how} {rest} }}", opset=17 if how == FUSED else 13, **used)


@pytest.mark.parametrize("how", [FUSED, WRITTEN, RMS], ids=["LayerNormalization", "written out", "written-out RMS"])
def test_what_is_scaled_to_nought_is_not_handed_on(how: str) -> None:
    proto = normalized(how)
    ops = {node.op_type: sum(n.op_type == node.op_type for n in proto.graph.node) for node in proto.graph.node}
    after = assert_rewrites(create(PRUNE, multiple=1), proto, ops=ops | {"Gather": 1, "Transpose": 2}, rewritten=1)
    assert shapes(after)["w"] == (6, 64)
    assert shapes(after)["g"] == ((8,) if how == FUSED else (6,))
    indices = next(array for name, array in initializers(after).items() if name.endswith("_indices"))
    assert indices.tolist() == [0, 2, 3, 5, 6, 7]


def test_what_lies_together_is_sliced() -> None:
    proto = normalized(FUSED, g=weight(8, dead=(0, 6, 7)), b=weight(8, dead=(0, 6, 7)))
    after = assert_rewrites(create(PRUNE, multiple=1), proto, ops={"LayerNormalization": 1, "Slice": 1, "MatMul": 1})
    bounds = {name.rsplit("_", 1)[1]: array.tolist() for name, array in initializers(after).items() if "picked" in name}
    assert bounds == {"start": [1], "end": [6], "axis": [2]}


def test_an_old_opset_slices_by_attributes() -> None:
    proto = normalized(RMS, g=weight(8, dead=(0, 1)))
    proto.opset_import[0].version = 9
    expected = {"Mul": 3, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Reciprocal": 1, "Slice": 1, "MatMul": 1}
    after = assert_rewrites(create(PRUNE, multiple=1), proto, ops=expected)
    assert shapes(after)["w"] == (6, 64)


def test_a_constant_that_is_handed_on_goes_into_the_bias() -> None:
    bias = weight(8, dead=(4,))
    assert bias[1] != 0
    proto = normalized(FUSED, "h = MatMul(n, w) y = Add(h, a)", b=bias, a=weight(64))
    after = assert_rewrites(
        create(PRUNE, multiple=1),
        proto,
        ops={"LayerNormalization": 1, "Gather": 1, "Transpose": 2, "MatMul": 1, "Add": 1},
    )
    assert shapes(after)["w"] == (6, 64)


def test_what_nobody_reads_is_not_handed_on() -> None:
    proto = normalized(FUSED, g=weight(8), b=weight(8), w=weight(8, 64, dead=(2, 3, 5)))
    after = assert_rewrites(
        create(PRUNE, multiple=1), proto, ops={"LayerNormalization": 1, "Gather": 1, "Transpose": 2, "MatMul": 1}
    )
    assert shapes(after)["w"] == (5, 64)


def test_all_readers_share_one_gather() -> None:
    rest = "h = MatMul(n, w) u = MatMul(n, t) y = Add(h, u)"
    proto = normalized(FUSED, rest, t=weight(8, 64))
    after = assert_rewrites(
        create(PRUNE, multiple=1),
        proto,
        ops={"LayerNormalization": 1, "Gather": 1, "Transpose": 2, "MatMul": 2, "Add": 1},
    )
    assert shapes(after)["w"] == shapes(after)["t"] == (6, 64)


def test_channels_first() -> None:
    proto = model(
        """g (float[N,8,6,6] x) => (float[N,16,6,6] y) { m = ReduceMean<axes=[1]>(x) c = Sub(x, m) q = Mul(c, c)
        v = ReduceMean<axes=[1]>(q) e = Add(v, eps) s = Sqrt(e) d = Div(c, s) k = Mul(g, d) n = Add(k, b)
        y = Conv<pads=[1,1,1,1]>(n, w) }""",
        opset=13,
        eps=CONSTANTS["eps"],
        g=weight(8, 1, 1, dead=(1, 3, 7)),
        b=weight(8, 1, 1, dead=(1, 3, 7)),
        w=weight(16, 8, 3, 3),
    )
    ops = {"ReduceMean": 2, "Sub": 1, "Mul": 2, "Add": 2, "Sqrt": 1, "Div": 1, "Conv": 1, "Gather": 1}
    after = assert_rewrites(create(PRUNE, multiple=1), proto, ops=ops)
    assert (shapes(after)["g"], shapes(after)["b"], shapes(after)["w"]) == ((5, 1, 1), (5, 1, 1), (16, 5, 3, 3))


def test_shapes_behind_it_follow() -> None:
    rest = """s = Shape(n) a = Gather(s, zero) u = Unsqueeze(a, zeros) q = Concat<axis=0>(u, tail) f = Reshape(n, q)
      r = Reshape(f, back) t = Transpose<perm=[0,2,1]>(r) h = Transpose<perm=[0,2,1]>(t) y = MatMul(h, w)"""
    proto = normalized(
        FUSED, rest, zero=np.array(0), zeros=np.array([0]), tail=np.array([56]), back=np.array([0, 7, 8])
    )
    after, result = run_alone(create(PRUNE, multiple=1), proto)
    assert [each.detail for each in result.rewritten] == ["2 channels removed"]
    assert shapes(after)["w"] == (6, 64)
    feeds = random_feeds(proto, 0)
    assert np.abs(Session(proto).run(feeds)["y"] - Session(after).run(feeds)["y"]).max() <= 1e-5


def test_less_is_picked_where_something_is_picked_already() -> None:
    rest = "p = Gather<axis=2>(n, i) y = MatMul(p, w)"
    proto = normalized(FUSED, rest, i=np.array([0, 1, 3, 4, 6]), w=weight(5, 64))
    after = assert_rewrites(create(PRUNE, multiple=1), proto, ops={"LayerNormalization": 1, "Gather": 1, "MatMul": 1})
    assert initializers(after)["p_sizes"].tolist() == [0, 3, 6]
    assert shapes(after)["w"] == (3, 64)


@pytest.mark.parametrize("how", [FUSED, WRITTEN, RMS], ids=["LayerNormalization", "written out", "written-out RMS"])
def test_a_second_round_goes_on_from_the_first(how: str) -> None:
    proto = normalized(how)
    for kept in (4, 2, 1):
        proto, zeroed = run_alone(create("zero-channels", ratio=0.5), proto)
        assert zeroed.rewritten
        proto, pruned = run_alone(create(PRUNE, multiple=1), proto)
        assert pruned.rewritten
        assert not pruned.skipped
        assert shapes(proto)["w"] == (kept, 64)
    ops = [node.op_type for node in proto.graph.node]
    assert ops.count("Gather") + ops.count("Slice") == 1, ops


@pytest.mark.parametrize(
    ("rest", "weights", "reason"),
    [
        ("y = MatMul(n, w)", {"w": weight(8, 8)}, "picking the others behind LayerNormalization 'n' would cost more"),
        (
            "u = MatMul(x, t) h = Add(n, u) k = LayerNormalization(h, g, b) y = MatMul(k, w)",
            {"t": weight(8, 8)},
            "LayerNormalization 'k' works along axis 2",
        ),
    ],
    ids=["too little to save", "coupled with the next normalization"],
)
def test_it_stays_where_it_cannot_or_need_not_go(
    rest: str, weights: dict[str, NDArray[np.float32]], reason: str
) -> None:
    proto = normalized(FUSED, rest, **weights)
    del proto.graph.output[0].type.tensor_type.shape.dim[2]
    proto.graph.output[0].type.tensor_type.shape.dim.add()
    if "k =" not in rest:
        assert_skips(create(PRUNE, multiple=1), proto, reason)
        return
    _, result = run_alone(create(PRUNE, multiple=1), proto)
    assert any(reason in each.reason for each in result.skipped), result


def test_a_normalized_output_stays_whole() -> None:
    proto = normalized(FUSED)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("n", 1, ["N", 7, 8]))
    assert_skips(create(PRUNE, multiple=1), proto, "'n' is an output of the model")


def test_several_normalized_axes_stay() -> None:
    proto = model(
        "g (float[N,4,8] x) => (float[N,4,64] y) { n = LayerNormalization<axis=1>(x, g, b) y = MatMul(n, w) }",
        g=weight(4, 8),
        b=weight(4, 8),
        w=weight(8, 64, dead=(3, 4)),
    )
    after = assert_rewrites(
        create(PRUNE, multiple=1), proto, ops={"LayerNormalization": 1, "Gather": 1, "Transpose": 2, "MatMul": 1}
    )
    assert shapes(after)["w"] == (6, 64)
    assert shapes(after)["g"] == (4, 8)


def test_tied_weights_are_not_torn_apart() -> None:
    proto = model(
        """g (int64[N,5] i) => (float[N,5,300] y) {
        x = Gather(e, i) n = LayerNormalization(x, g, b) t = Transpose<perm=[1,0]>(e) y = MatMul(n, t) }""",
        e=weight(300, 16),
        g=weight(16, dead=(1, 2, 5)),
        b=weight(16, dead=(1, 2, 5)),
    )
    assert_skips(create(PRUNE, multiple=1), proto, "would cost more than it saves")
    _, result = run_alone(create("zero-channels", ratio=0.5), proto)
    assert not result.rewritten
    assert any("would cost more than it saves" in each.reason for each in result.skipped)


@pytest.mark.parametrize("how", [FUSED, WRITTEN, RMS], ids=["LayerNormalization", "written out", "written-out RMS"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "random", "bn-gamma"])
def test_zeroing_takes_scale_and_bias_and_leaves_what_reads_them(how: str, criterion: str) -> None:
    proto = normalized(how, g=weight(8), b=weight(8))
    zeroed, result = run_alone(create("zero-channels", criterion=criterion, ratio=0.5), proto)
    if criterion == "bn-gamma" and how != FUSED:
        assert not result.rewritten
        return
    before, after = initializers(proto), initializers(zeroed)
    gone = np.flatnonzero(after["g"] == 0)
    assert len(gone) == 4
    np.testing.assert_array_equal(after["w"], before["w"])
    if how != RMS:
        np.testing.assert_array_equal(np.flatnonzero(after["b"] == 0), gone)
    if criterion == "bn-gamma":
        np.testing.assert_array_equal(np.sort(gone), np.sort(np.argsort(np.abs(before["g"]))[:4]))
    pruned, cut = run_alone(create(PRUNE, multiple=1), zeroed)
    assert not cut.skipped
    assert shapes(pruned)["w"] == (4, 64)


@pytest.mark.parametrize("how", [FUSED, WRITTEN, RMS], ids=["LayerNormalization", "written out", "written-out RMS"])
def test_a_saliency_of_the_scale_judges_what_is_picked(how: str) -> None:
    channels = Channels.analyze(GraphView(from_proto(normalized(how, g=weight(8), b=weight(8)))))
    groups = [group for group in channel_groups(channels) if group.blocked is None]
    saliency = {"g": np.arange(8.0), "b": np.full(8, 100.0), "w": np.full((8, 64), 100.0)}
    scores = saliency_scores(channels, np.array([group.index for group in groups]), saliency, "mean")
    assert scores.tolist() == list(range(8))


def test_the_foretold_saving_is_what_is_saved() -> None:
    proto = normalized(FUSED)
    zeroed, result = run_alone(create("zero-channels", ratio=0.5), proto)
    pruned, _ = run_alone(create(PRUNE, multiple=1), zeroed)
    sizes = [sum(int(np.prod(shape)) for shape in shapes(each).values()) for each in (proto, pruned)]
    assert f"{sizes[0] - sizes[1]:,} of {sizes[0]:,} parameters" in result.rewritten[0].detail


@pytest.mark.parametrize("dead", [(1, 4), (0, 7)], ids=["Gather", "Slice"])
def test_what_is_left_can_be_told_from_the_original(dead: tuple[int, ...]) -> None:
    text = "h = MatMul(n, w) r = Relu(h) y = MatMul(r, v)"
    original = normalized(FUSED, text, g=weight(8), b=weight(8), w=weight(8, 80), v=weight(80, 64))
    zeroed = onnx.ModelProto.FromString(original.SerializeToString())
    gone: dict[str, Any] = {"g": list(dead), "b": list(dead), "w": np.s_[:, [3, 5]]}
    for tensor in zeroed.graph.initializer:
        if tensor.name != "v":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[gone[tensor.name]] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    pruned = GraphView(from_proto(run_alone(create(PRUNE, multiple=1), zeroed)[0]))
    before = GraphView(from_proto(original))
    kept = KeptChannels(pruned, before, Correspondence(pruned, before))
    tensors = {out.name: out for node in pruned.nodes() for out in node.outputs}
    for name, size, lost in (("n_picked", 8, dead), ("h", 80, (3, 5))):
        found = kept.of(tensors[name])
        assert found is not None
        assert found.tolist() == [place for place in range(size) if place not in lost]
