"""The document as text: lines as they are, tables in columns; names appear as they are in the model."""

from collections.abc import Iterator
from typing import TextIO

from graphopt.report.document import Document, Section, Table
from graphopt.report.report import Report

GAP = "  "


def print_report(report: Report, stream: TextIO) -> None:
    """Write the report for people; what the stream's encoding does not have is written as an escape."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = to_text(report.document())
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def to_text(document: Document) -> str:
    """Lay the document out, without the tables of single sites; the rows that are left out are counted."""
    lines = [document.title]
    for section in document.sections:
        lines += _section(section)
    return "".join(f"{printable(line)}\n" for line in lines)


def _section(section: Section) -> Iterator[str]:
    """Yield the lines of a section, indented below its title; a section of level 3 has its first line as title."""
    if section.level == 2 and section.title:
        yield from ("", section.title)
    body = [line.text for line in section.lines] + [row for table in section.tables for row in _columns(table)]
    for at, text in enumerate(body):
        depth = 0 if not section.title else 2 if section.level > 2 and at else 1
        yield GAP * depth + text


def _columns(table: Table) -> Iterator[str]:
    """Yield the lines of a table: columns as wide as their widest cell, figures on the right."""
    if table.is_detail:
        return
    if table.title:
        yield f"{table.title}:"
    shown = table.rows[: table.shown]
    rows = [tuple(map(printable, row)) for row in ((table.heads,) if table.heads else ()) + shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, range(len(row)), strict=True)
        yield GAP.join(
            f"{cell:>{width}}" if at in table.figures else f"{cell:<{width}}" for cell, width, at in cells
        ).rstrip()
    if len(shown) < len(table.rows):
        yield f"and {len(table.rows) - len(shown):,} more: --report FILE lists all"


def printable(text: str) -> str:
    """Escape line breaks and other control characters, which names in a file may hold."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
