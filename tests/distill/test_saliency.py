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
from graphopt.testing import model

Task = Any
"""The fixture of conftest.py: teacher, student, data, images."""


def differences(task: Task, labels: np.ndarray, name: str, at: tuple[int, ...], count: int) -> list[float]:
    """|dL/dw| of each sample by central differences."""
    losses = []
    step = 1e-2
    for sign in (1, -1):
        proto = to_proto(task.teacher)
        for tensor in proto.graph.initializer:
            if tensor.name == name:
                value = onnx.numpy_helper.to_array(tensor).copy()
                value[at] += sign * step
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))
        scores = Session(proto).run({"x": task.images[:count]})["y"]
        losses.append([cross_entropy_values(scores[i : i + 1], labels[i : i + 1]) for i in range(count)])
    return [abs(up - down) / (2 * step) for up, down in zip(*losses, strict=True)]


@pytest.mark.parametrize("labelled", [True, False])
def test_the_mean_over_single_samples(task: Task, labelled: bool) -> None:
    pytest.importorskip("onnx_ad")
    own = np.argmax(Session(to_proto(task.teacher)).run({"x": task.images})["y"], axis=1)
    data = task.data if labelled else from_arrays({"x": task.images}, task.teacher)
    labels = np.asarray(task.data.labels) if labelled else own
    found = gradient_saliency(task.teacher, data, limit=24, threads=1)
    for name, at in (("w1", (2, 0, 1, 1)), ("w2", (3, 0, 0, 2)), ("w4", (1, 2)), ("b3", (4,))):
        wanted = np.mean(differences(task, labels, name, at, 24))
        assert found[name][at] == pytest.approx(wanted, rel=0.05, abs=1e-3)


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
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in to_proto(subject).graph.initializer}
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
