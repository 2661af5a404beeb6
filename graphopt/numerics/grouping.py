"""Which values of an array share a scale, and how scales lie beside the values (ONNX, DequantizeLinear)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Grouping:
    """Which values share a scale: all (no axis), one slice of ``axis`` each, or ``block`` neighbours along ``axis``."""

    axis: int | None = None
    block: int | None = None

    def __str__(self) -> str:
        if self.axis is None:
            return "per tensor"
        return (
            f"per channel of axis {self.axis}" if self.block is None else f"blocks of {self.block} on axis {self.axis}"
        )

    def count(self, shape: tuple[int, ...]) -> int:
        """Return the number of scales that an array of this shape gets."""
        return int(np.prod(self.scale_shape(shape), dtype=np.int64))

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of scale and zero point, as DequantizeLinear wants it."""
        if self.axis is None:
            return ()
        if self.block is None:
            return (shape[self.axis],)
        return (*shape[: self.axis], -(-shape[self.axis] // self.block), *shape[self.axis + 1 :])


def spread(scale: Array, shape: tuple[int, ...], grouping: Grouping) -> Array:
    """Return scales (or zero points) in a shape that broadcasts against the values."""
    if grouping.axis is None or scale.ndim == 0:
        return scale
    if grouping.block is None:
        return scale.reshape([-1 if axis == grouping.axis else 1 for axis in range(len(shape))])
    index = np.arange(shape[grouping.axis]) // grouping.block
    return np.take(scale, index, axis=grouping.axis)


def aligned(scale: Array, shape: tuple[int, ...], axis: int, block: int = 0) -> Array:
    """Return scales (or zero points) in a shape that broadcasts against the values, as the attributes say.

    Args:
        scale: One for all values, or one for each index or block along the axis.
        shape: Of the values.
        axis: The attribute ``axis``, which plays no part where one scale serves all values.
        block: The attribute ``block_size``; 0 for none.
    """
    if scale.size == 1:
        return scale.reshape(())
    return spread(scale, shape, Grouping(axis % max(len(shape), 1), block or None))


def split_evenly(values: Array, grouping: Grouping) -> Iterator[Array]:
    """Yield the array, or, if blocks do not divide its axis, the part that they divide and the rest."""
    if grouping.block is None or grouping.axis is None:
        yield values
        return
    length = values.shape[grouping.axis]
    whole = length - length % grouping.block
    if whole:
        yield values.take(range(whole), axis=grouping.axis) if whole < length else values
    if whole < length:
        yield values.take(range(whole, length), axis=grouping.axis)


def to_groups(values: Array, grouping: Grouping) -> Array:
    """Return the values as rows that share a scale; blocks must divide their axis, or be longer than it."""
    if grouping.axis is None:
        return values.reshape(1, -1)
    if grouping.block is None:
        return np.moveaxis(values, grouping.axis, 0).reshape(values.shape[grouping.axis], -1)
    last = np.moveaxis(values, grouping.axis, -1)
    return last.reshape(-1, min(grouping.block, values.shape[grouping.axis]))


def from_groups(rows: Array, shape: tuple[int, ...], grouping: Grouping) -> Array:
    """Return rows to the layout that ``to_groups`` took them from."""
    if grouping.axis is None:
        return rows.reshape(shape)
    front = 0 if grouping.block is None else len(shape) - 1
    others = [size for axis, size in enumerate(shape) if axis != grouping.axis]
    moved = [shape[grouping.axis], *others] if grouping.block is None else [*others, shape[grouping.axis]]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), front, grouping.axis))


def scale_layout(rows: Array, shape: tuple[int, ...], grouping: Grouping) -> Array:
    """Return one value for each row of ``to_groups`` in the shape that DequantizeLinear wants."""
    scales = grouping.scale_shape(shape)
    return rows.reshape(scales) if grouping.block is None else from_groups(rows, scales, grouping)
