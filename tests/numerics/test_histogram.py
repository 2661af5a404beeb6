"""Ranges from streamed values, against the values themselves and against the published rule written out in loops."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graphopt.numerics.histogram import BINS, Histogram, _divergence
from graphopt.numerics.observer import Observer
from graphopt.numerics.quantization import TYPES, Affine

UNSIGNED = Affine(TYPES["uint8"], symmetric=False)
SYMMETRIC = Affine(TYPES["int8"])
RULES = ["percentile", "mse", "entropy"]


def observer(*parts: NDArray[Any]) -> Histogram:
    """What an observer has seen of these values."""
    result = Observer()
    for part in parts:
        result.add(part)
    return result.histogram()


def stream(seed: int) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(1000).astype(np.float32) * size for size in (0.1, 1.0, 5.0, 0.5)]


def error(values: NDArray[Any], low: float, high: float, affine: Affine) -> float:
    """The squared error of quantizing these values, one by one, in float64, by the definition."""
    low, high = min(low, 0.0), max(high, 0.0)
    if affine.even:
        bottom, top, zero = -127, 127, 0
        scale = float(np.float32(max(-low, high) / 127))
    else:
        bottom, top = 0, 255
        scale = float(np.float32((high - low) / 255))
        zero = min(max(round(-low / scale), 0), 255)
    total = 0.0
    for value, count in zip(*np.unique(values.astype(np.float64), return_counts=True), strict=True):
        level = min(max(round(value / scale) + zero, bottom), top)
        total += count * ((level - zero) * scale - value) ** 2
    return total


def background() -> NDArray[np.float32]:
    """What a stem's Relu gives for pictures on one ground: half zeros, a few spikes, the rest spread out."""
    rng = np.random.default_rng(0)
    ground = np.repeat(np.maximum(rng.standard_normal(16) * 0.7, 0.0), 4000)
    rest = np.maximum(rng.standard_normal(60_000) * 1.5, 0.0)
    return np.concatenate([ground, rest]).astype(np.float32)


def test_observer_sees_the_whole_stream() -> None:
    seen = observer(*stream(0))
    together = np.concatenate(stream(0))
    assert seen.bounds("minmax", 99.9, UNSIGNED) == (float(together.min()), float(together.max()))
    assert seen.counts.sum() == together.size
    assert seen.counts.shape == (BINS,)
    low, high = seen.bounds("percentile", 99.0, UNSIGNED)
    width = 2 * seen.reach / BINS
    assert abs(low - np.percentile(together, 0.5)) <= width + 0.1
    assert abs(high - np.percentile(together, 99.5)) <= width + 0.1


@pytest.mark.parametrize("affine", [UNSIGNED, SYMMETRIC], ids=["unsigned", "symmetric"])
@pytest.mark.parametrize("rule", RULES)
def test_outliers_are_clipped(rule: str, affine: Affine) -> None:
    seen = observer(np.random.default_rng(0).standard_normal(200_000), np.array([30.0]))
    low, high = seen.bounds(rule, 99.99, affine)
    assert 2.0 < high < 25.0
    assert low >= seen.low


def test_an_outlier_that_weighs_more_than_all_rounding_stays() -> None:
    """To clip one value by 285 costs 81,000; steps of 0.04 instead of 1.2 on 200,000 values gain 24,000."""
    values = np.concatenate([np.random.default_rng(0).standard_normal(200_000), [300.0]])
    low, high = observer(values).bounds("entropy", 99.99, UNSIGNED)
    assert error(values, low, high, UNSIGNED) <= error(values, float(values.min()), 300.0, UNSIGNED)
    assert high > 100.0


def test_observer_passes_over_what_is_not_finite() -> None:
    seen = Observer()
    seen.add(np.array([np.nan, np.inf], np.float32))
    assert not seen.any_finite
    seen.add(np.array([1.0, np.nan, -2.0], np.float32))
    seen.add(np.zeros((0, 3), np.float32))
    assert seen.histogram().bounds("minmax", 99.9, UNSIGNED) == (-2.0, 1.0)
    assert seen.histogram().counts.sum() == 2


@pytest.mark.parametrize("affine", [UNSIGNED, SYMMETRIC], ids=["unsigned", "symmetric"])
def test_zeros_behind_a_relu_do_not_narrow_the_entropy_range(affine: Affine) -> None:
    seen = observer(np.maximum(np.random.default_rng(0).standard_normal(200_000), 0))
    low, high = seen.bounds("entropy", 99.99, affine)
    assert low == 0.0
    assert high > 2.5


def cases() -> Iterator[Any]:
    rng = np.random.default_rng(1)
    yield pytest.param(background(), id="spikes of a background")
    yield pytest.param(rng.integers(0, 256, 20_000) / 255 * 2.8 - 0.8, id="grey levels of an image")
    yield pytest.param(np.where(rng.random(20_000) < 0.9, -0.8, rng.standard_normal(20_000)), id="one value repeats")
    yield pytest.param(np.minimum(np.maximum(rng.standard_normal(20_000) * 4, 0), 6), id="clipped at six")
    yield pytest.param(rng.standard_normal(20_000) ** 3, id="long tails")
    yield pytest.param(rng.random(20_000) + 5, id="far from zero")
    yield pytest.param(-rng.random(20_000), id="below zero")
    yield pytest.param(np.array([0.0, 3.0]), id="two values")
    yield pytest.param(np.concatenate([np.zeros(1000), [1e-30, 1.0]]), id="zeros and one value")
    yield pytest.param(rng.standard_normal(2000) * 1e-40, id="subnormal in float32")
    yield pytest.param(rng.standard_normal(2000) * 1e37, id="huge")


@pytest.mark.parametrize("affine", [UNSIGNED, SYMMETRIC], ids=["unsigned", "symmetric"])
@pytest.mark.parametrize("values", list(cases()))
@pytest.mark.parametrize("rule", ["mse", "entropy"])
def test_no_narrower_range_is_taken_that_loses_more(rule: str, values: NDArray[Any], affine: Affine) -> None:
    """Up to what bins hide: a value is at most half a bin from its centre, and so is the root of the error, twice."""
    seen = observer(values)
    low, high = seen.bounds(rule, 99.99, affine)
    assert values.min() <= low <= high <= values.max()
    whole = error(values, float(values.min()), float(values.max()), affine)
    hidden = math.sqrt(len(values)) * 2 * seen.reach / BINS
    assert math.sqrt(error(values, low, high, affine)) <= math.sqrt(whole) * 1.000001 + hidden


def test_mse_finds_the_best_of_all_ranges() -> None:
    values = background()
    low, high = observer(values).bounds("mse", 99.99, UNSIGNED)
    best = min(error(values, 0.0, float(values.max()) * share, UNSIGNED) for share in np.linspace(1.0, 0.3, 36))
    assert low == 0.0
    assert error(values, low, high, UNSIGNED) <= 1.02 * best


def published_divergence(bins: list[int], levels: int) -> list[float]:
    """Migacz 2017, slides 38 and 39, in plain loops: the divergence for each number of bins that is kept."""
    found = []
    for kept in range(levels, len(bins) + 1):
        reference = [float(count) for count in bins[:kept]]
        reference[-1] += sum(bins[kept:])
        candidate = [0.0] * kept
        for level in range(levels):
            members = [i for i in range(kept) if i * levels // kept == level]
            filled = [i for i in members if bins[i] > 0]
            for i in filled:
                candidate[i] = sum(bins[j] for j in members) / len(filled)
        total, other = sum(reference), sum(candidate)
        divergence = 0.0
        for p, q in zip(reference, candidate, strict=True):
            if p > 0 and q > 0:
                divergence += p / total * math.log((p / total) / (q / other))
            elif p > 0:
                divergence += 10.0 * p / total
        found.append(divergence)
    return found


def test_the_divergence_is_the_published_one() -> None:
    counts = np.histogram(np.abs(np.random.default_rng(0).standard_normal(5000)) ** 1.5, 96)[0]
    wanted = published_divergence([int(count) for count in counts], 16)
    found = [_divergence(counts, 0, kept, 16) for kept in range(16, 97)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)


def test_the_published_rule_alone_cuts_a_background_to_pieces() -> None:
    """Why the error is looked at too: the least divergence is where it clips most."""
    values = background()
    counts, edges = np.histogram(values, 2048)
    divergences = published_divergence([0, *counts[1:]], 256)[::16]
    threshold = edges[256 + 16 * int(np.argmin(divergences))]
    whole = error(values, 0.0, float(values.max()), UNSIGNED)
    assert error(values, 0.0, float(threshold), UNSIGNED) > 20 * whole
