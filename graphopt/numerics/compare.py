"""Compares two models' outputs, batch by batch, and judges them by a contract."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.contract import BitExact, Contract, FloatExact, Lossy
from graphopt.numerics.tally import Front, Tally

BEYOND = 1e300
"""The severity of a difference that no tolerance could allow (not Inf, which JSON does not have)."""


@dataclass(frozen=True)
class OutputDifference:
    """How one output differs.

    Attributes:
        name: The output's name.
        holds: Whether the contract holds for it.
        max_abs: The largest difference of two finite elements.
        max_rel: ``max_abs`` over the output's spread (over its largest magnitude, if it is constant).
        sqnr_db: ``10 log10(sum r^2 / sum (r - c)^2)``; None if it is not a float output or is exactly equal.
        spread: The standard deviation of the reference's elements over the data.
        rms: The root mean square of the differences.
        elements: How many elements were compared.
        differing: How many of them differ in any bit.
        problem: Why the contract does not hold.
        severity: How far beyond the contract the output is: 1 is on the edge; 0 if it holds.
    """

    name: str
    holds: bool
    max_abs: float
    max_rel: float
    sqnr_db: float | None
    spread: float
    rms: float
    elements: int
    differing: int
    problem: str = ""
    severity: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """How two models' outputs differ over all data: the worst figure of any output, never an average over outputs.

    ``notes`` say what a reader has to know about the verdict, also where it is good.
    """

    holds: bool
    contract: str
    max_abs: float
    max_rel: float
    sqnr_db: float | None
    outputs: tuple[OutputDifference, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()


class Comparer:
    """Collects the differences of two models' outputs and judges them.

    Shape and type must match; NaN equals NaN and Inf equals the same Inf; a new NaN or Inf breaks every contract.
    Integers, booleans and strings must be equal. Sequences, maps and optional values are compared part by part. The
    tolerance of FloatExact needs the spread over all batches, so the verdict falls in ``result``; memory stays bounded.
    """

    def __init__(self, contract: Contract) -> None:
        """Judge by ``contract``."""
        self._contract = contract
        self._rtol = contract.rtol if isinstance(contract, FloatExact) else 0.0
        self._tallies: dict[str, Tally] = {}

    def add(self, reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        """Add one batch: each output's value by name (an array, or a list or dict of them, or None)."""
        for name in [*reference, *(name for name in candidate if name not in reference)]:
            tally = self._tallies.setdefault(name, Tally(Front(self._rtol)))
            if name not in candidate:
                tally.mismatch = tally.mismatch or "is gone"
            elif name not in reference:
                tally.mismatch = tally.mismatch or "is new"
            else:
                tally.add(reference[name], candidate[name])

    def result(self) -> Comparison:
        """Return the verdict over everything added."""
        outputs = tuple(self._judge(name, tally) for name, tally in self._tallies.items())
        return combine(self._contract, outputs, tuple(self._notes()))

    def _judge(self, name: str, tally: Tally) -> OutputDifference:
        """Judge one output."""
        problem, severity = self._problem(tally)
        scale = tally.spread or tally.max_reference or 1.0
        return OutputDifference(
            name,
            not problem,
            tally.max_abs,
            tally.max_abs / scale,
            _sqnr_db(tally),
            tally.spread,
            tally.rms,
            tally.elements,
            tally.differing,
            problem,
            severity,
        )

    def _problem(self, tally: Tally) -> tuple[str, float]:
        """Say how an output breaks the contract, and by how much; ("", 0) if it does not."""
        free = isinstance(self._contract, Lossy) and self._contract.min_sqnr_db == -math.inf
        if mismatch := tally.mismatch or ("" if free else tally.resized):
            return mismatch, BEYOND
        if free or not tally.differing:
            return "", 0.0
        if not tally.is_float or isinstance(self._contract, BitExact):
            moved = f", by up to {tally.max_abs:.3g}" if tally.max_abs else ""
            return f"{tally.differing} of {tally.elements} elements differ{moved}", BEYOND
        if isinstance(self._contract, Lossy):
            sqnr = _sqnr_db(tally)
            if sqnr is None or sqnr >= self._contract.min_sqnr_db:
                return "", 0.0
            gap = self._contract.min_sqnr_db - sqnr
            return f"SQNR {sqnr:.2f} dB, at least {self._contract.min_sqnr_db:g} is promised", 1 + gap
        worst = tally.front.worst(tally.spread, self._contract.atol * min(1.0, tally.spread))
        if worst is None:
            return "", 0.0
        distance, allowed = worst
        text = f"an element moved by {distance:.3g}, {allowed:.3g} is allowed (spread {tally.spread:.3g})"
        return text, min(distance / max(allowed, 1e-300), BEYOND)

    def _notes(self) -> list[str]:
        """Name the outputs that prove nothing."""
        empty = [name for name, tally in self._tallies.items() if not tally.elements and not tally.mismatch]
        void = [name for name, tally in self._tallies.items() if tally.is_float and not tally.finite and tally.elements]
        notes = [f"{name!r} is empty on all of the data: nothing to compare" for name in empty]
        return notes + [f"{name!r} has no finite element on any of the data" for name in void]


def combine(contract: Contract, outputs: tuple[OutputDifference, ...], notes: tuple[str, ...] = ()) -> Comparison:
    """Return the verdict over several outputs: it holds if each does, and the worst is named."""
    broken = [output for output in outputs if not output.holds]
    worst = max(broken, key=lambda output: output.severity, default=None)
    ratios = [output.sqnr_db for output in outputs if output.sqnr_db is not None]
    return Comparison(
        not broken,
        str(contract),
        max((output.max_abs for output in outputs), default=0.0),
        max((output.max_rel for output in outputs), default=0.0),
        min(ratios, default=None),
        outputs,
        f"{worst.name}: {worst.problem}" if worst else "",
        notes,
    )


def _sqnr_db(tally: Tally) -> float | None:
    """Return the signal-to-quantization-noise ratio; None if there is no float noise. A silent signal counts 1e-300."""
    if not tally.is_float or not tally.noise:
        return None
    if not (math.isfinite(tally.signal) and math.isfinite(tally.noise)):
        return 0.0
    return 10 * (math.log10(max(tally.signal, 1e-300)) - math.log10(tally.noise))
