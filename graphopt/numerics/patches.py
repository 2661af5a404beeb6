"""The rows that a layer multiplies its weight with, taken from its input: im2col at chosen positions, pure numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def same_pads(
    mode: str, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Return the pads, begins then ends, that ``auto_pad`` SAME_UPPER or SAME_LOWER stands for (ONNX Conv)."""
    begins, ends = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends


def windows(
    values: NDArray[Any],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
) -> NDArray[Any]:
    """Return a view [N, C, *positions, *kernel] of what each position of a convolution sees in [N, C, *sizes]."""
    rank = len(kernel)
    if any(pads):
        values = np.pad(values, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    reach = [dilation * (width - 1) + 1 for width, dilation in zip(kernel, dilations, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(values, reach, axis=tuple(range(2, 2 + rank)))
    steps = [slice(None, None, stride) for stride in strides] + [slice(None, None, dilation) for dilation in dilations]
    stepped: NDArray[Any] = seen[(slice(None), slice(None), *steps)]
    return stepped


def patch_rows(seen: NDArray[Any], groups: int, positions: NDArray[np.int64]) -> NDArray[Any]:
    """Return rows [G, N * len(positions), K] of a view from ``windows``; positions index the flattened output grid.

    K runs over the group's channels, then over the kernel, as in a Conv weight [M, C / G, *kernel].
    """
    rank = (seen.ndim - 2) // 2
    at = np.unravel_index(positions, seen.shape[2 : 2 + rank])
    index: tuple[Any, ...] = (slice(None), slice(None), *at)
    picked = np.moveaxis(seen[index], 2, 1)
    samples, count = picked.shape[:2]
    rows: NDArray[Any] = picked.reshape(samples * count, groups, -1).transpose(1, 0, 2)
    return rows


def output_rows(values: NDArray[Any], groups: int, positions: NDArray[np.int64]) -> NDArray[Any]:
    """Return the matching rows [G, N * len(positions), M / G] of an output [N, M, *positions]."""
    flat = values.reshape(values.shape[0], values.shape[1], -1)[:, :, positions]
    rows = np.moveaxis(flat, 2, 1).reshape(-1, groups, values.shape[1] // groups)
    return rows.transpose(1, 0, 2)
