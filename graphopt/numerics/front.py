"""The differences that could break a tolerance whose scale is known only after the last batch."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_FRONT = 4096


class Front:
    """The differences that could break a tolerance whose scale is known only at the end.

    An element r that moved by d is too far off if ``d > rtol * max(|r|, s) + a``, where the spread s (and a, which
    depends on it) is known after the last batch. That is ``d - rtol * |r| > a`` and ``d - rtol * s > a`` at once, so an
    element matters only if no other one exceeds it in both ``x = d - rtol * |r|`` and ``y = d``: the Pareto front,
    some ten points for a million of random ones. A front beyond ``MAX_FRONT`` points is thinned towards the strict
    side: two neighbours become the corner above both.
    """

    def __init__(self, rtol: float) -> None:
        """Collect for one relative tolerance."""
        self._rtol = rtol
        self._x: Floats = np.empty(0)
        self._y: Floats = np.empty(0)

    def add(self, reference: Floats, moved: Floats) -> None:
        """Add finite elements and how far each moved."""
        x = np.concatenate([self._x, moved - self._rtol * np.abs(reference)])
        y = np.concatenate([self._y, moved])
        positive = x > 0
        x, y = x[positive], y[positive]
        if not x.size:
            return
        above = y >= y[np.argmax(x)]
        x, y = x[above], y[above]
        order = np.lexsort((-x, -y))
        x, y = x[order], y[order]
        best_before = np.concatenate([[-np.inf], np.maximum.accumulate(x)[:-1]])
        self._x, self._y = x[x > best_before], y[x > best_before]
        while self._x.size > MAX_FRONT:
            even = self._x.size // 2 * 2
            self._x = np.concatenate([self._x[1:even:2], self._x[even:]])
            self._y = np.concatenate([self._y[0:even:2], self._y[even:]])

    def worst(self, spread: float, absolute: float, least: float = 0.0) -> tuple[float, float] | None:
        """Return how far the worst element moved and how far it was allowed to, or None if all are within.

        Args:
            spread: The s of the class's docstring.
            absolute: The a of the class's docstring.
            least: What is allowed in any case.
        """
        allowed = np.maximum(np.maximum(self._y - self._x, self._rtol * spread) + absolute, least)
        broken = np.flatnonzero(self._y > allowed)
        if not broken.size:
            return None
        index = broken[np.argmax(self._y[broken] / np.maximum(allowed[broken], 1e-300))]
        return float(self._y[index]), float(allowed[index])
