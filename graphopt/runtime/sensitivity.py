"""Finds the layers whose quantization costs a model most, by measuring one at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.contract import Lossy
from graphopt.model import Model
from graphopt.numerics.compare import Comparer
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
    """Return the lowest SQNR in dB of any float output over these feeds, as ``Comparer`` takes it."""
    session, comparer = Session(candidate), Comparer(Lossy(0.0))
    for inputs, wanted in zip(feeds, expected, strict=True):
        found = session.run(inputs)
        floats = [name for name, value in wanted.items() if isinstance(value, np.ndarray) and value.dtype.kind == "f"]
        if any(name not in found or found[name].shape != wanted[name].shape for name in floats):
            return -float("inf")
        comparer.add({name: wanted[name] for name in floats}, {name: found[name] for name in floats})
    ratio = comparer.result().sqnr_db
    return float("inf") if ratio is None else ratio
