"""How figures are written: one way for all forms of the report, and no figure for what was not measured."""

import math
from collections.abc import Sequence
from typing import Any

NOT_MEASURED = "not measured"
UNKNOWN = "unknown"


def count(value: int | None) -> str:
    """Write a count."""
    return UNKNOWN if value is None else f"{value:,}"


def share(after: float | None, before: float | None) -> str:
    """Write what a figure became as a share of what it was; nothing where there is no such share."""
    return f"{after / before:.3f}" if after is not None and before else ""


def difference(value: float | None) -> str:
    """Write a difference."""
    return f"{value:.3g}" if value is not None and math.isfinite(value) else NOT_MEASURED


def decibels(value: float | None) -> str:
    """Write a ratio in dB."""
    return f"{value:.1f} dB" if value is not None and math.isfinite(value) else NOT_MEASURED


def percent(value: float | None) -> str:
    """Write a share in percent, rounded down: only all is 100%."""
    return f"{_floor(value * 100, 2):.2f}%" if value is not None and math.isfinite(value) else NOT_MEASURED


def correlation(value: float | None) -> str:
    """Write a correlation, rounded down: only 1 is 1."""
    return f"{_floor(value, 6):.6f}" if value is not None and math.isfinite(value) else NOT_MEASURED


def milliseconds(value: float) -> str:
    """Write a time."""
    return f"{value:.3g} ms"


def names(values: Sequence[str], most: int = 5) -> str:
    """Write the first few names, and how many more there are."""
    shown = ", ".join(values[:most])
    return f"{shown} and {len(values) - most:,} more" if len(values) > most else shown


def plural(number: int, noun: str) -> str:
    """Write a number of things."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def option_text(value: Any) -> str:
    """Write the value of an option."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else str(value)


def _floor(value: float, digits: int) -> float:
    """Round down, but for what binary fractions are off by."""
    return math.floor(value * 10.0**digits + 1e-6) / 10.0**digits
