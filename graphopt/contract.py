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
    ``rtol * max(|r|, s) + atol * min(1, s)``.
    """

    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"float-exact(rtol={self.rtol:g}, atol={self.atol:g})"


@dataclass(frozen=True)
class Lossy:
    """Outputs change on purpose; each keeps at least this signal-to-quantization-noise ratio, in dB.

    Minus infinity promises only that the model runs and gives no new NaN or Inf: integers, and sizes that depend on
    values, may change too. That is for passes whose user says how much to give up.
    """

    min_sqnr_db: float

    def __str__(self) -> str:
        return f"lossy(min_sqnr_db={self.min_sqnr_db:g})"


Contract = BitExact | FloatExact | Lossy


def on_inputs(contract: Contract, generated: bool) -> Contract:
    """Return what a contract demands on the inputs at hand.

    A trained model's answer to generated inputs is close to noise, and its signal-to-noise ratio there says little: a
    lossy pass is held to 0 dB then, which a wrong scale or axis still breaks. Exact contracts hold on any inputs.
    """
    if isinstance(contract, Lossy) and generated:
        return Lossy(min(0.0, contract.min_sqnr_db))
    return contract


def total_contract(contracts: Sequence[Contract]) -> Contract:
    """Return what a run promises in total: rounding errors add up, and so do the noise powers of lossy passes."""
    if lossy := [each for each in contracts if isinstance(each, Lossy)]:
        noise = sum(10 ** (-each.min_sqnr_db / 10) for each in lossy)
        return Lossy(round(-10 * math.log10(noise), 2))
    if floats := [each for each in contracts if isinstance(each, FloatExact)]:
        return FloatExact(sum(each.rtol for each in floats), sum(each.atol for each in floats))
    return BitExact()
