"""The report as one self-contained HTML page."""

from collections.abc import Sequence
from html import escape

from graphopt.report.report import PassReport, Report

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .9rem .25rem 0; text-align: left }
th { border-bottom: 1px solid #aaa } td.figure { text-align: right; font-variant-numeric: tabular-nums }
.good { color: #116329 } .bad { color: #a40e26 } code { font-size: 13px } details { margin: .3rem 0 }
"""


def to_html(report: Report) -> str:
    """Return the page: verdict, sizes before and after, and each pass with every site and reason."""
    verdict = (
        '<p class="good">Done and verified.</p>'
        if report.ok
        else "".join(f'<p class="bad">{escape(failure)}</p>' for failure in report.failures)
    )
    body = [
        f"<h1>{escape(report.source)} &rarr; {escape(report.target)}</h1>",
        verdict,
        _sizes(report),
        *(f"<p>{escape(note)}</p>" for note in report.notes),
        *map(_pass_section, report.passes),
    ]
    head = f'<meta charset="utf-8"><title>graphopt: {escape(report.source)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _sizes(report: Report) -> str:
    rows = [
        (name, f"{old:,}", f"{new:,}", f"{new / old:.3f}" if old else "")
        for name, old, new in (
            ("nodes", report.before.nodes, report.after.nodes),
            ("parameters", report.before.parameters, report.after.parameters),
            ("bytes", report.before.bytes, report.after.bytes),
            ("MACs", report.before.macs or 0, report.after.macs or 0),
        )
        if old or new
    ]
    if report.top1 is not None:
        rows.append(("top-1", f"{report.top1[0]:.2%}", f"{report.top1[1]:.2%}", ""))
    if report.latency is not None:
        rows.append(("latency", f"{report.latency.before:.3g} ms", f"{report.latency.after:.3g} ms", ""))
    return _table(("", "before", "after", "ratio"), rows)


def _pass_section(each: PassReport) -> str:
    state = f'<span class="bad">taken back: {escape(each.failure)}</span>' if each.failure else "kept"
    parts = [f"<h2>{escape(each.name)}</h2><p>{state}, {each.seconds:.2f} s"]
    if each.check is not None:
        held = "holds" if each.check.holds else "broken"
        sqnr = "" if each.check.sqnr_db is None else f", SQNR {each.check.sqnr_db:.1f} dB"
        parts.append(f"; {escape(each.check.contract)} {held}: largest difference {each.check.max_abs:.3g}{sqnr}")
    parts.append("</p>")
    rewritten = [(item.site, item.detail) for item in each.result.rewritten]
    skipped = [(item.site, item.reason) for item in each.result.skipped]
    for title, rows in ((f"{len(rewritten)} rewritten", rewritten), (f"{len(skipped)} skipped", skipped)):
        if rows:
            parts.append(f"<details><summary>{title}</summary>{_table(('site', ''), rows)}</details>")
    return "".join(parts)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
