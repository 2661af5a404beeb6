"""Runs a student and the original that it comes from on the same samples, some of which only judge."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.model import Model
from graphopt.runtime.feeds import Data
from graphopt.runtime.taps import Taps

HELD_OUT = 5
"""Every fifth sample is not learnt from, but judges what was learnt."""

Tensors = dict[str, Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SideBySide:
    """Two models of the same inputs.

    Attributes:
        student: The one; it may change between runs.
        original: The other.
        data: What both run on.
        samples: How many samples at most.
    """

    student: Model
    original: Model
    data: Data
    samples: int

    def batches(self, names: list[str], original_names: list[str]) -> Iterator[tuple[Tensors, Tensors, Mask]]:
        """Yield the student's and the original's tensors on each batch, and which of its samples are held out."""
        student, original = Taps(self.student, names), Taps(self.original, original_names)
        done = 0
        for feeds in self.data.batches(self.samples):
            given, wanted = student.run(feeds), original.run(feeds)
            count = len(next((value for value in given.values() if np.ndim(value)), [0]))
            yield given, wanted, held_out(done, count)
            done += count

    def distance(self) -> float:
        """Return how far the outputs are apart on the held-out samples: noise over the original's spread, summed up."""
        shared = {str(tensor.name) for tensor in self.original.graph.outputs if tensor.inputs}
        own = (str(tensor.name) for tensor in self.student.graph.outputs if tensor.inputs)
        names = [name for name in own if name in shared]
        noise, count, total, square = (np.zeros(len(names)) for _ in range(4))
        for student, original, held in self.batches(names, names):
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
