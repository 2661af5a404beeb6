"""The pass reconstruct: damaged layers are fitted, what is pruned stays pruned, and every refusal has its reason."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from graphopt import GraphView, PassResult, create
from graphopt.model import Model, from_proto, to_proto
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.runtime.session import Session
from graphopt.testing import initializers, model

Arrays = dict[str, NDArray[Any]]

NET = """g (float[N,3,9,9] x) => (float[N,5] y) {
  a = Conv<pads = [1,1,1,1]>(x, w1, b1) r = Relu(a)
  d = Conv<auto_pad = "SAME_UPPER", group = 8>(r, w2, b2) e = Relu(d)
  c = Conv<strides = [1,1], dilations = [1,1]>(e, w3, b3) s = Add(c, r) t = Relu(s)
  p = GlobalAveragePool(t) q = Flatten(p) m = MatMul(q, w4) k = Add(m, b4) u = Relu(k)
  y = Gemm<alpha = 0.5, beta = 2.0>(u, w5, b5) }"""
SITES = ["a", "d", "c", "m", "y"]


def weights(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (8, 7), "w5": (7, 5)}
    sizes = {"b1": 8, "b2": 8, "b3": 8, "b4": 7, "b5": 5}
    drawn = {name: rng.standard_normal(shape) * 0.5 for name, shape in shapes.items()}
    drawn |= {name: rng.standard_normal(size) * 0.5 for name, size in sizes.items()}
    return {name: value.astype(np.float32) for name, value in drawn.items()}


def damaged(given: Arrays) -> Arrays:
    """Channels 1 and 5 of the stream are zero; all other weights are off."""
    result = {name: value.copy() for name, value in given.items()}
    for name in ("w1", "b1", "w2", "b2", "w3", "b3"):
        result[name][[1, 5]] = 0
    result["w4"] = (result["w4"] * 0.8).astype(np.float32)
    result["b5"] = result["b5"] + np.float32(0.5)
    return result


def images(count: int = 120) -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((count, 3, 9, 9)).astype(np.float32)


def run(
    student: onnx.ModelProto, teacher: onnx.ModelProto, *, count: int = 120, vetoes: Any = None, **options: Any
) -> tuple[onnx.ModelProto, PassResult]:
    original = from_proto(teacher)
    subject = from_proto(onnx.ModelProto.FromString(student.SerializeToString()))
    result = create("reconstruct", **options).apply(
        GraphView(subject, vetoes, from_arrays({"x": images(count)}, original), original)
    )
    return to_proto(subject), result


def error(candidate: onnx.ModelProto, teacher: onnx.ModelProto) -> float:
    feeds = {"x": np.random.default_rng(99).standard_normal((200, 3, 9, 9)).astype(np.float32)}
    wanted, given = Session(teacher).run(feeds)["y"], Session(candidate).run(feeds)["y"]
    return float(np.square(given - wanted).mean() / wanted.var())


def test_fits_what_pruning_has_left() -> None:
    teacher, student = model(NET, **weights()), model(NET, **damaged(weights()))
    after, result = run(student, teacher)
    assert {each.site for each in result.rewritten} == {"c", "m", "y"}
    assert {each.reason for each in result.skipped} == {"it answers as the original does"}, "channels that nothing hit"
    assert error(after, teacher) < 0.2 * error(student, teacher)
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in student.graph.node]
    onnx.checker.check_model(after, full_check=True)


def test_a_bias_that_a_caller_can_override_stays() -> None:
    """The layer before it is fitted to what the bias is by default, if the data do not feed it."""
    text = NET.replace("9,9] x)", "9,9] x, float[7] b4)")
    teacher, student = model(text, **weights()), model(text, **damaged(weights()))
    after, result = run(student, teacher)
    assert "m" in {each.site for each in result.rewritten}
    np.testing.assert_array_equal(initializers(after)["b4"], weights()["b4"])
    assert [info.name for info in after.graph.input] == ["x", "b4"]
    assert error(after, teacher) < 0.2 * error(student, teacher)


def test_bias_alone_helps_less() -> None:
    teacher, student = model(NET, **weights()), model(NET, **damaged(weights()))
    bias, result = run(student, teacher, method="bias")
    ridge, _ = run(student, teacher)
    assert result.rewritten
    assert error(ridge, teacher) < error(bias, teacher) < error(student, teacher)
    before, after = initializers(student), initializers(bias)
    assert all(np.array_equal(after[name], before[name]) for name in before if name.startswith("w"))


def test_what_is_zero_stays_zero() -> None:
    given = damaged(weights())
    given["w5"][3, 2] = 0
    student = model(NET, **given)
    for method in ("ridge", "bias"):
        after = initializers(run(student, model(NET, **weights()), method=method)[0])
        for name in ("w1", "b1", "w2", "b2", "w3", "b3"):
            assert not after[name][[1, 5]].any(), name
        assert after["w5"][3, 2] == 0


def test_a_second_run_does_nothing() -> None:
    teacher, student = model(NET, **weights()), model(NET, **damaged(weights()))
    once, _ = run(student, teacher)
    twice, result = run(once, teacher)
    assert not result.rewritten
    assert twice.SerializeToString() == once.SerializeToString()


def test_a_pruned_model_is_fitted_to_the_channels_that_are_left() -> None:
    """Cut exactly, fitting gives what fitting before the cut gives."""
    teacher, student = model(NET, **weights()), model(NET, **damaged(weights()))
    cut = from_proto(student)
    create("prune-channels", multiple=1).apply(GraphView(cut))
    assert to_proto(cut).graph.initializer != student.graph.initializer
    after, result = run(to_proto(cut), teacher)
    assert {each.site for each in result.rewritten} == {"c", "m", "y"}
    assert initializers(after)["w3"].shape == (6, 6, 1, 1)
    whole, _ = run(student, teacher)
    assert error(after, teacher) == pytest.approx(error(whole, teacher), rel=0.05)


def test_channels_that_weights_do_not_tell_are_left_alone() -> None:
    given = weights()
    cut = {name: np.delete(given[name], [1, 5], 0) for name in ("w1", "b1", "w2", "b2", "w3", "b3")}
    cut["w3"] = np.delete(cut["w3"], [1, 5], 1)
    cut["w4"] = np.delete(given["w4"], [1, 5], 0)
    cut["w1"] = cut["w1"][::-1].copy()
    student = model(NET.replace("group = 8", "group = 6"), **{**given, **cut})
    _, result = run(student, model(NET, **given))
    told = {each.site: each.reason for each in result.skipped}
    assert "its weights do not tell which channels are left" in told["a"]


def test_the_branch_beside_an_add_is_made_up_for() -> None:
    """The first convolution is wrong and vetoed: the third has to bring the sum right, not its own output."""
    text = """g (float[N,3,9,9] x) => (float[N,4,9,9] y) {
      a = Conv(x, w1) b = Conv(x, w2, b2) y = Add(b, a) }"""
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((4, 3, 1, 1)).astype(np.float32) for name in ("w1", "w2")}
    given["b2"] = np.zeros(4, np.float32)
    teacher, student = model(text, **given), model(text, **{**given, "w1": given["w1"] * np.float32(0.5)})
    after, result = run(student, teacher, vetoes={"a": "vetoed"})
    assert [each.site for each in result.rewritten] == ["b"]
    assert error(after, teacher) < 1e-6
    np.testing.assert_allclose(initializers(after)["w2"], given["w2"] + 0.5 * given["w1"], atol=1e-2)


def test_names_that_a_fold_has_left_behind_are_seen_through() -> None:
    """After folding, 'a' names what was 'n' before; only its reader tells."""
    rng = np.random.default_rng(3)
    one = rng.standard_normal(6).astype(np.float32)
    norm = {"g": one + 3, "h": one, "mu": one - 1, "v": one**2 + 0.3}
    w, u = rng.standard_normal((6, 3, 3, 3)).astype(np.float32), rng.standard_normal((4, 6, 9, 9)).astype(np.float32)
    teacher = model(
        "g (float[N,3,9,9] x) => (float[N,4,1,1] y) "
        "{ a = Conv<pads = [1,1,1,1]>(x, w) n = BatchNormalization(a, g, h, mu, v) r = Relu(n) y = Conv(r, u) }",
        w=w,
        u=u,
        **norm,
    )
    scale = norm["g"] / np.sqrt(norm["v"] + 1e-5)
    folded = {"w": w * scale[:, None, None, None], "b": norm["h"] - norm["mu"] * scale, "u": u}
    text = (
        "g (float[N,3,9,9] x) => (float[N,4,1,1] y) { a = Conv<pads = [1,1,1,1]>(x, w, b) r = Relu(a) y = Conv(r, u) }"
    )
    off = 0.4 * rng.standard_normal(w.shape).astype(np.float32)
    student = model(text, **{**folded, "w": folded["w"] + off})
    after, result = run(student, teacher)
    assert "a" in {each.site for each in result.rewritten}
    np.testing.assert_allclose(initializers(after)["w"], folded["w"], atol=0.05 * np.abs(off).max())
    assert error(after, teacher) < 0.1 * error(student, teacher)


def test_quantized_weights_get_a_bias_only() -> None:
    given = weights()
    scale = np.float32(np.abs(given["w1"]).max() / 3)
    levels = np.round(given["w1"] / scale).astype(np.int8)
    text = NET.replace("a = Conv", "v = DequantizeLinear(q1, s1) a = Conv").replace("x, w1", "x, v")
    rest = {name: value for name, value in given.items() if name != "w1"}
    student = model(text, q1=levels, s1=scale, **rest)
    teacher = model(NET, **given)
    after, result = run(student, teacher, min_gain=0.0)
    told = {each.site: each.detail for each in result.rewritten}
    assert told["a"].startswith("bias fitted (its weight is quantized)")
    np.testing.assert_array_equal(initializers(after)["q1"], levels)
    assert error(after, teacher) < error(student, teacher)


def test_half_precision() -> None:
    text = NET.replace("float[", "float16[")
    teacher = model(text, **{name: value.astype(np.float16) for name, value in weights().items()})
    student = model(text, **{name: value.astype(np.float16) for name, value in damaged(weights()).items()})
    original, subject = from_proto(teacher), from_proto(student)
    data = from_arrays({"x": images().astype(np.float16)}, original)
    result = create("reconstruct").apply(GraphView(subject, None, data, original))
    assert result.rewritten
    assert {value.dtype for value in initializers(to_proto(subject)).values()} == {np.dtype(np.float16)}


def reasons(result: PassResult) -> dict[str, str]:
    assert not result.rewritten, result.rewritten
    return {each.site: each.reason for each in result.skipped}


def refusal(student: onnx.ModelProto, teacher: onnx.ModelProto, **options: Any) -> dict[str, str]:
    after, result = run(student, teacher, **options)
    assert after.SerializeToString() == student.SerializeToString(), "the skipped model has changed"
    return reasons(result)


def test_an_undamaged_model_is_left_alone() -> None:
    teacher = model(NET, **weights())
    assert set(refusal(teacher, teacher).values()) == {"it answers as the original does"}


def test_vetoes() -> None:
    teacher, student = model(NET, **weights()), model(NET, **damaged(weights()))
    assert set(refusal(student, teacher, vetoes=dict.fromkeys(SITES, "not this one")).values()) == {"not this one"}


def test_too_few_samples() -> None:
    teacher, student = model(NET, **weights()), model(NET, **damaged(weights()))
    found = set(refusal(student, teacher, count=4).values())
    assert found == {"needs at least 5 calibration samples"}


@pytest.mark.parametrize("kind", ["none", "generated", "no original"])
def test_nothing_to_learn_from(kind: str) -> None:
    original, subject = from_proto(model(NET, **weights())), from_proto(model(NET, **damaged(weights())))
    data = {"none": None, "generated": generate(original)}.get(kind, from_arrays({"x": images()}, original))
    view = GraphView(subject, None, data, None if kind == "no original" else original)
    before = to_proto(subject).SerializeToString()
    found = set(reasons(create("reconstruct").apply(view)).values())
    assert len(found) == 1
    assert ("there is no original" if kind == "no original" else "needs calibration data") in found.pop()
    assert to_proto(subject).SerializeToString() == before


ODD: dict[str, tuple[str, Arrays, str, str]] = {
    "shared weight": (
        "g (float[N,3,9,9] x) => (float[N,3,9,9] y) { a = Conv(x, w) y = Conv(a, w) }",
        {"w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)},
        "a",
        "its weight 'w' is shared by 2 nodes",
    ),
    "overridable weight": (
        "g (float[N,3,9,9] x, float[3,3,1,1] w) => (float[N,3,9,9] y) { y = Conv(x, w) }",
        {"w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)},
        "y",
        "'w' can be overridden by the caller",
    ),
    "computed weight": (
        "g (float[N,3,9,9] x) => (float[N,3,9,9] y) { v = Softmax(w) y = Conv(x, v) }",
        {"w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)},
        "y",
        "'v' is not constant",
    ),
    "transposed input": (
        "g (float[N,3,9,9] x) => (float[3,2] y) { m = ReduceMean<axes = [2,3], keepdims = 0>(x) "
        "y = Gemm<transA = 1>(m, w) }",
        {"w": np.ones((120, 2), np.float32)},
        "y",
        "its input is transposed",
    ),
    "all zero": (
        "g (float[N,3,9,9] x) => (float[N,3,9,9] y) { y = Conv(x, w, b) }",
        {"w": np.zeros((3, 3, 1, 1), np.float32), "b": np.ones(3, np.float32)},
        "y",
        "all of its weights are zero",
    ),
    "unknown to the original": (
        "g (float[N,3,9,9] x) => (float[N,3,9,9] z) { z = Conv(x, w) }",
        {"w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)},
        "z",
        "the original has no tensor that 'z' stands for",
    ),
    "another shape": (
        "g (float[N,3,9,9] x) => (float[N,2,9,9] y) { y = Conv(x, w) }",
        {"w": np.ones((2, 3, 1, 1), np.float32)},
        "y",
        "'y' has another shape than 'y' of the original",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_refusals(name: str) -> None:
    text, given, site, reason = ODD[name]
    teacher = model(
        "g (float[N,3,9,9] x) => (float[N,3,9,9] y) { a = Conv(x, w) y = Conv(a, u) }",
        w=np.random.default_rng(0).standard_normal((3, 3, 1, 1)).astype(np.float32),
        u=np.random.default_rng(1).standard_normal((3, 3, 1, 1)).astype(np.float32),
    )
    assert reason in refusal(model(text, **given), teacher)[site]


def test_a_fit_that_leads_away_is_taken_back() -> None:
    """The same names on different things: each layer can be fitted, the outputs only get worse."""
    text = "g (float[N,3,9,9] x) => (float[N,3,9,9] y) {{ a = Conv(x, w) r = Relu({}) y = Conv(r, u) }}"
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((3, 3, 1, 1)).astype(np.float32) for name in ("w", "u")}
    teacher = model(text.format("a"), **given)
    off = {**given, "w": -given["w"]}
    student = model(
        "g (float[N,3,9,9] x) => (float[N,3,9,9] y) { a = Conv(x, w) n = Neg(a) r = Relu(n) y = Conv(r, u) }", **off
    )
    found = refusal(student, teacher, vetoes={"y": "not this one"})
    assert "fitting the layers moved the outputs away from the original's" in found["a"]


def test_layers_in_subgraphs_are_told_of() -> None:
    text = """g (float[N,3,9,9] x, bool c) => (float[N,3,9,9] y) {
      y = If(c) <then_branch = t () => (float[N,3,9,9] p) { p = Conv(x, w) },
                 else_branch = e () => (float[N,3,9,9] q) { q = Conv(x, u) }> }"""
    given = {name: np.full((3, 3, 1, 1), k, np.float32) for k, name in enumerate(("w", "u"), 1)}
    teacher, student = model(text, **given), model(text, **{**given, "w": given["u"]})
    original, subject = from_proto(teacher), from_proto(student)
    data = from_arrays({"x": images(10), "c": np.asarray(True)}, original)
    result = create("reconstruct").apply(GraphView(subject, None, data, original))
    assert set(reasons(result).values()) == {"is inside a subgraph or function"}


def test_the_original_is_not_changed() -> None:
    teacher: Model = from_proto(model(NET, **weights()))
    before = to_proto(teacher).SerializeToString()
    subject = from_proto(model(NET, **damaged(weights())))
    create("reconstruct").apply(GraphView(subject, None, from_arrays({"x": images()}, teacher), teacher))
    assert to_proto(teacher).SerializeToString() == before
