"""The quantization arithmetic against definitions written out independently, value by value."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from graphopt.numerics.gptq import gptq
from graphopt.numerics.grouping import Grouping
from graphopt.numerics.ladder import blocks, climb, ladder
from graphopt.numerics.quantization import TYPES, Affine, dequantize, quantize, with_scales
from graphopt.numerics.ranges import mse, percentile_rule, std_rule

INTEGERS = [name for name in TYPES if name != "float8"]
GROUPINGS = [Grouping(), Grouping(0), Grouping(1), Grouping(2), Grouping(1, 4), Grouping(0, 2), Grouping(2, 5)]
TOP = {name: TYPES[name].high - (0 if TYPES[name].low < 0 else (TYPES[name].high + 1) // 2) for name in INTEGERS}
"""How many steps the highest level is above zero in the symmetric form."""
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def groups_of(shape: tuple[int, ...], grouping: Grouping) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """The indices that share a scale, by the index of the scale."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index in np.ndindex(shape):
        if grouping.axis is None:
            key: tuple[int, ...] = ()
        elif grouping.block is None:
            key = (index[grouping.axis],)
        else:
            key = tuple(i // grouping.block if axis == grouping.axis else i for axis, i in enumerate(index))
        found.setdefault(key, []).append(index)
    return found


def round_half_even(value: float) -> int:
    return round(Fraction(value))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("grouping", GROUPINGS, ids=str)
@pytest.mark.parametrize("kind", INTEGERS)
def test_the_definition(kind: str, grouping: Grouping, symmetric: bool) -> None:
    values = np.random.default_rng(0).standard_normal((5, 6, 7)).astype(np.float32) * 3
    low, high = TYPES[kind].low, TYPES[kind].high
    result = quantize(values, Affine(TYPES[kind], symmetric), grouping)
    for key, indices in groups_of(values.shape, grouping).items():
        members = [float(values[index]) for index in indices]
        least, most = min(*members, 0.0), max(*members, 0.0)
        middle = 0 if low < 0 else (high + 1) // 2
        if symmetric and TYPES[kind].bits <= 4:  # the lowest level is the value of largest magnitude, whatever its sign
            scale, zero, bottom = np.float32((least if -least >= most else most) / (low - middle)), middle, low
        elif symmetric:
            scale, zero = np.float32(max(-least, most) / (high - middle)), middle
            bottom = 2 * middle - high
        else:
            scale = np.float32((most - least) / (high - low))
            zero, bottom = min(high, max(low, round_half_even(low - least / float(scale)))), low
        assert result.scale[key] == scale
        assert (0 if result.zero_point is None else int(result.zero_point[key])) == zero
        for index, member in zip(indices, members, strict=True):
            assert int(result.levels[index]) == min(high, max(bottom, round_half_even(member / float(scale)) + zero))
    assert result.levels.dtype == TYPES[kind].dtype
    error = dequantize(result) - values.astype(np.float64)
    assert math.isclose(result.noise, float(np.square(error).sum()), rel_tol=1e-9)
    assert math.isclose(result.signal, float(np.square(values.astype(np.float64)).sum()), rel_tol=1e-9)


def test_float8_takes_the_nearest_level() -> None:
    values = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32)
    result = quantize(values, Affine(TYPES["float8"]), Grouping(0))
    every = np.arange(256, dtype=np.uint8).view(TYPES["float8"].dtype).astype(np.float64)
    every = every[np.isfinite(every)]
    for row in range(4):
        scaled = values[row].astype(np.float64) / float(result.scale[row])
        nearest = np.abs(scaled[:, None] - every).min(axis=1)
        np.testing.assert_array_equal(np.abs(scaled - result.levels[row].astype(np.float64)), nearest)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    values=hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=4), elements=FINITE),
    kind=st.sampled_from(INTEGERS),
    grouping=st.sampled_from(GROUPINGS),
    symmetric=st.booleans(),
)
def test_every_value_is_met_to_half_a_step(
    values: NDArray[np.float32], kind: str, grouping: Grouping, symmetric: bool
) -> None:
    """Any finite values: zeros, subnormals, the largest floats; one step where the zero point had to be rounded."""
    result = quantize(values, Affine(TYPES[kind], symmetric), grouping)
    assert (result.scale != 0).all()
    assert (result.scale > 0).all() or (symmetric and TYPES[kind].bits <= 4)
    assert np.isfinite(result.scale).all()
    real = dequantize(result)
    assert (np.abs(real) <= np.finfo(np.float32).max).all()
    for key, indices in groups_of(values.shape, grouping).items():
        scale = abs(float(result.scale[key]))
        largest = max(abs(float(values[index])) for index in indices)
        for index in indices:
            rounding = largest * 2.0**-22
            clipped = max(0.0, abs(float(values[index])) - TOP[kind] * scale) if symmetric else 0.0
            bound = max(0.5 if symmetric else 1.0, clipped / scale) * scale
            assert abs(real[index] - float(values[index])) <= bound + rounding
            if values[index] == 0:
                assert real[index] == 0.0


@pytest.mark.parametrize(("kind", "least_db"), [("int4", 21.2), ("int3", 15.0), ("int2", 8.7)])
def test_few_bits_use_every_level(kind: str, least_db: float) -> None:
    """Blocks of 32 normal values: 20.2, 12.9 and 3.6 dB where the lowest level is left out."""
    values = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    result = quantize(values, Affine(TYPES[kind]), Grouping(1, 32))
    assert result.sqnr_db > least_db
    assert result.levels.astype(np.int64).min() == TYPES[kind].low
    assert (result.scale < 0).mean() == pytest.approx(0.5, abs=0.05)


def test_half_precision_scales_stay_finite_and_positive() -> None:
    values = np.array([[65504.0, -65504.0], [6e-8, -6e-8], [0.0, 0.0]], np.float16)
    result = quantize(values, Affine(TYPES["int8"], scale_dtype=np.dtype(np.float16)), Grouping(0))
    assert result.scale.dtype == np.float16
    assert (result.scale > 0).all()
    assert np.isfinite((result.levels.astype(np.float16) * result.scale[:, None]).astype(np.float64)).all()
    np.testing.assert_allclose(dequantize(result), values.astype(np.float64), rtol=0.002)


def test_scales_can_be_given() -> None:
    values = np.array([[1.0, -3.0], [0.2, 0.1]], np.float32)
    first = quantize(values, Affine(TYPES["int8"]), Grouping(0))
    result = with_scales(values, first, np.array([0.5, 0.1], np.float32))
    np.testing.assert_array_equal(result.levels, [[2, -6], [2, 1]])


def test_mse_never_loses_to_minmax() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((8, 200)) ** 3).astype(np.float32)
    affine = Affine(TYPES["int4"])
    assert quantize(values, affine, Grouping(0), mse).noise < quantize(values, affine, Grouping(0)).noise


def test_percentile_and_std_rules() -> None:
    values = np.concatenate([np.linspace(-1, 1, 1001), [100.0]])[None]
    affine = Affine(TYPES["int8"])
    low, high = percentile_rule(99.0)(values, affine)
    assert -1.0 < low[0] < -0.98
    assert 0.98 < high[0] < 1.01
    low, high = std_rule(1.0)(values, affine)
    np.testing.assert_allclose(high[0], values.mean() + values.std())
    np.testing.assert_allclose(low[0], -1.0)


@pytest.mark.parametrize(
    ("length", "size", "block"), [(64, 32, 32), (48, 32, 24), (3, 32, 3), (1, 32, None), (37, 32, None), (40, 16, None)]
)
def test_blocks_divide_their_axis(length: int, size: int, block: int | None) -> None:
    assert blocks((8, length), 1, size) == (None if block is None else Grouping(1, block))


@pytest.mark.parametrize(
    ("length", "size", "block"),
    [(64, 32, 32), (48, 32, 24), (200, 32, 20), (200, 40, 20), (100, 25, 20), (50, 32, None), (25, 32, None),
     (192, 96, 96), (72, 18, None), (24, 8, 8), (20, 10, None), (16, 32, None)],
)  # fmt: skip
def test_blocks_of_a_matrix_product(length: int, size: int, block: int | None) -> None:
    assert blocks((length, 8), 0, size, product=True) == (None if block is None else Grouping(0, block))
    if length <= size:
        assert blocks((3, length, 8), 1, size, product=True) == Grouping(1, length)


def test_the_ladder_goes_to_finer_blocks_then_to_more_bits() -> None:
    steps = [(a.kind.name, g.block) for a, g in ladder(Affine(TYPES["int4"]), Grouping(0), (8, 64), 1)]
    finer = [None, 64, 32, 16]
    assert [step for step in steps if step[0] == "int4"] == [("int4", block) for block in finer if block != 64]
    assert [kind for kind, _ in steps if kind == "int16"]
    values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    best, failed = climb(values, ladder(Affine(TYPES["int4"]), Grouping(0), (8, 64), 1), mse, 30.0, values.nbytes)
    assert best is not None
    assert best.affine.kind.name == "int8"
    assert best.sqnr_db >= 30
    assert all(attempt.sqnr_db < 30 for attempt in failed)


def test_gptq_beats_rounding_to_nearest_on_what_the_layer_sees() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 40)) @ rng.standard_normal((40, 40))
    weight = rng.standard_normal((6, 40))
    affine = Affine(TYPES["int4"])
    nearest = quantize(weight, affine, Grouping(0))
    levels, real = gptq(weight, rows.T @ rows, affine, nearest.scale[:, None], np.zeros((1, 1)))
    np.testing.assert_array_equal(real, levels.astype(np.float64) * nearest.scale[:, None].astype(np.float64))
    lost_nearest = np.square(rows @ (dequantize(nearest) - weight).T).sum()
    assert np.square(rows @ (real - weight).T).sum() < 0.6 * lost_nearest


def test_gptq_rounds_to_nearest_where_inputs_are_independent() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 300))
    affine = Affine(TYPES["int8"])
    nearest = quantize(weight, affine, Grouping(0))
    levels, _ = gptq(weight, np.diag(np.arange(300.0)), affine, nearest.scale[:, None], np.zeros((1, 1)))
    np.testing.assert_array_equal(levels, nearest.levels)
