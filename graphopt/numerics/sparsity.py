"""Which elements of a weight to set to nought: the smallest ones, all over or N of every M."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def smallest_limit(arrays: Iterable[NDArray[Any]], count: int) -> float:
    """Return a limit below which lie ``count`` magnitudes of all arrays together, fewer only where some are equal.

    It is the magnitude that comes next. Where nothing comes next, everything lies below.
    """
    parts = [_magnitudes(array).ravel() for array in arrays]
    magnitudes = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if count >= magnitudes.size:
        return float("inf")
    return float(np.partition(magnitudes, count)[count])


def below(values: NDArray[Any], limit: float) -> Mask:
    """Return where the magnitude lies below a limit."""
    return np.asarray(_magnitudes(values) < limit)


def pattern_mask(values: NDArray[Any], axis: int, keep: int, of: int) -> Mask:
    """Return where all but the ``keep`` largest of every ``of`` successive elements along an axis lie (N:M sparsity).

    Of equals the first stays. Sparse tensor cores read weights of this form (arXiv 2104.08378).

    Args:
        values: The weight.
        axis: The axis to go along; its size must be divisible by ``of``.
        keep: How many of each block stay.
        of: How many elements a block has.
    """
    rows = np.moveaxis(np.abs(values.astype(np.float64)), axis, -1)
    blocks = rows.reshape(*rows.shape[:-1], -1, of)
    order = np.argsort(-blocks, axis=-1, kind="stable")
    mask = np.ones(blocks.shape, dtype=bool)
    np.put_along_axis(mask, order[..., :keep], False, axis=-1)
    return np.moveaxis(mask.reshape(rows.shape), -1, axis)


def order(parts: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> list[NDArray[np.float64]]:
    """Return the place of every element among all parts together, from 0 on, in arrays of the parts' shapes.

    Args:
        parts: Scores and values of the same shape. The smaller score comes first; of equal ones the value of smaller
            magnitude, then the earlier one.
    """
    if not parts:
        return []
    scores = np.concatenate([score.ravel() for score, _ in parts])
    magnitudes = np.concatenate([_magnitudes(value).ravel() for _, value in parts])
    places = np.empty(scores.size, np.float64)
    places[np.lexsort((magnitudes, scores))] = np.arange(scores.size)
    ends = np.cumsum([score.size for score, _ in parts])
    shaped = zip(np.split(places, ends[:-1]), parts, strict=True)
    return [place.reshape(score.shape) for place, (score, _) in shaped]


def _magnitudes(values: NDArray[Any]) -> NDArray[Any]:
    """Return magnitudes, in float32 unless the values have more."""
    wide: NDArray[Any] = values if values.dtype == np.float64 else values.astype(np.float32)
    return np.asarray(np.abs(wide))
