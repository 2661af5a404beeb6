"""Gradient saliency against per-sample finite differences, and as a criterion of zero-channels."""

from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import GraphView, create
from graphopt.distill.losses import cross_entropy_values
from graphopt.distill.saliency import gradient_saliency
from graphopt.errors import DataError, ModelError
from graphopt.model import from_proto, to_proto
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.runtime.session import Session
from graphopt.testing import initializers, model

Task = Any
"""The fixture of conftest.py: teacher, student, data, images."""


def windows(images: np.ndarray) -> np.ndarray:
    """Every 3 x 3 window of images with a border of noughts: [N, C, H, W, 3, 3]."""
    around = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(around, (3, 3), axis=(2, 3))


def losses(values: dict[str, np.ndarray], images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The cross-entropy of each sample, by the definition of the fixture's network, in float64."""
    w1, w2, w3, w4 = (values[f"w{n}"] for n in (1, 2, 3, 4))
    b1, b2, b3, b4 = (values[f"b{n}"] for n in (1, 2, 3, 4))
    r = np.maximum(np.einsum("ncijkl,mckl->nmij", windows(images), w1) + b1[:, None, None], 0)
    e = np.maximum(np.einsum("ncijkl,ckl->ncij", windows(r), w2[:, 0]) + b2[:, None, None], 0)
    c = np.einsum("ncij,mc->nmij", e, w3[:, :, 0, 0]) + b3[:, None, None]
    scores = (c + r).mean(axis=(2, 3)) @ w4.T + b4
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]


def differences(
    proto: onnx.ModelProto, images: np.ndarray, labels: np.ndarray, name: str, at: tuple[int, ...]
) -> np.ndarray:
    """|dL/dw| of each sample by central differences."""
    stored = proto.graph.initializer
    values = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(np.float64) for tensor in stored}
    ends = []
    for step in (1e-6, -1e-6):
        moved = {**values, name: values[name].copy()}
        moved[name][at] += step
        ends.append(losses(moved, images.astype(np.float64), labels))
    return np.abs(ends[0] - ends[1]) / 2e-6


@pytest.mark.parametrize("labelled", [True, False])
def test_the_mean_over_single_samples(task: Task, labelled: bool) -> None:
    pytest.importorskip("onnx_ad")
    proto = to_proto(task.teacher)
    for tensor in proto.graph.initializer:  # less sure of itself: p - 1 has few digits left where p is nearly 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(0.5), tensor.name))
    images, subject = task.images[:24], from_proto(proto)
    own = np.argmax(Session(proto).run({"x": images})["y"], axis=1)
    labels = np.asarray(task.data.labels)[:24] if labelled else own
    data = from_arrays({"x": images} | ({"labels": labels} if labelled else {}), subject)
    found = gradient_saliency(subject, data, limit=24, threads=1)
    assert sorted(found) == ["b1", "b2", "b3", "b4", "w1", "w2", "w3", "w4"]
    for name, values in found.items():
        wanted = np.array([differences(proto, images, labels, name, at).mean() for at in np.ndindex(*values.shape)])
        assert wanted.max() > 0.01
        np.testing.assert_allclose(values.ravel(), wanted, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(op: str, gates: int, direction: str) -> None:
    pytest.importorskip("onnx_ad")
    rng, ways = np.random.default_rng(0), 1 if direction == "forward" else 2
    shapes = {"w": (ways, gates * 4, 3), "r": (ways, gates * 4, 4), "b": (ways, 8 * gates), "v": (4, 4 * ways)}
    weights = {name: (rng.standard_normal(shape) / 2).astype(np.float32) for name, shape in shapes.items()}
    text = f"""g (float[N,5,3] x) => (float[N,4] y) {{ t = Transpose<perm = [1,0,2]>(x)
      s, h = {op}<hidden_size = 4, direction = "{direction}">(t, w, r, b)
      k = Transpose<perm = [1,0,2]>(h) f = Flatten(k) y = Gemm<transB = 1>(f, v) }}"""
    steps, labels = rng.standard_normal((8, 5, 3)).astype(np.float32), np.arange(8) % 4
    subject = from_proto(model(text, **weights))
    found = gradient_saliency(subject, from_arrays({"x": steps, "labels": labels}, subject), limit=8, threads=1)

    def single(name: str, at: tuple[int, ...], step: float) -> np.ndarray:
        moved = {**weights, name: weights[name].copy()}
        moved[name][at] += step
        scores = Session(model(text, **moved)).run({"x": steps})["y"]
        return np.array([cross_entropy_values(scores[i : i + 1], labels[i : i + 1]) for i in range(8)])

    for name, shape in shapes.items():
        for at in [tuple(0 for _ in shape), tuple(size - 1 for size in shape)]:
            wanted = np.abs(single(name, at, 1e-2) - single(name, at, -1e-2)).mean() / 2e-2
            assert found[name][at] == pytest.approx(wanted, rel=1e-3, abs=1e-5), (name, at)


def test_taylor_is_gradient_times_weight(task: Task) -> None:
    pytest.importorskip("onnx_ad")
    gradient, taylor = (gradient_saliency(task.teacher, task.data, kind, limit=8) for kind in ("gradient", "taylor"))
    for tensor in to_proto(task.teacher).graph.initializer:
        weight = np.abs(onnx.numpy_helper.to_array(tensor).astype(np.float64))
        np.testing.assert_allclose(taylor[tensor.name], gradient[tensor.name] * weight, rtol=1e-12)


def test_a_criterion_of_zero_channels(task: Task) -> None:
    """Channel 4 feeds nothing but a weight of nearly zero: no loss depends on it, however large it is."""
    pytest.importorskip("onnx_ad")
    rng = np.random.default_rng(0)
    w, u = rng.standard_normal((6, 1, 3, 3)).astype(np.float32), rng.standard_normal((4, 6)).astype(np.float32)
    w[4] *= 10
    u[:, 4] = 1e-6
    text = """g (float[N,1,8,8] x) => (float[N,4] y) {
      a = Conv(x, w) r = Relu(a) p = GlobalAveragePool(r) q = Flatten(p) y = Gemm<transB = 1>(q, u) }"""
    gone = {}
    for criterion in ("l1", "gradient", "taylor"):
        subject = from_proto(model(text, w=w, u=u))
        view = GraphView(subject, None, task.data, subject)
        assert create("zero-channels", criterion=criterion, ratio=0.17).apply(view).rewritten
        stored = initializers(to_proto(subject))
        gone[criterion] = [c for c in range(6) if not stored["w"][c].any()]
    assert gone["gradient"] == gone["taylor"] == [4]
    assert gone["l1"] != [4]


def test_without_data_the_criterion_says_so(task: Task) -> None:
    subject = from_proto(task.student)
    result = create("zero-channels", criterion="taylor", ratio=0.5).apply(GraphView(subject))
    assert not result.rewritten
    assert any("the taylor criterion needs calibration data" in each.reason for each in result.skipped)


def test_refusals(task: Task) -> None:
    pytest.importorskip("onnx_ad")
    with pytest.raises(DataError, match="cannot learn from generated inputs"):
        gradient_saliency(task.teacher, generate(task.teacher))
    maps = from_proto(
        model("g (float[N,1,8,8] x) => (float[N,1,8,8] y) { y = Conv(x, w) }", w=np.ones((1, 1, 1, 1), np.float32))
    )
    with pytest.raises(ModelError, match="needs a model that gives class scores"):
        gradient_saliency(maps, task.data)
