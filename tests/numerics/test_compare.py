"""The comparison: what each contract lets through, in one batch or in many."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.contract import BitExact, Contract, FloatExact, Lossy
from graphopt.numerics import front as fronts
from graphopt.numerics import tally
from graphopt.numerics.compare import Comparer, Comparison

TIGHT = FloatExact(rtol=1e-4, atol=1e-5)


def compare(contract: Contract, *batches: tuple[object, object]) -> Comparison:
    comparer = Comparer(contract)
    for reference, candidate in batches:
        comparer.add({"y": reference}, {"y": candidate})
    return comparer.result()


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def within_formula(contract: FloatExact, r: np.ndarray, c: np.ndarray) -> bool:
    """The contract as its docstring says it, over all data at once."""
    s = r.std()
    return bool((np.abs(r - c) <= contract.rtol * np.maximum(np.abs(r), s) + contract.atol * min(1.0, s)).all())


@pytest.mark.parametrize("contract", [BitExact(), TIGHT, Lossy(60)], ids=str)
@pytest.mark.parametrize(
    ("reference", "candidate", "problem"),
    [
        pytest.param(np.zeros((2, 3), "f4"), np.zeros((3, 2), "f4"), r"shape \(2, 3\) became \(3, 2\)", id="shape"),
        pytest.param(np.zeros((2,), "f4"), np.zeros((2, 1), "f4"), "shape", id="rank"),
        pytest.param(np.zeros(2, "f4"), np.zeros(2, "f8"), "float32 became float64", id="type"),
        pytest.param(np.zeros(2, "i8"), np.zeros(2, "i4"), "int64 became int32", id="integer type"),
        pytest.param(f32(1, 2), f32(1, np.nan), "2 became nan", id="new NaN"),
        pytest.param(f32(1, 2), f32(1, np.inf), "2 became inf", id="new Inf"),
        pytest.param(f32(1, np.nan), f32(1, 2), "nan became 2", id="lost NaN"),
        pytest.param(f32(1, np.inf), f32(1, -np.inf), "inf became -inf", id="sign of Inf"),
        pytest.param(np.array([1, 2]), np.array([1, 3]), "1 of 2 elements differ, by up to 1", id="integers"),
        pytest.param(np.array([True]), np.array([False]), "1 of 1 elements differ, by up to 1$", id="bool"),
        pytest.param(np.array(["a"], object), np.array(["b"], object), "1 of 1 elements differ$", id="strings"),
        pytest.param([f32(1)], [f32(1), f32(2)], "a sequence of 1 became a sequence of 2", id="sequence length"),
        pytest.param([f32(1)], f32(1), "a sequence of 1 became float32", id="sequence became tensor"),
        pytest.param([f32(1), f32(2)], [f32(1), f32(9)], "1 of 2|moved by 7|SQNR", id="sequence element"),
        pytest.param([{"a": 0.5}], [{"b": 0.5}], r"\[0\]a map of 'a' became a map of 'b'", id="map keys"),
        pytest.param([{1: 0.5}], [{1: 0.7}], "1 of 1|moved by 0.2|SQNR", id="map values"),
        pytest.param(None, f32(1), "nothing became float32", id="optional filled"),
        pytest.param(f32(1), None, "float32.* became nothing", id="optional emptied"),
    ],
)
def test_differences_that_no_contract_allows(
    contract: Contract, reference: object, candidate: object, problem: str
) -> None:
    result = compare(contract, (reference, candidate))
    assert not result.holds
    assert result.problem.startswith("y: ")
    assert re.search(problem, result.problem)
    json.dumps([each.as_dict() for each in result.outputs], allow_nan=False)


@pytest.mark.parametrize("contract", [BitExact(), TIGHT, Lossy(200)], ids=str)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(f32(1, np.nan, np.inf, -np.inf), id="not finite"),
        pytest.param(np.zeros((0, 4), "f4"), id="zero size"),
        pytest.param(np.float32(3.0), id="scalar"),
        pytest.param(np.array(["a", "b"], object), id="strings"),
        pytest.param([f32(1), np.zeros((0,), "f4")], id="sequence"),
        pytest.param([{"a": 0.5, "b": 0.25}], id="sequence of maps"),
        pytest.param({1: 0.5}, id="map"),
        pytest.param(None, id="empty optional"),
        pytest.param(np.ones(3, np.float16), id="float16"),
        pytest.param(np.array([1 + 2j], np.complex64), id="complex"),
        pytest.param(np.array([2**63 - 1], np.int64), id="large integer"),
    ],
)
def test_equal_values_hold(contract: Contract, value: object) -> None:
    result = compare(contract, (value, value), (value, value))
    assert result.holds
    assert (result.max_abs, result.max_rel, result.sqnr_db, result.problem) == (0.0, 0.0, None, "")
    assert [each.severity for each in result.outputs] == [0.0] * len(result.outputs)


def test_large_integers_are_not_compared_as_floats() -> None:
    assert not compare(BitExact(), (np.array([2**53]), np.array([2**53 + 1]))).holds


def test_bit_exact_sees_the_last_bit_and_the_sign_of_zero() -> None:
    one = f32(1)
    assert not compare(BitExact(), (one, np.nextafter(one, f32(2)))).holds
    assert not compare(BitExact(), (f32(0.0), f32(-0.0))).holds
    assert compare(TIGHT, (f32(0.0, 1.0), f32(-0.0, 1.0))).holds


def test_nan_payload_does_not_matter() -> None:
    left = np.array([0x7FC00000], np.uint32).view(np.float32)
    right = np.array([0x7FC00001], np.uint32).view(np.float32)
    assert compare(BitExact(), (left, right)).holds


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batches=st.integers(1, 4),
    count=st.integers(1, 40),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    error=st.sampled_from([1e-6, 1e-5, 5e-5, 1e-4, 1.5e-4, 3e-4]),
    shift=st.sampled_from([0.0, 1.0, 100.0]),
)
def test_verdict_over_batches_is_the_formula_over_all_data(
    seed: int, batches: int, count: int, scale: float, error: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    r = (rng.standard_normal((batches, count)) * scale * 10 ** rng.uniform(-3, 0, (batches, 1))) + shift * scale
    c = r + rng.standard_normal(r.shape) * error * np.where(rng.random(r.shape) < 0.5, np.abs(r), scale)
    result = compare(TIGHT, *zip(r, c, strict=True))
    assert result.holds == within_formula(TIGHT, r, c)
    (output,) = result.outputs
    assert output.severity > 1 or result.holds
    assert "Part(" not in repr(output)
    assert output.spread == pytest.approx(r.std(), rel=1e-9, abs=1e-12 * scale * (1 + shift))
    assert output.max_abs == np.abs(r - c).max()
    signal = ((r - r.mean()) ** 2).sum() or r.size * np.abs(r).max() ** 2
    assert output.parts[""].sqnr_db == pytest.approx(10 * math.log10(signal / ((r - c) ** 2).sum()), abs=1e-6)


def test_spread_of_later_batches_counts_for_earlier_ones() -> None:
    still = (np.zeros(4), np.full(4, 5e-5))
    assert not compare(TIGHT, still).holds
    assert compare(TIGHT, still, (np.array([-1.0, 1.0] * 4), np.array([-1.0, 1.0] * 4))).holds


def test_a_thinned_front_never_lets_more_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "MAX_FRONT", 2)
    rng = np.random.default_rng(0)
    for _ in range(200):
        r = rng.standard_normal(31)
        c = r + rng.standard_normal(31) * 1e-4 * rng.uniform(0.2, 1.5)
        assert not compare(TIGHT, (r, c)).holds or within_formula(TIGHT, r, c)


def test_the_front_stays_small() -> None:
    rng = np.random.default_rng(0)
    front = fronts.Front(1e-4)
    for _ in range(5):
        front.add(rng.standard_normal(100_000), np.abs(rng.standard_normal(100_000)) * 1e-3)
    assert front._x.size < 100
    falling = np.linspace(0, 1, 50_000)
    front.add(falling * 1e5, 20 + falling)
    assert front._x.size <= fronts.MAX_FRONT


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    r = rng.standard_normal((7, 11)).astype(np.float32)
    c = r + np.float32(1e-5)
    whole = compare(TIGHT, (r, c))
    monkeypatch.setattr(tally, "CHUNK", 5)
    parts = compare(TIGHT, (r, c))
    assert parts.holds == whole.holds
    assert parts.max_abs == whole.max_abs
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)


def test_lossy_is_judged_per_output() -> None:
    comparer = Comparer(Lossy(30))
    loud, quiet = np.full(1000, 100.0), np.ones(10)
    comparer.add({"loud": loud, "quiet": quiet}, {"loud": loud * 1.001, "quiet": quiet * 1.1})
    result = comparer.result()
    assert not result.holds
    assert result.problem == "quiet: SQNR 20.00 dB, at least 30 is promised"
    assert [output.holds for output in result.outputs] == [True, False]
    assert result.sqnr_db == pytest.approx(20.0)


def test_lossy_noise_on_a_silent_output_fails() -> None:
    result = compare(Lossy(1), (np.zeros(4, "f4"), f32(0, 0, 1e-3, 0)))
    assert not result.holds
    assert result.sqnr_db is not None
    assert math.isfinite(result.sqnr_db)


def test_the_worst_output_is_named() -> None:
    comparer = Comparer(TIGHT)
    r = np.linspace(-1, 1, 9)
    comparer.add({"a": r, "b": r, "c": r}, {"a": r + 1e-3, "b": r + 1e-1, "c": r})
    result = comparer.result()
    assert result.problem.startswith("b: an element moved by 0.1")
    assert result.max_abs == pytest.approx(0.1)
    assert result.max_rel == pytest.approx(0.1 / r.std())


def test_outputs_that_vanish_or_appear() -> None:
    comparer = Comparer(TIGHT)
    comparer.add({"a": f32(1), "b": f32(1)}, {"b": f32(1), "c": f32(1)})
    assert [output.problem for output in comparer.result().outputs] == ["is gone", "", "is new"]
    comparer.add({"b": f32(1), "c": f32(1)}, {"a": f32(1), "b": f32(1)})
    assert [output.problem for output in comparer.result().outputs] == ["is gone", "", "is new"]


def test_outputs_that_prove_nothing_are_noted() -> None:
    comparer = Comparer(TIGHT)
    empty, void = np.zeros((0, 4), "f4"), np.full(3, np.nan, "f4")
    comparer.add({"boxes": empty, "score": void}, {"boxes": empty, "score": void})
    result = comparer.result()
    assert result.holds
    assert result.notes == (
        "'boxes' is empty on all of the data: nothing to compare",
        "'score' has no finite element on any of the data",
    )
