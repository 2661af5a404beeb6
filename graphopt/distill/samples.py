"""The samples that a student learns from, in memory, split into those to learn from and those to judge by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import DataError
from graphopt.model import Model
from graphopt.runtime.feeds import Data
from graphopt.runtime.signature import signature

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Samples:
    """Inputs by name, first axis = samples, and the class of each, if known."""

    inputs: Arrays
    labels: NDArray[np.int64] | None

    @property
    def size(self) -> int:
        """How many there are."""
        return len(next(iter(self.inputs.values())))

    def take(self, chosen: NDArray[np.int64]) -> "Samples":
        """Return some of them."""
        labels = None if self.labels is None else self.labels[chosen]
        return Samples({name: value[chosen] for name, value in self.inputs.items()}, labels)

    def chunks(self, count: int) -> Iterator["Samples"]:
        """Yield them ``count`` at a time; the last chunk is filled up with its last sample."""
        for start in range(0, self.size, count):
            yield self.take(np.minimum(np.arange(start, start + count), self.size - 1))


def collect(data: Data, limit: int) -> Samples:
    """Put the samples of ``data`` together, at most ``limit``.

    Raises:
        DataError: They are generated, or do not have one shape.
    """
    if data.generated:
        raise DataError("a student cannot learn from generated inputs, data of the user's are needed")
    batches = list(data.batches(limit))
    count = min(limit, data.size)
    inputs = {}
    for name in batches[0]:
        parts = [np.asarray(batch[name]) for batch in batches]
        if any(part.ndim == 0 or part.shape[1:] != parts[0].shape[1:] for part in parts):
            raise DataError(f"input {name!r}: the samples differ in shape or have no sample axis")
        inputs[name] = np.concatenate(parts)[:count]
        if len(inputs[name]) != count:
            raise DataError(f"input {name!r}: {len(inputs[name])} samples where {count} are expected")
    return Samples(inputs, None if data.labels is None else np.asarray(data.labels)[:count])


def split(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples | None]:
    """Return the samples to learn from, and a drawn ``share`` of them, held out; None if that is less than one."""
    held = int(samples.size * share)
    order = np.random.default_rng([seed, 0]).permutation(samples.size)
    return samples.take(np.sort(order[held:])), samples.take(np.sort(order[:held])) if held else None


def fixed_batch(model: Model) -> int | None:
    """Return how many samples a model insists on per run; None if it takes any number."""
    infos = signature(model).inputs.values()
    sizes = {info.shape[0] for info in infos if info.shape}
    whole = {size for size in sizes if isinstance(size, int)}
    return max(whole) if whole else None
