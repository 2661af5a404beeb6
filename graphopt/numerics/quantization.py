"""Affine quantization of arrays: real values to small integers (or 8-bit floats) and back, in float64.

ONNX, operators QuantizeLinear and DequantizeLinear; Jacob et al. 2018, "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference" (arXiv 1712.05877), equation 1; Nagel et al. 2021, "A White Paper on
Neural Network Quantization" (arXiv 2106.08295), section 2.2:

    q = clip(round(x / scale) + zero_point, low, high)          x' = (q - zero_point) * scale

``round`` is to the nearest, ties to even. The scale is first rounded to the type that it is stored in, and the integers
are computed from that rounded scale, so that a runtime that follows the formula gets exactly x'.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from graphopt.numerics.grouping import Grouping, from_groups, scale_layout, split_evenly, spread, to_groups

Array = NDArray[Any]
Floats = NDArray[np.float64]
Range = Callable[["Floats", "Affine"], tuple["Floats", "Floats"]]

_CHUNK = 1 << 21
_FEW_BITS = 4
_FLOAT32: "np.dtype[Any]" = np.dtype(np.float32)


@dataclass(frozen=True)
class QuantizedType:
    """A type that DequantizeLinear reads, or a coarser grid held in one: ONNX has no type of three bits.

    ``low`` and ``high`` are its limits (for a float type the finite ones), ``bits`` what they take at least, ``dtype``
    the type that holds it, ``opset`` the first version of DequantizeLinear that takes that.
    """

    name: str
    dtype: "np.dtype[Any]"
    low: int
    high: int
    bits: int
    opset: int

    @property
    def is_float(self) -> bool:
        """Whether the levels are those of a float type, not evenly spaced."""
        return self.name.startswith("float")

    @property
    def signed(self) -> bool:
        """Whether the type has negative values."""
        return self.low < 0

    @property
    def stored_bits(self) -> int:
        """The bits that a value takes in a file."""
        return 4 if self.bits == 3 else self.bits

    @property
    def title(self) -> str:
        """Its name and, if that is another, the name of the type that holds it."""
        return self.name if self.bits == self.stored_bits else f"{self.name} held in {self.dtype.name}"


TYPES = {
    kind.name: kind
    for kind in (
        QuantizedType("int8", np.dtype(np.int8), -128, 127, 8, 10),
        QuantizedType("uint8", np.dtype(np.uint8), 0, 255, 8, 10),
        QuantizedType("int16", np.dtype(np.int16), -32768, 32767, 16, 21),
        QuantizedType("uint16", np.dtype(np.uint16), 0, 65535, 16, 21),
        QuantizedType("int4", np.dtype(ml_dtypes.int4), -8, 7, 4, 21),
        QuantizedType("uint4", np.dtype(ml_dtypes.uint4), 0, 15, 4, 21),
        QuantizedType("int3", np.dtype(ml_dtypes.int4), -4, 3, 3, 21),
        QuantizedType("uint3", np.dtype(ml_dtypes.uint4), 0, 7, 3, 21),
        QuantizedType("int2", np.dtype(ml_dtypes.int2), -2, 1, 2, 25),
        QuantizedType("float8", np.dtype(ml_dtypes.float8_e4m3fn), -448, 448, 8, 19),
    )
}


@dataclass(frozen=True)
class Affine:
    """How values map to a type: symmetric around zero or not, with scales stored as ``scale_dtype``.

    Symmetric integers of 8 bits and more leave the lowest level unused, so that the range is the same on both sides:
    -127 to 127 for int8. With 4 bits and fewer a level counts: the lowest one stands for the value of largest
    magnitude, and scales are negative where that value is positive (as in llama.cpp's Q4_0 and ONNX Runtime's
    MatMulNBits quantizer); 1.0 dB better on normal weights in blocks of 32. Not without ``negative_scales``. An
    unsigned type has its zero point in the middle then. A float type is always symmetric and has no zero point.
    """

    kind: QuantizedType
    symmetric: bool = True
    scale_dtype: "np.dtype[Any]" = _FLOAT32
    negative_scales: bool = True

    @property
    def middle(self) -> int:
        """The zero point of the symmetric form."""
        return 0 if self.kind.signed else (self.kind.high + 1) // 2

    @property
    def even(self) -> bool:
        """Whether the form is symmetric, by choice or because the type is a float type."""
        return self.symmetric or self.kind.is_float

    def parameters(self, low: Floats, high: Floats) -> tuple[Array, Floats]:
        """Return the scales, in their own type, and the zero points for ranges that are widened to include zero.

        A range of zero width gets scale 1. A scale is never zero, and no level overflows the scale's type.
        """
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        sign = np.where(self.uses_all_levels & (high > -low), -1.0, 1.0)
        if self.even:
            ideal = np.maximum(-low, high) / (self.middle - self.bottom)
        else:
            top = self.kind.high - self.kind.low
            ideal = (high - low) / top
        ideal = np.where(ideal == 0.0, 1.0, ideal)
        tiny = np.nextafter(self.scale_dtype.type(0), self.scale_dtype.type(1))
        largest = float(np.finfo(self.scale_dtype).max)
        scale = np.maximum(np.minimum(ideal, largest).astype(self.scale_dtype), tiny)
        if self.even:
            zero = np.full(scale.shape, float(self.middle))
        else:
            zero = np.clip(np.rint(self.kind.low - low / scale.astype(np.float64)), self.kind.low, self.kind.high)
        for _ in range(2):
            reach = np.maximum(self.kind.high - zero, zero - self.bottom) * scale.astype(np.float64)
            scale = np.where(reach > largest, np.nextafter(scale, self.scale_dtype.type(0)), scale)
        return (sign * scale).astype(self.scale_dtype), zero

    @property
    def has_zero_point(self) -> bool:
        """Whether zero points differ from DequantizeLinear's default of zero."""
        return not self.kind.is_float and not (self.symmetric and self.middle == 0)

    def nbytes(self, shape: tuple[int, ...], grouping: Grouping) -> int:
        """Return the bytes that an array of this shape takes with its scales and zero points."""
        scales, bits = grouping.count(shape), self.kind.stored_bits
        zeros = -(-scales * bits // 8) if self.has_zero_point else 0
        return -(-int(np.prod(shape, dtype=np.int64)) * bits // 8) + scales * self.scale_dtype.itemsize + zeros

    @property
    def uses_all_levels(self) -> bool:
        """Whether the form is symmetric and uses the lowest level too, with scales of either sign."""
        few = not self.kind.is_float and self.kind.bits <= _FEW_BITS
        return self.even and few and self.negative_scales

    @property
    def bottom(self) -> int:
        """The lowest level in use."""
        return 2 * self.middle - self.kind.high if self.even and not self.uses_all_levels else self.kind.low

    def quantize(self, values: Floats, scale: Array, zero: Floats) -> Array:
        """Return the levels of ``values``; scale and zero point broadcast against them."""
        ratio = values / scale.astype(np.float64)
        if self.kind.is_float:
            return np.clip(ratio, self.kind.low, self.kind.high).astype(self.kind.dtype)
        return np.clip(np.rint(ratio) + zero, self.bottom, self.kind.high).astype(np.int32).astype(self.kind.dtype)

    def dequantize(self, levels: Array, scale: Array, zero: Floats) -> Floats:
        """Return the values that levels stand for."""
        real: Floats = (levels.astype(np.float64) - zero) * scale.astype(np.float64)
        return real


@dataclass(frozen=True)
class Quantized:
    """A quantized array: levels, scales and zero points (None where DequantizeLinear's default of zero is right).

    ``signal`` and ``noise`` are the sums of squares of the values and of their errors.
    """

    levels: Array
    scale: Array
    zero_point: Array | None
    grouping: Grouping
    affine: Affine
    signal: float
    noise: float

    @property
    def sqnr_db(self) -> float:
        """The signal-to-quantization-noise ratio of the values, in dB; infinite if they are met exactly."""
        return ratio_db(self.signal, self.noise)


def ratio_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise): infinite without noise, minus infinite without signal."""
    if noise == 0.0:
        return float("inf")
    return float(10.0 * np.log10(signal / noise)) if signal else float("-inf")


def minmax(values: Floats, affine: Affine) -> tuple[Floats, Floats]:
    """Return the smallest and the largest value of each row."""
    return values.min(axis=1), values.max(axis=1)


def quantize(values: Array, affine: Affine, grouping: Grouping, rule: Range = minmax) -> Quantized:
    """Quantize an array of at least one finite value, rounding to the nearest level.

    Args:
        values: Any float type, any shape that ``grouping`` fits.
        affine: The type and form of the result.
        grouping: Which values share a scale.
        rule: Chooses the range of each row of a [groups, values] array.
    """
    parts = [_quantize_groups(part, affine, grouping, rule) for part in split_evenly(values, grouping)]
    axis = grouping.axis or 0
    if len(parts) == 1:
        levels, scale, zero = parts[0][:3]
    else:
        levels, scale, zero = (np.concatenate([part[i] for part in parts], axis=axis) for i in range(3))
    return Quantized(
        levels,
        scale,
        zero.astype(np.int32).astype(affine.kind.dtype) if affine.has_zero_point else None,
        grouping,
        affine,
        sum(part[3] for part in parts),
        sum(part[4] for part in parts),
    )


def with_scales(values: Array, quantized: Quantized, scale: Array) -> Quantized:
    """Quantize again, to the nearest level, with other scales of the same type and shape."""
    zero = np.zeros(()) if quantized.zero_point is None else quantized.zero_point.astype(np.float64)
    wide, shape, grouping = values.astype(np.float64), values.shape, quantized.grouping
    spaced = spread(scale, shape, grouping), spread(zero, shape, grouping)
    levels = quantized.affine.quantize(wide, *spaced)
    noise = float(np.square(quantized.affine.dequantize(levels, *spaced) - wide).sum())
    return replace(quantized, levels=levels, scale=scale, noise=noise)


def dequantize(quantized: Quantized) -> Floats:
    """Return the values that a quantized array stands for, in float64."""
    shape, grouping = quantized.levels.shape, quantized.grouping
    zero = np.zeros(()) if quantized.zero_point is None else quantized.zero_point.astype(np.float64)
    return quantized.affine.dequantize(
        quantized.levels, spread(quantized.scale, shape, grouping), spread(zero, shape, grouping)
    )


def _quantize_groups(
    values: Array, affine: Affine, grouping: Grouping, rule: Range
) -> tuple[Array, Array, Floats, float, float]:
    """Quantize one part in chunks of rows, so that the float64 copies stay small."""
    rows = to_groups(values, grouping)
    step = max(1, _CHUNK // rows.shape[1])
    levels = np.empty(rows.shape, affine.kind.dtype)
    scale = np.empty(len(rows), affine.scale_dtype)
    zero = np.empty(len(rows), np.float64)
    signal = noise = 0.0
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        wide = rows[part].astype(np.float64)
        scale[part], zero[part] = affine.parameters(*rule(wide, affine))
        levels[part] = affine.quantize(wide, scale[part, None], zero[part, None])
        error = affine.dequantize(levels[part], scale[part, None], zero[part, None]) - wide
        signal, noise = signal + float(np.square(wide).sum()), noise + float(np.square(error).sum())
    shape = values.shape
    scales, zeros = scale_layout(scale, shape, grouping), scale_layout(zero, shape, grouping)
    return from_groups(levels, shape, grouping), scales, zeros, signal, noise
