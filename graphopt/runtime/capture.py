"""Watches inner tensors of a model while it runs on data, in memory that the amount of data does not change."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.model import Model
from graphopt.runtime.data import ArrayData, Data, Feeds
from graphopt.runtime.taps import Taps

_BYTES_AT_ONCE = 1 << 19


class Watcher(Protocol):
    """Takes in the values of one tensor, run by run."""

    def add(self, values: NDArray[Any]) -> None:
        """See the values of one run."""
        ...


def watch(model: Model, watchers: Mapping[str, Watcher], data: Data, limit: int, threads: int = 0) -> None:
    """Run ``model`` on up to ``limit`` samples and show each watcher the tensor of its name.

    The tensors of one run are in memory together, and gone before the next. Where the number of samples in a run is
    free, it is chosen so that they take some 0.5 MB: more is no faster.
    """
    for tensors in runs(model, watchers, data, limit, threads):
        for name, values in tensors.items():
            if isinstance(values, np.ndarray):
                watchers[name].add(values)


def runs(model: Model, names: Iterable[str], data: Data, limit: int, threads: int = 0) -> Iterator[Mapping[str, Any]]:
    """Run ``model`` on up to ``limit`` samples and yield the tensors of these names, run by run."""
    taps = Taps(model, names, threads)
    for feeds in _portions(taps, data, limit):
        yield taps.run(feeds)


def _portions(taps: Taps, data: Data, limit: int) -> Iterator[Feeds]:
    """Yield feeds, cut to a number of samples whose tensors fit."""
    if isinstance(data, ArrayData) and data.batch > 1 and not data.fixed:
        first = next(replace(data, batch=1).batches(1))
        size = total_bytes(list(taps.run(first).values()))
        data = replace(data, batch=max(1, min(data.batch, _BYTES_AT_ONCE // max(size, 1))))
    yield from data.batches(limit)


def total_bytes(values: Sequence[Any]) -> int:
    """Return the bytes of the arrays among ``values``."""
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))
