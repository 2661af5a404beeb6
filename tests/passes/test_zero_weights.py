"""zero-weights: which weights go, bit by bit, what is left alone, and every refusal with its reason."""

import re
import sys
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import graphopt
from graphopt import GraphView, OptionError, create
from graphopt.model import from_proto, to_proto
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.runtime.session import Session
from graphopt.testing import assert_skips, draw, initializers, model, random_feeds, run_alone

TEXT = "g (float[N,8,6,6] x) => (float[N,5,2,2] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }"


WEIGHTS = {"w": draw(4, 8, 3, 3), "b": draw(4) / 100, "v": draw(5, 4, 3, 3)}


def zero(proto: onnx.ModelProto, **options: Any) -> dict[str, NDArray[Any]]:
    """Run the pass; assert that it runs in ONNX Runtime and that a second run does nothing."""
    pass_ = create("zero-weights", **options)
    after, result = run_alone(pass_, proto)
    assert result.rewritten
    again, second = run_alone(pass_, after)
    assert not second.rewritten
    assert again.SerializeToString() == after.SerializeToString()
    assert all(np.isfinite(value).all() for value in Session(after).run(random_feeds(proto, 0)).values())
    return initializers(after)


def assert_smallest_went(before: NDArray[Any], after: NDArray[Any], count: int) -> None:
    """Assert that exactly the ``count`` smallest magnitudes are nought now and that the rest kept every bit."""
    expected = before.ravel().copy()
    expected[np.argsort(np.abs(expected), kind="stable")[:count]] = 0
    np.testing.assert_array_equal(after.ravel(), expected)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_a_share_of_each_weight(ratio: float) -> None:
    found = zero(model(TEXT, **WEIGHTS), ratio=ratio)
    for name in ("w", "v"):
        assert_smallest_went(WEIGHTS[name], found[name], int(ratio * WEIGHTS[name].size))
    np.testing.assert_array_equal(found["b"], WEIGHTS["b"])


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_a_share_of_all_weights_together(ratio: float) -> None:
    weights = WEIGHTS | {"v": WEIGHTS["v"] * np.float32(0.2)}
    found = zero(model(TEXT, **weights), ratio=ratio, scope="global")
    joined, after = (np.concatenate([part["w"].ravel(), part["v"].ravel()]) for part in (weights, found))
    assert_smallest_went(joined, after, int(ratio * joined.size))
    assert np.count_nonzero(found["v"]) / found["v"].size < 1 - ratio < np.count_nonzero(found["w"]) / found["w"].size


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_a_threshold(scope: str) -> None:
    found = zero(model(TEXT, **WEIGHTS), threshold=0.3, scope=scope)
    for name in ("w", "v"):
        expected = np.where(np.abs(WEIGHTS[name]) < 0.3, np.float32(0), WEIGHTS[name])
        np.testing.assert_array_equal(found[name], expected)


def test_equal_magnitudes_stay_together() -> None:
    values = np.array([[3, -2, 2, 1], [2, 4, -2, 5]], np.float32)
    proto = model("g (float[N,2] x) => (float[N,4] y) { y = MatMul(x, w) }", w=values)
    np.testing.assert_array_equal(zero(proto, ratio=0.5)["w"], np.where(values == 1, 0, values))
    np.testing.assert_array_equal(zero(proto, ratio=0.625)["w"], np.where(np.abs(values) < 3, 0, values))
    same = model("g (float[N,2] x) => (float[N,4] y) { y = MatMul(x, w) }", w=np.ones((2, 4), np.float32))
    assert_skips(create("zero-weights", ratio=0.5), same, "'w' has nothing more to zero")


def test_ratio_one_takes_everything() -> None:
    found = zero(model(TEXT, **WEIGHTS), ratio=1.0)
    assert not found["w"].any()
    assert not found["v"].any()


# -- N:M ---------------------------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "Conv along its input channels": ("(float[1,8,6,6] x) => (float[1,4,4,4] y) { y = Conv(x, w)", (4, 8, 3, 3), 1),
    "grouped Conv": ("(float[1,16,6,6] x) => (float[1,4,4,4] y) { y = Conv<group=2>(x, w)", (4, 8, 3, 3), 1),
    "MatMul": ("(float[1,8] x) => (float[1,6] y) { y = MatMul(x, w)", (8, 6), 0),
    "MatMul with the weight on the left": ("(float[8,2] x) => (float[6,2] y) { y = MatMul(w, x)", (6, 8), 1),
    "Gemm": ("(float[1,8] x) => (float[1,6] y) { y = Gemm(x, w)", (8, 6), 0),
    "Gemm, transposed": ("(float[1,8] x) => (float[1,6] y) { y = Gemm<transB=1>(x, w)", (6, 8), 1),
    "weight behind Transpose": (
        "(float[1,8] x) => (float[1,6] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)",
        (6, 8),
        1,
    ),
}


@pytest.mark.parametrize(("text", "shape", "axis"), LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("pattern", ["2:4", "1:2", "3:8"])
def test_n_of_every_m_along_the_summed_axis(text: str, shape: tuple[int, ...], axis: int, pattern: str) -> None:
    keep, of = map(int, pattern.split(":"))
    before = draw(*shape)
    after = zero(model(f"g {text} }}", w=before), pattern=pattern)["w"]
    rows, kept = (np.moveaxis(values, axis, -1).reshape(-1, of) for values in (before, after))
    for row, left in zip(rows, kept, strict=True):
        largest = np.sort(np.argsort(-np.abs(row))[:keep])
        np.testing.assert_array_equal(np.flatnonzero(left), largest)
        np.testing.assert_array_equal(left[largest], row[largest])


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "depthwise": (
        "g (float[1,4,6,6] x) => (float[1,4,4,4] y) { y = Conv<group=4>(x, w) }",
        {"w": draw(4, 1, 3, 3)},
        {"pattern": "2:4"},
        "'w' sums over 1 weights, which is no multiple of 4",
    ),
    "odd length": (
        "g (float[1,6] x) => (float[1,3] y) { y = MatMul(x, w) }",
        {"w": draw(6, 3)},
        {"pattern": "2:4"},
        "'w' sums over 6 weights, which is no multiple of 4",
    ),
    "ConvTranspose has no N:M kernels": (
        "g (float[1,4,6,6] x) => (float[1,4,8,8] y) { y = ConvTranspose(x, w) }",
        {"w": draw(4, 4, 3, 3)},
        {"pattern": "2:4"},
        "ConvTranspose has no N:M kernels",
    ),
    "layers that sum over different axes": (
        "g (float[1,8] x) => (float[1,8] y) { a = MatMul(x, w) y = Gemm<transB=1>(a, w) }",
        {"w": draw(8, 8)},
        {"pattern": "2:4"},
        "the axis of 'w' that its layers sum over is not known or not the same",
    ),
    "put together from parts": (
        "g (float[1,8] x) => (float[1,6] y) { w = Concat<axis=0>(p, q) y = MatMul(x, w) }",
        {"p": draw(4, 6), "q": draw(4, 6)},
        {"pattern": "2:4"},
        "is put together or taken apart by Concat 'w'",
    ),
    "an embedding too": (
        "g (int64[3] i) => (float[3,8] y) { e = Gather(w, i) y = MatMul(e, w) }",
        {"w": draw(8, 8)},
        {"ratio": 0.5},
        "'w' is also read by Gather 'e'",
    ),
    "read by something else": (
        "g (float[1,8] x) => (float[1,8] y, float[8,8] z) { y = MatMul(x, w) z = Relu(w) }",
        {"w": draw(8, 8)},
        {"ratio": 0.5},
        "'w' is also read by Relu 'z'",
    ),
    "computed": (
        "g (float[1,2,4,4] x, float[3,2,1,1] u) => (float[1,3,4,4] y) { w = Relu(u) y = Conv(x, w) }",
        {},
        {"ratio": 0.5},
        "'w' is computed",
    ),
    "NaN": (
        "g (float[1,2] x) => (float[1,2] y) { y = MatMul(x, w) }",
        {"w": np.array([[1, np.nan], [2, 3]], np.float32)},
        {"ratio": 0.5},
        "'w' holds NaN or Inf",
    ),
    "skipped by the user": (TEXT, WEIGHTS, {"ratio": 0.5, "skip": ("a", "y")}, "left out by --skip a"),
    "nothing below the threshold": (TEXT, WEIGHTS, {"threshold": 1e-9}, "'w' has nothing more to zero"),
}


@pytest.mark.parametrize(("text", "weights", "options", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusals(text: str, weights: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    assert_skips(create("zero-weights", **options), model(text, **weights), re.escape(reason))


# -- what else a weight may be -----------------------------------------------------------------------------------------


def test_a_shared_weight_stays_shared() -> None:
    text = "g (float[1,8] x) => (float[1,8] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }"
    proto = model(text, w=draw(8, 8))
    after, result = run_alone(create("zero-weights", pattern="2:4"), proto)
    assert [each.site for each in result.rewritten] == ["a", "y"]
    assert len(after.graph.initializer) == 1
    assert len({node.input[1] for node in after.graph.node if node.op_type == "MatMul"}) == 1


def test_a_vetoed_layer_keeps_its_weight() -> None:
    subject = from_proto(model(TEXT, **WEIGHTS))
    result = create("zero-weights", ratio=0.5).apply(GraphView(subject, {"a": "broke the contract"}))
    assert [(each.site, each.reason) for each in result.skipped] == [("a", "broke the contract")]
    np.testing.assert_array_equal(initializers(to_proto(subject))["w"], WEIGHTS["w"])


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16], ids=["float16", "double", "bfloat16"])
def test_other_float_types(kind: Any) -> None:
    name = {np.float16: "float16", np.float64: "double"}.get(kind, "bfloat16")
    values = draw(8, 6).astype(kind)
    proto = model(f"g ({name}[1,8] x) => ({name}[1,6] y) {{ y = MatMul(x, w) }}", w=values)
    for options in ({"ratio": 0.5}, {"pattern": "2:4"}, {"threshold": 0.5}):
        after, result = run_alone(create("zero-weights", **options), proto)
        assert result.rewritten
        found = initializers(after)["w"]
        assert found.dtype == values.dtype
        assert 0.2 < np.count_nonzero(found) / found.size < 0.8
        np.testing.assert_array_equal(found[found != 0], values[found != 0])


def test_recurrent_weights() -> None:
    text = "g (float[5,1,4] x) => (float[5,1,1,3] y) { y = LSTM<hidden_size=3>(x, w, r) }"
    found = zero(model(text, w=draw(1, 12, 4), r=draw(1, 12, 3)), ratio=0.5)
    assert np.count_nonzero(found["w"]) == 24
    assert np.count_nonzero(found["r"]) == 18


def test_the_report_tells_what_it_cost() -> None:
    _, result = run_alone(create("zero-weights", ratio=0.5), model(TEXT, **WEIGHTS))
    dropped = np.sort(np.abs(WEIGHTS["w"].astype(np.float64)).ravel())[:144]
    sqnr = 10 * np.log10(np.square(WEIGHTS["w"].astype(np.float64)).sum() / np.square(dropped).sum())
    assert result.rewritten[0].detail == f"144 of 288 weights of 'w' are zero (50.0%), {sqnr:.1f} dB"


def test_the_pipeline_keeps_what_the_user_asked_for() -> None:
    result = graphopt.optimize(model(TEXT, **WEIGHTS), [create("zero-weights", ratio=0.95)])
    assert [each.kept for each in result.report.passes] == [True]
    assert result.report.passes[0].check is not None
    assert result.report.passes[0].check.sqnr_db is not None


# -- by gradients ------------------------------------------------------------------------------------------------------

NET = """g (float[N,1,5,5] x) => (float[N,4] y) {
  a = Conv(x, w, b) r = Relu(a) f = Flatten(r) h = MatMul(f, u) s = Tanh(h) y = Gemm<transB = 1>(s, v) }"""
TRAINED = {"w": draw(4, 1, 3, 3), "b": draw(4), "u": draw(36, 8) / 2, "v": draw(4, 8, seed=1)}
IMAGES = draw(24, 1, 5, 5)
LABELS = np.random.default_rng(5).integers(0, 4, 24)


def losses(weights: dict[str, NDArray[Any]], labels: NDArray[Any] | None) -> NDArray[np.float64]:
    """The cross-entropy of each sample in float64, with the labels or else with the likeliest class of TRAINED."""
    scores = []
    for trained in (weights, TRAINED):
        w, b, u, v = (trained[name].astype(np.float64) for name in ("w", "b", "u", "v"))
        seen = np.lib.stride_tricks.sliding_window_view(IMAGES[:, 0].astype(np.float64), (3, 3), axis=(1, 2))
        maps = np.einsum("nijkl,mkl->nmij", seen, w[:, 0]) + b[:, None, None]
        scores.append(np.tanh(np.maximum(maps, 0).reshape(len(maps), -1) @ u) @ v.T)
    chosen = scores[1].argmax(axis=1) if labels is None else labels
    rows = scores[0] - scores[0].max(axis=1, keepdims=True)
    return np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), chosen]


def measured(name: str, criterion: str, labels: NDArray[Any] | None) -> NDArray[np.float64]:
    """The mean over samples of |dL/dw| or |w dL/dw| by central differences."""
    values = TRAINED[name].astype(np.float64)
    found = np.zeros(values.shape)
    for at in np.ndindex(*values.shape):
        moved = []
        for step in (1e-6, -1e-6):
            shifted = values.copy()
            shifted[at] += step
            moved.append(losses(TRAINED | {name: shifted}, labels))
        found[at] = np.abs((moved[0] - moved[1]) / 2e-6).mean()
    return found * np.abs(values) if criterion == "taylor" else found


def judged(proto: onnx.ModelProto, labels: NDArray[Any] | None = None, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Run the pass on the images; a second run must do nothing."""
    pytest.importorskip("onnx_ad")
    subject = from_proto(proto)
    data = from_arrays({"x": IMAGES} | ({} if labels is None else {"labels": labels}), subject)
    result = create("zero-weights", **options).apply(GraphView(subject, None, data, subject))
    after = to_proto(subject)
    if "threshold" not in options:
        again = from_proto(after)
        assert not create("zero-weights", **options).apply(GraphView(again, None, data, again)).rewritten
    return result, initializers(after)


def marked(exact: NDArray[np.float64], axis: int, options: dict[str, Any]) -> NDArray[np.bool_]:
    """What has to go: 30%, what lies below 0.15, or all but the best of every four along an axis."""
    if "ratio" in options:
        return exact < np.sort(exact, axis=None)[int(0.3 * exact.size)]
    if "threshold" in options:
        return exact < 0.15
    rows = np.moveaxis(exact, axis, -1)
    blocks = rows.reshape(-1, 4)
    return np.moveaxis((blocks < blocks.max(axis=1, keepdims=True)).reshape(rows.shape), -1, axis)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "its own answers"])
@pytest.mark.parametrize("criterion", ["gradient", "taylor"])
@pytest.mark.parametrize("options", [{"ratio": 0.3}, {"threshold": 0.15}, {"pattern": "1:4"}], ids=str)
def test_what_differences_in_float64_put_last_goes(criterion: str, labelled: bool, options: dict[str, Any]) -> None:
    labels, some = LABELS if labelled else None, []
    _, found = judged(model(NET, **TRAINED), labels, criterion=criterion, **options)
    for name, axis in (("u", 0), ("v", 1), *([] if "pattern" in options else [("w", 1)])):
        gone = marked(measured(name, criterion, labels), axis, options)
        some += [gone.any(), not gone.all()]
        np.testing.assert_array_equal(found[name], np.where(gone, np.float32(0), TRAINED[name]), err_msg=name)
    assert sum(some) > len(some) // 2, "next to nothing was tested"
    np.testing.assert_array_equal(found["b"], TRAINED["b"])


@pytest.mark.parametrize("criterion", ["gradient", "taylor"])
def test_a_share_of_all_weights_by_gradient(criterion: str) -> None:
    _, found = judged(model(NET, **TRAINED), LABELS, criterion=criterion, ratio=0.4, scope="global")
    exact = [measured(name, criterion, LABELS).ravel() for name in ("w", "u", "v")]
    joined = np.concatenate(exact)
    limit = np.sort(joined)[int(0.4 * joined.size)]
    gone = np.concatenate([(found[name] == 0).ravel() for name in ("w", "u", "v")])
    np.testing.assert_array_equal(gone, joined < limit)


def test_weights_that_no_loss_depends_on_go_by_magnitude_then_by_place() -> None:
    """Half of the units are dead: their gradients are nought, all alike, and yet only the share asked for goes."""
    weights = {"w": np.abs(draw(8, 8)), "b": np.full(8, 50, np.float32), "v": draw(4, 8)}
    weights["b"][::2] = -500
    weights["w"][0, 0] = weights["w"][1, 0] = 9
    text = "g (float[N,8] x) => (float[N,4] y) { a = Gemm<transB = 1>(x, w, b) r = Relu(a) y = Gemm<transB = 1>(r, v) }"
    subject = from_proto(model(text, **weights))
    data = from_arrays({"x": draw(24, 8), "labels": LABELS}, subject)
    pytest.importorskip("onnx_ad")
    assert create("zero-weights", criterion="gradient", ratio=0.25).apply(GraphView(subject, None, data)).rewritten
    found = initializers(to_proto(subject))["w"]
    assert np.count_nonzero(found == 0) == 16
    assert not (found[1::2] == 0).any()
    kept = weights["w"][::2][found[::2] != 0]
    assert weights["w"][::2][found[::2] == 0].max() < kept.min()


UNJUDGED: dict[str, tuple[str, dict[str, Any], str]] = {
    "inside a branch": (
        "g (float[N,1,5,5] x) => (float[N,4] y) { f = Flatten(x) c = Constant<value = bool {1}>()"
        " m = If(c)<then_branch = t () => (float[N,4] p) { p = MatMul(f, w) },"
        " else_branch = e () => (float[N,4] q) { q = MatMul(f, w) }> y = MatMul(m, v) }",
        {"w": draw(25, 4), "v": draw(4, 4)},
        r"no gradient reaches 'w' \(float32, MatMul\)",
    ),
    "half precision": (
        "g (float[N,1,5,5] x) => (float[N,4] y) { f = Flatten(x) c = Cast<to = 10>(f) m = MatMul(c, w)"
        " d = Cast<to = 1>(m) y = MatMul(d, v) }",
        {"w": draw(25, 4).astype(np.float16), "v": draw(4, 4)},
        r"no gradient reaches 'w' \(float16, MatMul\)",
    ),
    "no class scores": (
        "g (float[N,1,5,5] x) => (float[N,1,3,3] y) { y = Conv(x, w) }",
        {"w": draw(1, 1, 3, 3)},
        "class",
    ),
}


@pytest.mark.parametrize(("text", "weights", "reason"), UNJUDGED.values(), ids=UNJUDGED)
def test_what_no_gradient_reaches_stays(text: str, weights: dict[str, Any], reason: str) -> None:
    result, found = judged(model(text, **weights), None, criterion="gradient", ratio=0.5)
    assert any(re.search(reason, each.reason) for each in result.skipped), result
    np.testing.assert_array_equal(found["w"], weights["w"])


def test_recurrent_weights_by_gradient() -> None:
    text = """g (float[N,1,5,5] x) => (float[N,4] y) { k = Constant<value = int64[3] {-1,5,5}>() s = Reshape(x, k)
      t = Transpose<perm = [1,0,2]>(s) q, h = LSTM<hidden_size = 4>(t, w, r, b) y = Squeeze(h, z) }"""
    weights = {"w": draw(1, 16, 5), "r": draw(1, 16, 4), "b": draw(1, 32), "z": np.array([0], np.int64)}
    _, found = judged(model(text, **weights), LABELS, criterion="taylor", ratio=0.5)
    assert np.count_nonzero(found["w"] == 0) == 40
    assert np.count_nonzero(found["r"] == 0) == 32
    np.testing.assert_array_equal(found["b"], weights["b"])


@pytest.mark.parametrize("given", ["no data", "generated data"])
def test_criteria_that_need_data_say_so_in_one_line(given: str) -> None:
    subject = from_proto(model(NET, **TRAINED))
    before = to_proto(subject).SerializeToString()
    data = generate(subject) if given == "generated data" else None
    result = create("zero-weights", criterion="taylor", ratio=0.5).apply(GraphView(subject, None, data))
    assert {each.reason for each in result.skipped} == {"the taylor criterion needs calibration data (--data)"}
    assert to_proto(subject).SerializeToString() == before


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ad", None)
    subject = from_proto(model(NET, **TRAINED))
    data = from_arrays({"x": IMAGES}, subject)
    result = create("zero-weights", criterion="gradient", ratio=0.5).apply(GraphView(subject, None, data))
    assert not result.rewritten
    assert {each.reason for each in result.skipped} == {
        "gradients need the package onnx-ad: pip install 'graphopt[distill]'"
    }


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no amount": ({}, "give one of --ratio, --threshold and --pattern"),
    "two amounts": ({"ratio": 0.5, "pattern": "2:4"}, "give one of"),
    "no pattern": ({"pattern": "half"}, "'half' is not N:M"),
    "all of them": ({"pattern": "4:4"}, "'4:4' is not N:M"),
    "none of them": ({"pattern": "0:4"}, "'0:4' is not N:M"),
    "negative threshold": ({"threshold": -1.0}, "--threshold: -1.0 is out of range"),
}


@pytest.mark.parametrize(("options", "reason"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_make_no_sense(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=re.escape(reason)):
        create("zero-weights", **options)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    st.floats(0, 1),
)
def test_never_more_than_asked_for_and_only_the_smallest(values: list[float], ratio: float) -> None:
    before = np.array(values, np.float32).reshape(-1, 1)
    proto = model(f"g (float[1,{len(values)}] x) => (float[1,1] y) {{ y = MatMul(x, w) }}", w=before)
    after, _ = run_alone(create("zero-weights", ratio=ratio), proto)
    found = initializers(after)["w"]
    gone = (found == 0) & (before != 0)
    assert np.count_nonzero(gone | (before == 0)) <= max(int(ratio * before.size + 1e-9), np.count_nonzero(before == 0))
    np.testing.assert_array_equal(found[~gone], before[~gone])
    if gone.any() and not gone.all():
        assert np.abs(before[gone]).max() < np.abs(before[~gone & (before != 0)]).min(initial=np.inf)
