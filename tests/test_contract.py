"""The arithmetic of contracts: what is demanded on which inputs, in which session, and of several passes together."""

import math

import pytest

from graphopt.contract import (
    DEFAULT_SESSION,
    GENERATED_FLOOR_DB,
    BitExact,
    Contract,
    FloatExact,
    Lossy,
    in_default_session,
    on_inputs,
    total_contract,
)

ANYTHING = Lossy(-math.inf)


@pytest.mark.parametrize(
    ("contract", "text"),
    [
        (BitExact(), "bit-exact"),
        (FloatExact(rtol=1e-4, atol=2e-5), "float-exact(rtol=0.0001, atol=2e-05)"),
        (Lossy(20), "lossy(min_sqnr_db=20)"),
        (Lossy(12.5), "lossy(min_sqnr_db=12.5)"),
        (ANYTHING, "lossy(min_sqnr_db=-inf)"),
    ],
)
def test_a_contract_is_named_with_its_figures(contract: Contract, text: str) -> None:
    assert str(contract) == text


def test_the_figures_that_reports_and_documentation_quote() -> None:
    assert GENERATED_FLOOR_DB == 3.0
    assert FloatExact(rtol=1e-3, atol=1e-4) == DEFAULT_SESSION


@pytest.mark.parametrize(
    ("floor", "on_generated"), [(20.0, 3.0), (3.0, 3.0), (2.0, 2.0), (0.0, 0.0), (-5.0, -5.0), (-math.inf, -math.inf)]
)
def test_lossy_passes_promise_at_most_3_db_on_generated_inputs(floor: float, on_generated: float) -> None:
    assert on_inputs(Lossy(floor), generated=True) == Lossy(on_generated)
    assert on_inputs(Lossy(floor), generated=False) == Lossy(floor)


@pytest.mark.parametrize("contract", [BitExact(), FloatExact(1e-4, 1e-5)], ids=str)
@pytest.mark.parametrize("generated", [True, False])
def test_exact_contracts_hold_on_any_inputs(contract: Contract, generated: bool) -> None:
    assert on_inputs(contract, generated) is contract


@pytest.mark.parametrize(
    ("contract", "expected"),
    [
        (BitExact(), FloatExact(1e-3, 1e-4)),
        (FloatExact(1e-4, 1e-5), FloatExact(1e-3, 1e-4)),
        (FloatExact(1e-2, 1e-5), FloatExact(1e-2, 1e-4)),
        (FloatExact(1e-4, 1e-3), FloatExact(1e-3, 1e-3)),
        (FloatExact(1e-2, 1e-3), FloatExact(1e-2, 1e-3)),
        (Lossy(20), Lossy(20)),
        (ANYTHING, ANYTHING),
    ],
    ids=str,
)
def test_a_default_session_may_round_in_its_own_way(contract: Contract, expected: Contract) -> None:
    assert in_default_session(contract) == expected


@pytest.mark.parametrize(
    ("contracts", "total"),
    [
        ([], BitExact()),
        ([BitExact(), BitExact()], BitExact()),
        ([FloatExact(1e-4, 1e-5)], FloatExact(1e-4, 1e-5)),
        ([BitExact(), FloatExact(1.0, 2.0), FloatExact(4.0, 8.0)], FloatExact(5.0, 10.0)),
        ([Lossy(20)], Lossy(20)),
        ([Lossy(20), Lossy(20)], Lossy(16.99)),
        ([Lossy(10), Lossy(20), Lossy(20)], Lossy(9.21)),
        ([Lossy(0), Lossy(0)], Lossy(-3.01)),
        ([FloatExact(1.0, 1.0), BitExact(), Lossy(20)], Lossy(20)),
        ([Lossy(20), ANYTHING], ANYTHING),
        ([ANYTHING], ANYTHING),
    ],
    ids=str,
)
def test_a_run_promises_the_sum(contracts: list[Contract], total: Contract) -> None:
    assert total_contract(contracts) == total


def test_noise_powers_add_up() -> None:
    for first, second in [(30.0, 20.0), (3.0, 47.0), (-4.0, 6.0)]:
        total = total_contract([Lossy(first), Lossy(second)])
        assert isinstance(total, Lossy)
        left = 10 ** (-total.min_sqnr_db / 10)
        assert left == pytest.approx(10 ** (-first / 10) + 10 ** (-second / 10), rel=2e-3)  # two decimals of a dB
