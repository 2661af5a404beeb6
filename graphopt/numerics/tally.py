"""Running figures of one output's differences, in bounded memory whatever the amount of data."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.numerics.front import Floats, Front
from graphopt.numerics.moments import Moments, unit_of
from graphopt.numerics.samples import Samples

CHUNK = 1 << 20
MOST_SLICES = 256
"""An axis of up to this many entries is looked at entry by entry."""

_SHARES = 0.02
"""Entries that add up to one but for this much are shares of one."""

MOST_SIZES = 16
"""Samples of further sizes are compared as parts of the whole only."""


@dataclass
class Slices:
    """What is known of an output entry by entry of one axis: channels, or the parts of a last axis."""

    axis: int
    moments: Moments
    fronts: dict[int, Front] = field(default_factory=dict)


@dataclass
class Tally:
    """What is known of one output so far.

    Attributes:
        rtol: The relative tolerance that a FloatExact contract looks at differences with; None for other contracts.
        elements: How many elements were compared.
        differing: How many have other bits (NaN equals NaN); for floats, the sign of zero counts.
        moved_most: Largest difference of two integers.
        mismatch: The first difference of structure, type or rank, in words.
        resized: The first difference of size alone, in words; a new NaN or Inf there counts as a mismatch.
        whole: Moments of all elements.
        front: The differences that a FloatExact contract has to look at, of all elements.
        slices: The same by axis, for an output whose axis has one short length on all of the data.
        samples: What tells samples from each other, by their size.
        unit: The distance from 1 to the next number of the output's type.
        agreeing: Samples whose highest class score is at the same class, of an output with a row for each sample.
        rows: How many such samples were compared.
    """

    rtol: float | None
    elements: int = 0
    differing: int = 0
    moved_most: float = 0.0
    mismatch: str = ""
    resized: str = ""
    is_float: bool = False
    unit: float = 2.0**-23
    whole: Moments = field(default_factory=lambda: Moments(1))
    slices: dict[int, Slices] = field(default_factory=dict)
    samples: dict[int, Samples] = field(default_factory=dict)
    agreeing: int = 0
    rows: int = 0
    _became: str = field(default="", repr=False)
    _strange: int = field(default=0, repr=False)
    _rank: int | None = field(default=None, repr=False)
    _shares: set[int] = field(default_factory=set, repr=False)
    _candidate: Moments = field(default_factory=lambda: Moments(1), repr=False)
    _difference: Moments = field(default_factory=lambda: Moments(1), repr=False)

    def __post_init__(self) -> None:
        """Begin with no differences."""
        self.front = Front(self.rtol or 0.0)

    @property
    def turned(self) -> str:
        """Which NaN or Inf is new or gone, in words: the first one, and how many there are."""
        return f"{self._became} ({self._strange} of {self.elements} elements)" if self._became else ""

    @property
    def comparable(self) -> bool:
        """Whether all of the output could be compared, number by number."""
        return not (self.mismatch or self.turned or self.resized)

    @property
    def max_abs(self) -> float:
        """Largest difference of two finite numbers."""
        return max(self.moved_most, float(self.whole.max_abs[0]))

    @property
    def correlation(self) -> float | None:
        """Pearson's correlation of both sides' finite elements; None if the reference is constant."""
        if not self.is_float or self.whole.constant(self.unit)[0]:
            return None
        a, b, d = (float(each.deviation[0]) for each in (self.whole, self._candidate, self._difference))
        # With d the deviation of the difference: d = a + b - 2 * covariance.
        return float(np.clip((a + b - d) / (2 * np.sqrt(a * b)), -1.0, 1.0)) if b > 0 else 0.0

    def entries(self) -> list[Slices]:
        """Return the axes whose entries are parts of the output.

        None are if the elements along an axis are shares of one, as probabilities are: they have one unit.
        """
        return [] if self._shares else list(self.slices.values())

    def add(self, reference: Any, candidate: Any, samples: int | None = None) -> None:
        """Compare one value: an array, or a sequence, map or optional of them.

        Args:
            reference: The value.
            candidate: What it became.
            samples: How many samples of it count, if its first axis is the samples' in this run; None if the whole of
                the value is one sample.
        """
        for left, right, where in pair_leaves(reference, candidate):
            problem = _form_mismatch(left, right)
            if not problem:
                self._add_array(left, right, samples, where)
            elif isinstance(left, np.ndarray) and isinstance(right, np.ndarray) and _resized(left, right):
                self.resized = self.resized or where + problem
            else:
                self.mismatch = self.mismatch or where + problem

    def _add_array(self, reference: NDArray[Any], candidate: NDArray[Any], samples: int | None, where: str) -> None:
        """Compare two arrays of one type and shape."""
        is_float = is_float_type(reference.dtype)
        self.is_float = self.is_float or is_float
        self.elements += reference.size
        if reference.dtype.kind == "c":
            reference, candidate = (each.view(each.real.dtype) for each in map(np.atleast_1d, (reference, candidate)))
        if not is_float:
            self._add_exact(np.ravel(reference), np.ravel(candidate))
            return
        self.unit = unit_of(reference.dtype)
        plain = not where
        if plain and samples is not None and reference.ndim == 2 and reference.shape[1] > 1:
            self.rows += len(reference)
            self.agreeing += int(np.count_nonzero(reference.argmax(1) == candidate.argmax(1)))
        self._arrange(reference if plain else None)
        if not reference.size:
            return
        rows = len(reference) if samples is not None and plain else 1
        self._add_samples(reference.reshape(rows, -1), candidate.reshape(rows, -1), reference.size // rows)
        for block, start in _blocks(np.atleast_1d(reference).shape):
            self._add_floats(np.atleast_1d(reference)[block], np.atleast_1d(candidate)[block], start)

    def _add_exact(self, left: NDArray[Any], right: NDArray[Any]) -> None:
        """Compare integers, booleans or strings."""
        unequal = left != right
        self.differing += int(np.count_nonzero(unequal))
        if left.dtype.kind in "iub" and unequal.any():
            moved = np.abs(left[unequal].astype(np.float64) - right[unequal].astype(np.float64))
            self.moved_most = max(self.moved_most, float(moved.max()))

    def _arrange(self, reference: NDArray[Any] | None) -> None:
        """Keep an axis by itself while it has one short length on all of the data."""
        if self._rank is None:
            self._rank = -1 if reference is None else reference.ndim
            self._shares = {1, self._rank - 1} if self._rank > 1 else set()
            for axis in self._shares:
                assert reference is not None
                if 1 < reference.shape[axis] <= MOST_SLICES:
                    self.slices[axis] = Slices(axis, Moments(reference.shape[axis]))
        same_rank = reference is not None and reference.ndim == self._rank
        self._shares = {axis for axis in self._shares if reference is not None and _adds_up(reference, axis)}
        for axis in list(self.slices):
            if not same_rank or reference is None or reference.shape[axis] != len(self.slices[axis].moments.count):
                del self.slices[axis]

    def _add_samples(self, left: NDArray[Any], right: NDArray[Any], size: int) -> None:
        """Compare samples with each other, one in each row."""
        if size not in self.samples and (len(self.samples) == MOST_SIZES or not size):
            return
        same = self.samples.setdefault(size, Samples(size))
        each = max(1, CHUNK // same.size)
        for start in range(0, len(left), each):
            r, c = (rows[start : start + each, :: same.step].astype(np.float64) for rows in (left, right))
            finite = np.isfinite(r) & np.isfinite(c)
            if not finite.all():
                r, c = np.where(finite, r, 0.0), np.where(finite, c, 0.0)
            same.add(r, r - c)

    def _add_floats(self, left: NDArray[Any], right: NDArray[Any], start: int) -> None:
        """Compare a block of floats of any width, in float64; ``start`` is where it begins on the second axis."""
        r, c = left.astype(np.float64), right.astype(np.float64)
        both_nan = np.isnan(r) & np.isnan(c)
        self.differing += int(np.count_nonzero(~both_nan & (_bits(left) != _bits(right))))
        finite: NDArray[np.bool_] | None = np.isfinite(r) & np.isfinite(c)
        assert finite is not None
        if finite.all():
            finite = None
        else:
            strange = ~finite & ~both_nan & (r != c)
            if strange.any():
                index = np.unravel_index(int(np.argmax(strange)), strange.shape)
                self._became = self._became or f"{r[index]:.6g} became {c[index]:.6g}"
                self._strange += int(np.count_nonzero(strange))
            r, c = np.where(finite, r, 0.0), np.where(finite, c, 0.0)
        if not r.size:
            return
        moved = np.abs(r - c)
        self._add_moments(r, c, moved, finite)
        for each in self.slices.values():
            self._add_slices(each, r, moved, finite, start if each.axis == 1 else 0)

    def _add_moments(self, r: Floats, c: Floats, moved: Floats, finite: NDArray[np.bool_] | None) -> None:
        """Update the figures of the whole."""
        mask = None if finite is None else finite.reshape(1, 1, -1)
        zero = np.zeros((1, 1, 1))
        self.whole.add(r.reshape(1, 1, -1), moved.reshape(1, 1, -1), mask)
        self._candidate.add(c.reshape(1, 1, -1), zero, mask)
        self._difference.add((r - c).reshape(1, 1, -1), zero, mask)
        if self.rtol is not None:
            self.front.add(r.reshape(-1), moved.reshape(-1))

    def _add_slices(self, each: Slices, r: Floats, moved: Floats, finite: NDArray[np.bool_] | None, start: int) -> None:
        """Update the figures of one axis's entries from ``start`` on."""
        form = (int(np.prod(r.shape[: each.axis])), r.shape[each.axis], -1)
        r, moved = r.reshape(form), moved.reshape(form)
        each.moments.add(r, moved, None if finite is None else finite.reshape(form), start)
        if self.rtol is None:
            return
        far = np.nonzero(moved > self.rtol * np.abs(r))
        for index in np.unique(far[1]).tolist():
            chosen = tuple(axes[far[1] == index] for axes in far)
            each.fronts.setdefault(start + index, Front(self.rtol)).add(r[chosen], moved[chosen])


def _adds_up(reference: NDArray[Any], axis: int) -> bool:
    """Whether the elements along an axis are shares of one; nothing speaks against it where there are none."""
    if axis >= reference.ndim or not reference.size:
        return axis < reference.ndim
    with np.errstate(over="ignore", invalid="ignore"):
        sums = reference.sum(axis=axis, dtype=np.float64)
        return bool(reference.min() >= 0 and np.abs(sums - 1).max() < _SHARES)


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, ...], int]]:
    """Cut an array into blocks of about ``CHUNK`` elements along its first two axes; yield where the second begins."""
    size = max(1, int(np.prod(shape[1:])))
    rows = max(1, CHUNK // size)
    inner = shape[1] if len(shape) > 1 else 1
    columns = inner if size <= CHUNK else max(1, CHUNK * inner // size)
    for row in range(0, shape[0], rows):
        for column in range(0, inner, columns) if len(shape) > 1 else (0,):
            block = (slice(row, row + rows), slice(column, column + columns))
            yield block[: len(shape)], column


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
