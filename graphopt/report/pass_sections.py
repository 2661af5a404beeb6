"""What the document says of one run of one pass."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphopt.report.checks import blind_lines, check_line
from graphopt.report.document import Line, Section, Table, Tone
from graphopt.report.figures import NOT_MEASURED, UNKNOWN, count, decibels, option_text, plural

if TYPE_CHECKING:
    from graphopt.report.report import PassReport

REASONS_SHOWN = 5
DEMOTED_SHOWN = 20


def pass_outcome(each: "PassReport") -> str:
    """Return in two or three words what came of a pass."""
    if each.failure:
        return "failed" if each.kept else "reverted"
    if not each.result.rewritten:
        return "nothing to do"
    if each.check is None:
        return "not checked"
    if not each.check.holds:
        return "broken"
    return "not proved" if each.check.blind else "holds"


def pass_section(each: "PassReport") -> Section:
    """Return outcome, options, check, notes, and what was demoted, rewritten and skipped."""
    tables = (_demoted(each), *_sites(each))
    return Section("pass", each.name, tuple(_lines(each)), tuple(table for table in tables if table.rows), level=3)


def _lines(each: "PassReport") -> Iterator[Line]:
    kept = "kept" if each.kept else "reverted"
    state = f"{pass_outcome(each)}, {kept}" if pass_outcome(each) not in ("reverted", "nothing to do") else ""
    yield Line(
        f"{each.name}: {state or pass_outcome(each)}" + (f": {each.failure}" if each.failure else ""), _tone(each)
    )
    options = ", ".join(f"{name}={option_text(value)}" for name, value in each.options.items())
    yield Line(f"options: {options or 'none'}")
    if each.check is not None:
        yield check_line(each.check)
        yield from (Line(f"note: {note}") for note in each.check.notes)
        yield from blind_lines(each.check)
    if each.opset is not None and each.opset[0] != each.opset[1]:
        yield Line(f"opset {each.opset[0]} -> {each.opset[1]}")
    yield from _reasons(each)


def _tone(each: "PassReport") -> Tone:
    return "bad" if each.failure else ""


def _reasons(each: "PassReport") -> Iterator[Line]:
    """Say why sites were skipped, equal reasons together."""
    sites: dict[str, list[str]] = {}
    for skipped in each.result.skipped:
        sites.setdefault(skipped.reason, []).append(skipped.site)
    for reason, found in list(sites.items())[:REASONS_SHOWN]:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield Line(f"{each.name} left {found[0]}{more}: {reason}")
    if len(sites) > REASONS_SHOWN:
        rest = plural(len(sites) - REASONS_SHOWN, "more reason")
        yield Line(f"{rest}: see the list of skipped sites (--report FILE)")


def _demoted(each: "PassReport") -> Table:
    heads = ("site", "step", "asked for", "written", "bytes more", "SQNR alone")
    rows = tuple(
        (
            demoted.site,
            demoted.step,
            demoted.before,
            demoted.after,
            UNKNOWN if demoted.nbytes is None else count(demoted.nbytes),
            NOT_MEASURED if demoted.cost_db is None else decibels(demoted.cost_db),
        )
        for demoted in each.demoted
    )
    return Table("Written more carefully than asked for", heads, rows, frozenset({4, 5}), DEMOTED_SHOWN)


def _sites(each: "PassReport") -> Iterator[Table]:
    """Yield the lists of all sites, for the page."""
    rewritten = tuple((item.site, item.detail) for item in each.result.rewritten)
    skipped = tuple((item.site, item.reason) for item in each.result.skipped)
    yield Table(f"{len(rewritten):,} rewritten", ("site", "what was done"), rewritten, is_detail=True)
    yield Table(f"{len(skipped):,} skipped", ("site", "reason"), skipped, is_detail=True)
