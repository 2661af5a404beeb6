"""The report as text: a table of passes, what changed, what was left and why."""

from typing import TextIO

from rich.console import Console
from rich.table import Table

from graphopt.report.report import Check, PassReport, Report

REASONS_SHOWN = 5


def print_report(report: Report, stream: TextIO) -> None:
    """Write the report for people; as wide as the terminal, or 120 columns in a pipe."""
    console = Console(file=stream, width=None if stream.isatty() else 120, highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("pass", "rewritten", "skipped", "check", "largest difference", "SQNR", "seconds"):
        table.add_column(heading, justify="left" if heading in ("pass", "check") else "right")
    for each in report.passes:
        table.add_row(*_row(each))
    console.print(table)
    for each in report.passes:
        _print_reasons(console, each)
    for text in _totals(report):
        console.print(text, markup=False, soft_wrap=True)


def _row(each: PassReport) -> tuple[str, ...]:
    outcome = "taken back" if each.failure else "nothing to do" if not each.result.rewritten else "not checked"
    figures = ("", "")
    if each.check is not None:
        outcome = "taken back" if each.failure else "holds"
        figures = (f"{each.check.max_abs:.2g}", _sqnr(each.check))
    counts = (str(len(each.result.rewritten)), str(len(each.result.skipped)))
    return (each.name, *counts, outcome, *figures, f"{each.seconds:.2f}")


def _sqnr(check: Check) -> str:
    return "" if check.sqnr_db is None else f"{check.sqnr_db:.1f} dB"


def _print_reasons(console: Console, each: PassReport) -> None:
    """Write why sites were skipped, equal reasons together."""
    sites: dict[str, list[str]] = {}
    for skipped in each.result.skipped:
        sites.setdefault(skipped.reason, []).append(skipped.site)
    for reason, names in list(sites.items())[:REASONS_SHOWN]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"{each.name} left {names[0]}{more}: {reason}", markup=False, soft_wrap=True)
    if len(sites) > REASONS_SHOWN:
        rest = len(sites) - REASONS_SHOWN
        console.print(f"{each.name}: {rest} more reasons stand in the report (--report FILE)", markup=False)


def _totals(report: Report) -> list[str]:
    """Return the lines that sum the run up."""
    before, after = report.before, report.after
    lines = [
        f"nodes      {before.nodes:,} -> {after.nodes:,}",
        f"parameters {before.parameters:,} -> {after.parameters:,} ({_share(after.parameters, before.parameters)})",
        f"bytes      {before.bytes:,} -> {after.bytes:,} ({_share(after.bytes, before.bytes)})",
    ]
    if before.macs is not None and after.macs is not None:
        lines.append(f"MACs       {before.macs:,} -> {after.macs:,} ({_share(after.macs, before.macs)})")
    if report.top1 is not None:
        lines.append(f"top-1      {report.top1[0]:.2%} -> {report.top1[1]:.2%}")
    if report.latency is not None:
        lines.append(f"latency    {report.latency.before:.3g} ms -> {report.latency.after:.3g} ms")
    if report.check is not None:
        sqnr = "" if report.check.sqnr_db is None else f", SQNR {report.check.sqnr_db:.1f} dB"
        verdict = "holds" if report.check.holds else "BROKEN"
        lines.append(f"check      {verdict}: largest difference {report.check.max_abs:.2g}{sqnr}")
        lines += [f"check      note: {note}" for note in report.check.notes]
    return lines + [f"note: {note}" for note in report.notes]


def _share(after: int, before: int) -> str:
    return f"{after / before:.3f} of the original" if before else "-"
