"""The document that text, page and JSON lay out: sections of lines and tables, all of them words."""

from dataclasses import dataclass
from typing import Any, Literal

Tone = Literal["", "good", "bad", "warn"]


@dataclass(frozen=True)
class Line:
    """One sentence, and whether it is good news, bad news or a warning."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        title: What the rows are.
        heads: The columns' headings; none for a list of names and values.
        rows: The cells of each row.
        figures: The columns that hold figures, which are aligned on the right.
        shown: How many rows the text shows, which names the number of the others; None for all.
        is_detail: Whether it lists single sites that the lines sum up: the page has it folded, the text leaves it out,
            and JSON has the sites themselves under ``passes``.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: frozenset[int] = frozenset()
    shown: int | None = None
    is_detail: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the document; ``key`` stays the same over releases, and ``level`` is 3 below a section of level 2."""

    key: str
    title: str
    lines: tuple[Line, ...] = ()
    tables: tuple[Table, ...] = ()
    level: int = 2


@dataclass(frozen=True)
class Document:
    """All that a report says, in the order of importance."""

    title: str
    sections: tuple[Section, ...]

    def as_list(self) -> list[dict[str, Any]]:
        """Return the sections in the form of the JSON file, tables of single sites left out."""
        return [
            {
                "key": section.key,
                "title": section.title,
                "lines": [line.text for line in section.lines],
                "tables": [
                    {"title": table.title, "heads": list(table.heads), "rows": [list(row) for row in table.rows]}
                    for table in section.tables
                    if not table.is_detail
                ],
            }
            for section in self.sections
        ]
