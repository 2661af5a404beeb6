"""What to try for a weight that loses too much: finer blocks, then more bits, then nothing."""

from collections.abc import Iterator
from dataclasses import replace

from graphopt.numerics.grouping import Grouping
from graphopt.numerics.quantization import TYPES, Affine, Array, Quantized, Range, quantize

MORE_BITS = {"int2": "int4", "int3": "int4", "int4": "int8", "int8": "int16", "float8": "int16"}
MORE_BITS |= {"uint3": "uint4", "uint4": "uint8", "uint8": "uint16"}
_FINEST_BLOCK = 16


def blocks(shape: tuple[int, ...], axis: int | None, size: int, product: bool = False) -> Grouping | None:
    """Return blocks of at most ``size`` that divide ``axis``; None if there is no axis or it cannot be divided.

    ONNX lets the last block be shorter, but OpenVINO refuses that. Those of the weight of a matrix ``product`` have a
    multiple of 4 values, above 32 of 32: OpenVINO 2026.4 computes something else with 8 bits in blocks of others than
    multiples of 4, with 4 bits in odd ones and in those above 32 that are no multiple of it. A block as long as the
    axis of a matrix would be but a scale for each channel, in a form that OpenVINO does not load everywhere.
    """
    if axis is None or shape[axis] <= 1:
        return None
    length = shape[axis]
    least = min(_FINEST_BLOCK, size, length)
    divisors = (block for block in range(min(size, length), least - 1, -1) if length % block == 0)
    block = next((each for each in divisors if not product or _is_bearable(each, shape, length)), None)
    return None if block is None else Grouping(axis, block)


def _is_bearable(block: int, shape: tuple[int, ...], length: int) -> bool:
    """Whether OpenVINO computes a matrix product right if the weight's blocks have this size."""
    if block == length:
        return len(shape) > 2
    return block % 4 == 0 and (block <= 32 or block % 32 == 0)


def finer(shape: tuple[int, ...], axis: int | None, first: Grouping, product: bool = False) -> Grouping | None:
    """Return blocks of at most 32 values along ``axis`` that are finer than ``first``, or else of 16; None if none are.

    ``product`` is as in ``blocks``.
    """
    tries = (blocks(shape, axis, size, product) for size in (2 * _FINEST_BLOCK, _FINEST_BLOCK))
    return next((each for each in tries if each is not None and each.count(shape) > first.count(shape)), None)


def ladder(
    affine: Affine, first: Grouping, shape: tuple[int, ...], summed: int | None, product: bool = False
) -> Iterator[tuple[Affine, Grouping]]:
    """Yield what was asked for, then ever finer blocks along ``summed``, then the same with more bits.

    ``product`` is as in ``blocks``.
    """
    kind: str | None = affine.kind.name
    while kind is not None:
        wide = replace(affine, kind=TYPES[kind])
        yield wide, first
        size = 128 if first.block is None else first.block // 2
        seen = {first}
        while size >= _FINEST_BLOCK:
            smaller = blocks(shape, summed, size, product)
            if smaller is not None and smaller not in seen and smaller.count(shape) > first.count(shape):
                seen.add(smaller)
                yield wide, smaller
            size //= 2
        kind = MORE_BITS.get(kind)


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
