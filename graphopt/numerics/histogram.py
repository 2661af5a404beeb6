"""Ranges of values that are seen in a stream, in memory that does not depend on how many there are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.numerics.quantization import Affine, Floats

BINS = 4096


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often values occur.

    Attributes:
        low: The smallest value, exactly.
        high: The largest value, exactly.
        reach: A power of two; the bins divide -reach to reach evenly.
        counts: The values in each bin, [BINS].
    """

    low: float
    high: float
    reach: float
    counts: NDArray[np.int64]

    @classmethod
    def merged(cls, low: float, high: float, octaves: Mapping[int, NDArray[np.int64]]) -> "Histogram":
        """Return the sum of histograms that reach to these powers of two; bins of the narrower ones merge exactly."""
        top = max(octaves, default=0)
        counts = np.zeros(BINS, np.int64)
        for octave, part in octaves.items():
            inner = (np.arange(BINS) - BINS // 2 >> min(top - octave, 62)) + BINS // 2
            counts += np.bincount(inner, part, BINS).astype(np.int64)
        return cls(low, high, float(np.ldexp(1.0, top)), counts)

    def bounds(self, rule: str, percentile: float, affine: Affine) -> tuple[float, float]:
        """Return the range to quantize to ``affine``, by the rule minmax, percentile, mse or entropy."""
        if rule == "minmax" or self.low == self.high or not self.counts.any():
            return self.low, self.high
        if rule == "percentile":
            low, high = self._percentile(percentile)
        else:
            low, high = self._entropy(affine) if rule == "entropy" else self._mse(affine)
        return max(low, self.low), min(high, self.high)

    def loss(self, low: float, high: float, affine: Affine) -> float:
        """Return the squared error of all that was seen when this range is quantized, in squares of the reach.

        Each bin is quantized as its centre is. To count step squared / 12 for whatever is not clipped would be simpler,
        but the zeros behind a Relu, half of its values, are met exactly: it gains nothing there to make steps finer.
        """
        edges = self._edges()
        centres = edges[1:] / 2.0 + edges[:-1] / 2.0
        scale, zero = affine.parameters(np.asarray(low), np.asarray(high))
        met = affine.dequantize(affine.quantize(centres, scale, zero), scale, zero)
        return float((self.counts * np.square((met - centres) / self.reach)).sum())

    def _edges(self) -> Floats:
        return np.linspace(-self.reach, self.reach, BINS + 1)

    def _percentile(self, percentile: float) -> tuple[float, float]:
        """Cut half of what is beyond the percentile at either end."""
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = (100.0 - percentile) / 200.0
        edges = self._edges()
        low, high = int(np.searchsorted(share, tail, "right")), int(np.searchsorted(share, 1.0 - tail, "left"))
        return float(edges[min(low, BINS - 1)]), float(edges[min(high, BINS - 1) + 1])

    def _mse(self, affine: Affine) -> tuple[float, float]:
        """Shrink the range in steps and keep the one of least squared error."""
        ranges = ((self.low * shrink, self.high * shrink) for shrink in np.linspace(1.0, 0.2, 81))
        return min(ranges, key=lambda each: self.loss(each[0], each[1], affine))

    def _entropy(self, affine: Affine) -> tuple[float, float]:
        """Take the threshold whose quantized distribution diverges least from the clipped one.

        Kullback-Leibler divergence over thresholds, as in Migacz 2017, "8-bit Inference with TensorRT", with three
        changes. What lies about zero counts as much as its neighbours: the zeros behind a Relu would outweigh all else.
        The levels are those that the range really gets: all of them lie on one side where the values do. And a
        threshold whose squared error is larger than that of the whole range is not taken: where values repeat, as
        behind the one grey of a background, a level that is spread over its bins diverges from the spikes among them,
        so the divergence is least where each bin has a level of its own, however much that clips.
        """
        half = BINS // 2
        counts = self.counts.copy()
        counts[half - 1 : half + 1] = np.minimum(counts[half - 1 : half + 1], (counts[half - 2], counts[half + 1]))
        used = np.flatnonzero(self.counts)
        first, last = (0, BINS) if affine.even else (min(int(used[0]), half), max(int(used[-1]) + 1, half))
        widest = max(half - int(used[0]), int(used[-1]) + 1 - half)
        levels = affine.kind.high - affine.bottom + 1
        best, least = widest, np.inf
        largest = self.loss(self.low, self.high, affine)
        for width in range(widest, 0, -max(1, widest // 64)):
            start, stop = max(half - width, first), min(half + width, last)
            threshold = width * self.reach / half
            if stop - start < levels:
                break
            if self.loss(max(-threshold, self.low), min(threshold, self.high), affine) > largest:
                continue
            divergence = _divergence(counts, start, stop, levels)
            if divergence < least:
                best, least = width, divergence
        threshold = best * self.reach / half
        return -threshold, threshold


def _divergence(counts: NDArray[np.int64], start: int, stop: int, levels: int) -> float:
    """Return how far ``levels`` equal steps over bins start to stop are from the histogram clipped to them."""
    clipped = counts[start:stop].astype(np.float64)
    present = clipped > 0
    level = np.arange(len(clipped)) * levels // len(clipped)
    totals = np.bincount(level, clipped, levels)
    filled = np.maximum(np.bincount(level, present, levels), 1.0)
    coarse = np.where(present, (totals / filled)[level], 0.0)
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[stop:].sum()
    fine, coarse = clipped / clipped.sum(), coarse / max(coarse.sum(), 1.0)
    both = (fine > 0) & (coarse > 0)
    lost = float(fine[(fine > 0) & (coarse == 0)].sum())
    return float((fine[both] * np.log(fine[both] / coarse[both])).sum()) + lost * 10.0
