"""zero-channels: what is chosen, that whole groups go, that the cut is exact, and every refusal with its reason."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import graphopt
from graphopt import GraphView, OptionError, PassResult, create
from graphopt.model import Model, from_proto, load, to_proto
from graphopt.report.metrics import measure
from graphopt.runtime.feeds import Data, from_arrays, generate
from graphopt.runtime.session import Session
from graphopt.testing import assert_skips, initializers, model, random_feeds, run_alone

ROOT = Path(__file__).parents[2]
Shapes = dict[str, tuple[int, ...]]


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng((seed, *shape))
    return (rng.standard_normal(shape) * 0.5).astype(np.float32)


def dead(values: NDArray[Any], axis: int = 0) -> list[int]:
    """Return the indices along an axis at which everything is nought."""
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    return [int(index) for index in np.flatnonzero(~rows.any(axis=1))]


def cut_exactly(zeroed: onnx.ModelProto, tolerance: float = 1e-5) -> onnx.ModelProto:
    """Prune, and assert that outputs agree to a share of their spread and that nothing survives."""
    pruned, result = run_alone(create("prune-channels"), zeroed)
    assert not result.skipped
    onnx.checker.check_model(pruned, full_check=True)
    feeds = random_feeds(zeroed, 3)
    before, after = Session(zeroed).run(feeds), Session(pruned).run(feeds)
    for name, expected in before.items():
        assert expected.shape == after[name].shape
        assert float(np.abs(expected - after[name]).max()) <= tolerance * float(expected.std())
    return pruned


BN = "BatchNormalization"
PLAIN = "g (float[N,3,8,8] x) => (float[N,5,4,4] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }"
PLAIN_WEIGHTS = {"w": draw(8, 3, 3, 3), "b": draw(8), "v": draw(5, 8, 3, 3)}

STRUCTURES: dict[str, tuple[str, Shapes, Shapes]] = {
    "residual stream": (
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
        s = Conv(x, w0) a = Conv<pads=[1,1,1,1]>(s, w1) r = Relu(a) b = Conv(r, w2) t = Add(s, b)
        c = Conv(t, w3) u = Add(t, c) y = Conv(u, w4) }""",
        {"w0": (8, 3, 1, 1), "w1": (6, 8, 3, 3), "w2": (8, 6, 1, 1), "w3": (8, 8, 1, 1), "w4": (4, 8, 1, 1)},
        {"w0": (4, 3, 1, 1), "w1": (3, 4, 3, 3), "w2": (4, 3, 1, 1), "w3": (4, 4, 1, 1), "w4": (4, 4, 1, 1)},
    ),
    "dense concat with later BatchNormalizations": (
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
        s = Conv(x, w0) n = BatchNormalization(s, g0, b0, m0, v0) r = Relu(n) a = Conv(r, w1)
        c = Concat<axis=1>(s, a) n2 = BatchNormalization(c, g1, b1, m1, v1) r2 = Relu(n2) y = Conv(r2, w2) }""",
        {"w0": (8, 3, 1, 1), "w1": (4, 8, 1, 1), "w2": (4, 12, 1, 1)}
        | {f"{name}0": (8,) for name in "gbmv"}
        | {f"{name}1": (12,) for name in "gbmv"},
        {"w0": (4, 3, 1, 1), "w1": (2, 4, 1, 1), "w2": (4, 6, 1, 1), "g1": (6,), "v1": (6,)},
    ),
    "depthwise": (
        """g (float[N,3,8,8] x) => (float[N,4,6,6] y) {
        a = Conv(x, w0, c0) r = Clip(a, lo, hi) d = Conv<group=8>(r, w1, c1) y = Conv(d, w2) }""",
        {"w0": (8, 3, 1, 1), "c0": (8,), "w1": (8, 1, 3, 3), "c1": (8,), "w2": (4, 8, 1, 1)},
        {"w0": (4, 3, 1, 1), "w1": (4, 1, 3, 3), "c1": (4,), "w2": (4, 4, 1, 1)},
    ),
    "grouped convolution: each group loses as many": (
        """g (float[N,3,8,8] x) => (float[N,4,6,6] y) {
        a = Conv(x, w0) r = Relu(a) d = Conv<group=2>(r, w1, c1) e = Relu(d) y = Conv(e, w2) }""",
        {"w0": (8, 3, 1, 1), "w1": (12, 4, 3, 3), "c1": (12,), "w2": (4, 12, 1, 1)},
        {"w0": (4, 3, 1, 1), "w1": (6, 2, 3, 3), "c1": (6,), "w2": (4, 6, 1, 1)},
    ),
    "channel shuffle": (
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv(x, w0) r = Relu(a) f = Reshape(r, split) t = Transpose<perm=[0,2,1,3,4]>(f) h = Reshape(t, join)
        y = Conv(h, w1) }""",
        {"w0": (8, 3, 1, 1), "w1": (4, 8, 1, 1)},
        {"w0": (4, 3, 1, 1), "w1": (4, 4, 1, 1)},
    ),
    "squeeze-and-excite": (
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv(x, w0, c0) p = GlobalAveragePool(a) q = Conv(p, w1, c1) r = Relu(q) e = Conv(r, w2, c2)
        s = HardSigmoid(e) m = Mul(a, s) y = Conv(m, w3) }""",
        {"w0": (8, 3, 1, 1), "c0": (8,), "w1": (4, 8, 1, 1), "c1": (4,)}
        | {"w2": (8, 4, 1, 1), "c2": (8,), "w3": (4, 8, 1, 1)},
        {"w0": (4, 3, 1, 1), "w1": (2, 4, 1, 1), "w2": (4, 2, 1, 1), "c2": (4,), "w3": (4, 4, 1, 1)},
    ),
    "flatten into a classifier": (
        """g (float[N,3,4,4] x) => (float[N,5] y) {
        a = Conv(x, w0, c0) r = Relu(a) f = Flatten(r) y = Gemm<transB=1>(f, w1, c1) }""",
        {"w0": (8, 3, 3, 3), "c0": (8,), "w1": (5, 32), "c1": (5,)},
        {"w0": (4, 3, 3, 3), "w1": (5, 16), "c1": (5,)},
    ),
    "ConvTranspose decoder with a skip": (
        """g (float[N,3,8,8] x) => (float[N,2,8,8] y) {
        a = Conv(x, w0) s = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(s) b = Conv(p, w1) r = Relu(b)
        u = ConvTranspose<strides=[2,2]>(r, w2, c2) c = Concat<axis=1>(u, s) y = Conv(c, w3) }""",
        {"w0": (8, 3, 1, 1), "w1": (12, 8, 1, 1), "w2": (12, 6, 2, 2), "c2": (6,), "w3": (2, 14, 1, 1)},
        {"w0": (4, 3, 1, 1), "w1": (6, 4, 1, 1), "w2": (6, 3, 2, 2), "c2": (3,), "w3": (2, 7, 1, 1)},
    ),
    "gated halves of a Split": (
        """g (float[N,3,8,8] x) => (float[N,4,8,8] y) {
        a = Conv(x, w0, c0) l, k = Split<axis=1>(a, halves) s = Sigmoid(k) m = Mul(l, s) y = Conv(m, w1) }""",
        {"w0": (8, 3, 1, 1), "c0": (8,), "w1": (4, 4, 1, 1)},
        {"w0": (4, 3, 1, 1), "c0": (4,), "w1": (4, 2, 1, 1)},
    ),
    "MatMul layers with biases": (
        """g (float[N,7,6] x) => (float[N,7,5] y) {
        a = MatMul(x, w0) b = Add(a, c0) r = Relu(b) d = MatMul(r, w1) y = Add(d, c1) }""",
        {"w0": (6, 8), "c0": (8,), "w1": (8, 5), "c1": (5,)},
        {"w0": (6, 4), "c0": (4,), "w1": (4, 5)},
    ),
}
SETTINGS = {
    "split": np.array([0, 2, 4, 8, 8]),
    "join": np.array([0, 8, 8, 8]),
    "halves": np.array([4, 4]),
    "lo": np.float32(0),
    "hi": np.float32(6),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_half_of_every_layer_goes(name: str, criterion: str) -> None:
    text, sizes, expected = STRUCTURES[name]
    weights: dict[str, Any] = {
        key: np.abs(draw(*size)) + 0.1 if key in ("v0", "v1") and len(size) == 1 else draw(*size, seed=index)
        for index, (key, size) in enumerate(sizes.items())
    }
    weights |= {key: value for key, value in SETTINGS.items() if re.search(rf"\b{key}\b", text)}
    proto = model(text, **weights)
    zeroed, result = run_alone(create("zero-channels", criterion=criterion, ratio=0.5), proto)
    assert result.rewritten
    assert {key: value.shape for key, value in initializers(zeroed).items()} == {k: v.shape for k, v in weights.items()}
    again, second = run_alone(create("zero-channels", criterion=criterion, ratio=0.5), zeroed)
    assert not second.rewritten
    assert again.SerializeToString() == zeroed.SerializeToString()
    found = {key: value.shape for key, value in initializers(cut_exactly(zeroed)).items()}
    assert {key: found[key] for key in expected} == expected


def test_a_group_is_nought_in_all_that_makes_it_and_nowhere_else() -> None:
    text, sizes, _ = STRUCTURES["dense concat with later BatchNormalizations"]
    weights = {key: np.abs(draw(*size)) + np.float32(0.1) for key, size in sizes.items()}
    found = initializers(run_alone(create("zero-channels", ratio=0.25, multiple=1), model(text, **weights))[0])
    first, second = dead(found["w0"]), dead(found["w1"])
    assert len(first) == 2
    assert len(second) == 1
    assert dead(found["g0"]) == dead(found["b0"]) == first
    assert dead(found["g1"]) == dead(found["b1"]) == [*first, 8 + second[0]]
    for name in ("m0", "v0", "m1", "v1", "w2"):
        np.testing.assert_array_equal(found[name], weights[name])
    for name in ("w0", "g0", "b0"):
        kept = [index for index in range(8) if index not in first]
        np.testing.assert_array_equal(found[name][kept], weights[name][kept])


# -- criteria ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_weights_are_judged_relative_to_their_tensor(criterion: str) -> None:
    """Filter 2 is small, but what reads it is large; filter 5 is a little smaller than average all over."""
    w, v = np.ones((8, 3, 3, 3), np.float32), np.full((5, 8, 3, 3), 100, np.float32)
    w[2], v[:, 2] = 0.5, 300
    w[5], v[:, 5] = 0.8, 80
    zeroed, result = run_alone(
        create("zero-channels", criterion=criterion, ratio=0.125), model(PLAIN, w=w, b=draw(8), v=v)
    )
    assert dead(initializers(zeroed)["w"]) == dead(initializers(zeroed)["b"]) == [5]
    assert [each.site for each in result.rewritten] == ["a"]
    assert result.rewritten[0].detail.startswith("1 of 8 channels zeroed. In all 1 coupled groups")


NORMED = f"""g (float[N,3,8,8] x) => (float[N,5,8,8] y) {{
  a = Conv(x, w) n = {BN}(a, g, b, m, s) r = Relu(n) y = Conv(r, v) }}"""


def normed(gamma: NDArray[np.float32]) -> onnx.ModelProto:
    ones = np.ones(8, np.float32)
    return model(NORMED, w=draw(8, 3, 1, 1), g=gamma, b=ones, m=ones, s=ones, v=draw(5, 8, 1, 1))


def test_bn_gamma_takes_the_smallest_scales() -> None:
    gamma = np.array([5, -4, 0.3, 2, -0.2, 1, 9, 8], np.float32)
    zeroed, _ = run_alone(create("zero-channels", criterion="bn-gamma", ratio=0.25), normed(gamma))
    assert dead(initializers(zeroed)["g"]) == dead(initializers(zeroed)["w"]) == [2, 4]


def test_a_threshold_is_in_the_criterions_own_unit() -> None:
    gamma = np.array([5, -4, 0.3, 2, -0.2, 1, 9, 8], np.float32)
    zeroed, _ = run_alone(create("zero-channels", criterion="bn-gamma", threshold=2.0), normed(gamma))
    assert dead(initializers(zeroed)["g"]) == [2, 4, 5]
    mean = float(np.abs(gamma).mean())
    options = {"criterion": "bn-gamma", "threshold": 2.5 / mean, "scope": "global"}
    assert dead(initializers(run_alone(create("zero-channels", **options), normed(gamma))[0])["g"]) == [2, 3, 4, 5]


def zeroed_with(proto: onnx.ModelProto, data: Data | None, **options: Any) -> tuple[onnx.ModelProto, PassResult]:
    subject = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    result = create("zero-channels", **options).apply(GraphView(subject, calibration=data))
    return to_proto(subject), result


def test_activation_takes_the_neurons_that_the_data_leave_silent() -> None:
    """On positive inputs the neurons with negative filters are silent behind the Relu, large as they are."""
    w = np.ones((8, 3, 3, 3), np.float32)
    w[[1, 6]] = -50
    proto = model(PLAIN, w=w, b=np.zeros(8, np.float32), v=draw(5, 8, 3, 3))
    images = np.abs(draw(20, 3, 8, 8))
    data = from_arrays({"x": images}, from_proto(proto))
    zeroed, _ = zeroed_with(proto, data, criterion="activation", ratio=0.25)
    assert dead(initializers(zeroed)["w"]) == [1, 6]
    options = {"criterion": "activation", "threshold": 1e-6}
    assert dead(initializers(zeroed_with(proto, data, **options)[0])["w"]) == [1, 6]


def test_activation_agrees_with_an_independent_mean() -> None:
    proto = model(PLAIN, **PLAIN_WEIGHTS)
    images = draw(30, 3, 8, 8)
    response = Session(proto, extra_outputs=["r"]).run({"x": images})["r"]
    order = np.argsort(np.abs(response.astype(np.float64)).mean(axis=(0, 2, 3)))
    data = from_arrays({"x": images}, from_proto(proto))
    for count in (1, 3, 6):
        zeroed, _ = zeroed_with(proto, data, criterion="activation", ratio=count / 8)
        assert dead(initializers(zeroed)["w"]) == sorted(order[:count].tolist())


@pytest.mark.parametrize("criterion", ["activation", "gradient", "taylor"])
def test_criteria_that_need_data_say_so(criterion: str) -> None:
    proto = model(PLAIN, **PLAIN_WEIGHTS)
    needs = rf"the {criterion} criterion needs calibration data \(--data\)"
    assert_skips(create("zero-channels", criterion=criterion, ratio=0.5), proto, needs)
    subject, result = zeroed_with(proto, generate(from_proto(proto)), criterion=criterion, ratio=0.5)
    assert not result.rewritten
    assert subject.SerializeToString() == proto.SerializeToString()


def test_random_depends_on_the_seed_alone() -> None:
    proto = model(PLAIN, **PLAIN_WEIGHTS)
    picks = {}
    for seed in range(6):
        passes = [create("zero-channels", criterion="random", ratio=0.5, seed=seed) for _ in range(2)]
        first, second = (run_alone(each, proto)[0].SerializeToString() for each in passes)
        assert first == second
        picks[first] = seed
    assert len(picks) > 3


@pytest.mark.parametrize(("aggregation", "expected"), [("mean", 1), ("max", 2), ("sum", 1)])
def test_aggregation_of_a_stream_that_two_layers_feed(aggregation: str, expected: int) -> None:
    """Of channel 1 one feeder is large and the other nearly nought; channel 2 is middling in both."""
    text = "g (float[N,3,4,4] x) => (float[N,2,4,4] y) { a = Conv(x, w) b = Conv(x, u) s = Add(a, b) y = Conv(s, v) }"
    w, u = np.ones((4, 3, 1, 1), np.float32), np.ones((4, 3, 1, 1), np.float32)
    w[1], u[1] = 1.2, 0.01
    w[2], u[2] = 0.7, 0.7
    proto = model(text, w=w, u=u, v=np.ones((2, 4, 1, 1), np.float32))
    zeroed, _ = run_alone(create("zero-channels", aggregation=aggregation, ratio=0.25), proto)
    assert dead(initializers(zeroed)["w"]) == dead(initializers(zeroed)["u"]) == [expected]


# -- how much ----------------------------------------------------------------------------------------------------------


DEEP = """g (float[1,3,16,16] x) => (float[1,10] y) {
  a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1) s = Relu(b)
  c = Conv<pads=[1,1,1,1]>(s, w2) t = Relu(c) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, w3) }"""
DEEP_WEIGHTS = {
    "w0": draw(32, 3, 3, 3),
    "w1": draw(64, 32, 3, 3),
    "w2": draw(48, 64, 3, 3),
    "w3": draw(10, 48),
}


def sizes(proto: onnx.ModelProto) -> tuple[int, int]:
    found = measure(from_proto(onnx.ModelProto.FromString(proto.SerializeToString())))
    assert found.macs is not None
    return found.parameters, found.macs


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.2])
@pytest.mark.parametrize(("option", "place"), [("keep_parameters", 0), ("keep_macs", 1)])
def test_a_budget_is_kept_and_used(option: str, place: int, share: float, scope: str) -> None:
    proto = model(DEEP, **DEEP_WEIGHTS)
    zeroed, result = run_alone(create("zero-channels", scope=scope, **{option: share}), proto)
    left = sizes(cut_exactly(zeroed))
    assert share - 0.06 < left[place] / sizes(proto)[place] <= share
    told = re.search(r"prune-channels ([\d,]+) of [\d,]+ parameters .* and ([\d,]+) of", result.rewritten[0].detail)
    assert told is not None
    gone = [before - after for before, after in zip(sizes(proto), left, strict=True)]
    assert [int(number.replace(",", "")) for number in told.groups()] == gone


@pytest.mark.parametrize("multiple", [None, 8, 16])
def test_what_is_zeroed_is_what_is_cut(multiple: int | None) -> None:
    """The counts that prune-channels keeps divisible are kept so by the choice, so that nothing is zeroed in vain."""
    proto = model(DEEP, **DEEP_WEIGHTS)
    zeroed, result = run_alone(create("zero-channels", ratio=0.3, multiple=multiple), proto)
    pruned, cut = run_alone(create("prune-channels", multiple=multiple or 4), zeroed)
    assert not cut.skipped
    assert not any("kept" in each.detail for each in cut.rewritten)
    left = [initializers(pruned)[name].shape[0] for name in ("w0", "w1", "w2")]
    assert left == {None: [24, 48, 34], 8: [24, 48, 40], 16: [32, 48, 48]}[multiple]
    told = re.search(r"prune-channels ([\d,]+) of", result.rewritten[0].detail)
    assert told is not None
    assert int(told.group(1).replace(",", "")) == sizes(proto)[0] - sizes(pruned)[0]


def test_nothing_is_zeroed_where_a_block_would_not_be_full() -> None:
    proto = model(PLAIN, w=draw(16, 3, 3, 3), b=draw(16), v=draw(5, 16, 1, 1))
    reason = "blocks of convolutions would be left unfilled"
    assert_skips(create("zero-channels", ratio=0.5), proto, reason)
    zeroed, _ = run_alone(create("zero-channels", ratio=0.5, multiple=1), proto)
    assert len(dead(initializers(zeroed)["w"])) == 8


def test_a_budget_that_cannot_be_met_changes_nothing() -> None:
    proto = model(DEEP, **DEEP_WEIGHTS)
    reason = r"cannot come down to [\d,]+ MACs: at least [\d,]+ stay"
    assert_skips(create("zero-channels", keep_macs=0.001, min_channels=8), proto, reason)
    reason = r"cannot come down to [\d,]+ parameters: at least [\d,]+ stay"
    assert_skips(create("zero-channels", keep_parameters=0.0), proto, reason)


def test_unknown_macs_are_not_guessed() -> None:
    text = DEEP.replace("[1,3,16,16]", "[1,3,H,W]")
    reason = "MACs of the model are not known: those of 'a' are not"
    assert_skips(create("zero-channels", keep_macs=0.5), model(text, **DEEP_WEIGHTS), reason)


def test_global_ranks_all_layers_together() -> None:
    weights = {name: np.abs(value) + np.float32(1) for name, value in DEEP_WEIGHTS.items()}
    weights["w1"][:40] *= np.float32(0.01)
    zeroed, _ = run_alone(create("zero-channels", scope="global", ratio=40 / 144), model(DEEP, **weights))
    assert [len(dead(initializers(zeroed)[name])) for name in ("w0", "w1", "w2")] == [0, 40, 0]


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_multiple_and_min_channels(scope: str) -> None:
    for multiple, least in ((8, 1), (16, 1), (5, 1), (1, 30), (8, 20)):
        options: dict[str, Any] = {"ratio": 0.7, "scope": scope, "multiple": multiple, "min_channels": least}
        found = initializers(run_alone(create("zero-channels", **options), model(DEEP, **DEEP_WEIGHTS))[0])
        for name in ("w0", "w1", "w2"):
            lost = len(dead(found[name]))
            kept = len(found[name]) - lost
            assert kept >= min(least, len(found[name]))
            assert lost == 0 or kept % multiple == 0


def test_everything_is_never_zeroed() -> None:
    found = initializers(run_alone(create("zero-channels", ratio=1.0), model(DEEP, **DEEP_WEIGHTS))[0])
    assert all(len(dead(found[name])) == len(found[name]) - 1 for name in ("w0", "w1", "w2"))


# -- what stays --------------------------------------------------------------------------------------------------------


def test_outputs_and_what_is_coupled_with_inputs_stay() -> None:
    text = """g (float[N,8,4,4] x) => (float[N,8,4,4] y, float[N,6,4,4] r) {
      a = Conv(x, w) s = Add(a, x) b = Conv(s, u) r = Relu(b) y = Conv(r, v) }"""
    proto = model(text, w=draw(8, 8, 1, 1), u=draw(6, 8, 1, 1), v=draw(8, 6, 1, 1))
    assert_skips(create("zero-channels", ratio=0.5), proto, "8 channels: coupled by Add 's' with an axis")
    assert_skips(create("zero-channels", ratio=0.5), proto, "6 channels: 'r' is an output of the model")
    assert_skips(create("zero-channels", ratio=0.5), proto, "8 channels: 'y' is an output of the model")


def test_a_normalized_stream_stays_and_the_hidden_layer_goes() -> None:
    text = """g (float[N,7,6] x) => (float[N,7,5] y) {
      a = MatMul(x, w0) n = LayerNormalization(a, g, b) h = MatMul(n, w1) r = Relu(h) d = MatMul(r, w2)
      s = Add(a, d) m = LayerNormalization(s, g, b) y = MatMul(m, w3) }"""
    weights = {"w0": draw(6, 8), "w1": draw(8, 16), "w2": draw(16, 8), "w3": draw(8, 5), "g": draw(8), "b": draw(8)}
    zeroed, result = run_alone(create("zero-channels", ratio=0.5), model(text, **weights))
    assert "h" in [each.site for each in result.rewritten]
    assert any("LayerNormalization" in each.reason for each in result.skipped if each.site == "a")
    assert initializers(cut_exactly(zeroed))["w2"].shape == (8, 8)


def test_skip_takes_patterns() -> None:
    proto = model(DEEP, **DEEP_WEIGHTS)
    zeroed, result = run_alone(create("zero-channels", ratio=0.5, skip=("a", "[bq]", "nosuch*")), proto)
    assert [len(dead(initializers(zeroed)[name])) for name in ("w0", "w1", "w2")] == [0, 0, 24]
    reasons = {each.site: each.reason for each in result.skipped}
    assert reasons["a"] == "left out by --skip a"
    assert reasons["b"] == "left out by --skip [bq]"
    assert [note for note in result.notes if "nosuch*" in note]


def test_a_vetoed_site_stays() -> None:
    subject = from_proto(model(DEEP, **DEEP_WEIGHTS))
    result = create("zero-channels", ratio=0.5).apply(GraphView(subject, {"b": "broke the contract"}))
    assert [each.site for each in result.rewritten] == ["a", "c"]
    assert ("b", "broke the contract") in [(each.site, each.reason) for each in result.skipped]
    assert not dead(initializers(to_proto(subject))["w1"])


def test_layers_without_scales_are_not_judged_by_them() -> None:
    reason = "nothing in it to judge by bn-gamma"
    assert_skips(create("zero-channels", criterion="bn-gamma", ratio=0.5), model(DEEP, **DEEP_WEIGHTS), reason)


def test_a_weight_that_two_layers_share_is_copied() -> None:
    """Both filters banks are one initializer; only the first one's outputs can go."""
    text = "g (float[N,4,4,4] x) => (float[N,4,4,4] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, w) }"
    weights = {"w": draw(4, 4, 1, 1), "b": draw(4)}
    zeroed, result = run_alone(create("zero-channels", ratio=0.5), model(text, **weights))
    assert [each.site for each in result.rewritten] == ["a"]
    nodes = zeroed.graph.node
    found = initializers(zeroed)
    np.testing.assert_array_equal(found[nodes[2].input[1]], weights["w"])
    assert len(dead(found[nodes[0].input[1]])) == len(dead(found[nodes[0].input[2]])) == 2
    cut_exactly(zeroed)


def test_half_precision_and_weights_in_constant_nodes() -> None:
    text = PLAIN.replace("float[", "float16[")
    zeroed, _ = run_alone(
        create("zero-channels", ratio=0.5), model(text, **{k: v.astype(np.float16) for k, v in PLAIN_WEIGHTS.items()})
    )
    assert initializers(cut_exactly(zeroed, tolerance=5e-3))["w"].shape == (4, 3, 3, 3)
    proto = model(PLAIN, **PLAIN_WEIGHTS)
    stored = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    proto.graph.ClearField("initializer")
    nodes = [*stored, *proto.graph.node]
    proto.graph.ClearField("node")
    proto.graph.node.extend(nodes)
    cut_exactly(run_alone(create("zero-channels", ratio=0.5), proto)[0])


@pytest.mark.parametrize("shape", [(), (8,)], ids=["one zero point", "one for each channel"])
def test_quantized_weights_are_set_to_their_zero_point_and_judged_by_what_they_stand_for(
    shape: tuple[int, ...],
) -> None:
    """Channel 3 holds large integers close to its zero point; channel 6 has a small scale."""
    text = """g (float[N,3,8,8] x) => (float[N,5,4,4] y) {
      w = DequantizeLinear<axis = 0>(q, s, z) a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }"""
    rng = np.random.default_rng(0)
    q, s, z = (
        rng.integers(0, 256, (8, 3, 3, 3)).astype(np.uint8),
        np.full(8, 0.02, np.float32),
        np.full(8, 100, np.uint8),
    )
    q[3] = 101
    s[6] = 1e-4
    scale, zero_point = (s, z) if shape else (np.float32(0.02), np.uint8(100))
    proto = model(text, q=q, s=scale, z=zero_point, b=draw(8), v=np.ones((5, 8, 3, 3), np.float32))
    gone = [3, 6] if shape else [3]
    zeroed, _ = run_alone(create("zero-channels", ratio=len(gone) / 8), proto)
    found = initializers(zeroed)
    assert dead(found["b"]) == gone
    assert (found["q"][gone] == 100).all()
    assert initializers(cut_exactly(zeroed))["q"].shape == (8 - len(gone), 3, 3, 3)


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no amount": ({}, "give one of --ratio"),
    "two amounts": ({"ratio": 0.5, "keep_macs": 0.5}, "give one of --ratio"),
    "ratio above one": ({"ratio": 1.5}, "--ratio: 1.5 is out of range"),
    "negative budget": ({"keep_parameters": -0.1}, "--keep-parameters"),
    "multiple of nothing": ({"ratio": 0.5, "multiple": 0}, "--multiple"),
    "unknown criterion": ({"ratio": 0.5, "criterion": "l3"}, "'l3' is not one of l1"),
}


@pytest.mark.parametrize(("options", "reason"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_make_no_sense(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=re.escape(reason)):
        create("zero-channels", **options)


# -- in the pipeline, and on real networks -----------------------------------------------------------------------------


def test_the_pipeline_keeps_what_the_user_asked_for() -> None:
    """Class indices change with the weights; that is no reason to take the pass back, and NaN would be."""
    text = DEEP.replace("(float[1,10] y)", "(int64[1,1] k)").replace("w3) }", "w3) k = ArgMax<axis=1>(y) }")
    passes = [create("zero-channels", ratio=0.9), create("prune-channels")]
    result = graphopt.optimize(model(text, **DEEP_WEIGHTS), passes)
    assert [each.kept for each in result.report.passes] == [True, True]
    assert "w0" in initializers(result.model)
    assert initializers(result.model)["w0"].shape == (4, 3, 3, 3)


def test_a_division_by_what_was_zeroed_is_found_out() -> None:
    text = """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
      a = Conv(x, w) n = ReduceL2<axes=[0,2,3], keepdims=1>(a) d = Div(a, n) y = Conv(d, v) }"""
    proto = model(text, opset=13, w=draw(8, 3, 1, 1), v=draw(4, 8, 1, 1))
    result = graphopt.optimize(proto, [create("zero-channels", ratio=0.5)], keep_going=True)
    assert [each.kept for each in result.report.passes] == [False]
    assert "became nan" in result.report.passes[0].failure
    assert np.isfinite(Session(result.model).run(random_feeds(proto, 0))["y"]).all()


def spread_difference(zeroed: Model, pruned: Model) -> float:
    feeds = next(generate(zeroed).batches(1))
    before, after = Session(zeroed).run(feeds), Session(pruned).run(feeds)
    return max(float(np.abs(before[name] - after[name]).max() / before[name].std()) for name in before)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.onnx")), ids=lambda path: path.stem)
def test_trained_networks_are_cut_exactly(path: Path, seed: int) -> None:
    subject = load(path)
    create("zero-channels", criterion="random", ratio=0.3, seed=seed, multiple=1).apply(GraphView(subject))
    zeroed = subject.copy()
    result = create("prune-channels", multiple=1).apply(GraphView(subject))
    difference = spread_difference(zeroed, subject)
    print(f"{path.stem} seed {seed}: {difference:.1e} of the output's spread")
    assert difference <= 1e-5
    assert all("constant" in each.reason for each in result.skipped), result.skipped


REACH = {"squeezenet1_1_op13": 0.64, "mobilenet_v3_small_op17": 0.64, "shufflenet_v2_x1_0_op17": 0.60}


@pytest.mark.parametrize("name", REACH)
def test_reach_is_at_least_what_is_best_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other architectures are measured by benchmarks/pruning.py."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "zoo")
    from rehydrate import rehydrate

    subject = from_proto(rehydrate(name))
    before = measure(subject).parameters
    create("zero-channels", criterion="l1", ratio=0.5, scope="uniform").apply(GraphView(subject))
    zeroed = subject.copy()
    result = create("prune-channels").apply(GraphView(subject))
    assert 1 - measure(subject).parameters / before >= REACH[name]
    assert not result.skipped
    assert spread_difference(zeroed, subject) <= 1e-5
