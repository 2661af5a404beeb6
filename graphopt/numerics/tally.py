"""Running figures of one output's differences, in bounded memory whatever the amount of data."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CHUNK = 1 << 20
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

    def worst(self, spread: float, absolute: float) -> tuple[float, float] | None:
        """Return how far the worst element moved and how far it was allowed to, or None if all are within."""
        allowed = np.maximum(self._y - self._x, self._rtol * spread) + absolute
        broken = np.flatnonzero(self._y > allowed)
        if not broken.size:
            return None
        index = broken[np.argmax(self._y[broken] / np.maximum(allowed[broken], 1e-300))]
        return float(self._y[index]), float(allowed[index])


@dataclass
class Tally:
    """What is known of one output so far.

    Attributes:
        front: The differences that a FloatExact contract has to look at.
        elements: How many elements were compared.
        finite: How many of them are finite floats on both sides.
        differing: How many have other bits (NaN equals NaN); for floats, the sign of zero counts.
        max_abs: Largest difference of two finite numbers.
        max_reference: Largest magnitude of a finite reference element.
        signal: Sum of squares of the reference.
        noise: Sum of squares of the differences.
        mismatch: The first difference of structure, type, rank or finiteness, in words.
        resized: The first difference of size alone, in words; a new NaN or Inf there counts as a mismatch.
    """

    front: Front
    elements: int = 0
    finite: int = 0
    differing: int = 0
    max_abs: float = 0.0
    max_reference: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    mismatch: str = ""
    resized: str = ""
    is_float: bool = False
    _mean: float = field(default=0.0, repr=False)
    _deviation: float = field(default=0.0, repr=False)

    @property
    def spread(self) -> float:
        """Standard deviation of the reference's finite elements over everything added."""
        return float(np.sqrt(self._deviation / self.finite)) if self.finite else 0.0

    @property
    def rms(self) -> float:
        """Root mean square of the differences."""
        return float(np.sqrt(self.noise / self.finite)) if self.finite else 0.0

    def add(self, reference: Any, candidate: Any) -> None:
        """Compare one value: an array, or a sequence, map or optional of them."""
        for left, right, where in pair_leaves(reference, candidate):
            problem = _form_mismatch(left, right)
            if not problem:
                self._add_array(left, right)
            elif isinstance(left, np.ndarray) and isinstance(right, np.ndarray) and _resized(left, right):
                self.resized = self.resized or where + problem
            else:
                self.mismatch = self.mismatch or where + problem

    def _add_array(self, reference: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Compare two arrays of one type and shape, chunk by chunk."""
        is_float = is_float_type(reference.dtype)
        self.is_float = self.is_float or is_float
        self.elements += reference.size
        flat, other = np.ravel(reference), np.ravel(candidate)
        for start in range(0, flat.size, CHUNK):
            left, right = flat[start : start + CHUNK], other[start : start + CHUNK]
            if left.dtype.kind == "c":
                left, right = left.view(left.real.dtype), right.view(right.real.dtype)
            if is_float:
                self._add_floats(left, right)
            else:
                self._add_exact(left, right)

    def _add_exact(self, left: NDArray[Any], right: NDArray[Any]) -> None:
        """Compare integers, booleans or strings."""
        unequal = left != right
        self.differing += int(np.count_nonzero(unequal))
        if left.dtype.kind in "iub" and unequal.any():
            moved = np.abs(left[unequal].astype(np.float64) - right[unequal].astype(np.float64))
            self.max_abs = max(self.max_abs, float(moved.max()))

    def _add_floats(self, left: NDArray[Any], right: NDArray[Any]) -> None:
        """Compare floats of any width, in float64."""
        r, c = left.astype(np.float64), right.astype(np.float64)
        both_nan = np.isnan(r) & np.isnan(c)
        self.differing += int(np.count_nonzero(~both_nan & (_bits(left) != _bits(right))))
        finite = np.isfinite(r) & np.isfinite(c)
        if not finite.all():
            strange = ~finite & ~both_nan & (r != c)
            if strange.any() and not self.mismatch:
                index = int(np.argmax(strange))
                count = int(np.count_nonzero(strange))
                self.mismatch = f"{r[index]:.6g} became {c[index]:.6g} ({count} such)"
            r, c = r[finite], c[finite]
        if not r.size:
            return
        moved = np.abs(r - c)
        with np.errstate(over="ignore"):
            self._add_moments(r)
            self.signal += float(np.dot(r, r))
            self.noise += float(np.dot(moved, moved))
        self.max_abs = max(self.max_abs, float(moved.max()))
        self.max_reference = max(self.max_reference, float(np.abs(r).max()))
        self.front.add(r, moved)

    def _add_moments(self, r: Floats) -> None:
        """Update mean and squared deviations (Chan, Golub and LeVeque 1979, pairwise form)."""
        mean = float(r.mean())
        total = self.finite + r.size
        gap = mean - self._mean
        self._deviation += float(np.square(r - mean).sum()) + gap * gap * self.finite * r.size / total
        self._mean += gap * r.size / total
        self.finite = total


def is_float_type(dtype: "np.dtype[Any]") -> bool:
    """Whether a type is a float of any width, ml_dtypes' included."""
    return dtype.kind in "fc" or dtype.name.startswith(("bfloat", "float"))


def pair_leaves(reference: Any, candidate: Any, where: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Yield the pairs of arrays in two values of like structure; where they differ, the differing parts themselves."""
    if isinstance(reference, list) and isinstance(candidate, list) and len(reference) == len(candidate):
        for index, (left, right) in enumerate(zip(reference, candidate, strict=True)):
            yield from pair_leaves(left, right, f"{where}[{index}]")
    elif isinstance(reference, dict) and isinstance(candidate, dict) and reference.keys() == candidate.keys():
        for key in reference:
            yield from pair_leaves(reference[key], candidate[key], f"{where}[{key!r}]")
    elif isinstance(reference, (list, dict)) or isinstance(candidate, (list, dict)):
        yield reference, candidate, where
    elif reference is None or candidate is None:
        if reference is not candidate:
            yield reference, candidate, where
    else:
        yield np.asarray(reference), np.asarray(candidate), where


def _resized(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Whether two arrays differ in their sizes alone, and the second brings no NaN or Inf that the first has not."""
    if left.dtype != right.dtype or left.ndim != right.ndim:
        return False
    if not is_float_type(right.dtype):
        return True
    strange = [bool((~np.isfinite(values.astype(np.complex128))).any()) for values in (left, right)]
    return strange[0] or not strange[1]


def _form_mismatch(left: Any, right: Any) -> str:
    """Say how type or shape differ, if they do."""
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        texts = left.dtype.kind in "OU" and right.dtype.kind in "OU"
        if left.dtype != right.dtype and not texts:
            return f"{left.dtype} became {right.dtype}"
        if left.shape != right.shape:
            return f"shape {left.shape} became {right.shape}"
        return ""
    return f"{_describe(left)} became {_describe(right)}"


def _describe(value: Any) -> str:
    """Name a value's form."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return f"a sequence of {len(value)}"
    if isinstance(value, dict):
        return f"a map of {', '.join(map(repr, list(value)[:5]))}"
    return f"{value.dtype}{value.shape}"


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """Return the bit patterns of floats."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
