"""The document as one self-contained HTML page."""

from html import escape

from graphopt.report.document import Document, Line, Section, Table
from graphopt.report.report import Report

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin: 2rem 0 .4rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem } p { margin: .15rem 0; overflow-wrap: anywhere }
table { border-collapse: collapse; margin: .4rem 0; display: block; overflow-x: auto } caption { text-align: left }
th, td { padding: .2rem 1.4rem .2rem 0; text-align: left; vertical-align: top } th { border-bottom: 1px solid #aaa }
th.figure, td.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.good { color: #116329 } .bad { color: #a40e26 } .warn { color: #7d4e00 } details { margin: .3rem 0 }
#verdict { border-left: 4px solid #aaa; padding: .3rem .8rem; background: #f6f8fa; font-size: 1.05rem }
"""


def to_html(report: Report) -> str:
    """Return the page of a report."""
    return page(report.document())


def page(document: Document) -> str:
    """Lay the document out; lists of single sites are folded."""
    title = escape(document.title)
    body = f"<h1>{title}</h1>" + "".join(map(_section, document.sections))
    head = f'<meta charset="utf-8"><title>graphopt: {title}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _section(section: Section) -> str:
    heading = f"<h{section.level}>{escape(section.title)}</h{section.level}>" if section.title else ""
    identity = "" if section.key == "pass" else f' id="{section.key}"'
    content = "".join([heading, *map(_line, section.lines), *map(_table, section.tables)])
    return f"<section{identity}>{content}</section>"


def _line(line: Line) -> str:
    tone = f' class="{line.tone}"' if line.tone else ""
    return f"<p{tone}>{escape(line.text)}</p>"


def _table(table: Table) -> str:
    heads = "".join(_cell("th", head, at in table.figures) for at, head in enumerate(table.heads))
    rows = "".join(
        f"<tr>{''.join(_cell('td', cell, at in table.figures) for at, cell in enumerate(row))}</tr>"
        for row in table.rows
    )
    caption = f"<caption>{escape(table.title)}</caption>" if table.title and not table.is_detail else ""
    text = f"<table>{caption}{f'<tr>{heads}</tr>' if heads else ''}{rows}</table>"
    return f"<details><summary>{escape(table.title)}</summary>{text}</details>" if table.is_detail else text


def _cell(tag: str, text: str, is_figure: bool) -> str:
    kind = ' class="figure"' if is_figure else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"
