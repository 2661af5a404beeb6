"""How strongly the channels of inner tensors respond to data: mean magnitudes, in bounded memory."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from graphopt.model import Model
from graphopt.runtime.data import Data
from graphopt.runtime.taps import Taps

CHUNK = 1 << 26
"""How many elements of inner tensors are held at a time."""


def mean_activity(
    model: Model,
    axes: Mapping[str, Sequence[int]],
    sizes: Mapping[str, int],
    data: Data,
    limit: int | None = None,
) -> dict[tuple[str, int], NDArray[np.float64]]:
    """Return the mean magnitude of tensors over data and over all of their axes but one.

    Args:
        model: The model to run.
        axes: The tensors of the main graph to look at, and the axes to keep, one at a time.
        sizes: About how many elements each has for one sample; decides how many tensors are fetched in one run.
        data: What to run on.
        limit: How many samples to run at most.

    Returns:
        A vector for each tensor and axis, one value for each index; NaN and Inf count as Inf.

    Raises:
        GraphoptError: ONNX Runtime cannot run the model.
    """
    batch = max((len(value) for value in next(data.batches(1)).values() if np.ndim(value)), default=1)
    total: dict[tuple[str, int], NDArray[np.float64]] = {}
    count: dict[tuple[str, int], int] = {}
    for names in _chunks(axes, {name: size * batch for name, size in sizes.items()}):
        taps = Taps(model, names)
        for feeds in data.batches(limit):
            for name, value in taps.run(feeds).items():
                for axis in axes[name]:
                    rows = np.abs(np.moveaxis(np.asarray(value), axis, 0))
                    sums = rows.reshape(len(rows), -1).sum(axis=1, dtype=np.float64)
                    total[name, axis] = total.get((name, axis), 0.0) + sums
                    count[name, axis] = count.get((name, axis), 0) + math.prod(rows.shape[1:])
    return {key: np.where(np.isfinite(each), each / max(1, count[key]), np.inf) for key, each in total.items()}


def _chunks(names: Iterable[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield lists of tensors of at most ``CHUNK`` elements together, or of one tensor alone."""
    chunk, held = list[str](), 0
    for name in names:
        if chunk and held + sizes[name] > CHUNK:
            yield chunk
            chunk, held = [], 0
        chunk.append(name)
        held += sizes[name]
    if chunk:
        yield chunk
