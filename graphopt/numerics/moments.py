"""Running figures of a reference and its noise, for many parts of an output at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEADY = 8.0
"""A spread of up to this many units in the last place of the largest value is that of a constant."""


class Moments:
    """Count, mean and squared deviations of the reference, and the noise, of each of K parts.

    Attributes:
        count: Finite elements of each part.
        deviation: Sum of squared deviations of the reference from the part's mean.
        noise: Sum of squares of the differences.
        max_abs: Largest difference.
        max_reference: Largest magnitude of a reference element.
    """

    def __init__(self, parts: int) -> None:
        """Begin with nothing in ``parts`` parts."""
        self.count = np.zeros(parts)
        self.deviation, self.noise, self.max_abs, self.max_reference = (np.zeros(parts) for _ in range(4))
        self._mean = np.zeros(parts)

    def add(self, reference: Floats, moved: Floats, finite: NDArray[np.bool_] | None = None, start: int = 0) -> None:
        """Add elements of some parts.

        Means and deviations are combined as by Chan, Golub and LeVeque (1979, pairwise form).

        Args:
            reference: Of shape (A, K, B), with K parts.
            moved: How far each element moved.
            finite: Which elements are finite on both sides; None if all are.
            start: The first of the parts.
        """
        if not reference.size:
            return
        over, own = (0, 2), slice(start, start + reference.shape[1])
        if finite is not None:
            reference, moved = np.where(finite, reference, 0.0), np.where(finite, moved, 0.0)
            count = finite.sum(axis=over).astype(np.float64)
        else:
            count = np.full(reference.shape[1], float(reference.shape[0] * reference.shape[2]))
        with np.errstate(over="ignore", invalid="ignore"):
            mean = reference.sum(axis=over) / np.maximum(count, 1.0)
            away = reference - mean[:, None]
            if finite is not None:
                away = np.where(finite, away, 0.0)
            total = np.maximum(self.count[own] + count, 1.0)
            gap = mean - self._mean[own]
            self.deviation[own] += np.einsum("akb,akb->k", away, away) + gap * gap * self.count[own] * count / total
            self._mean[own] += gap * count / total
            self.noise[own] += np.einsum("akb,akb->k", moved, moved)
        self.count[own] += count
        self.max_abs[own] = np.maximum(self.max_abs[own], moved.max(axis=over))
        self.max_reference[own] = np.maximum(self.max_reference[own], np.abs(reference).max(axis=over))

    @property
    def spread(self) -> Floats:
        """Standard deviation of each part."""
        spread: Floats = np.sqrt(self.deviation / np.maximum(self.count, 1.0))
        return spread

    @property
    def rms(self) -> Floats:
        """Root mean square of each part's differences."""
        rms: Floats = np.sqrt(self.noise / np.maximum(self.count, 1.0))
        return rms

    def constant(self, unit: float) -> NDArray[np.bool_]:
        """Which parts hold one value, but for rounding in units in the last place of ``unit`` at 1."""
        steady: NDArray[np.bool_] = self.spread <= STEADY * unit * self.max_reference
        return steady


def unit_of(dtype: "np.dtype[Any]") -> float:
    """Return a float type's distance from 1 to the next number."""
    known = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float64": 2.0**-52, "complex128": 2.0**-52}
    return known.get(dtype.name, 2.0**-23 if dtype.itemsize >= 4 else 2.0**-2)
