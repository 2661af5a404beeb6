"""Builds the document of a report: everything that text, page and JSON say is chosen here, and only here."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphopt.report.checks import blind_lines, check_rows, largest, sqnr
from graphopt.report.document import Document, Line, Section, Table
from graphopt.report.figures import (
    NOT_MEASURED,
    UNKNOWN,
    count,
    milliseconds,
    names,
    option_text,
    percent,
    plural,
    share,
)
from graphopt.report.pass_sections import pass_outcome, pass_section

if TYPE_CHECKING:
    from graphopt.report.report import PassReport, Report

SITES_NAMED = 3
FEATURE = {True: "yes", False: "no", None: UNKNOWN}


def build(report: "Report") -> Document:
    """Build the document of a run, the verdict first; sections that have nothing to say are left out."""
    sections = (
        Section("verdict", "", tuple(_verdict(report))),
        _figures(report),
        Section("versions", "Opset and IR", tuple(_versions(report))),
        _check(report),
        Section("blind", "What the data cannot prove", blind_lines(report.check)),
        Section("notes", "Notes", tuple(Line(note) for note in report.notes)),
        _passes(report),
        *map(pass_section, report.passes),
        _operators(report),
        _circumstances(report),
    )
    title = f"{report.source or 'model'} -> {report.target or 'result'}"
    return Document(title, tuple(each for each in sections if each.lines or each.tables))


def _verdict(report: "Report") -> Iterator[Line]:
    """Yield the outcome, then what a reader must not miss: failures, a slower result, demoted sites."""
    check = report.check
    if report.outcome == "failed":
        broken = () if report.failures or check is None else (f"the check of the whole run is broken: {check.problem}",)
        yield from (Line(f"Failed: {failure}", "bad") for failure in (*report.failures, *broken))
        if check is None:
            yield Line("The result was not checked.", "bad")
    elif check is None:
        yield Line("Done; nothing was checked.", "warn")
    elif check.blind:
        outputs = names(check.blind)
        yield Line(f"Done; not proved for {outputs}: there the data cannot tell a good model from a constant.", "warn")
    else:
        yield Line("Done and verified.", "good")
    yield from _worse(report)
    yield from _slower(report)
    for each in report.passes:
        if each.demoted:
            sites = names([demoted.site for demoted in each.demoted], SITES_NAMED)
            number = plural(len(each.demoted), "site")
            yield Line(f"{each.name} wrote {number} more carefully than asked for{_cost(each)}: {sites}", "warn")


def _cost(each: "PassReport") -> str:
    """Say how many bytes the demoted sites of a pass take more, if that is known of all."""
    spent = [demoted.nbytes for demoted in each.demoted]
    known = [nbytes for nbytes in spent if nbytes is not None]
    return f", for {plural(sum(known), 'byte')} more" if len(known) == len(spent) else ""


def _worse(report: "Report") -> Iterator[Line]:
    """Say that top-1 fell by more than a run may lose whose passes promise a ratio, where these promise none."""
    if report.top1 is None or report.circumstances is None or report.outcome == "failed":
        return
    lost = 100 * (report.top1[0] - report.top1[1])
    if lost > float(report.circumstances.options.get("max_drop", lost)):
        yield Line(
            f"Top-1 fell by {lost:.2f} points: zeroed weights and channels promise no accuracy; reconstruct and "
            "distill win much of it back",
            "bad",
        )


def _slower(report: "Report") -> Iterator[Line]:
    """Say that the result is slower, what costs the time, and what would not."""
    latency = report.latency
    if latency is None or not latency.slower:
        return
    was, now = milliseconds(latency.before), milliseconds(latency.after)
    yield Line(f"Slower than the original: {was} became {now}, {latency.ratio:.2f} times as long", "bad")
    if latency.sites:
        dearest = latency.sites[:SITES_NAMED]
        spent = "; ".join(f"{site} ({operator}) {milliseconds(time)}" for site, operator, time in dearest)
        more = len(latency.sites) - len(dearest)
        yield Line(f"The time goes to: {spent}" + (f"; {more} more" if more else ""), "bad")
    if latency.remedy:
        yield Line(f"What to do: {latency.remedy}", "bad")


def _figures(report: "Report") -> Section:
    """Return sizes, latency and accuracy before and after."""
    before, after = report.before, report.after
    pairs = (
        ("nodes", before.nodes, after.nodes),
        ("parameters", before.parameters, after.parameters),
        ("bytes", before.bytes, after.bytes),
        ("MACs", before.macs, after.macs),
    )
    rows = [(name, count(old), count(new), share(new, old)) for name, old, new in pairs]
    latency, top1 = report.latency, report.top1
    if latency is None:
        rows.append(("latency", NOT_MEASURED, NOT_MEASURED, ""))
    else:
        rows.append(("latency", milliseconds(latency.before), milliseconds(latency.after), f"{latency.ratio:.3f}"))
    if top1 is None:
        rows.append(("top-1", NOT_MEASURED, NOT_MEASURED, ""))
    else:
        rows.append(("top-1", percent(top1[0]), percent(top1[1]), f"{(top1[1] - top1[0]) * 100:+.2f} points"))
    heads = ("", "before", "after", "of the original")
    return Section(
        "figures",
        "",
        tuple(_conditions(report)),
        (Table("", heads, tuple(rows), frozenset({1, 2, 3})),),
    )


def _conditions(report: "Report") -> Iterator[Line]:
    """Say in a line each what the check found, how the latency compares, and how it was measured."""
    if (check := report.check) is not None:
        found = f"largest difference {largest(check).partition(' (')[0]}, SQNR {sqnr(check)}"
        yield Line(f"check      {'holds' if check.holds else 'BROKEN'}: {found}", "" if check.holds else "bad")
    if uncounted := dict.fromkeys((*report.before.uncounted, *report.after.uncounted)):
        yield Line(f"MACs       not known of {names(list(uncounted), SITES_NAMED)}")
    if (latency := report.latency) is not None:
        samples = plural(latency.samples, "sample")
        noise = f"equal models differ by up to {latency.noise:.0%}"
        yield Line(
            f"latency    {latency.ratio:.2f} times the original's, in a default session on one thread, {samples} a run;"
            f" {'the result is the original' if latency.same else noise}"
        )
        if latency.unfused:
            weights = names(latency.unfused, SITES_NAMED)
            yield Line(
                f"computed at every run: DequantizeLinear of {plural(len(latency.unfused), 'weight')}: {weights}"
            )


def _versions(report: "Report") -> Iterator[Line]:
    """Say how the versions of the file changed, and for which pass."""
    told = report.circumstances
    parts = []
    for name, pair in () if told is None else (("opset", told.opset), ("IR", told.ir)):
        if pair is not None:
            parts.append(f"{name} {pair[0]} -> {pair[1]}" if pair[0] != pair[1] else f"{name} {pair[0]}")
    if parts:
        raised = [each for each in report.passes if each.kept and each.opset and each.opset[0] != each.opset[1]]
        asked = ", ".join(f"{each.name} asks for {each.opset[1]}" for each in raised if each.opset)
        changed = any("->" in part for part in parts)
        yield Line(", ".join(parts) + (f" ({asked})" if asked else "" if changed else ", unchanged"))


def _check(report: "Report") -> Section:
    """Return the check of the whole run against the original."""
    if report.check is None:
        return Section("check", "Check of the whole run", (Line("not checked", "warn"),))
    notes = tuple(Line(f"note: {note}") for note in report.check.notes)
    return Section("check", "Check of the whole run", notes, (Table("", (), check_rows(report.check)),))


def _passes(report: "Report") -> Section:
    """Return the passes, one a row."""
    heads = ("pass", "outcome", "rewritten", "skipped", "demoted", "largest difference", "SQNR", "seconds")
    rows = tuple(
        (
            each.name,
            pass_outcome(each),
            count(len(each.result.rewritten)),
            count(len(each.result.skipped)),
            count(len(each.demoted)),
            "" if each.check is None else largest(each.check).partition(" (")[0],
            "" if each.check is None else sqnr(each.check).partition(" on ")[0],
            f"{each.seconds:.2f}",
        )
        for each in report.passes
    )
    tables = (Table("", heads, rows, frozenset(range(2, len(heads)))),) if rows else ()
    return Section("passes", "Passes", () if rows else (Line("no pass was run"),), tables)


def _operators(report: "Report") -> Section:
    """Return the operators whose number changed as a table, the others in a line."""
    before, after = report.before.ops, report.after.ops
    operators = sorted({*before, *after})
    changed = tuple(
        (each, count(before.get(each, 0)), count(after.get(each, 0)))
        for each in operators
        if before.get(each, 0) != after.get(each, 0)
    )
    same = [f"{each} {before[each]:,}" for each in operators if before.get(each, 0) == after.get(each, 0)]
    lines = (Line(f"unchanged: {', '.join(same)}"),) if same else ()
    tables = (Table("", ("operator", "before", "after"), changed, frozenset({1, 2})),) if changed else ()
    return Section("operators", "Operators", lines, tables)


def _circumstances(report: "Report") -> Section:
    """Return what the run was made with."""
    told = report.circumstances
    if told is None:
        return Section("circumstances", "Circumstances", ())
    features = ((name, value) for name, value in told.cpu.items() if name != "model")
    rows = [
        *((name, version or UNKNOWN) for name, version in told.versions.items()),
        ("CPU", str(told.cpu.get("model") or UNKNOWN)),
        ("CPU features", ", ".join(f"{name} {FEATURE[value]}" for name, value in features) or UNKNOWN),
        ("data", told.data or UNKNOWN),
        ("options", ", ".join(f"{name}={option_text(value)}" for name, value in told.options.items()) or "none"),
    ]
    return Section("circumstances", "Circumstances", (), (Table("", (), tuple(rows)),))
