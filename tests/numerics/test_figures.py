"""The figures behind a verdict, one by one: what is kept of samples, fronts, entries and sizes, and where each ends."""

import math

import ml_dtypes
import numpy as np
import pytest

from graphopt.contract import BitExact, Contract, FloatExact, Lossy
from graphopt.numerics import samples as sampling
from graphopt.numerics import tally as tallies
from graphopt.numerics.compare import BEYOND, Comparer, Comparison, OutputDifference, combine
from graphopt.numerics.front import Front
from graphopt.numerics.moments import Moments, unit_of
from graphopt.numerics.parts import BETWEEN_SAMPLES, WITHOUT_LOUDEST
from graphopt.numerics.samples import Samples
from graphopt.numerics.tally import Tally

Array = np.ndarray
FREE = Lossy(-1e9)
ANYTHING = Lossy(-math.inf)
TIGHT = FloatExact(rtol=1e-4, atol=1e-5)


def compare(contract: Contract, *batches: tuple[object, object], sampled: bool = True) -> Comparison:
    comparer = Comparer(contract)
    for reference, candidate in batches:
        samples = len(reference) if sampled and isinstance(reference, np.ndarray) and reference.ndim else None
        comparer.add({"y": reference}, {"y": candidate}, samples)
    return comparer.result()


def judged(contract: Contract, reference: object, candidate: object, sampled: bool = True) -> OutputDifference:
    return compare(contract, (reference, candidate), sampled=sampled).outputs[0]


# -- samples -----------------------------------------------------------------------------------------------------------


def typical(r: Array, moved: Array) -> tuple[float, float]:
    """Brute force: the loudest 2% by median distance are left out; the rest is compared with what is left of 25."""
    count = len(r)
    known = range(min(count, 25))
    distance = [{j: float(np.square(r[i] - r[j]).sum() / 2) for j in known if j != i} for i in range(count)]
    medians = [float(np.median(list(each.values()))) for each in distance]
    loud = sorted(range(count), key=lambda i: medians[i])[count - max(1, count * 2 // 100) :]
    rest = [i for i in range(count) if i not in loud]
    variances = [np.mean([value for j, value in distance[i].items() if j not in loud]) for i in rest]
    return float(np.sum(variances)), float(np.square(moved[rest]).sum())


@pytest.mark.parametrize("count", [16, 24, 25, 26, 27, 60, 99, 100, 149, 150])
def test_typical_samples_are_those_but_the_loudest(count: int) -> None:
    rng = np.random.default_rng(count)
    r = rng.standard_normal((count, 5)) * 10 ** rng.uniform(-1, 1, (count, 1)) + 3
    moved = 0.1 * rng.standard_normal((count, 5))
    same = Samples(5)
    same.add(r[: count // 2], moved[: count // 2])
    same.add(r[count // 2 :], moved[count // 2 :])
    assert same.typical() == pytest.approx(typical(r, moved), rel=1e-9)
    assert same.count == count
    assert same.noise == pytest.approx(np.square(moved).sum())
    assert same.max_reference == np.abs(r).max()
    assert same.deviation == pytest.approx(np.square(r - r.mean(axis=0)).sum())


def test_fewer_than_16_samples_have_no_loudest() -> None:
    r = np.random.default_rng(0).standard_normal((15, 3))
    same = Samples(3)
    same.add(r, 0 * r)
    assert same.typical() is None


@pytest.mark.parametrize(
    ("size", "step", "kept", "compared"),
    [(1, 1, 1, 1), (2, 1, 2, 2), (3, 1, 3, 2), (8, 1, 8, 2), (9, 2, 5, 2), (10, 2, 5, 2), (17, 3, 6, 2), (33, 5, 7, 2)],
)
def test_of_large_samples_evenly_spaced_elements_are_looked_at(
    size: int, step: int, kept: int, compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "POSITIONS", 8)
    monkeypatch.setattr(sampling, "COMPARED_POSITIONS", 2)
    same = Samples(size)
    assert (same.step, same.size, same.compared) == (step, kept, compared)
    r = np.random.default_rng(size).standard_normal((20, size))
    moved = 0.1 * np.random.default_rng(size + 1).standard_normal((20, size))
    same.add(r[:, ::step], moved[:, ::step])
    coarse = -(-kept // compared)
    expected = typical(r[:, ::step][:, ::coarse], moved[:, ::step][:, ::coarse])
    assert same.typical() == pytest.approx(expected, rel=1e-9)
    parts = judged(FREE, r, r - moved).parts
    looked, off = r[:, ::step], moved[:, ::step]
    signal = np.square(looked - looked.mean(axis=0)).sum()
    assert parts[BETWEEN_SAMPLES].sqnr_db == pytest.approx(10 * math.log10(signal / np.square(off).sum()))
    fine = parts[WITHOUT_LOUDEST]
    assert fine.spread == pytest.approx(math.sqrt(expected[0] / (20 * compared)))
    assert fine.rms == pytest.approx(math.sqrt(expected[1] / (20 * compared)))


def test_the_limits_of_samples() -> None:
    assert (sampling.POSITIONS, sampling.COMPARED_POSITIONS) == (2**20, 2**12)
    assert (sampling.REFERENCES, sampling.FEWEST_SAMPLES, sampling.LOUDEST) == (25, 16, 0.02)


def test_small_values_that_vary_are_no_constant() -> None:
    same = Samples(2)
    assert same.is_steady(2.0**-23)
    same.add(1e-8 * np.array([[1.0, 2.0], [3.0, 1.0]]), np.zeros((2, 2)))
    assert not same.is_steady(2.0**-23)


def test_samples_that_are_alike_are_not_compared_with_each_other() -> None:
    r = np.tile(np.arange(1.0, 5.0), (20, 1))
    assert not {BETWEEN_SAMPLES, WITHOUT_LOUDEST} & set(judged(FREE, r, r + 0.1).parts)
    one = np.arange(4.0).reshape(1, 4)
    assert BETWEEN_SAMPLES not in judged(FREE, one, one + 0.1).parts


def test_samples_that_are_alike_but_for_the_loudest_are_no_part_without_it() -> None:
    r = np.full((20, 4), 100.0) + 1e-13 * np.random.default_rng(0).standard_normal((20, 4))
    r[7] = 300.0
    parts = judged(FREE, r, r + 0.1).parts
    assert BETWEEN_SAMPLES in parts
    assert WITHOUT_LOUDEST not in parts
    r[:, 0] += 1e-10 * np.arange(20)
    assert WITHOUT_LOUDEST in judged(FREE, r, r + 0.1).parts


def test_samples_of_more_than_16_sizes_are_parts_of_the_whole_only() -> None:
    tally = Tally(None)
    for size in range(1, 21):
        values = np.arange(2.0 * size).reshape(2, size)
        tally.add(values, values, 2)
    assert list(tally.samples) == list(range(1, 17))
    tally.add(np.ones((2, 3)), np.ones((2, 3)), 2)
    assert tally.samples[3].count == 4
    assert tally.elements == 2 * 210 + 6


def test_large_samples_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    r, c = rng.standard_normal((21, 6)), rng.standard_normal((21, 6))
    whole = judged(FREE, r, c).parts
    for chunk in (1, 6, 12, 20, 125):
        monkeypatch.setattr(tallies, "CHUNK", chunk)
        cut = judged(FREE, r, c).parts
        assert set(cut) == set(whole)
        for name, part in whole.items():
            assert cut[name].sqnr_db == pytest.approx(part.sqnr_db), name


@pytest.mark.parametrize("shape", [(3, 8, 5), (3, 2, 8, 5), (1, 12, 2)])
def test_chunks_along_the_second_axis_are_of_the_same_slices(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    r, c = rng.standard_normal(shape), rng.standard_normal(shape)
    whole = judged(FREE, r, c).parts
    monkeypatch.setattr(tallies, "CHUNK", 10)
    assert len({start for _, start in tallies._blocks(shape)}) > 1
    cut = judged(FREE, r, c).parts
    assert set(cut) == set(whole)
    for name, part in whole.items():
        assert cut[name].sqnr_db == pytest.approx(part.sqnr_db, rel=1e-9, abs=0), name


def test_what_is_not_finite_on_either_side_is_no_signal_between_samples() -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((20, 3))
    c = r + 0.1
    r[4, 1] = c[4, 1] = np.nan
    r[5, 2] = c[5, 2] = np.inf
    filled = np.where(np.isfinite(r), r, 0.0)
    noise = np.square(np.where(np.isfinite(r), 0.1, 0.0)).sum()
    expected = 10 * math.log10(np.square(filled - filled.mean(axis=0)).sum() / noise)
    assert judged(FREE, r, c).parts[BETWEEN_SAMPLES].sqnr_db == pytest.approx(expected)


# -- fronts ------------------------------------------------------------------------------------------------------------


def test_a_front_holds_nothing_within_the_relative_tolerance() -> None:
    front = Front(2.0**-13)
    front.add(np.array([1.0, 0.0, -4.0, 2.0]), np.array([2.0**-13, 0.0, 2.0**-11, 1e-9]))
    assert front._x.size == 0
    assert front.worst(0.0, 0.0) is None
    front.add(np.array([1.0]), np.array([2.0**-12]))
    assert front.worst(0.0, 0.0) == (2.0**-12, 2.0**-13)
    assert front.worst(0.0, 2.0**-13) is None
    assert front.worst(2.0, 0.0) is None
    assert front.worst(1.5, 0.0) == (2.0**-12, 1.5 * 2.0**-13)
    assert front.worst(0.0, 0.0, least=2.0**-12) is None
    assert front.worst(0.0, 0.0, least=0.9 * 2.0**-12) == (2.0**-12, 0.9 * 2.0**-12)


def test_the_worst_is_the_furthest_beyond_its_own_tolerance() -> None:
    front = Front(0.125)
    front.add(np.array([0.0, 1.0]), np.array([0.01, 0.127]))
    assert front.worst(0.0, 1e-3) == (0.01, 1e-3)
    assert front.worst(0.0, 0.0) == (0.01, 0.0)  # and no division by zero


def test_a_front_is_the_corners_that_no_other_element_exceeds() -> None:
    rng = np.random.default_rng(0)
    r, moved = rng.standard_normal(300), np.abs(rng.standard_normal(300)) * 1e-2
    front = Front(1e-2)
    for part in np.array_split(np.arange(300), 7):
        front.add(r[part], moved[part])
    points = [(d - 1e-2 * abs(value), d) for value, d in zip(r, moved, strict=True)]
    corners = {
        (x, y) for x, y in points if x > 0 and not any((a > x and b >= y) or (a >= x and b > y) for a, b in points)
    }
    assert set(zip(front._x.tolist(), front._y.tolist(), strict=True)) == corners
    for spread in (0.0, 0.3, 1.0, 3.0):
        for absolute in (0.0, 1e-3, 1e-2, 3e-2, 1e-1):
            broken = (moved > 1e-2 * np.maximum(np.abs(r), spread) + absolute).any()
            assert (front.worst(spread, absolute) is not None) == broken


# -- contracts ---------------------------------------------------------------------------------------------------------


def test_a_tolerance_that_is_absolute_only_holds_in_each_entry_as_well() -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((64, 2)) * np.array([100.0, 1e-2])
    off = np.array([0.0, 5e-4])
    spread = r[:, 1].std()
    assert judged(FloatExact(0.0, 6e-4 / spread), r, r + off).holds
    broken = judged(FloatExact(0.0, 4e-4 / spread), r, r + off)
    assert broken.broken == ("channel 1",)
    assert not judged(FloatExact(0.0, 0.0), r, r + np.array([0.0, 1e-3])).holds


def test_the_absolute_tolerance_follows_the_spread_of_an_entry() -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((64, 2)) * np.array([100.0, 1e-2])
    exact = FloatExact(1e-9, 1e-3)
    allowed = 1e-3 * r[:, 1].std()
    assert judged(exact, r, r + np.array([0.0, 0.9 * allowed])).holds
    output = judged(exact, r, r + np.array([0.0, 1.1 * allowed]))
    assert output.broken == ("channel 1",)
    assert f"(spread {r[:, 1].std():.3g})" in output.problem


def test_an_entry_that_is_constant_but_for_rounding_has_no_spread() -> None:
    rng = np.random.default_rng(0)
    r = np.stack([1e3 * rng.standard_normal(64), 1 + 2.0**-52 * rng.integers(-2, 3, 64)], axis=1)
    output = judged(TIGHT, r, r + np.array([0.0, 1e-2]))
    assert output.broken == ("channel 1",)
    assert output.problem.endswith("(spread 0)")


def test_the_worst_part_is_named_with_its_severity() -> None:
    rng = np.random.default_rng(0)
    r = rng.standard_normal((64, 3))
    for worst in range(3):
        off = np.full(3, 1e-3)
        off[worst] = 1e-1
        output = judged(TIGHT, r, r + off)
        assert set(output.broken) == {"", "channel 0", "channel 1", "channel 2"}
        part = r[:, worst]
        allowed = 1e-4 * np.maximum(np.abs(part), part.std()) + 1e-5 * min(1.0, part.std())
        whole = 1e-4 * np.maximum(np.abs(part), r.std()) + 1e-5 * min(1.0, r.std())
        expected = 1e-1 / min(allowed.min(), whole.min())
        assert output.severity == pytest.approx(expected, rel=1e-6)
        assert "moved by 0.1" in output.problem
    assert judged(TIGHT, r, r).severity == 0.0


def test_the_whole_is_named_by_no_part() -> None:
    r = np.linspace(-1, 1, 9)
    assert judged(TIGHT, r, r + 0.1).problem.startswith("an element moved by 0.1, ")
    assert judged(Lossy(90), r, r * 1.1, sampled=False).problem.startswith("SQNR 20.00 dB, at least 90")


def test_the_severity_of_a_lossy_contract_is_in_decibels() -> None:
    r = np.random.default_rng(0).standard_normal((64, 1))
    assert judged(Lossy(10), r, r * 1.1).severity == 0.0
    output = judged(Lossy(30), r, r * 1.1)
    assert output.sqnr_db is not None
    assert output.severity == pytest.approx(1 + 30 - output.sqnr_db)
    assert output.broken == (output.where,)
    assert judged(Lossy(output.sqnr_db), r, r * 1.1).holds  # the floor itself is kept
    assert not judged(Lossy(output.sqnr_db + 1e-9), r, r * 1.1).holds
    assert judged(BitExact(), r, r * 1.1).severity == BEYOND


def test_an_infinite_severity_can_be_written() -> None:
    r = np.full((20, 2), 5.0)
    output = judged(FloatExact(0.0, 0.0), r, r + 1.0)
    assert 1e299 < output.severity <= BEYOND


@pytest.mark.parametrize(
    ("reference", "candidate", "holds"),
    [
        pytest.param(np.ones((2, 3), "f4"), np.ones((2, 4), "f4"), True, id="floats of another size"),
        pytest.param(np.ones((2, 3), "i8"), np.ones((2, 4), "i8"), True, id="integers of another size"),
        pytest.param(np.ones((2, 3), "i8"), np.zeros((2, 3), "i8"), True, id="other integers"),
        pytest.param(np.ones((2, 3), "f4"), np.zeros((2, 3), "f4"), True, id="other floats"),
        pytest.param(np.ones((2, 3), "f4"), np.full((2, 4), np.nan, "f4"), False, id="new NaN and another size"),
        pytest.param(np.full((2, 3), np.nan, "f4"), np.full((2, 4), np.nan, "f4"), True, id="NaN on both sides"),
        pytest.param(np.full((2, 3), np.inf, "f4"), np.full((2, 4), 1, "f4"), True, id="Inf is gone"),
        pytest.param(np.ones((2, 3), "f4"), np.ones((2, 4), "f8"), False, id="another type"),
        pytest.param(np.ones((2, 3), "f4"), np.ones((2, 3, 1), "f4"), False, id="another rank"),
        pytest.param(np.array(["a"], object), np.ones(1, "i8"), False, id="text became integers"),
        pytest.param(np.ones(1, "i8"), np.array(["a"], object), False, id="integers became text"),
        pytest.param(np.array(["a"], object), np.array(["a"]), True, id="two forms of text"),
        pytest.param([np.ones(2)], [np.ones(3)], True, id="an element of another size"),
    ],
)
def test_a_contract_without_a_floor_lets_sizes_change(reference: object, candidate: object, holds: bool) -> None:
    output = judged(ANYTHING, reference, candidate)
    assert output.holds is holds
    assert output.severity == (0.0 if holds else BEYOND)


@pytest.mark.parametrize(
    "candidate",
    [np.zeros((2, 4)), np.zeros((2, 3), "f4"), np.full((2, 3), np.nan), [np.zeros((2, 3))]],
    ids=["size", "type", "NaN", "form"],
)
def test_what_could_not_be_compared_has_no_largest_difference(candidate: object) -> None:
    result = compare(ANYTHING, (np.ones((2, 3)), candidate))
    assert (result.max_abs, result.max_rel) == (None, None)


@pytest.mark.parametrize(
    ("reference", "candidate", "says"),
    [
        (np.ones(2), {"a": np.ones(2)}, "float64(2,) became a map of 'a'"),
        ({"a": np.ones(2)}, np.ones(2), "a map of 'a' became float64(2,)"),
        (None, {1: np.ones(2)}, "nothing became a map of 1"),
        ({i: np.ones(2) for i in range(7)}, None, "a map of 0, 1, 2, 3, 4 became nothing"),
        ([np.ones(2)], {0: np.ones(2)}, "a sequence of 1 became a map of 0"),
        ({0: np.ones(2)}, [np.ones(2)], "a map of 0 became a sequence of 1"),
        ([[np.ones(2)]], [[None]], "[0][0]float64(2,) became nothing"),
        ({"k": [np.ones(2)]}, {"k": []}, "['k']a sequence of 1 became a sequence of 0"),
        ([np.ones(2)], [np.ones(3)], "[0]shape (2,) became (3,)"),
    ],
)
def test_values_of_other_forms_are_described(reference: object, candidate: object, says: str) -> None:
    assert judged(TIGHT, reference, candidate).problem == says


def test_nothing_equals_nothing() -> None:
    assert judged(TIGHT, [None, np.ones(2)], [None, np.ones(2)]).holds


def test_of_several_differences_of_form_the_first_is_named() -> None:
    result = compare(TIGHT, (np.ones(2), np.ones(3)), (np.ones(2), np.ones(4)))
    assert result.problem == "y: shape (2,) became (3,)"
    both = compare(TIGHT, (np.ones(2), np.ones(3)), (np.ones(2), np.ones(2, "f4")))
    assert both.problem == "y: float64 became float32"
    types = compare(TIGHT, (np.ones(2), np.ones(2, "f4")), (np.ones(2), np.ones(2, "f2")))
    assert types.problem == "y: float64 became float32"


def test_new_nans_are_counted_and_the_first_is_shown() -> None:
    r = np.arange(6.0).reshape(2, 3)
    c = r.copy()
    c[0, 2], c[1, 1] = np.nan, np.inf
    result = compare(TIGHT, (r, r), (r, c), (r, c))
    assert result.problem == "y: 2 became nan (4 of 18 elements)"


def test_the_largest_difference_of_integers_is_kept_over_batches() -> None:
    first, second = np.array([1, 2, 3]), np.array([5, 5])
    result = compare(BitExact(), (first, np.array([2, 9, 3])), (second, np.array([5, 6])))
    assert result.problem == "y: 3 of 5 elements differ, by up to 7"
    assert result.max_abs == 7.0
    assert result.max_rel == 7.0
    assert compare(BitExact(), (np.array([True]), np.array([False]))).max_abs == 1.0
    assert compare(BitExact(), (np.array([1], "u1"), np.array([255], "u1"))).max_abs == 254.0


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.ones((20, 3), np.int64), np.full((20, 3), np.nan), np.zeros((0, 3))])
def test_what_holds_no_finite_float_has_no_parts(value: Array) -> None:
    assert judged(FREE, value, value).parts == {}


def test_only_floats_can_be_void() -> None:
    assert not compare(TIGHT, (np.ones(3), np.ones(3))).notes
    assert not compare(TIGHT, (np.ones(3, np.int64), np.ones(3, np.int64))).notes
    assert not compare(TIGHT, (np.array(["a"], object), np.array(["a"], object))).notes


def test_a_scalar_is_one_sample() -> None:
    result = compare(TIGHT, (np.array(3.0), np.array(3.0)), (np.array(4.0), np.array(4.0)))
    assert result.holds
    assert result.samples == 2
    comparer = Comparer(FREE)
    comparer.add({"y": np.array(3.0)}, {"y": np.array(3.5)}, 5)
    (output,) = comparer.result().outputs
    assert output.max_abs == 0.5
    assert comparer.result().samples == 5


def test_an_axis_of_another_rank_is_no_part() -> None:
    first, second = np.random.default_rng(0).standard_normal((16, 3)), np.ones((16, 3, 2))
    for batches in ((first, second), (second, first)):
        parts = compare(FREE, *((each, each + 0.1) for each in batches)).outputs[0].parts
        assert not [name for name in parts if name.startswith(("channel", "entry"))]


def test_only_whole_values_have_entries_and_agreement() -> None:
    r = np.random.default_rng(0).standard_normal((16, 3))
    output = judged(FREE, [r, r], [r + 0.1, r + 0.1])
    assert not [name for name in output.parts if name.startswith(("channel", "entry"))]
    assert output.agreement is None
    one = judged(FREE, r[0], r[0] + 0.1)
    assert not [name for name in one.parts if name.startswith(("channel", "entry"))]


def test_an_axis_of_one_entry_is_the_whole() -> None:
    r = np.random.default_rng(0).standard_normal((32, 1, 3))
    names = {name for name in judged(FREE, r, r + 0.1).parts if name.startswith(("channel", "entry"))}
    assert names == {f"entry {i} of axis 2" for i in range(3)}


@pytest.mark.parametrize(("elements", "judged_alone"), [(15, False), (16, True)])
def test_an_entry_of_16_elements_is_judged_by_itself(elements: int, judged_alone: bool) -> None:
    r = np.random.default_rng(0).standard_normal((elements, 2)) * np.array([100.0, 1e-2])
    output = judged(FloatExact(1e-6, 0.0), r, r + np.array([0.0, 1e-5]))
    assert output.holds is not judged_alone
    assert ("channel 1" in output.parts) is judged_alone


@pytest.mark.parametrize(
    ("values", "shares"),
    [
        ([0.5, 0.25, 0.25], True),
        ([0.5, 0.25, 0.2651], True),
        ([0.5, 0.25, 0.2349], True),
        ([0.5, 0.25, 0.2301], True),
        ([0.5, 0.25, 0.2299], False),
        ([0.5, 0.25, 0.2701], False),
        ([0.75, 0.5, -0.25], False),
        ([1.0, 0.0, 0.0], True),
    ],
)
def test_entries_that_add_up_to_one_but_for_two_percent_are_shares(values: list[float], shares: bool) -> None:
    r = np.tile(np.array([0.3, 0.3, 0.4]), (40, 1))
    r[20:, :2] = [0.2, 0.4]
    r[7] = values
    assert ("channel 0" not in judged(FREE, r, r + 1e-6).parts) is shares
    later = compare(FREE, (r[8:], r[8:] + 1e-6), (r[:8], r[:8] + 1e-6))
    assert ("channel 0" not in later.outputs[0].parts) is shares


def test_overflow_is_no_signal() -> None:
    r = np.random.default_rng(0).standard_normal((20, 1))
    far = judged(FREE, r, r + 1e200)
    assert far.parts[""].sqnr_db == 0.0
    assert judged(FREE, r * 1e200, r * 1e200 + 1e190).parts[""].sqnr_db == 0.0


def test_a_difference_of_a_thousandth_of_the_spread_leaves_60_db() -> None:
    r = np.array([[-1.0], [1.0]] * 10)
    part = judged(FREE, r, r + 1e-3).parts[""]
    assert part.spread == 1.0
    assert part.rms == pytest.approx(1e-3)
    assert part.sqnr_db == pytest.approx(60.0)
    assert part.max_abs == pytest.approx(1e-3)


def test_one_constant_value_is_its_own_scale() -> None:
    r = np.full((20, 1), -5.0)
    assert judged(FREE, r, r + 5e-2).parts[""].sqnr_db == pytest.approx(40.0)
    silent = judged(FREE, 0 * r, 0 * r + 1e-2).parts[""].sqnr_db
    assert silent == pytest.approx(20 * (-150 + 2))


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [
        (np.complex128, 2.0**-52),
        (np.complex64, 2.0**-23),
        (ml_dtypes.float8_e4m3fn, 0.25),
        (ml_dtypes.float8_e5m2, 0.25),
    ],
)
def test_units_of_rarer_types(dtype: type, unit: float) -> None:
    assert unit_of(np.dtype(dtype)) == unit


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16])
def test_narrow_floats_are_compared_as_floats(dtype: type) -> None:
    r = np.linspace(-2, 2, 40).astype(dtype).reshape(20, 2)
    c = r.copy()
    c[3, 1] = dtype(1.5)
    output = judged(FREE, r, c)
    assert output.differing == 1
    assert output.max_abs == abs(float(r[3, 1]) - 1.5)
    assert output.sqnr_db is not None


def test_complex_numbers_are_two_floats_each() -> None:
    r = np.array([1 + 2j, 3 - 1j])
    output = judged(TIGHT, r, r + 1j)
    assert output.max_abs == 1.0
    assert output.spread == pytest.approx(np.std([1, 2, 3, -1]))
    assert judged(TIGHT, np.array(1 + 2j), np.array(1 + 2j)).holds


def test_moments_of_nothing_and_of_holes() -> None:
    moments = Moments(2)
    moments.add(np.zeros((0, 2, 1)), np.zeros((0, 2, 1)))
    moments.add(np.zeros((1, 2, 0)), np.zeros((1, 2, 0)))
    np.testing.assert_array_equal(moments.count, 0)
    np.testing.assert_array_equal(moments.spread, 0)
    assert moments.constant(2.0**-23).all()
    values = np.array([[[1.0, 5.0], [np.nan, 3.0]], [[9.0, 1.0], [np.nan, np.inf]]])
    moments.add(values, np.abs(values) / 10, np.isfinite(values))
    np.testing.assert_array_equal(moments.count, [4, 1])
    np.testing.assert_allclose(moments.spread, [np.std([1, 5, 9, 1]), 0])
    np.testing.assert_allclose(moments.rms, [np.sqrt(np.mean(np.square([0.1, 0.5, 0.9, 0.1]))), 0.3])
    np.testing.assert_array_equal(moments.max_reference, [9, 3])
    np.testing.assert_allclose(moments.max_abs, [0.9, 0.3])


def test_blindness_takes_every_size_of_samples() -> None:
    steady = np.tile(np.arange(1.0, 4.0), (4, 1))
    varied = np.random.default_rng(0).standard_normal((4, 5))
    assert compare(FREE, (steady, steady)).blind == ("y",)
    assert compare(FREE, (steady, steady), (varied, varied)).blind == ()
    single = np.arange(5.0).reshape(1, 5)
    assert compare(FREE, (steady, steady), (single, single)).blind == ("y",)


def test_agreement_is_counted_over_batches_for_rows_of_two_and_more() -> None:
    r, c = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[1.0, 2.0], [1.0, 2.0]])
    assert compare(FREE, (r, c), (r, r)).agreement == 0.75
    assert compare(FREE, (r[None], c[None])).agreement is None
    comparer = Comparer(FREE)
    comparer.add({"y": r}, {"y": c}, 3)
    assert comparer.result().agreement is None


# -- blocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (50,), (7, 11), (3, 40), (2, 5, 3), (4, 2, 30), (1, 64), (5, 1, 2)])
def test_blocks_cover_each_element_once_and_are_small(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "CHUNK", 16)
    seen = np.zeros(shape, int)
    least = int(np.prod(shape[2:]))
    for block, start in tallies._blocks(shape):
        seen[block] += 1
        assert np.zeros(shape)[block].size <= max(16, least)
        if len(shape) > 1:
            assert block[1].start == start
    assert (seen == 1).all()


def test_few_blocks_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "CHUNK", 16)
    assert len(list(tallies._blocks((8, 4)))) == 2
    assert len(list(tallies._blocks((2, 32)))) == 4
    assert len(list(tallies._blocks((32,)))) == 2


# -- several outputs ---------------------------------------------------------------------------------------------------


def output(name: str, db: float | None, holds: bool = True, **others: object) -> OutputDifference:
    values = {"max_abs": 1.0, "max_rel": 2.0, "spread": 1.0, "rms": 1.0, "elements": 1, "differing": 1} | others
    return OutputDifference(name, holds, sqnr_db=db, **values)  # type: ignore[arg-type]


def test_the_worst_of_several_outputs_counts() -> None:
    outputs = (
        output("a", 30.0, correlation=0.9, max_abs=3.0),
        output("b", 20.0, where="channel 1", correlation=0.5, agreement=0.25, blind=True),
        output("c", None, agreement=0.75),
    )
    result = combine(FREE, outputs, ("note",), 7)
    assert result.holds
    assert (result.max_abs, result.max_rel, result.sqnr_db) == (3.0, 2.0, 20.0)
    assert result.where == "output 'b', channel 1"
    assert (result.correlation, result.agreement, result.samples, result.blind) == (0.5, 0.25, 7, ("b",))
    assert (result.problem, result.notes) == ("", ("note",))
    assert combine(FREE, outputs[:1]).where == "output 'a'"
    assert combine(FREE, outputs[2:]).where == ""
    assert combine(FREE, (output("d", None, max_abs=None), *outputs)).max_abs is None
    assert (combine(FREE, ()).holds, combine(FREE, ()).max_abs) == (True, 0.0)
    broken = (output("a", 1.0, False, severity=2.0, problem="p"), output("b", 2.0, False, severity=3.0, problem="q"))
    assert combine(FREE, broken).problem == "b: q"
    assert not combine(FREE, broken).holds


def test_refusals_are_listed() -> None:
    comparer = Comparer(TIGHT)
    comparer.refuse("one")
    comparer.refuse("two")
    assert comparer.result().problem == "one; two"


def test_a_report_has_all_figures_but_parts() -> None:
    told = judged(TIGHT, np.arange(4.0), np.arange(4.0)).as_dict()
    assert "parts" not in told
    assert "broken" not in told
    assert told["name"] == "y"
    assert told["elements"] == 4
