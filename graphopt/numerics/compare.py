"""Compares two models' outputs, batch by batch, and judges them by a contract."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.contract import BitExact, Contract, FloatExact, Lossy
from graphopt.numerics.parts import Part, entry, figures, is_blind
from graphopt.numerics.tally import Tally

BEYOND = 1e300
"""The severity of a difference that no tolerance could allow (not Inf, which JSON does not have)."""

FEWEST_ELEMENTS = 16
"""An entry of an axis is judged by itself if it has this many elements on all of the data."""

LEAST_UNITS = 4.0
"""An element of one entry may move by this many units in the last place of the whole output's spread."""


@dataclass(frozen=True)
class OutputDifference:
    """How one output differs.

    Attributes:
        name: The output's name.
        holds: Whether the contract holds for it.
        max_abs: The largest difference of two finite elements; None if nothing could be compared.
        max_rel: ``max_abs`` over the output's spread (over its largest magnitude, if it is constant).
        sqnr_db: The lowest ratio of spread to noise of the output and its parts, ``10 log10(sum (r - m)^2 / sum
            (r - c)^2)`` with the mean m of the part; None if it is not a float output or is exactly equal.
        spread: The standard deviation of the reference's elements over the data.
        rms: The root mean square of the differences.
        elements: How many elements were compared.
        differing: How many of them differ in any bit.
        problem: Why the contract does not hold.
        severity: How far beyond the contract the output is: 1 is on the edge; 0 if it holds.
        where: The part that ``sqnr_db`` is of: "" for the whole, "channel 4", "between samples".
        correlation: With the reference, over all elements; None if the output is constant or no float.
        agreement: The share of samples whose highest score is at the same place, for outputs of one row a sample.
        blind: Whether the output is the same for all samples, so that the data cannot tell a constant.
        broken: The parts that break a FloatExact contract.
        parts: All parts that are judged by themselves.
    """

    name: str
    holds: bool
    max_abs: float | None
    max_rel: float | None
    sqnr_db: float | None
    spread: float
    rms: float
    elements: int
    differing: int
    problem: str = ""
    severity: float = 0.0
    where: str = ""
    correlation: float | None = None
    agreement: float | None = None
    blind: bool = False
    broken: tuple[str, ...] = ()
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures that a report shows."""
        return {key: value for key, value in vars(self).items() if key not in ("parts", "broken")}


@dataclass(frozen=True)
class Comparison:
    """How two models' outputs differ over all data: the worst figure of any output, never an average over outputs.

    ``notes`` say what a reader has to know about the verdict, also where it is good. ``where`` says what ``sqnr_db``
    is of; ``blind`` names the outputs that are the same for all samples; ``agreement`` is that of the first output
    with one row of scores a sample; ``samples`` says how many samples were run.
    """

    holds: bool
    contract: str
    max_abs: float | None
    max_rel: float | None
    sqnr_db: float | None
    outputs: tuple[OutputDifference, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()
    where: str = ""
    correlation: float | None = None
    agreement: float | None = None
    samples: int | None = None
    blind: tuple[str, ...] = ()


class Comparer:
    """Collects the differences of two models' outputs and judges them.

    Shape and type must match; NaN equals NaN and Inf equals the same Inf; a new NaN or Inf breaks every contract.
    Integers, booleans and strings must be equal. Sequences, maps and optional values are compared part by part. The
    tolerance of FloatExact needs the spread over all batches, so the verdict falls in ``result``; memory stays bounded.

    Both FloatExact and Lossy are judged on the whole output and on each entry of its short axes (at most 256 entries,
    16 elements or more each), as boxes and scores in one tensor are two things; Lossy besides on what tells samples
    from each other (``numerics.samples``).
    """

    def __init__(self, contract: Contract) -> None:
        """Judge by ``contract``."""
        self._contract = contract
        self._rtol = contract.rtol if isinstance(contract, FloatExact) else None
        self._tallies: dict[str, Tally] = {}
        self._samples = 0
        self._refusals: list[str] = []

    def refuse(self, problem: str) -> None:
        """Note a difference that is none of numbers and breaks every contract."""
        self._refusals.append(problem)

    def add(self, reference: Mapping[str, Any], candidate: Mapping[str, Any], samples: int | None = None) -> None:
        """Add one batch: each output's value by name (an array, or a list or dict of them, or None).

        Args:
            reference: The reference's outputs.
            candidate: The candidate's.
            samples: How many samples the batch holds; outputs whose first axis has this length are taken apart
                sample by sample. None takes each value for one sample.
        """
        self._samples += samples or 1
        for name in [*reference, *(name for name in candidate if name not in reference)]:
            tally = self._tallies.setdefault(name, Tally(self._rtol))
            if name not in candidate:
                tally.mismatch = tally.mismatch or "is gone"
            elif name not in reference:
                tally.mismatch = tally.mismatch or "is new"
            else:
                value = reference[name]
                rows = len(value) if isinstance(value, np.ndarray) and value.ndim else None
                tally.add(value, candidate[name], samples if samples == rows else None)

    def result(self) -> Comparison:
        """Return the verdict over everything added."""
        outputs = tuple(self._judge(name, tally) for name, tally in self._tallies.items())
        whole = combine(self._contract, outputs, tuple(self._notes()), self._samples)
        if not self._refusals:
            return whole
        return dataclasses.replace(whole, holds=False, problem="; ".join(self._refusals))

    def _judge(self, name: str, tally: Tally) -> OutputDifference:
        """Judge one output."""
        parts = figures(tally, FEWEST_ELEMENTS)
        worst = min((part for part in parts.values() if part.sqnr_db is not None), key=_ratio, default=None)
        problem, severity, broken = self._problem(tally, worst)
        spread, whole = float(tally.whole.spread[0]), tally.whole
        scale = spread or float(whole.max_reference[0]) or 1.0
        return OutputDifference(
            name,
            not problem,
            tally.max_abs if tally.comparable else None,
            tally.max_abs / scale if tally.comparable else None,
            None if worst is None else worst.sqnr_db,
            spread,
            float(whole.rms[0]),
            tally.elements,
            tally.differing,
            problem,
            severity,
            "" if worst is None else worst.where,
            tally.correlation,
            tally.agreeing / tally.rows if tally.rows else None,
            is_blind(tally),
            broken,
            parts,
        )

    def _problem(self, tally: Tally, worst: Part | None) -> tuple[str, float, tuple[str, ...]]:
        """Say how an output breaks the contract, by how much, and which of its parts do; ("", 0, ()) if none does."""
        free = isinstance(self._contract, Lossy) and self._contract.min_sqnr_db == -math.inf
        if mismatch := tally.mismatch or tally.turned or ("" if free else tally.resized):
            return mismatch, BEYOND, ()
        if free or not tally.differing:
            return "", 0.0, ()
        if not tally.is_float or isinstance(self._contract, BitExact):
            moved = f", by up to {tally.max_abs:.3g}" if tally.max_abs else ""
            return f"{tally.differing} of {tally.elements} elements differ{moved}", BEYOND, ()
        if isinstance(self._contract, Lossy):
            if worst is None or worst.sqnr_db is None or worst.sqnr_db >= self._contract.min_sqnr_db:
                return "", 0.0, ()
            gap = self._contract.min_sqnr_db - worst.sqnr_db
            of = f" of {worst.where}" if worst.where else ""
            text = f"SQNR {worst.sqnr_db:.2f} dB{of}, at least {self._contract.min_sqnr_db:g} is promised"
            return text, 1 + gap, (worst.where,)
        return _beyond_tolerance(tally, self._contract.atol)

    def _notes(self) -> list[str]:
        """Name the outputs that prove nothing."""
        empty = [name for name, tally in self._tallies.items() if not tally.elements and tally.comparable]
        void = [
            name
            for name, tally in self._tallies.items()
            if tally.is_float and tally.elements and not tally.whole.count[0]
        ]
        notes = [f"{name!r} is empty on all of the data: nothing to compare" for name in empty]
        return notes + [f"{name!r} has no finite element on any of the data" for name in void]


def _beyond_tolerance(tally: Tally, atol: float) -> tuple[str, float, tuple[str, ...]]:
    """Say how a FloatExact contract is broken: by the worst element, in the whole or in an entry of a short axis."""
    spread = float(tally.whole.spread[0])
    found: list[tuple[float, str, str]] = []

    def look(worst: tuple[float, float] | None, where: str, own: float) -> None:
        if worst is not None:
            distance, allowed = worst
            of = f" in {where}" if where else ""
            text = f"an element moved by {distance:.3g}{of}, {allowed:.3g} is allowed (spread {own:.3g})"
            found.append((min(distance / max(allowed, 1e-300), BEYOND), text, where))

    look(tally.front.worst(spread, atol * min(1.0, spread)), "", spread)
    least = LEAST_UNITS * tally.unit * spread
    for each in tally.entries():
        constant = each.moments.constant(tally.unit)
        for index, front in each.fronts.items():
            if each.moments.count[index] < FEWEST_ELEMENTS:
                continue
            own = 0.0 if constant[index] else float(each.moments.spread[index])
            scale = spread if constant[index] else own  # a constant is held to the absolute tolerance of the whole
            where = entry(each.axis, index)
            look(front.worst(own, atol * min(1.0, scale), least), where, own)
    if not found:
        return "", 0.0, ()
    severity, text, _ = max(found, key=lambda each: each[0])
    return text, severity, tuple(where for _, _, where in found)


def combine(
    contract: Contract,
    outputs: tuple[OutputDifference, ...],
    notes: tuple[str, ...] = (),
    samples: int | None = None,
) -> Comparison:
    """Return the verdict over several outputs: it holds if each does, and the worst is named."""
    broken = [output for output in outputs if not output.holds]
    worst = max(broken, key=lambda output: output.severity, default=None)
    noisy = min((each for each in outputs if each.sqnr_db is not None), key=_ratio, default=None)
    return Comparison(
        not broken,
        str(contract),
        _most(output.max_abs for output in outputs),
        _most(output.max_rel for output in outputs),
        None if noisy is None else noisy.sqnr_db,
        outputs,
        f"{worst.name}: {worst.problem}" if worst else "",
        notes,
        "" if noisy is None else f"output {noisy.name!r}" + (f", {noisy.where}" if noisy.where else ""),
        min((each.correlation for each in outputs if each.correlation is not None), default=None),
        next((each.agreement for each in outputs if each.agreement is not None), None),
        samples,
        tuple(each.name for each in outputs if each.blind),
    )


def _ratio(figure: Part | OutputDifference) -> float:
    """Return the ratio of something that has one."""
    return math.inf if figure.sqnr_db is None else figure.sqnr_db


def _most(values: Iterable[float | None]) -> float | None:
    """Return the largest figure; None if there is no output or one could not be compared."""
    known = list(values)
    return None if any(value is None for value in known) else max((v for v in known if v is not None), default=0.0)
