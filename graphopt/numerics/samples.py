"""What tells one sample from another, and how much of that the noise leaves."""

import numpy as np
from numpy.typing import NDArray

from graphopt.numerics.moments import STEADY

Floats = NDArray[np.float64]

POSITIONS = 1 << 20
"""Of a sample with more elements, evenly spaced ones are looked at."""

REFERENCES = 25
COMPARED_POSITIONS = 1 << 12
FEWEST_SAMPLES = 16
LOUDEST = 0.02


class Samples:
    """Spread between samples and noise, of one output whose samples all have one size.

    Two figures:

    1. Between samples: ``sum (r - m)^2 / sum (r - c)^2``, where m is the mean of the reference over the samples,
       element by element. A candidate c that gives one answer to every sample has at most 1 (0 dB), as m is the answer
       with the least error.
    2. Without the loudest samples: those 2% of the samples i (at least one) are left out where the median of
       ``|r_i - r_j|^2 / 2`` over a few other samples j is largest. Of the others, the mean over those of the samples j
       that are not left out estimates the variance, and is compared with their noise. So one sample with a fill value
       does not outvote the others.

    Attributes:
        count: How many samples were added.
        noise: Sum of squares of the differences.
        max_reference: Largest magnitude of a reference element.
        size: How many elements of a sample are looked at.
        compared: How many of these for the second figure.
        step: Every which element of a sample is looked at.
    """

    def __init__(self, size: int) -> None:
        """Begin with samples of ``size`` elements."""
        self.count, self.noise, self.max_reference = 0, 0.0, 0.0
        self.step = -(-size // POSITIONS)
        kept = -(-size // self.step)
        self._coarse = -(-kept // COMPARED_POSITIONS)
        self.size, self.compared = kept, -(-kept // self._coarse)
        self._mean, self._deviation = np.zeros(kept), np.zeros(kept)
        self._references: list[Floats] = []
        self._distances: list[Floats] = []
        self._noises: list[float] = []

    def add(self, reference: Floats, moved: Floats) -> None:
        """Add samples as rows of every ``step``-th element; where one is not finite, both arrays hold 0."""
        for row, off in zip(reference, moved, strict=True):
            self.count += 1
            with np.errstate(over="ignore", invalid="ignore"):
                gap = row - self._mean
                self._mean += gap / self.count
                self._deviation += gap * (row - self._mean)  # Welford 1962
                self.noise += float(np.dot(off, off))
            self.max_reference = max(self.max_reference, float(np.abs(row).max(initial=0.0)))
            self._compare(row[:: self._coarse], off[:: self._coarse])

    def _compare(self, row: Floats, off: Floats) -> None:
        """Note how far a sample is from the first ones."""
        with np.errstate(over="ignore", invalid="ignore"):
            self._distances.append(np.array([np.square(row - other).sum() / 2 for other in self._references]))
            self._noises.append(float(np.dot(off, off)))
        if len(self._references) < REFERENCES:
            self._references.append(row.copy())

    @property
    def deviation(self) -> float:
        """Sum of squared deviations of the reference from its mean over the samples."""
        return float(self._deviation.sum())

    def is_steady(self, unit: float) -> bool:
        """Whether all samples are alike, but for rounding in units in the last place of ``unit`` at 1."""
        count = max(1, self.count * self.size)
        return bool(np.sqrt(self.deviation / count) <= STEADY * unit * self.max_reference)

    def typical(self) -> tuple[float, float] | None:
        """Return the variances and the noise of all samples but the loudest, summed; None of fewer than 16 samples."""
        if self.count < FEWEST_SAMPLES:
            return None
        known = len(self._references)
        pairs = np.full((self.count, known), np.nan)
        for index, distances in enumerate(self._distances):
            pairs[index, : len(distances)] = distances
        pairs[:known] = np.fmax(pairs[:known], pairs[:known].T)  # the first samples among each other, either way round
        loud = max(1, int(LOUDEST * self.count))
        rest = np.sort(np.argsort(np.nanmedian(pairs, axis=1), kind="stable")[: self.count - loud])
        usual = pairs[np.ix_(rest, rest[rest < known])]
        return float(np.nanmean(usual, axis=1).sum()), float(np.array(self._noises)[rest].sum())
