"""Ranges of values that are seen in a stream, in memory that does not depend on how many there are."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.numerics.quantization import Affine, Floats

BINS = 4096


@dataclass
class Observer:
    """Smallest, largest and, unless ``bounds_only``, a histogram of finite values.

    The histogram covers -reach to reach; where a value lies beyond it, the reach doubles and neighbouring bins merge,
    so the order of the stream hardly matters and nothing is ever read twice.
    """

    bounds_only: bool = False
    low: float = np.inf
    high: float = -np.inf
    reach: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: NDArray[Any]) -> None:
        """See more values; NaN and Inf are passed over."""
        flat = values.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not np.isfinite(low + high):
            flat = flat[np.isfinite(flat)]
            if not flat.size:
                return
            low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not self.bounds_only:
            self._widen(max(-low, high))
            bins = np.histogram(flat, BINS, (-self.reach, self.reach))[0]
            self.counts += bins

    @property
    def seen(self) -> bool:
        """Whether there was any finite value."""
        return self.low <= self.high

    def bounds(self, rule: str, percentile: float, affine: Affine) -> tuple[float, float]:
        """Return the range to quantize to ``affine``, by the rule minmax, percentile, mse or entropy."""
        if rule == "minmax" or self.bounds_only or self.low == self.high:
            return self.low, self.high
        if rule == "percentile":
            low, high = self._percentile(percentile)
        else:
            low, high = self._entropy(affine) if rule == "entropy" else self._mse(affine)
        return max(low, self.low), min(high, self.high)

    def _widen(self, size: float) -> None:
        """Make the histogram reach ``size``."""
        if self.reach == 0.0:
            self.reach = max(size, float(np.finfo(np.float32).tiny))
        while self.reach < size:
            inner = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : -BINS // 4] = inner
            self.reach *= 2.0

    def _edges(self) -> Floats:
        return np.linspace(-self.reach, self.reach, BINS + 1)

    def _loss(self, low: float, high: float, affine: Affine) -> float:
        """Return the squared error of all that was seen when this range is quantized, in squares of the reach.

        Each bin is quantized as its centre is. To count step squared / 12 for whatever is not clipped would be simpler,
        but the zeros behind a Relu, half of its values, are met exactly: it gains nothing there to make steps finer.
        """
        edges = self._edges()
        centres = edges[1:] / 2.0 + edges[:-1] / 2.0
        scale, zero = affine.parameters(np.asarray(low), np.asarray(high))
        met = affine.dequantize(affine.quantize(centres, scale, zero), scale, zero)
        return float((self.counts * np.square((met - centres) / self.reach)).sum())

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
        return min(ranges, key=lambda each: self._loss(each[0], each[1], affine))

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
        largest = self._loss(self.low, self.high, affine)
        for width in range(widest, 0, -max(1, widest // 64)):
            start, stop = max(half - width, first), min(half + width, last)
            threshold = width * self.reach / half
            if stop - start < levels:
                break
            if self._loss(max(-threshold, self.low), min(threshold, self.high), affine) > largest:
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
