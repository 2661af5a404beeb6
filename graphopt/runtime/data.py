"""What models are run on: batches of inputs, the user's or generated ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.runtime.npz import Member

Feeds = dict[str, Any]
"""One value per input: an array, or a list for a sequence input."""

BATCH_BYTES = 1 << 22
MAX_BATCH = 128


class Data(Protocol):
    """Inputs for a model.

    Attributes:
        generated: Whether they were drawn from the signature, so that they say nothing of accuracy.
        labels: The class index of each sample, or None.
        size: How many samples there are.
        at_once: How many samples a batch holds.
    """

    @property
    def generated(self) -> bool: ...  # noqa: D102

    @property
    def labels(self) -> NDArray[np.int64] | None: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def at_once(self) -> int: ...  # noqa: D102

    def batches(self, limit: int | None = None) -> Iterator[Feeds]:
        """Yield feeds until the data, or ``limit`` samples, are used up; the first one always comes."""
        ...

    def counts(self, limit: int | None = None) -> Iterator[int]:
        """Yield for each of the ``batches`` how many samples of its own it has, not counting what fills it up."""
        ...

    def calibration(self) -> "Data":
        """Return the data to calibrate with: a split of its own if there is one, else these data."""
        ...


class Values(Protocol):
    """Samples along the first axis: an array, or what is read from a file as it is needed."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> "np.dtype[Any]": ...  # noqa: D102

    @property
    def ndim(self) -> int: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, samples: Any) -> Any: ...


@dataclass(frozen=True)
class Stored:
    """The samples of one input as stored: ``values * scale + offset`` is what the model takes.

    Attributes:
        values: The stored samples.
        dtype: The type that the model takes.
        scale: Computed in float64; None where the stored values are meant as they are.
        offset: Likewise.
        shared: Whether the one value goes to every batch, for inputs that have no sample axis.
    """

    values: Values
    dtype: "np.dtype[Any]"
    scale: float | None = None
    offset: float = 0.0
    shared: bool = False

    def take(self, samples: slice | int) -> NDArray[Any]:
        """Return samples in the model's type.

        Raises:
            DataError: The file that they are in is damaged.
        """
        return self._converted(self.values[...] if self.shared else self.values[samples])

    @contextmanager
    def reader(self) -> Iterator[Callable[[slice | int], NDArray[Any]]]:
        """Give what ``take`` is, for samples that are taken in order: a file is read through once."""
        if self.shared:
            once = self.take(0)
            yield lambda samples: once
        elif isinstance(self.values, Member):
            with self.values.reader() as read:
                yield lambda samples: self._converted(read(samples))
        else:
            yield self.take

    def _converted(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return stored values in the model's type."""
        if self.scale is not None:
            part = part.astype(np.float64) * self.scale + self.offset
        return np.asarray(part, dtype=self.dtype, order="C")


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Samples in arrays, cut into batches.

    Attributes:
        stored: The samples by input name.
        size: How many samples there are.
        labels: The class index of each sample, or None.
        batch: How many samples the model takes at a time, or 0 to feed them one by one without a batch axis.
        fixed: Whether the model insists on ``batch``: then the last batch is filled up by repeating the last sample.
        split: The data to calibrate with.
    """

    stored: Mapping[str, Stored]
    size: int
    labels: NDArray[np.int64] | None = None
    batch: int = 1
    fixed: bool = False
    split: "ArrayData | None" = None
    generated = False

    @property
    def at_once(self) -> int:
        """How many samples a batch holds."""
        return max(self.batch, 1)

    def batches(self, limit: int | None = None) -> Iterator[Feeds]:
        """Yield batches until the data, or ``limit`` samples, are used up."""
        with ExitStack() as files:
            take = {name: files.enter_context(each.reader()) for name, each in self.stored.items()}
            for start, stop in self._spans(limit):
                if not self.batch:
                    yield {name: each(start) for name, each in take.items()}
                    continue
                stop = min(start + self.batch, self.size) if self.fixed else stop
                missing = self.batch - (stop - start) if self.fixed else 0
                feeds = {name: each(slice(start, stop)) for name, each in take.items()}
                if missing:
                    feeds = {name: v if self.stored[name].shared else _filled(v, missing) for name, v in feeds.items()}
                yield feeds

    def counts(self, limit: int | None = None) -> Iterator[int]:
        """Yield for each batch how many samples it has, not counting what fills it up."""
        for start, stop in self._spans(limit):
            yield (min(start + self.batch, self.size) if self.fixed else stop) - start

    def _spans(self, limit: int | None) -> Iterator[tuple[int, int]]:
        """Yield where each batch begins and ends."""
        end = self.size if limit is None else max(1, min(limit, self.size))
        for start in range(0, end, self.at_once):
            yield start, min(start + self.at_once, end)

    def calibration(self) -> Data:
        """Return the split for calibrating, or the data themselves."""
        return self.split or self


@dataclass(frozen=True, eq=False)
class ListData:
    """Ready feeds, each for one run: generated ones, or the sets of an ONNX test folder. Each counts as one sample.

    Attributes:
        feeds: One mapping for each run.
        generated: Whether they were drawn.
        labels: None: there are none.
        silent: The outputs that were alike for all generated feeds, so that these prove nothing of them.
        unbound: Names of dimensions that the model does not keep to: it runs with axes of unequal length.
    """

    feeds: Sequence[Feeds]
    generated: bool = False
    labels: NDArray[np.int64] | None = None
    silent: tuple[str, ...] = ()
    unbound: frozenset[str] = frozenset()
    at_once = 1

    @property
    def size(self) -> int:
        """How many runs the feeds are for."""
        return len(self.feeds)

    def batches(self, limit: int | None = None) -> Iterator[Feeds]:
        """Yield the feeds, at most ``limit`` of them."""
        yield from self.feeds[: None if limit is None else max(1, limit)]

    def counts(self, limit: int | None = None) -> Iterator[int]:
        """Yield for each run the length that the first axes of all generated arrays have in common, else 1."""
        for feeds in self.batches(limit):
            lengths = {len(value) for value in feeds.values() if isinstance(value, np.ndarray) and value.ndim}
            yield max(1, lengths.pop()) if self.generated and len(lengths) == 1 else 1

    def calibration(self) -> Data:
        """Return the data themselves."""
        return self


def _filled(values: NDArray[Any], missing: int) -> NDArray[Any]:
    """Repeat the last sample ``missing`` times."""
    return np.concatenate([values, np.repeat(values[-1:], missing, axis=0)])


def one_at_a_time(data: Data) -> ArrayData | None:
    """Return the data with one sample in each batch; None where the model, or the data, leave no choice."""
    free = isinstance(data, ArrayData) and data.batch > 1 and not data.fixed
    return replace(data, batch=1) if isinstance(data, ArrayData) and free else None


def fitting_batch(bytes_per_sample: int) -> int:
    """Return how many samples of this size go into one batch where the model leaves the choice."""
    return max(1, min(MAX_BATCH, BATCH_BYTES // max(1, bytes_per_sample)))
