"""What a pass promises about the numerics of the model that it rewrites."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BitExact:
    """Every output keeps every bit."""

    def __str__(self) -> str:
        return "bit-exact"


@dataclass(frozen=True)
class FloatExact:
    """Outputs differ by float rounding only.

    With s the spread (standard deviation) of an output over the data, an element r may move by
    ``rtol * max(|r|, s) + atol * min(1, s)``. The same holds in each entry of a short axis, with the entry's own s.
    """

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"float-exact(rtol={self.rtol:g}, atol={self.atol:g})"


@dataclass(frozen=True)
class Lossy:
    """Outputs change on purpose; each keeps at least this signal-to-quantization-noise ratio, in dB.

    The signal is the spread of an output, not its power, and the ratio is that of its worst part: the whole, an entry
    of a short axis, or what tells samples apart (``numerics.parts``).

    Minus infinity promises only that the model runs and gives no new NaN or Inf: integers, and sizes that depend on
    values, may change too. That is for passes whose user says how much to give up.
    """

    min_sqnr_db: float

    def __str__(self) -> str:
        return f"lossy(min_sqnr_db={self.min_sqnr_db:g})"


Contract = BitExact | FloatExact | Lossy


GENERATED_FLOOR_DB = 3.0
"""What lossy passes promise on generated inputs: half of what tells samples apart is left."""

DEFAULT_SESSION = FloatExact(rtol=1e-3, atol=1e-4)
"""What exact passes promise in a session with default options, which fuses either graph in its own way."""


def on_inputs(contract: Contract, generated: bool) -> Contract:
    """Return what a contract demands on the inputs at hand.

    A trained model's answers to generated inputs say little of its accuracy, so lossy passes promise less there. A
    model that gives one answer to all inputs has at most 0 dB (see ``numerics.samples``), so it breaks every finite
    floor above. Exact contracts hold on any inputs.
    """
    if isinstance(contract, Lossy) and generated:
        return Lossy(min(GENERATED_FLOOR_DB, contract.min_sqnr_db))
    return contract


def in_default_session(contract: Contract) -> Contract:
    """Return what a contract demands in a session of ONNX Runtime with default options."""
    if isinstance(contract, Lossy):
        return contract
    own = contract if isinstance(contract, FloatExact) else DEFAULT_SESSION
    return FloatExact(max(own.rtol, DEFAULT_SESSION.rtol), max(own.atol, DEFAULT_SESSION.atol))


def total_contract(contracts: Sequence[Contract]) -> Contract:
    """Return what a run promises in total: rounding errors add up, and so do the noise powers of lossy passes."""
    if lossy := [each for each in contracts if isinstance(each, Lossy)]:
        noise = sum(10 ** (-each.min_sqnr_db / 10) for each in lossy)
        return Lossy(round(-10 * math.log10(noise), 2))
    if floats := [each for each in contracts if isinstance(each, FloatExact)]:
        return FloatExact(sum(each.rtol for each in floats), sum(each.atol for each in floats))
    return BitExact()
