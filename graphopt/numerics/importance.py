"""How much a slice of a weight matters, and how the slices of one coupled group add up: pure arithmetic on arrays."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Norm = Literal["l1", "l2"]
Aggregation = Literal["mean", "max", "sum"]
Scores = NDArray[np.float64]

CHUNK = 1 << 22
"""How many elements are widened to float64 at a time."""


def slice_norms(values: NDArray[Any], axis: int, norm: Norm) -> Scores:
    """Return, for each index along ``axis``, the mean magnitude (l1) or the root mean square (l2) of its slice.

    Means rather than sums make slices of layers of different width comparable; within a layer they rank alike
    (Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710). NaN and Inf count as infinitely important.
    """
    rows = np.moveaxis(values, axis, 0)
    if not values.size:
        return np.zeros(values.shape[axis])
    step = max(1, CHUNK * len(rows) // values.size)
    found = np.concatenate([_norms(rows[start : start + step], norm) for start in range(0, len(rows), step)])
    return np.where(np.isfinite(found), found, np.inf)


def aggregate(parts: Iterable[tuple[NDArray[np.int64], Scores]], count: int, how: Aggregation) -> Scores:
    """Add up the scores of group members.

    Args:
        parts: Pairs of arrays: the group of each member, from 0 to ``count - 1`` (others are left out), and its score.
        count: The number of groups.
        how: Whether a group's score is the mean, the largest or the sum of its members' scores.

    Returns:
        A score for each group; NaN for groups without members.
    """
    total, members = np.zeros(count), np.zeros(count)
    for groups, scores in parts:
        known = (groups >= 0) & (groups < count)
        groups, scores = groups[known], scores[known]
        members += np.bincount(groups, minlength=count)
        if how == "max":
            np.maximum.at(total, groups, scores)
        else:
            total += np.bincount(groups, scores, minlength=count)
    if how == "mean":
        total = total / np.maximum(members, 1)
    return np.where(members > 0, total, np.nan)


def _norms(rows: NDArray[Any], norm: Norm) -> Scores:
    """Return the norms of the rows of a matrix-like array."""
    wide = np.abs(rows.reshape(len(rows), -1).astype(np.float64))
    if norm == "l1":
        return np.asarray(wide.mean(axis=1))
    return np.asarray(np.sqrt(np.square(wide).mean(axis=1)))
