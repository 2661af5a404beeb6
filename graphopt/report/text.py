"""The document as text: lines as they are, tables in columns; names appear as they are in the model."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import TextIO

from graphopt.report.document import Document, Section, Table
from graphopt.report.report import Report

GAP = "  "
_NARROWEST = 40
_ALWAYS = 2
"""Columns that are never left out: what a row is about, and what is said of it first."""


def print_report(report: Report, stream: TextIO) -> None:
    """Write the report for people; what the stream's encoding does not have is written as an escape."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = to_text(report.document(), _width(stream))
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def to_text(document: Document, width: int | None = None) -> str:
    """Lay the document out, without the tables of single sites; the rows that are left out are counted.

    Args:
        document: What to lay out.
        width: How many columns the terminal has; None where lines may be of any length, as in a file. Names and figures
            are never cut: lines break at spaces; of a table the indentation gives way, then headings take two lines,
            then the last columns are left out and named; one that is still too wide becomes a list.
    """
    lines = [document.title]
    for section in document.sections:
        lines += _section(section, width)
    return "".join(f"{line}\n" for line in lines)


def _width(stream: TextIO) -> int | None:
    """Return how many columns a terminal has, None for what is none."""
    try:
        return max(_NARROWEST, os.get_terminal_size(stream.fileno()).columns) if stream.isatty() else None
    except (OSError, ValueError):
        return None


def _section(section: Section, width: int | None) -> Iterator[str]:
    """Yield the lines of a section, indented below its title; a section of level 3 has its first line as title."""
    if section.level == 2 and section.title:
        yield from ("", printable(section.title))
    inner = 0 if not section.title else 2 if section.level > 2 else 1
    for at, line in enumerate(section.lines):
        yield from _broken(GAP * (inner if at or inner < 2 else 1), printable(line.text), width)
    for at, table in enumerate(section.tables):
        depth = inner if at or section.lines or inner < 2 else 1
        yield from _columns(table, GAP * depth, width)


def _broken(indent: str, text: str, width: int | None) -> Iterator[str]:
    """Yield a line, in several where it is too long; words stay whole."""
    if width is None or len(indent) + len(text) <= width:
        yield indent + text
        return
    yield from textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + GAP,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _columns(table: Table, indent: str, width: int | None) -> Iterator[str]:
    """Yield the lines of a table: columns as wide as their widest cell, figures on the right."""
    if table.is_detail:
        return
    if table.title:
        yield f"{indent}{printable(table.title)}:"
    shown = [tuple(map(printable, row)) for row in table.rows[: table.shown]]
    yield from _fitted(table, [(printable(head),) for head in table.heads], shown, indent, width)
    if len(shown) < len(table.rows):
        yield from _broken(indent, f"and {len(table.rows) - len(shown):,} more: --report FILE lists all", width)


def _fitted(
    table: Table, heads: list[tuple[str, ...]], rows: list[tuple[str, ...]], indent: str, width: int | None
) -> Iterator[str]:
    """Yield the rows in the first form that fits."""
    if width is None or _wide(heads, rows) <= width:
        room = 0 if width is None else width - _wide(heads, rows)
        yield from _rows(table, heads, rows, indent if width is None else indent[:room])
        return
    folded = [tuple(head.rsplit(" ", 1)) for (head,) in heads]
    count = len(rows[0])
    for kept in range(count, min(_ALWAYS, count) - 1, -1):
        some = [row[:kept] for row in rows]
        if _wide(folded[:kept], some) <= width:
            yield from _rows(table, folded[:kept], some, "")
            if kept < count:
                left = ", ".join(" ".join(head) for head in folded[kept:])
                yield from _broken("", f"no room for: {left} (--report FILE has all)", width)
            return
    for row in rows:
        for at, cell in enumerate(row):
            label = f"{' '.join(heads[at])}: " if heads and at else ""
            yield from _broken(indent if not at else indent + GAP, label + cell, width)


def _wide(heads: Sequence[tuple[str, ...]], rows: list[tuple[str, ...]]) -> int:
    """Return how many columns a table takes."""
    return sum(_widths(heads, rows)) + len(GAP) * (len(rows[0]) - 1) if rows else 0


def _widths(heads: Sequence[tuple[str, ...]], rows: list[tuple[str, ...]]) -> list[int]:
    titles = heads or [("",)] * len(rows[0])
    return [max(map(len, (*head, *column))) for head, column in zip(titles, zip(*rows, strict=True), strict=True)]


def _rows(table: Table, heads: Sequence[tuple[str, ...]], rows: list[tuple[str, ...]], indent: str) -> Iterator[str]:
    """Yield headings, in as many lines as the longest takes, and rows."""
    if not rows:
        return
    tall = max(map(len, heads), default=0)
    padded = [("",) * (tall - len(head)) + head for head in heads]
    widths = _widths(heads, rows)
    for row in [*zip(*padded, strict=True), *rows]:
        cells = zip(row, widths, range(len(row)), strict=True)
        text = GAP.join(f"{cell:>{width}}" if at in table.figures else f"{cell:<{width}}" for cell, width, at in cells)
        yield (indent + text).rstrip()


def printable(text: str) -> str:
    """Escape line breaks and other control characters, which names in a file may hold."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
