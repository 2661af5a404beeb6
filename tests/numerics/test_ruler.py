"""The ruler against brute force in float64: each figure of each part, and what each contract makes of it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.contract import BitExact, Contract, FloatExact, Lossy
from graphopt.numerics.compare import FEWEST_ELEMENTS, LEAST_UNITS, Comparer, Comparison, OutputDifference
from graphopt.numerics.moments import STEADY, Moments, unit_of
from graphopt.numerics.parts import BETWEEN_SAMPLES, WITHOUT_LOUDEST
from graphopt.numerics.samples import FEWEST_SAMPLES, Samples

Array = np.ndarray
TIGHT = FloatExact(rtol=1e-4, atol=1e-5)
FREE = Lossy(-1e9)


def compare(contract: Contract, *batches: tuple[Array, Array], sampled: bool = True) -> Comparison:
    comparer = Comparer(contract)
    for reference, candidate in batches:
        comparer.add({"y": reference}, {"y": candidate}, len(reference) if sampled else None)
    return comparer.result()


def judged(contract: Contract, reference: Array, candidate: Array, sampled: bool = True) -> OutputDifference:
    return compare(contract, (reference, candidate), sampled=sampled).outputs[0]


def db(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise)


def draw(seed: int, *shape: int) -> tuple[Array, Array]:
    """A reference whose channels differ in unit and offset, and a candidate that is off by some of each spread."""
    rng = np.random.default_rng(seed)
    channels = [1] * len(shape)
    channels[1] = shape[1]
    scale, shift = 10 ** rng.uniform(-2, 2, channels), rng.uniform(-50, 50, channels)
    r = rng.standard_normal(shape) * scale + shift
    return r, r + rng.standard_normal(shape) * scale * 10 ** rng.uniform(-3, 0, channels)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(20, 3), (17, 4, 5), (16, 2, 3, 4), (40, 7), (5, 6, 4)]))
def test_every_part_is_what_brute_force_says(seed: int, shape: tuple[int, ...]) -> None:
    r, c = draw(seed, *shape)
    cut = shape[0] // 3 + 1
    output = compare(FREE, (r[:cut], c[:cut]), (r[cut:], c[cut:])).outputs[0]
    noise = np.square(r - c)
    expected = {"": db(r.size * r.var(), noise.sum())}
    expected[BETWEEN_SAMPLES] = db(np.square(r - r.mean(axis=0)).sum(), noise.sum())
    for axis in {1, r.ndim - 1}:
        for index in range(shape[axis]):
            part, off = r.take(index, axis), noise.take(index, axis)
            if part.size >= FEWEST_ELEMENTS:
                name = f"channel {index}" if axis == 1 else f"entry {index} of axis {axis}"
                expected[name] = db(part.size * part.var(), off.sum())
    assert set(output.parts) - {WITHOUT_LOUDEST} == set(expected)
    assert (WITHOUT_LOUDEST in output.parts) == (len(r) >= FEWEST_SAMPLES)
    for name, value in expected.items():
        assert output.parts[name].sqnr_db == pytest.approx(value, abs=1e-6), name
    worst = min(output.parts.values(), key=lambda part: part.sqnr_db or math.inf)
    assert (output.where, output.sqnr_db) == (worst.where, worst.sqnr_db)
    assert output.spread == pytest.approx(r.std())
    assert output.rms == pytest.approx(math.sqrt(noise.mean()))
    assert output.correlation == pytest.approx(np.corrcoef(r.ravel(), c.ravel())[0, 1], abs=1e-9)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(20, 3), (17, 4, 5), (40, 7)]), st.sampled_from([1e-6, 1e-5, 1e-4]))
def test_float_exact_is_its_formula_in_the_whole_and_in_every_entry(
    seed: int, shape: tuple[int, ...], error: float
) -> None:
    rng = np.random.default_rng(seed)
    r, _ = draw(seed, *shape)
    c = r + rng.standard_normal(shape) * error * rng.choice([1.0, 1e-2, 1e-3], shape) * np.abs(r).mean(axis=0)

    def within(a: Array, b: Array, least: float) -> bool:
        s = a.std()
        allowed = np.maximum(TIGHT.rtol * np.maximum(np.abs(a), s) + TIGHT.atol * min(1.0, s), least)
        return bool((np.abs(a - b) <= allowed).all())

    least = LEAST_UNITS * 2.0**-52 * r.std()
    good = {"": within(r, c, 0.0)}
    for axis in {1, r.ndim - 1}:
        for index in range(shape[axis]):
            name = f"channel {index}" if axis == 1 else f"entry {index} of axis {axis}"
            a, b = r.take(index, axis), c.take(index, axis)
            good[name] = a.size < FEWEST_ELEMENTS or within(a, b, least)
    output = judged(TIGHT, r, c)
    assert output.holds == all(good.values())
    assert set(output.broken) == {name for name, fine in good.items() if not fine}


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.sampled_from([(1,), (10,), (300,), (4, 9)]))
def test_no_answer_that_is_the_same_for_all_samples_has_more_than_0_db(
    seed: int, count: int, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(seed)
    r = rng.standard_normal((count, *shape)) + 100 * rng.standard_normal(shape)
    for answer in (r.mean(axis=0), r[0], np.median(r, axis=0), np.zeros(shape)):
        output = judged(Lossy(0.001), r, np.broadcast_to(answer, r.shape).copy())
        assert not output.holds
        assert output.sqnr_db is not None
        assert output.sqnr_db <= 1e-9


def test_an_offset_is_no_signal() -> None:
    rng = np.random.default_rng(0)
    kelvin = 290 + rng.standard_normal((64, 1))
    output = judged(Lossy(6), kelvin, np.full_like(kelvin, 290.0))
    assert not output.holds
    assert output.problem.startswith("SQNR ")
    assert output.sqnr_db == pytest.approx(0.0, abs=1.0)


def test_a_quiet_channel_is_judged_by_itself_and_named() -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((64, 3)) * np.array([300.0, 1.0, 200.0])
    c = r + np.array([0.0, 1.0, 0.0]) * rng.standard_normal((64, 3))
    output = judged(Lossy(10), r, c)
    assert not output.holds
    assert output.where == "channel 1"
    assert "of channel 1, at least 10 is promised" in output.problem
    assert output.parts[""].sqnr_db is not None
    assert output.parts[""].sqnr_db > 40
    exact = judged(TIGHT, r, r + np.array([0.0, 1e-3, 0.0]))
    assert exact.broken == ("channel 1",)
    assert "in channel 1" in exact.problem


def test_what_is_constant_in_the_reference_is_compared_absolutely() -> None:
    rng = np.random.default_rng(0)
    r = np.stack([rng.standard_normal(64), np.full(64, 5.0), np.zeros(64)], axis=1)
    small = r + np.array([0.0, 5e-3, 1e-3])
    output = judged(FREE, r, small)
    assert output.parts["channel 1"].sqnr_db == pytest.approx(60.0)  # of its own size
    assert output.parts["channel 2"].sqnr_db == pytest.approx(20 * math.log10(r.std() / 1e-3))  # of the whole's spread
    assert judged(TIGHT, r, r + np.array([0.0, 4e-4, 9e-6])).holds
    assert "channel 1" in judged(TIGHT, r, r + np.array([0.0, 6e-4, 0.0])).broken
    assert judged(TIGHT, r, r + np.array([0.0, 0.0, 1.1e-5 * min(1.0, r.std())])).broken == ("channel 2",)


def test_an_entry_may_move_by_units_in_the_last_place_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((64, 2)) * np.array([1e6, 1e-6])
    unit = 2.0**-52 * r.std()
    assert judged(FloatExact(1e-9, 0.0), r, r + np.array([0.0, 3.9 * unit])).holds
    assert not judged(FloatExact(1e-9, 0.0), r, r + np.array([0.0, 4.1 * unit])).holds


@pytest.mark.parametrize("fill", [1e4, -1e12])
def test_one_loud_sample_does_not_outvote_the_rest(fill: float) -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((256, 8))
    c = r + 0.9 * rng.standard_normal((256, 8))
    for loud in (0, 17, 254, 255):
        a, b = r.copy(), c.copy()
        a[loud], b[loud] = fill, fill
        output = judged(Lossy(8), a, b)
        assert not output.holds
        assert output.where == WITHOUT_LOUDEST
        assert output.sqnr_db == pytest.approx(db(1.0, 0.81), abs=0.8)
        assert output.parts[""].sqnr_db is not None
        assert output.parts[""].sqnr_db > 40


def test_without_the_loudest_is_as_the_whole_where_samples_are_alike() -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((400, 5))
    c = r + 0.1 * rng.standard_normal((400, 5))
    parts = judged(FREE, r, c).parts
    assert parts[WITHOUT_LOUDEST].sqnr_db == pytest.approx(parts[""].sqnr_db, abs=1.0)


def test_samples_are_compared_where_their_number_is_the_first_axis() -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((4, 6))
    sampled = compare(FREE, (r, r * 1.01))
    assert sampled.samples == 4
    whole = compare(FREE, (r, r * 1.01), sampled=False)
    assert whole.samples == 1
    assert BETWEEN_SAMPLES in sampled.outputs[0].parts
    assert BETWEEN_SAMPLES not in whole.outputs[0].parts
    runs = compare(FREE, (r, r * 1.01), (r + 1, r + 1.1), sampled=False)
    assert BETWEEN_SAMPLES in runs.outputs[0].parts


def test_samples_of_other_sizes_are_pooled_with_those_of_their_size() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.standard_normal((3, 4)), rng.standard_normal((2, 9))
    pairs = [(each, each + 0.1) for each in (small, large)]
    signal = sum(np.square(each - each.mean(axis=0)).sum() for each in (small, large))
    part = compare(FREE, *pairs).outputs[0].parts[BETWEEN_SAMPLES]
    assert part.sqnr_db == pytest.approx(db(signal, 30 * 0.01))


def test_axes_of_changing_length_are_no_parts() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((16, 3, 5)), rng.standard_normal((16, 3, 6))
    parts = compare(FREE, (first, first + 0.1), (second, second + 0.1)).outputs[0].parts
    assert {name for name in parts if name.startswith(("channel", "entry"))} == {f"channel {i}" for i in range(3)}


@pytest.mark.parametrize(("length", "sliced"), [(256, True), (257, False)])
def test_only_short_axes_are_looked_at_entry_by_entry(length: int, sliced: bool) -> None:
    r = np.random.default_rng(0).standard_normal((16, length))
    assert ("channel 0" in judged(FREE, r, r + 0.1).parts) == sliced


def test_shares_of_one_are_one_part() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 6)) * np.array([5, 5, 5, 5, 5, 0.1]) - np.array([0, 0, 0, 0, 0, 30.0])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert not [name for name in judged(FREE, probabilities, probabilities + 1e-6).parts if name.startswith("channel")]
    steps = np.repeat(probabilities[:, None], 3, axis=1)
    assert not [name for name in judged(FREE, steps, steps + 1e-6).parts if name.startswith(("channel", "entry"))]
    many = np.repeat(probabilities / 60, 60, axis=1)[:, None].repeat(3, axis=1)
    assert not [name for name in judged(FREE, many, many + 1e-6).parts if name.startswith(("channel", "entry"))]
    shifted = probabilities.copy()
    shifted[3, 0] -= 0.03
    assert "channel 0" in judged(FREE, shifted, shifted + 1e-6).parts


@pytest.mark.parametrize(
    ("values", "blind"),
    [
        pytest.param(np.full((5, 3), 2.0), True, id="one value"),
        pytest.param(np.tile(np.arange(4.0), (5, 1)), True, id="the same for all samples"),
        pytest.param(np.tile(np.arange(4.0), (1, 1)), False, id="one sample"),
        pytest.param(np.arange(20.0).reshape(5, 4), False, id="samples differ"),
        pytest.param(np.full((5, 3), np.nan), True, id="nothing finite"),
        pytest.param(np.full((5, 3), -np.inf), True, id="infinite"),
        pytest.param(np.zeros((0, 3)), True, id="no element"),
        pytest.param(np.ones((5, 3), np.int64), False, id="integers"),
    ],
)
def test_data_that_cannot_tell_a_constant_are_called_blind(values: Array, blind: bool) -> None:
    result = compare(TIGHT, (values, values))
    assert result.outputs[0].blind is blind
    assert result.blind == (("y",) if blind else ())


def test_agreement_is_that_of_the_highest_scores() -> None:
    r = np.eye(4) + np.eye(4)[::-1] * 0.5
    c = r.copy()
    c[0] = c[0][::-1]
    result = compare(FREE, (r, c), (r, r))
    assert result.agreement == 7 / 8
    assert compare(FREE, (r[:, :1], r[:, :1])).agreement is None
    assert compare(FREE, (r, c), sampled=False).agreement is None


def test_correlation_is_none_without_spread_and_zero_for_a_constant() -> None:
    r = np.arange(12.0).reshape(4, 3)
    assert judged(FREE, np.ones((4, 3)), np.ones((4, 3)) * 1.1).correlation is None
    assert judged(FREE, r, np.ones((4, 3))).correlation == 0.0
    assert judged(FREE, r, -r).correlation == pytest.approx(-1.0)
    both = Comparer(FREE)
    both.add({"a": r, "b": r}, {"a": r, "b": -r}, 4)
    assert both.result().correlation == pytest.approx(-1.0)


def test_elements_that_are_not_finite_on_both_sides_do_not_count() -> None:
    rng = np.random.default_rng(0)
    r, c = draw(0, 20, 3)
    holes = rng.random(r.shape) < 0.2
    a, b = np.where(holes, np.nan, r), np.where(holes, np.nan, c)
    output = judged(FREE, a, b)
    assert output.spread == pytest.approx(r[~holes].std())
    assert output.rms == pytest.approx(math.sqrt(np.square(r - c)[~holes].mean()))
    part = output.parts["channel 1"]
    assert part.spread == pytest.approx(r[:, 1][~holes[:, 1]].std())


def test_a_refusal_breaks_every_contract() -> None:
    for contract in (BitExact(), TIGHT, Lossy(-math.inf)):
        comparer = Comparer(contract)
        comparer.add({"y": np.ones(2)}, {"y": np.ones(2)})
        comparer.refuse("the input is gone")
        result = comparer.result()
        assert not result.holds
        assert result.problem == "the input is gone"


@pytest.mark.parametrize("steps", [STEADY * 0.9, STEADY * 1.1])
def test_a_spread_of_a_few_units_in_the_last_place_is_that_of_a_constant(steps: float) -> None:
    moments = Moments(1)
    values = 100 * (1 + np.array([-1.0, 1.0]) * steps * 2.0**-23)
    moments.add(values.reshape(1, 1, -1), np.zeros((1, 1, 2)))
    assert moments.constant(2.0**-23)[0] == (steps < STEADY)
    samples = Samples(1)
    samples.add(values.reshape(2, 1), np.zeros((2, 1)))
    assert samples.is_steady(2.0**-23) == (steps < STEADY)


@pytest.mark.parametrize(
    ("name", "unit"), [("float16", 2.0**-10), ("float32", 2.0**-23), ("float64", 2.0**-52), ("bfloat16", 2.0**-7)]
)
def test_units_in_the_last_place(name: str, unit: float) -> None:
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    assert unit_of(dtype) == unit
    one = np.ones((), dtype)
    assert float(np.asarray(one + np.asarray(unit, dtype), dtype)) > 1.0
    assert float(np.asarray(one + np.asarray(unit / 4, dtype), dtype)) == 1.0


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_moments_of_parts_are_numpys_whatever_the_batches(seed: int, batches: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = [rng.standard_normal((rng.integers(1, 4), 5, rng.integers(1, 4))) + 1e3 for _ in range(batches)]
    moments = Moments(5)
    for block in blocks:
        moments.add(block[:, :2], np.abs(block[:, :2]))
        moments.add(block[:, 2:], np.abs(block[:, 2:]), start=2)
    rows = np.concatenate([np.moveaxis(block, 1, 0).reshape(5, -1) for block in blocks], axis=1)
    np.testing.assert_allclose(moments.spread, rows.std(axis=1), rtol=1e-9)
    np.testing.assert_allclose(moments.rms, np.sqrt(np.square(rows).mean(axis=1)), rtol=1e-12)
    np.testing.assert_array_equal(moments.max_abs, np.abs(rows).max(axis=1))
    np.testing.assert_array_equal(moments.max_reference, np.abs(rows).max(axis=1))
    np.testing.assert_array_equal(moments.count, rows.shape[1])
