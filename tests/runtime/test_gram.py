"""Weights that are quantized one layer behind the other, against the same in plain float64."""

from typing import Any

import numpy as np
import onnx
import pytest
from graphopt.passes.quantize_weights import QuantizeWeights
from numpy.typing import NDArray

from graphopt.graph import GraphView
from graphopt.graph.linear import read_layer
from graphopt.model import Model, from_proto, to_proto
from graphopt.runtime import gram
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.runtime.gram import look
from graphopt.runtime.session import Session
from graphopt.testing import model

Floats = NDArray[np.float64]


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed + sum(shape)).standard_normal(shape) / 3).astype(np.float32)


def quantized(proto: onnx.ModelProto, feeds: dict[str, Any], **options: Any) -> tuple[Model, list[str]]:
    """Quantize to int4 with these data; return the model and what the pass tells of each layer."""
    subject = from_proto(proto)
    data = from_arrays(feeds, subject)
    result = QuantizeWeights(dtype="int4", **options).apply(GraphView(subject, calibration=data))
    assert not result.skipped
    return subject, [each.detail for each in result.rewritten]


def outputs(subject: Model | onnx.ModelProto, feeds: dict[str, Any]) -> NDArray[Any]:
    proto = subject if isinstance(subject, onnx.ModelProto) else to_proto(subject)
    return np.asarray(next(iter(Session(proto).run(feeds).values())))


# -- the same in plain float64 -----------------------------------------------------------------------------------------

DENSE = """
    g (float[N,12] x) => (float[N,5] y) {
        a = Gemm<transB=1, alpha=2.0>(x, w1, b1)
        c = Relu(a)
        d = Gemm(c, w2, b2)
        e = Relu(d)
        f = MatMul(e, w3)
        y = Add(f, b3)
    }
"""


def plain_scale(weight: Floats) -> NDArray[np.float32]:
    """Of each row: its value of largest magnitude becomes level -8."""
    return (np.take_along_axis(weight, np.abs(weight).argmax(axis=1)[:, None], 1)[:, 0] / -8).astype(np.float32)


def plain_gptq(weight: Floats, gram: Floats, scale: Floats) -> Floats:
    """Frantar et al. 2023, with an explicit inverse; symmetric int4."""
    order = np.argsort(-np.diag(gram), kind="stable")
    inverse = np.linalg.inv(gram + 0.01 * np.diag(gram).mean() * np.eye(len(gram)))
    left, real = weight.copy(), np.zeros_like(weight)
    for column in order:
        real[:, column] = np.clip(np.rint(left[:, column] / scale), -8, 7) * scale
        left -= np.outer((left[:, column] - real[:, column]) / inverse[column, column], inverse[column])
        inverse = inverse - np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column, column] = 1.0
    return real


def plain_fit(weight: Floats, rows: Floats, wanted: Floats, corrected: bool, damping: float) -> tuple[Floats, Floats]:
    """Least squares with rows that pull towards the weight as it is; without a bias nothing is centred."""
    mean_rows, mean_wanted = rows.mean(axis=0) * corrected, wanted.mean(axis=0) * corrected
    a, y = rows - mean_rows, wanted - mean_wanted
    pull = np.sqrt(damping * np.trace(a.T @ a) / a.shape[1]) * np.eye(a.shape[1])
    fitted = np.linalg.lstsq(np.vstack([a, pull]), np.vstack([y, pull @ weight.T]), rcond=None)[0].T
    return fitted, mean_wanted - fitted @ mean_rows


def plain_layer(
    weight: Floats, bias: Floats, rows: Floats, wanted: Floats, corrected: bool, factor: float
) -> tuple[Floats, Floats]:
    """Fit, round, correct: a layer [M, K] from its inputs behind quantized layers to its outputs in float."""
    aside = np.arange(len(rows)) % 5 == 4
    tries: list[tuple[float, Floats]] = []
    for damping in (0.01, 0.1, 1.0, 10.0, 1e12):
        fitted, shift = plain_fit(factor * weight, rows[~aside], (wanted - bias)[~aside], corrected, damping)
        lost = float(np.square(rows[aside] @ fitted.T + shift - (wanted - bias)[aside]).sum())
        tries.append((lost, plain_fit(factor * weight, rows, wanted - bias, corrected, damping)[0]))
    target = min(tries, key=lambda each: each[0])[1] / factor
    scale = plain_scale(weight)
    a = rows - rows.mean(axis=0) * corrected
    real = plain_gptq(target, a.T @ a, scale.astype(np.float64))
    return real, wanted.mean(axis=0) - factor * real @ rows.mean(axis=0) if corrected else bias


@pytest.mark.parametrize("corrected", [True, False], ids=["biases corrected", "biases left"])
def test_dense_layers_against_plain_float64(corrected: bool) -> None:
    parts = {"w1": draw(16, 12), "b1": draw(16), "w2": draw(16, 10), "b2": draw(10), "w3": draw(10, 5), "b3": draw(5)}
    proto = model(DENSE, 21, 10, **parts)
    x = np.random.default_rng(3).standard_normal((200, 12)).astype(np.float32) + 0.5
    subject, told = quantized(proto, {"x": x}, rounding="gptq", bias_correction=corrected)
    assert all(("by GPTQ" in each) and ("bias corrected" in each) == corrected for each in told)

    wide = {name: value.astype(np.float64) for name, value in parts.items()}
    layers = [(wide["w1"], wide["b1"], 2.0), (wide["w2"].T, wide["b2"], 1.0), (wide["w3"].T, wide["b3"], 1.0)]
    float_rows = rows = x.astype(np.float64)
    for weight, bias, factor in layers:
        wanted = factor * float_rows @ weight.T + bias
        real, shifted = plain_layer(weight, bias, rows, wanted, corrected, factor)
        result = factor * rows @ real.T + shifted
        float_rows, rows = np.maximum(wanted, 0.0), np.maximum(result, 0.0)
    np.testing.assert_allclose(outputs(subject, {"x": x}), result, rtol=1e-4, atol=1e-4)


def test_biases_alone_get_what_their_weights_lose_on_the_float_inputs() -> None:
    """(W - W') times the mean row, in closed form; nothing of the errors of other layers."""
    parts = {"w1": draw(16, 12), "b1": draw(16), "w2": draw(16, 10), "b2": draw(10), "w3": draw(10, 5), "b3": draw(5)}
    x = np.random.default_rng(3).standard_normal((200, 12)).astype(np.float32) + 0.5
    subject, _ = quantized(model(DENSE, 21, 10, **parts), {"x": x}, bias_correction=True)
    wide = {name: value.astype(np.float64) for name, value in parts.items()}
    float_rows = rows = x.astype(np.float64)
    for weight, bias, factor in ((wide["w1"], "b1", 2.0), (wide["w2"].T, "b2", 1.0), (wide["w3"].T, "b3", 1.0)):
        scale = plain_scale(weight).astype(np.float64)[:, None]
        real = np.clip(np.rint(weight / scale), -8, 7) * scale
        result = factor * rows @ real.T + wide[bias] + factor * (weight - real) @ float_rows.mean(axis=0)
        float_rows, rows = np.maximum(factor * float_rows @ weight.T + wide[bias], 0.0), np.maximum(result, 0.0)
    np.testing.assert_allclose(outputs(subject, {"x": x}), result, rtol=1e-4, atol=1e-4)


# -- what it is worth --------------------------------------------------------------------------------------------------

TEXT_READER = """
    g (float[N,3,12,W] x) => (float[N,T,20] y) {
        c0 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w0, b0)
        r0 = Relu(c0)
        c1 = Conv<pads=[1,1,1,1], group=16>(r0, w1)
        r1 = Relu(c1)
        c2 = Conv(r1, w2, b2)
        r2 = Relu(c2)
        c3 = Conv<group=4, pads=[1,0,1,0]>(r2, w3)
        h = ReduceMean<keepdims=0>(c3, rows)
        l = Conv<pads=[1,1]>(h, w4, b4)
        s = Transpose<perm=[0,2,1]>(l)
        q = MatMul(s, wq)
        k = MatMul(s, wk)
        kt = Transpose<perm=[0,2,1]>(k)
        qk = MatMul(q, kt)
        p = Softmax<axis=-1>(qk)
        v = MatMul(p, s)
        o = MatMul(v, wo)
        ob = Add(o, bo)
        z = Add(ob, s)
        y = MatMul(z, wy)
    }
"""


def text_reader() -> onnx.ModelProto:
    """Full, depthwise, pointwise, grouped and 1-D convolutions, attention, a head without bias; any width."""
    parts = {"w0": draw(16, 3, 3, 3), "w1": draw(16, 1, 3, 3) * 2, "w2": draw(24, 16, 1, 1), "w3": draw(24, 6, 3, 1)}
    parts |= {"w4": draw(32, 24, 3), "wq": draw(32, 32), "wk": draw(32, 32), "wo": draw(32, 32), "wy": draw(32, 20)}
    parts |= {"b0": draw(16), "b2": draw(24), "b4": draw(32), "bo": draw(32)}
    return model(TEXT_READER, 21, 10, **parts, rows=np.array([2], np.int64))


def lines(count: int, width: int, seed: int) -> NDArray[np.float32]:
    """Pictures with neighbours alike and a constant ground."""
    noise = np.random.default_rng(seed).standard_normal((count, 3, 12, width))
    smooth = noise.cumsum(axis=3).cumsum(axis=2) / 12
    return np.maximum(smooth, -0.5).astype(np.float32)


def ratio(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


def test_every_layer_of_a_text_reader_is_reached_and_the_net_gains() -> None:
    proto, feeds, others = text_reader(), {"x": lines(48, 40, 1)}, {"x": lines(64, 52, 2)}
    wanted = outputs(proto, others)
    plain, _ = quantized(proto, feeds)
    shifted, told = quantized(proto, feeds, bias_correction=True)
    assert ["bias corrected" in each for each in told].count(False) == 3  # the queries, the keys and the head have none
    rounded, told = quantized(proto, feeds, rounding="gptq", bias_correction=True)
    assert all("by GPTQ" in each for each in told)
    found = [ratio(wanted, outputs(each, others)) for each in (plain, shifted, rounded)]
    assert found[2] > found[0] + 5.0
    assert found[2] > found[1] + 3.0


def test_means_are_right_behind_layers_that_are_quantized() -> None:
    """The mean of a corrected layer's output is the float one, to float precision, however deep it lies."""
    proto = text_reader()
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("c0", "c1", "c2", "c3", "l"))
    feeds = {"x": lines(32, 20, 1)}
    subject, _ = quantized(proto, feeds, rounding="gptq", bias_correction=True)
    wanted, found = Session(proto).run(feeds), Session(to_proto(subject)).run(feeds)
    for name, value in wanted.items():
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        assert np.abs(found[name] - value).max() > 1e-3
        np.testing.assert_allclose(found[name].mean(axis=axes), value.mean(axis=axes), atol=2e-5)


def test_errors_do_not_pile_up_over_forty_layers() -> None:
    names = [f"w{index}" for index in range(40)]
    steps = "".join(f"m{i} = MatMul(h{i}, w{i}) h{i + 1} = Relu(m{i}) " for i in range(40))
    parts = {name: draw(24, 24, seed=index) * 0.85 for index, name in enumerate(names)}
    proto = model(
        f"g (float[N,24] x) => (float[N,24] y) {{ h0 = Identity(x) {steps} y = Identity(h40) }}", 21, 10, **parts
    )
    x = np.random.default_rng(0).standard_normal((600, 24)).astype(np.float32)
    wanted = outputs(proto, {"x": x[300:]})
    plain, _ = quantized(proto, {"x": x[:300]})
    rounded, told = quantized(proto, {"x": x[:300]}, rounding="gptq")
    assert sum("by GPTQ" in each for each in told) == 40
    assert ratio(wanted, outputs(rounded, {"x": x[300:]})) > ratio(wanted, outputs(plain, {"x": x[300:]})) + 6.0


@pytest.mark.parametrize("stages", [1, 3, 128])
def test_layers_of_one_stage_do_not_make_up_for_the_same_errors(stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer stages than layers the net is worse than with one for each, but better than to the nearest."""
    monkeypatch.setattr(gram, "_STAGES", stages)
    steps = "".join(f"m{i} = MatMul(h{i}, w{i}) h{i + 1} = Relu(m{i}) " for i in range(9))
    parts = {f"w{index}": draw(24, 24, seed=index) * 1.2 for index in range(9)}
    proto = model(
        f"g (float[N,24] x) => (float[N,24] y) {{ h0 = Identity(x) {steps} y = Identity(h9) }}", 21, 10, **parts
    )
    x = np.random.default_rng(0).standard_normal((1200, 24)).astype(np.float32)
    wanted = outputs(proto, {"x": x[600:]})
    found = [
        ratio(wanted, outputs(quantized(proto, {"x": x[:600]}, rounding=each)[0], {"x": x[600:]}))
        for each in ("nearest", "gptq")
    ]
    assert found[1] > found[0] + {1: 1.0, 3: 2.0, 128: 3.0}[stages]


# -- edges -------------------------------------------------------------------------------------------------------------


def test_generated_inputs_teach_no_weights() -> None:
    subject = from_proto(
        model(DENSE, 21, 10, w1=draw(16, 12), b1=draw(16), w2=draw(16, 10), b2=draw(10), w3=draw(10, 5), b3=draw(5))
    )
    view = GraphView(subject)
    assert [seen.fit for seen in look(view, list(view.nodes("Gemm", "MatMul")), generate(subject), 8)] == [False] * 3


def test_layers_without_finite_inputs_are_left_out() -> None:
    proto = model(
        "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { l = Log(x) y = MatMul(l, w) z = MatMul(x, v) }",
        21,
        10,
        w=draw(4, 4),
        v=draw(4, 4),
    )
    subject = from_proto(proto)
    view = GraphView(subject)
    data = from_arrays({"x": -np.ones((4, 4), np.float32)}, subject)
    seen = list(look(view, list(view.nodes("MatMul")), data, 8))
    assert [str(each.layer.node.outputs[0].name) for each in seen] == ["z"]


def test_means_only_keep_no_second_moments() -> None:
    proto = model("g (float[N,4] x) => (float[N,4] y) { y = Gemm(x, w, b) }", 21, 10, w=draw(4, 4), b=draw(4))
    subject = from_proto(proto)
    view = GraphView(subject)
    x = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    (seen,) = look(view, list(view.nodes("Gemm")), from_arrays({"x": x}, subject), 9, squares=False)
    total = seen.moments[0] + seen.moments[1]
    assert (seen.moments[0].rows, seen.moments[1].rows) == (8, 1)
    assert total.aa.size == total.ay.size == 0
    np.testing.assert_allclose(total.a[0], x.astype(np.float64).sum(axis=0))
    weight = read_layer(view, seen.layer.node).weight
    assert weight is not None
    np.testing.assert_allclose(total.y[0], (x.astype(np.float64) @ weight[0].T).sum(axis=0), atol=1e-5)


# -- what the data cannot carry ----------------------------------------------------------------------------------------


def dense() -> tuple[onnx.ModelProto, Any]:
    parts = {"w1": draw(16, 12), "b1": draw(16), "w2": draw(16, 10), "b2": draw(10), "w3": draw(10, 5), "b3": draw(5)}
    return model(DENSE, 21, 10, **parts), np.random.default_rng(3)


@pytest.mark.parametrize("count", [1, 4, 15])
def test_few_samples_fit_nothing_and_it_says_why(count: int) -> None:
    proto, rng = dense()
    feeds = {"x": rng.standard_normal((count, 12)).astype(np.float32)}
    subject, told = quantized(proto, feeds, rounding="gptq", bias_correction=True)
    nearest, _ = quantized(proto, feeds)
    unseen = {"x": rng.standard_normal((64, 12)).astype(np.float32)}
    np.testing.assert_array_equal(outputs(subject, unseen), outputs(nearest, unseen))
    for detail, columns in zip(told, (12, 16, 10), strict=True):
        assert f"to the nearest: GPTQ needs {4 * columns} rows of data here, there are {count}" in detail
        assert f"its bias left as it is: 16 samples are needed to correct it, there are {count}" in detail


def test_enough_rows_for_some_layers_only() -> None:
    proto, rng = dense()
    feeds = {"x": rng.standard_normal((50, 12)).astype(np.float32)}
    _, told = quantized(proto, feeds, rounding="gptq", bias_correction=True)
    assert ["by GPTQ" in each for each in told] == [True, False, True]
    assert all("with its bias corrected" in each for each in told)


def test_positions_count_as_rows_but_not_as_samples() -> None:
    text = "g (float[N,3,8,8] x) => (float[N,64,8,8] y) { y = Conv(x, w, b) }"
    proto = model(text, 21, 10, w=draw(64, 3, 1, 1), b=draw(64))
    _, told = quantized(proto, {"x": lines(2, 8, 1)[:, :, :8]}, rounding="gptq", bias_correction=True)
    assert "by GPTQ" in told[0]
    assert "16 samples are needed to correct it, there are 2" in told[0]


def test_what_is_fitted_gains_on_unseen_samples_too() -> None:
    """At the fewest rows that are taken for enough, and above: better than the nearest levels on white noise."""
    proto, rng = dense()
    unseen = {"x": rng.standard_normal((512, 12)).astype(np.float32)}
    wanted, gains = outputs(proto, unseen), []
    for _ in range(8):
        feeds = {"x": rng.standard_normal((64, 12)).astype(np.float32)}
        found = [
            quantized(proto, feeds, **options)[0] for options in ({}, {"rounding": "gptq", "bias_correction": True})
        ]
        nearest, fitted = (ratio(wanted, outputs(each, unseen)) for each in found)
        gains.append(fitted - nearest)
    assert np.mean(gains) > 0.3, gains
