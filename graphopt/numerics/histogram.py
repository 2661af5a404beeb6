"""Ranges of values that are seen in a stream, in memory that does not depend on how many there are."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 2048


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

    def bounds(self, rule: str, percentile: float, levels: int) -> tuple[float, float]:
        """Return the range to quantize, by the rule minmax, percentile, mse or entropy."""
        if rule == "minmax" or self.bounds_only or self.low == self.high:
            return self.low, self.high
        chosen = {"mse": self._mse, "entropy": self._entropy}.get(rule)
        low, high = chosen(levels) if chosen else self._percentile(percentile)
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

    def _edges(self) -> NDArray[np.float64]:
        return np.linspace(-self.reach, self.reach, BINS + 1)

    def _percentile(self, percentile: float) -> tuple[float, float]:
        """Cut half of what is beyond the percentile at either end."""
        share = np.cumsum(self.counts) / self.counts.sum()
        tail = (100.0 - percentile) / 200.0
        edges = self._edges()
        low, high = int(np.searchsorted(share, tail, "right")), int(np.searchsorted(share, 1.0 - tail, "left"))
        return float(edges[min(low, BINS - 1)]), float(edges[min(high, BINS - 1) + 1])

    def _mse(self, levels: int) -> tuple[float, float]:
        """Shrink the range in steps and keep the one of least squared error, rounding counted as step squared / 12."""
        edges = self._edges()
        centres = (edges[1:] + edges[:-1]) / 2.0
        best, least = (self.low, self.high), np.inf
        for shrink in np.linspace(1.0, 0.2, 81):
            low, high = self.low * shrink, self.high * shrink
            clipped = np.square(centres - np.clip(centres, low, high))
            inside = (centres >= low) & (centres <= high)
            step = (max(high, 0.0) - min(low, 0.0)) / (levels - 1)
            error = float((self.counts * np.where(inside, step**2 / 12.0, clipped)).sum())
            if error < least:
                best, least = (low, high), error
        return best

    def _entropy(self, levels: int) -> tuple[float, float]:
        """Take the threshold whose quantized distribution diverges least from the clipped one.

        Kullback-Leibler divergence over thresholds, as in Migacz 2017, "8-bit Inference with TensorRT". What lies about
        zero counts as much as its neighbours: the zeros behind a Relu would outweigh everything else.
        """
        half = BINS // 2
        best, least = half, np.inf
        counts = self.counts.copy()
        counts[half - 1 : half + 1] = np.minimum(counts[half - 1 : half + 1], (counts[half - 2], counts[half + 1]))
        used = np.flatnonzero(self.counts)
        widest = int(max(half - used[0], used[-1] + 1 - half))
        for width in range(min(levels // 2, widest), widest + 1, max(1, widest // 64)):
            divergence = _divergence(counts, half - width, half + width, min(levels, 2 * width))
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
