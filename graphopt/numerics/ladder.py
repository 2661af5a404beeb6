"""What to try for a weight that loses too much: finer blocks, then more bits, then nothing."""

from collections.abc import Iterator
from dataclasses import replace

from graphopt.numerics.grouping import Grouping
from graphopt.numerics.quantization import TYPES, Affine, Array, Quantized, Range, quantize

_MORE_BITS = {"int2": "int4", "int3": "int4", "int4": "int8", "int8": "int16", "float8": "int16"}
_MORE_BITS |= {"uint3": "uint4", "uint4": "uint8", "uint8": "uint16"}
_FINEST_BLOCK = 16


def blocks(shape: tuple[int, ...], axis: int | None, size: int) -> Grouping | None:
    """Return blocks of at most ``size`` that divide ``axis``; None if there is no axis or it cannot be divided.

    ONNX lets the last block be shorter, but OpenVINO refuses that.
    """
    if axis is None or shape[axis] <= 1:
        return None
    block = next(block for block in range(min(size, shape[axis]), 0, -1) if shape[axis] % block == 0)
    return Grouping(axis, block) if block >= min(_FINEST_BLOCK, size, shape[axis]) else None


def ladder(
    affine: Affine, first: Grouping, shape: tuple[int, ...], summed: int | None
) -> Iterator[tuple[Affine, Grouping]]:
    """Yield what was asked for, then ever finer blocks along ``summed``, then the same with more bits."""
    kind: str | None = affine.kind.name
    while kind is not None:
        wide = replace(affine, kind=TYPES[kind])
        yield wide, first
        size = 128 if first.block is None else first.block // 2
        seen = {first}
        while size >= _FINEST_BLOCK:
            finer = blocks(shape, summed, size)
            if finer is not None and finer not in seen and finer.count(shape) > first.count(shape):
                seen.add(finer)
                yield wide, finer
            size //= 2
        kind = _MORE_BITS.get(kind)


def climb(
    values: Array, tries: Iterator[tuple[Affine, Grouping]], rule: Range, min_sqnr: float | None, room: int
) -> tuple[Quantized | None, list[Quantized]]:
    """Return the first try that keeps ``min_sqnr`` dB in fewer than ``room`` bytes, and those that fit but did not."""
    failed: list[Quantized] = []
    for affine, grouping in tries:
        if affine.nbytes(values.shape, grouping) < room:
            attempt = quantize(values, affine, grouping, rule)
            if min_sqnr is None or attempt.sqnr_db >= min_sqnr:
                return attempt, failed
            failed.append(attempt)
    return None, failed
