"""Watches a tensor sample by sample: extremes of each sample, histograms, and which few samples set the range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.numerics.histogram import BINS, Histogram

FEWEST = 16
"""With fewer samples, which of them are unusual cannot be told."""
_LOUD = 4.0
_LOUD_SHARE = 20
_SILENT = -160
_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Loud:
    """The few samples that alone set a range.

    Attributes:
        samples: Their numbers, from 0.
        width: The width of the range with them.
        usual: The width without them.
    """

    samples: tuple[int, ...]
    width: float
    usual: float

    def __str__(self) -> str:
        """Name the samples."""
        numbers = ", ".join(map(str, self.samples[:3])) + (", ..." if len(self.samples) > 3 else "")
        return f"sample{'s' if len(self.samples) > 1 else ''} {numbers}"


@dataclass
class Observer:
    """The extremes of each sample, and a histogram of finite values for each power of two that a sample reaches.

    So a sample that is far louder than the others can be left out afterwards, nothing is read twice, and the order of
    the stream does not matter.

    Attributes:
        most: How many values of a sample, evenly spread over it, the histograms count; 0 for all. Extremes are exact.
        seen: How many samples there were.
    """

    most: int = 0
    seen: int = 0
    _extremes: list[tuple[int, float, float]] = field(default_factory=list)
    _octaves: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    _waiting: dict[int, list[NDArray[Any]]] = field(default_factory=dict)
    _held: int = 0

    def add(self, values: NDArray[Any], samples: int = 1) -> None:
        """See more samples: along the first axis if it has their number, else as one; NaN and Inf do not count."""
        apart = values.ndim > 0 and samples == len(values)
        rows = values.reshape(samples if apart else 1, -1)
        start, self.seen = self.seen, self.seen + samples
        if not rows.size:
            return
        lows, highs = rows.min(axis=1), rows.max(axis=1)
        if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
            finite = np.isfinite(rows)
            lows = np.min(rows, axis=1, where=finite, initial=np.inf)
            highs = np.max(rows, axis=1, where=finite, initial=-np.inf)
        step = max(1, rows.shape[1] // self.most) | 1 if self.most else 1  # odd: axes are mostly even
        counted = rows[:, start % step :: step]
        for index, (low, high) in enumerate(zip(lows.tolist(), highs.tolist(), strict=True)):
            if low <= high:
                self._extremes.append((start + index, low, high))
                peak = max(-low, high)
                octave = math.frexp(peak)[1] if peak > 0 else _SILENT
                self._waiting.setdefault(octave, []).append(counted[index].copy())
        self._held += counted.size
        if self._held > _AT_ONCE:
            self._settle()

    def _settle(self) -> None:
        """Put the values that wait into the histograms: many at a time cost less."""
        for octave, parts in self._waiting.items():
            values = np.concatenate(parts).astype(np.float64)
            values = values[np.isfinite(values)]
            bins = np.floor(np.ldexp(values, BINS.bit_length() - 2 - octave)).astype(np.int64) + BINS // 2
            counts = self._octaves.setdefault(octave, np.zeros(BINS, np.int64))
            counts += np.bincount(bins, minlength=BINS)
        self._waiting, self._held = {}, 0

    @property
    def any_finite(self) -> bool:
        """Whether there was any finite value."""
        return bool(self._extremes)

    def histogram(self, without: Sequence[int] = ()) -> Histogram:
        """Return what was seen, except for samples that are ``loud``."""
        self._settle()
        first, lows, highs = np.array(self._extremes).T
        kept = ~np.isin(first, without)
        low, high = float(lows[kept].min()), float(highs[kept].max())
        top = max(-low, high)
        octaves = {each: counts for each, counts in self._octaves.items() if each <= (np.frexp(top)[1] if top else 0)}
        return Histogram.merged(low, high, octaves if len(without) else self._octaves)

    def loud(self) -> Loud | None:
        """Return the samples, a twentieth of all at most, that reach more than four times as far as any other."""
        if not self.any_finite:
            return None
        first, lows, highs = np.array(self._extremes).T
        peaks = np.maximum(-lows, highs)
        order = np.argsort(-peaks, kind="stable")
        ranked = peaks[order]
        if len(ranked) < FEWEST:
            return None
        most = max(1, len(ranked) // _LOUD_SHARE)
        gaps = [count for count in range(1, most + 1) if ranked[count - 1] > _LOUD * ranked[count] > 0]
        if not gaps:
            return None
        chosen, rest = order[: gaps[-1]], order[gaps[-1] :]
        width, usual = (float(highs[part].max() - lows[part].min()) for part in (order, rest))
        return Loud(tuple(int(number) for number in np.sort(first[chosen])), width, usual)
