"""Whole models side by side, on the user's data and on generated ones; top-1; latency."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.contract import BitExact, FloatExact, Lossy
from graphopt.errors import DataError
from graphopt.model import Model, from_proto, load
from graphopt.proof.accuracy import top1
from graphopt.proof.latency import latency
from graphopt.proof.proof import compare_models
from graphopt.runtime.data import ArrayData
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.testing import model

TIGHT = FloatExact(rtol=1e-4, atol=1e-5)
RNG = np.random.default_rng(0)
W = RNG.standard_normal((6, 4)).astype(np.float32)
X = RNG.standard_normal((7, 6)).astype(np.float32)


def linear(weight: np.ndarray, batch: str = "N") -> Model:
    return from_proto(model(f"g (float[{batch},6] x) => (float[{batch},4] y) {{ y = MatMul(x, w) }}", w=weight))


def test_equal_models_hold_bit_for_bit() -> None:
    result = compare_models(linear(W), linear(W), generate(linear(W)), BitExact())
    assert (result.holds, result.max_abs, result.notes) == (True, 0.0, ())


@pytest.mark.parametrize(("error", "holds"), [(1e-6, True), (1e-2, False)])
def test_rounding_holds_and_more_does_not(error: float, holds: bool) -> None:
    off = W * np.float32(1 + error)
    result = compare_models(linear(W), linear(off), from_arrays({"x": X}, linear(W)), TIGHT)
    assert result.holds is holds
    assert result.max_abs == pytest.approx(np.abs(X @ off - X @ W).max(), abs=1e-6)
    assert result.max_abs > 0
    assert not result.notes


def test_lossy_measures_all_data() -> None:
    off = W + np.float32(0.01) * RNG.standard_normal(W.shape).astype(np.float32)
    result = compare_models(linear(W), linear(off), from_arrays({"x": X}, linear(W)), Lossy(20))
    r, c = (X @ W).astype("f8"), (X @ off).astype("f8")
    signal = ((r - r.mean(axis=0)) ** 2).sum()
    assert result.where == "output 'y', what tells samples apart"
    assert result.sqnr_db == pytest.approx(10 * np.log10(signal / ((r - c) ** 2).sum()), abs=1e-3)
    assert result.holds


def test_the_limit_counts_samples_in_whole_batches() -> None:
    bad = X.copy()
    off = W.copy()
    off[0] += 1
    bad[:5, 0] = 0
    data = from_arrays({"x": bad}, linear(W))
    assert isinstance(data, ArrayData)
    single = replace(data, batch=1)
    assert compare_models(linear(W), linear(off), single, TIGHT, 5).holds
    assert not compare_models(linear(W), linear(off), single, TIGHT, 6).holds
    assert not compare_models(linear(W), linear(off), data, TIGHT, 5).holds


def test_a_candidate_with_another_output_name() -> None:
    other = from_proto(model("g (float[N,6] x) => (float[N,4] z) { z = MatMul(x, w) }", w=W))
    result = compare_models(linear(W), other, generate(linear(W)), TIGHT)
    assert [output.problem for output in result.outputs] == ["is gone", "is new"]


def test_optimizations_can_be_compared_with_none() -> None:
    assert compare_models(linear(W), linear(W), generate(linear(W)), TIGHT, optimize=True).holds


@pytest.mark.parametrize("batch", ["N", "1", "3", "10"])
def test_top1_with_every_kind_of_batch(batch: str) -> None:
    subject = linear(W, batch)
    labels = np.argmax(X @ W, axis=1)
    labels[[0, 6]] = (labels[[0, 6]] + 1) % 4
    data = from_arrays({"x": X, "labels": labels}, subject)
    assert top1(subject, data) == pytest.approx(5 / 7)


def test_top1_without_a_batch_axis() -> None:
    subject = from_proto(model("g (float[6] x) => (float[4] y) { y = MatMul(x, w) }", w=W))
    data = from_arrays({"x": X, "labels": np.argmax(X @ W, axis=1)}, subject)
    assert top1(subject, data) == 1.0


def test_top1_needs_labels_and_scores() -> None:
    with pytest.raises(DataError, match="no labels"):
        top1(linear(W), from_arrays({"x": X}, linear(W)))
    whole = from_proto(model("g (int64[N,6] x) => (int64[N,6] y) { y = Identity(x) }"))
    data = from_arrays({"x": np.ones((2, 6), np.int64), "labels": np.zeros(2, np.int64)}, whole)
    with pytest.raises(DataError, match="no float output"):
        top1(whole, data)
    flat = from_proto(model("g (float[N,6] x) => (float[M] y) { y = MatMul(x, w) }", w=W[:, 0]))
    with pytest.raises(DataError, match=r"output 'y' of shape \(7,\) has 1 rows of class scores for 7 samples"):
        top1(flat, from_arrays({"x": X, "labels": np.zeros(7, np.int64)}, flat))


def test_latency_is_measured_of_both() -> None:
    small = linear(W)
    wide = RNG.standard_normal((6, 2000)).astype(np.float32)
    deep = RNG.standard_normal((2000, 2000)).astype(np.float32)
    text = "g (float[N,6] x) => (float[N,2000] y) { a = MatMul(x, w) b = MatMul(a, v) y = MatMul(b, v) }"
    large = from_proto(model(text, w=wide, v=deep))
    measured = latency(large, small, generate(small))
    assert measured.before > measured.after > 0
    assert not measured.slower
    assert latency(small, large, generate(small)).slower


def test_real_models(models: Path) -> None:
    subject = load(models / "fmnist_resnet14_bn.onnx")
    proto = onnx.load(models / "fmnist_resnet14_bn.onnx")
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] *= np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    assert not compare_models(subject, from_proto(proto), generate(subject), TIGHT).holds
