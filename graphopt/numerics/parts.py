"""The figures of an output and of its parts: spread, noise, and their ratio in dB."""

import math
from dataclasses import dataclass

import numpy as np

from graphopt.numerics.moments import STEADY
from graphopt.numerics.tally import Tally

BETWEEN_SAMPLES = "what tells samples apart"
WITHOUT_LOUDEST = "all samples but the loudest"


@dataclass(frozen=True)
class Part:
    """One part of an output.

    Attributes:
        where: Which: "" for the whole, an entry of an axis, or what tells samples apart.
        spread: The standard deviation of the reference there.
        rms: The root mean square of the differences.
        max_abs: The largest difference; None where it is not kept.
        sqnr_db: ``20 log10(spread / rms)``; None without noise. In a part that is constant in the reference the spread
            is taken for the largest magnitude, or that of the whole output where it is zero.
    """

    where: str
    spread: float
    rms: float
    max_abs: float | None
    sqnr_db: float | None


def figures(tally: Tally, fewest: int) -> dict[str, Part]:
    """Return the parts of a float output by name: the whole, entries of short axes, and between samples.

    Args:
        tally: What is known of the output.
        fewest: The number of elements that an entry must have to be a part.
    """
    if not tally.is_float or not tally.whole.count[0]:
        return {}
    whole = tally.whole
    spread, top = float(whole.spread[0]), float(whole.max_reference[0])
    scale = top if whole.constant(tally.unit)[0] else spread
    parts = [Part("", spread, float(whole.rms[0]), float(whole.max_abs[0]), _decibels(scale, float(whole.rms[0])))]
    for each in tally.entries():
        moments = each.moments
        steady, spreads, rms = moments.constant(tally.unit), moments.spread, moments.rms
        scales = np.where(steady, np.where(moments.max_reference > 0, moments.max_reference, scale), spreads)
        for index in np.flatnonzero(moments.count >= fewest).tolist():
            ratio = _decibels(float(scales[index]), float(rms[index]))
            largest = float(moments.max_abs[index])
            parts.append(Part(entry(each.axis, index), float(spreads[index]), float(rms[index]), largest, ratio))
    parts += _of_samples(tally)
    return {part.where: part for part in parts}


def entry(axis: int, index: int) -> str:
    """Name one entry of an axis."""
    return f"channel {index}" if axis == 1 else f"entry {index} of axis {axis}"


def is_blind(tally: Tally) -> bool:
    """Whether a float output holds no finite value, one value, or the same values for all samples."""
    if not tally.is_float or not tally.comparable:
        return False
    if not tally.whole.count[0]:
        return True
    if tally.whole.constant(tally.unit)[0]:
        return True
    same = [each for each in tally.samples.values() if each.count > 1]
    return bool(same) and all(each.is_steady(tally.unit) for each in same)


def _of_samples(tally: Tally) -> list[Part]:
    """Return the parts that compare samples with each other; none where all samples are alike."""
    found = []
    several = [each for each in tally.samples.values() if each.count > 1 and not each.is_steady(tally.unit)]
    if several:
        count = sum(each.count * each.size for each in several)
        deviation, noise = (sum(each.deviation for each in several), sum(each.noise for each in several))
        found.append(_part(BETWEEN_SAMPLES, deviation / count, noise / count))
    many = [(each, each.typical()) for each in several]
    typical = [(each, pair) for each, pair in many if pair is not None]
    if typical:
        variance, noise = (sum(pair[side] for _, pair in typical) for side in (0, 1))
        count = sum(each.count * each.compared for each, _ in typical)
        top = max(each.max_reference for each, _ in typical)
        if math.sqrt(variance / count) > STEADY * tally.unit * top:
            found.append(_part(WITHOUT_LOUDEST, variance / count, noise / count))
    return found


def _part(where: str, variance: float, noise: float) -> Part:
    """Return a part of this variance and mean squared noise."""
    spread, rms = math.sqrt(variance), math.sqrt(noise)
    return Part(where, spread, rms, None, _decibels(spread, rms))


def _decibels(spread: float, rms: float) -> float | None:
    """Return the signal-to-quantization-noise ratio; None without noise. A silent signal counts 1e-150."""
    if not rms:
        return None
    if not (math.isfinite(spread) and math.isfinite(rms)):
        return 0.0
    return 20 * (math.log10(max(spread, 1e-150)) - math.log10(rms))
