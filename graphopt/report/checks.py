"""What the document says of a check: of a pass, or of the whole run."""

from typing import TYPE_CHECKING

from graphopt.report.document import Line
from graphopt.report.figures import NOT_MEASURED, correlation, count, decibels, difference, names, percent

if TYPE_CHECKING:
    from graphopt.report.report import Check


def check_rows(check: "Check") -> tuple[tuple[str, str], ...]:
    """Return every figure of a check by name."""
    return (
        ("contract", check.contract),
        ("outcome", outcome(check)),
        ("largest difference", largest(check)),
        ("lowest SQNR", sqnr(check)),
        ("lowest correlation", correlation(check.correlation)),
        ("same top class", percent(check.agreement)),
        ("samples", NOT_MEASURED if check.samples is None else count(check.samples)),
    )


def check_line(check: "Check") -> Line:
    """Return a check in one line, without what was not measured besides differences."""
    parts = [f"{check.contract} {outcome(check)}", f"largest difference {largest(check)}", f"SQNR {sqnr(check)}"]
    if check.correlation is not None:
        parts.append(f"correlation {correlation(check.correlation)}")
    if check.agreement is not None:
        parts.append(f"same top class {percent(check.agreement)}")
    if check.samples is not None:
        parts.append(f"{count(check.samples)} samples")
    return Line("check: " + "; ".join(parts), "" if check.holds else "bad")


def outcome(check: "Check") -> str:
    """Return whether a check holds, or how it does not."""
    if not check.holds:
        return f"broken: {check.problem}" if check.problem else "broken"
    return f"holds, not proved for {_outputs(check)}" if check.blind else "holds"


def largest(check: "Check") -> str:
    """Return the largest difference, absolute and relative."""
    text = difference(check.max_abs)
    relative = difference(check.max_rel)
    return text if NOT_MEASURED in (text, relative) else f"{text} (relative {relative})"


def sqnr(check: "Check") -> str:
    """Return the lowest SQNR and where it was found; equal outputs have no noise."""
    if check.sqnr_db is None:
        return "no noise" if check.holds and check.max_abs == 0 else NOT_MEASURED
    return f"{decibels(check.sqnr_db)} on {check.where}" if check.where else decibels(check.sqnr_db)


def blind_lines(check: "Check | None") -> tuple[Line, ...]:
    """Name each output on which the data cannot tell a good model from a constant one."""
    blind = () if check is None else check.blind
    return tuple(
        Line(f"{each}: the data cannot tell a good model from a constant one, so nothing is proved there", "warn")
        for each in blind
    )


def _outputs(check: "Check") -> str:
    return names(check.blind)
