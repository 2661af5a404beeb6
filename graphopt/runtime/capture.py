"""Gives inner tensors of a model while it runs on data, in memory that the amount of data does not change."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from graphopt.model import Model
from graphopt.runtime.data import Data, one_at_a_time
from graphopt.runtime.session import threads_for_samples
from graphopt.runtime.taps import Taps

_BYTES_AT_ONCE = 1 << 19


class Runs:
    """The tensors of each run of a model on data; iterate over it once.

    The tensors of one run are in memory together, and gone before the next.

    Attributes:
        data: What it runs on. Where the number of samples in a run is free, it is chosen so that their tensors take
            some 0.5 MB: more is no faster.
    """

    def __init__(
        self,
        model: Model,
        names: Iterable[str],
        data: Data,
        limit: int,
        form: Callable[[], onnx.ModelProto] | None = None,
    ) -> None:
        """Run ``model``, or a ``form`` of it that has further tensors, on up to ``limit`` samples for these tensors."""
        self._taps = Taps(model, names, threads_for_samples(model), form=form)
        self._limit = limit
        self.data = _portioned(self._taps, data)

    def __iter__(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Run, and yield of each run the number of samples and the tensors by name."""
        left = min(self._limit, self.data.size)
        for feeds in self.data.batches(self._limit):
            yield min(self.data.at_once, left), self._taps.run(feeds)
            left -= self.data.at_once


def _portioned(taps: Taps, data: Data) -> Data:
    """Return the data in portions whose tensors fit."""
    single = one_at_a_time(data)
    if single is None:
        return data
    size = total_bytes(list(taps.run(next(single.batches(1))).values()))
    return replace(single, batch=max(1, min(data.at_once, _BYTES_AT_ONCE // max(size, 1))))


def total_bytes(values: Sequence[Any]) -> int:
    """Return the bytes of the arrays among ``values``."""
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))
