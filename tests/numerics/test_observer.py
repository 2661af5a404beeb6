"""Observers: extremes sample by sample, histograms against NumPy's, and the samples that alone set a range."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graphopt.numerics.histogram import BINS
from graphopt.numerics.observer import Loud, Observer
from graphopt.numerics.quantization import TYPES, Affine

UNSIGNED = Affine(TYPES["uint8"], symmetric=False)


def samples(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 40)).astype(np.float32)


def watched(values: NDArray[Any], portion: int = 7, most: int = 0) -> Observer:
    """An observer that has seen samples in portions."""
    observer = Observer(most)
    for start in range(0, len(values), portion):
        part = values[start : start + portion]
        observer.add(part, len(part))
    return observer


@pytest.mark.parametrize("sizes", [[1.0], [0.01, 1.0, 300.0, 5.0], [1e-30, 1e30], [0.0, 1.0], [0.0]], ids=str)
def test_histograms_of_all_octaves_add_up_to_one(sizes: list[float]) -> None:
    values = samples(30) * np.resize(np.array(sizes, np.float32), 30)[:, None]
    seen = watched(values).histogram()
    assert (seen.low, seen.high) == (values.min(), values.max())
    peak = float(np.abs(values).max())
    assert peak < seen.reach
    assert peak == 0 or seen.reach <= 2 * peak
    edges = np.linspace(-seen.reach, seen.reach, BINS + 1)
    np.testing.assert_array_equal(seen.counts, np.histogram(values.astype(np.float64), edges)[0])


@pytest.mark.parametrize("portion", [1, 7, 64])
def test_portions_do_not_matter(portion: int) -> None:
    values = samples(40) * np.float32(3)
    whole, parts = watched(values, 40).histogram(), watched(values, portion).histogram()
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert (whole.low, whole.high, whole.reach) == (parts.low, parts.high, parts.reach)


def test_a_part_of_the_values_gives_nearly_the_same_range() -> None:
    values = np.random.default_rng(2).standard_normal((200, 4000)).astype(np.float32)
    exact, part = watched(values).histogram(), watched(values, most=300).histogram()
    assert part.counts.sum() <= 200 * 400
    assert (part.low, part.high) == (exact.low, exact.high)
    np.testing.assert_allclose(part.bounds("mse", 99.9, UNSIGNED), exact.bounds("mse", 99.9, UNSIGNED), rtol=0.1)


def test_one_sample_sets_the_range() -> None:
    values = samples(256)
    values[17, 5] = -9999
    observer = watched(values)
    loud = observer.loud()
    others = np.delete(values, 17, axis=0)
    assert loud is not None
    assert (loud.samples, str(loud)) == ((17,), "sample 17")
    assert loud.width == pytest.approx(9999 + float(values.max()))
    assert loud.usual == float(others.max()) - float(others.min())
    clean, seen = watched(others).histogram(), observer.histogram(loud.samples)
    assert (seen.low, seen.high, seen.reach) == (clean.low, clean.high, clean.reach)
    np.testing.assert_array_equal(seen.counts, clean.counts)


def test_several_loud_samples() -> None:
    values = samples(100)
    values[[3, 50, 99, 98], [0, 1, 2, 3]] = [1e4, 9e3, 9.96921e36, 9e3]
    loud = watched(values).loud()
    assert loud is not None
    assert (loud.samples, str(loud)) == ((3, 50, 98, 99), "samples 3, 50, 98, ...")
    assert loud.usual < 10


UNREMARKABLE = {
    "alike": samples(64),
    "the widest is three times the next": np.concatenate([np.ones((63, 4)), np.full((1, 4), 3.0)]),
    "a tenth of all": np.concatenate([np.ones((90, 4)), np.full((10, 4), 100.0)]),
    "few samples": np.concatenate([np.ones((14, 4)), np.full((1, 4), 100.0)]),
    "the others are zero": np.concatenate([np.zeros((63, 4)), np.full((1, 4), 100.0)]),
    "nothing finite": np.full((64, 4), np.nan),
}


@pytest.mark.parametrize("case", UNREMARKABLE)
def test_no_sample_is_loud(case: str) -> None:
    assert watched(UNREMARKABLE[case]).loud() is None


def test_a_portion_that_cannot_be_divided_counts_as_one() -> None:
    observer = Observer()
    for index in range(32):
        observer.add(np.ones((3, 4)) * (100 if index == 30 else 1), 2)
    assert observer.loud() == Loud((60,), 99.0, 0.0)
