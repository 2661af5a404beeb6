"""Runs: every sample once, in portions that fit, with the number of samples in each."""

from dataclasses import replace

import numpy as np
import pytest

from graphopt.model import from_proto
from graphopt.runtime.capture import Runs
from graphopt.runtime.data import ArrayData, ListData
from graphopt.runtime.feeds import from_arrays
from graphopt.testing import model

X = np.random.default_rng(0).random((10, 3), np.float32)


def net(samples: str = "N") -> str:
    return f"g (float[{samples},3] x) => (float[{samples},3] y) {{ h = Neg(x)  y = Relu(h) }}"


@pytest.mark.parametrize(("batch", "limit", "counts"), [(4, 64, [4, 4, 2]), (4, 7, [4, 3]), (1, 3, [1, 1, 1])])
def test_portions_and_their_counts(batch: int, limit: int, counts: list[int]) -> None:
    subject = from_proto(model(net()))
    data = from_arrays({"x": X}, subject)
    assert isinstance(data, ArrayData)
    runs = list(Runs(subject, ["h", "y"], replace(data, batch=batch), limit))
    assert [count for count, _ in runs] == counts
    np.testing.assert_array_equal(np.concatenate([found["h"] for _, found in runs]), -X[: sum(counts)])


def test_a_filled_up_batch_counts_the_samples_that_there_are() -> None:
    subject = from_proto(model(net("4")))
    runs = list(Runs(subject, ["h"], from_arrays({"x": X}, subject), 64))
    assert [count for count, _ in runs] == [4, 4, 2]
    assert all(found["h"].shape == (4, 3) for _, found in runs)


def test_each_set_of_feeds_counts_as_one() -> None:
    subject = from_proto(model(net()))
    runs = list(Runs(subject, ["x", "h"], ListData([{"x": X}, {"x": X[:2]}]), 64))
    assert [(count, len(found["h"])) for count, found in runs] == [(1, 10), (1, 2)]


def test_portions_are_cut_to_half_a_megabyte() -> None:
    wide = model("g (float[N,32768] x) => (float[N,32768] y) { y = Neg(x) }")
    subject = from_proto(wide)
    data = from_arrays({"x": np.zeros((12, 32768), np.float32)}, subject)
    assert [count for count, _ in Runs(subject, ["y"], data, 64)] == [4, 4, 4]
