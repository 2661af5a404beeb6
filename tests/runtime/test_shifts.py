"""Mean shifts: what they are, and that they are given up where they take the outputs further away."""

from dataclasses import replace

import numpy as np
import pytest

from graphopt.model import from_proto
from graphopt.runtime.capture import Runs
from graphopt.runtime.data import ArrayData
from graphopt.runtime.feeds import from_arrays
from graphopt.runtime.shifts import Means
from graphopt.testing import model

HEAD = "g (float[N,3,6] x) => (float[N,3,6] y, float[N,3,6] x) {"
X = np.where(np.random.default_rng(4).random((32, 3, 6)) < 0.9, -10.0, 8.0).astype(np.float32)


def shifts(inexact: str, x: np.ndarray = X, batch: int = 64) -> dict[str, np.ndarray]:
    """The shifts of ``h`` between an exact model and one that computes it by ``inexact``."""
    tenth, one = np.array(0.1, np.float32), np.array(1.0, np.float32)
    before = from_proto(model(f"{HEAD} h = Identity(x)  y = Relu(h) }}"))
    after = from_proto(model(f"{HEAD} {inexact}  y = Relu(h) }}", tenth=tenth, one=one))
    means = Means(before, {"h": (1, 3)}, len(x))
    data = from_arrays({"x": x}, before)
    assert isinstance(data, ArrayData)
    runs = Runs(before, means.names, replace(data, batch=batch), 64, lambda: means.form(before))
    for samples, tensors in runs:
        means.add(tensors, samples)
    return means.shifts(after, lambda: runs.data.batches(64))


def test_what_a_channel_lacks_everywhere_is_given_back() -> None:
    found = shifts("h = Sub(x, one)")
    np.testing.assert_allclose(found["h"], np.ones(3), rtol=1e-5, atol=0)


@pytest.mark.parametrize("batch", [1, 24, 64])
def test_samples_count_alike_in_portions_of_any_size(batch: int) -> None:
    x = (
        np.random.default_rng(7).random((40, 3, 6), np.float32)
        + 9
        + np.arange(40, dtype=np.float32)[:, None, None] / 10
    )
    found = shifts("h0 = Mul(x, tenth)  h = Sub(x, h0)", x, batch)
    np.testing.assert_allclose(found["h"], 0.1 * x.mean(axis=(0, 2), dtype=np.float64), rtol=1e-5, atol=0)


def test_what_only_the_background_lacks_is_not_given_to_the_rest() -> None:
    background = "a = Neg(x)  b = Relu(a)  c = Mul(b, tenth)  h = Sub(x, c)"
    assert shifts(background) == {}  # the Relu hides the background's error; the mean would move what is right


def test_what_is_learnt_first_is_judged_by_what_comes_later() -> None:
    x = np.where(np.arange(32)[:, None, None] < 16, -10.0, 8.0) * np.ones((32, 3, 6), np.float32)
    background = "a = Neg(x)  b = Relu(a)  c = Mul(b, tenth)  h = Sub(x, c)"
    assert shifts(background, x.astype(np.float32), batch=1) == {}


def test_behind_a_tensor_that_is_not_corrected_the_next_makes_up_for_both() -> None:
    one, text = np.array(1.0, np.float32), "g (float[N,3,6] x) => (float[N,3,6] y) {"
    before = from_proto(model(f"{text} a = Identity(x)  b = Identity(a)  y = Neg(b) }}"))
    after = from_proto(model(f"{text} a = Sub(x, one)  b = Sub(a, one)  y = Neg(b) }}", one=one))
    for names, lacks in {("a", "b"): {"a": 1, "b": 1}, ("b",): {"b": 2}, ("a",): {"a": 1}, (): {}}.items():
        means = Means(before, {"a": (1, 3), "b": (1, 3)}, len(X))
        runs = Runs(before, means.names, from_arrays({"x": X}, before), 64, lambda each=means: each.form(before))
        for samples, tensors in runs:
            means.add(tensors, samples)
        found = means.narrowed(names).shifts(after, lambda data=runs.data: data.batches(64))
        assert set(found) == set(lacks)
        for name, shift in found.items():
            np.testing.assert_allclose(shift, np.full(3, lacks[name]), rtol=1e-5, atol=0)
