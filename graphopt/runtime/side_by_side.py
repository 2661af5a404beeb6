"""Runs a student and the original that it comes from on the same samples, some of which only judge."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.model import Model
from graphopt.runtime.feeds import Data
from graphopt.runtime.forward import Forward
from graphopt.runtime.taps import Taps

HELD_OUT = 5
"""Every fifth sample is not learnt from, but judges what was learnt."""

Tensors = dict[str, Any]
Mask = NDArray[np.bool_]


class SideBySide:
    """Two models of the same inputs; the student may change between runs, behind what was asked for last."""

    def __init__(self, student: Model, original: Model, data: Data, samples: int) -> None:
        """Run both on ``data``, on so many samples at most."""
        self._student, self._original = Forward(student, data, samples), Forward(original, data, samples)
        self._data, self._samples = data, samples

    def __enter__(self) -> "SideBySide":
        """Return the two; leaving removes what is kept of them."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what is kept."""
        self._student.close()
        self._original.close()

    def first(self, name: str, original_name: str) -> tuple[Any, Any]:
        """Return a tensor of each on the first batch."""
        return self._student.first([name])[name], self._original.first([original_name])[original_name]

    def batches(self, names: list[str], upto: str, original_name: str) -> Iterator[tuple[Tensors, Any, Mask]]:
        """Yield tensors of each on each batch, and which of its samples are held out.

        Args:
            names: The student's tensors.
            upto: The student's first tensor that may change afterwards.
            original_name: The original's tensor.
        """
        pairs = zip(
            self._student.batches(names, upto),
            self._original.batches([original_name], original_name),
            strict=True,  # so that both go on behind the last batch
        )
        done = 0
        for given, wanted in pairs:
            count = len(next((value for value in given.values() if np.ndim(value)), [0]))
            yield given, wanted[original_name], held_out(done, count)
            done += count

    def distance(self) -> float:
        """Return how far the outputs are apart on the held-out samples: noise over the original's spread, summed up."""
        models = self._student.model, self._original.model
        own, shared = ([str(tensor.name) for tensor in model.graph.outputs if tensor.inputs] for model in models)
        names = [name for name in own if name in shared]
        taps = [Taps(model, names) for model in models]
        noise, count, total, square = (np.zeros(len(names)) for _ in range(4))
        done = 0
        for feeds in self._data.batches(self._samples):
            student, original = (each.run(feeds) for each in taps)
            held = held_out(done, len(next((value for value in student.values() if np.ndim(value)), [0])))
            done += len(held)
            for index, name in enumerate(names):
                wanted, given = np.asarray(original[name]), np.asarray(student[name])
                if wanted.dtype.kind != "f" or wanted.shape != given.shape or not wanted.size:
                    continue
                if wanted.ndim and len(wanted) == len(held):
                    wanted, given = wanted[held], given[held]
                wide = wanted.astype(np.float64)
                noise[index] += np.square(given - wide).sum()
                count[index] += wide.size
                total[index] += wide.sum()
                square[index] += np.square(wide).sum()
        spread = square - np.divide(total**2, count, out=np.zeros_like(total), where=count > 0)
        return float(np.divide(noise, spread, out=np.zeros_like(noise), where=spread > 0).sum())


def held_out(start: int, count: int) -> Mask:
    """Mark the held-out ones among samples ``start`` to ``start + count``."""
    marks: Mask = np.arange(start, start + count) % HELD_OUT == HELD_OUT - 1
    return marks
