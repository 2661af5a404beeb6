"""Finds the layers that a model does not bear being quantized, by measuring one at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.model import Model
from graphopt.numerics.quantization import ratio_db
from graphopt.runtime.data import Feeds
from graphopt.runtime.session import Session

Measure = Callable[[Sequence[str]], float]


def rank(sites: Sequence[str], measure: Measure) -> dict[str, float]:
    """Return the SQNR in dB that each site alone leaves, the most sensitive first."""
    alone = {site: measure([site]) for site in sites}
    return dict(sorted(alone.items(), key=lambda item: item[1]))


def bearable(ranking: Mapping[str, float], measure: Measure, floor: float) -> list[str]:
    """Return the sites to quantize so that the model keeps ``floor`` dB: all but the fewest most sensitive ones.

    The number left out is found by doubling and halving, which takes the SQNR to rise with it.
    """
    order = list(ranking)
    low, high = 0, 1
    while high < len(order) and measure(order[high:]) < floor:
        low, high = high, min(2 * high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if measure(order[middle:]) >= floor else (middle, high)
    return order[high:]


def worst_sqnr(candidate: Model, feeds: Sequence[Feeds], expected: Sequence[Mapping[str, Any]]) -> float:
    """Return the lowest SQNR in dB of any float output over these feeds."""
    session = Session(candidate)
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for inputs, wanted in zip(feeds, expected, strict=True):
        for name, got in session.run(inputs).items():
            reference = wanted[name]
            if not isinstance(reference, np.ndarray) or reference.dtype.kind != "f":
                continue
            wide = reference.astype(np.float64)
            lost = np.square(got.astype(np.float64) - wide).sum() if got.shape == reference.shape else np.inf
            signal[name] = signal.get(name, 0.0) + float(np.square(wide).sum())
            noise[name] = noise.get(name, 0.0) + float(lost)
    return min((ratio_db(signal[name], noise[name]) for name in signal), default=float("inf"))
