"""Rules that choose the range of values to cover: a wide range clips nothing, a narrow one has finer steps.

Each takes rows of values and returns the low and the high end for each row. Comparison of the rules: Nagel et al. 2021
(arXiv 2106.08295), section 3.1.
"""

import numpy as np

from graphopt.numerics.quantization import Affine, Floats, Range, minmax

_SHRINKS = np.linspace(1.0, 0.3, 36)


def range_rule(name: str, percentile: float, deviations: float) -> Range:
    """Return a rule by name: minmax, percentile, mse or std."""
    if name == "percentile":
        return percentile_rule(percentile)
    if name == "std":
        return std_rule(deviations)
    return mse if name == "mse" else minmax


def percentile_rule(percent: float) -> Range:
    """Cover the middle ``percent`` of values: half of the rest is clipped at either end."""

    def rule(values: Floats, affine: Affine) -> tuple[Floats, Floats]:
        tail = (100.0 - percent) / 2.0
        low, high = np.percentile(values, [tail, 100.0 - tail], axis=1)
        return low, high

    return rule


def std_rule(deviations: float) -> Range:
    """Cover mean plus or minus this many standard deviations, but no more than there is."""

    def rule(values: Floats, affine: Affine) -> tuple[Floats, Floats]:
        mean, reach = values.mean(axis=1), deviations * values.std(axis=1)
        return np.maximum(values.min(axis=1), mean - reach), np.minimum(values.max(axis=1), mean + reach)

    return rule


def mse(values: Floats, affine: Affine) -> tuple[Floats, Floats]:
    """Shrink the range of each row in 36 steps down to 0.3 of it and keep the one of least squared error."""
    widest = minmax(values, affine)
    best_low, best_high = widest[0].copy(), widest[1].copy()
    least = np.full(len(values), np.inf)
    for shrink in _SHRINKS:
        low, high = widest[0] * shrink, widest[1] * shrink
        scale, zero = affine.parameters(low, high)
        levels = affine.quantize(values, scale[:, None], zero[:, None])
        error = np.square(affine.dequantize(levels, scale[:, None], zero[:, None]) - values).sum(axis=1)
        better = error < least
        least = np.where(better, error, least)
        best_low, best_high = np.where(better, low, best_low), np.where(better, high, best_high)
    return best_low, best_high
