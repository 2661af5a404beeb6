"""What is said of one output of two models that are compared."""

from typing import Any

from graphopt.numerics.compare import OutputDifference
from graphopt.report.figures import decibels, difference


def output_line(output: OutputDifference) -> str:
    """Return in one line how an output differs; a difference only where one was measured."""
    problem = "" if output.holds else output.problem.removeprefix("is ")
    if not has_differences(output):
        if output.holds or problem in ("gone", "new"):
            return f"{output.name}: {problem or 'nothing to compare'}"
        return f"{output.name}: {problem if output.elements else f'not comparable: {problem}'}"
    sqnr = "" if output.sqnr_db is None else f", SQNR {decibels(output.sqnr_db)}"
    figures = f"largest difference {difference(output.max_abs)} (relative {difference(output.max_rel)}){sqnr}"
    return f"{output.name}: {figures}" + (f"; {problem}" if problem else "")


def output_figures(output: OutputDifference) -> dict[str, Any]:
    """Return the figures of an output for JSON; None for those that were not measured."""
    figures = output.as_dict()
    if not has_differences(output):
        figures |= dict.fromkeys(("max_abs", "max_rel", "sqnr_db", "rms"))
    if not output.elements:
        figures |= {"spread": None}
    return figures


def has_differences(output: OutputDifference) -> bool:
    """Whether all of an output could be compared number by number, and there was at least one to compare."""
    return output.max_abs is not None and output.elements > 0
