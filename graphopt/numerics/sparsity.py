"""Which elements of a weight to set to nought: the smallest ones, all over or N of every M."""

from collections.abc import Iterable
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
    """Return where the magnitude, in float32, lies below a limit."""
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


def _magnitudes(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return magnitudes in float32; what is too large for it becomes Inf."""
    with np.errstate(over="ignore"):
        return np.abs(values.astype(np.float32))
