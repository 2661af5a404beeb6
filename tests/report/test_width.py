"""The report on a terminal: nothing is wider than it, and no name or figure is cut."""

import pytest

from graphopt.report.document import Document, Line, Section, Table
from graphopt.report.text import to_text

HEADS = ("pass", "outcome", "rewritten", "skipped", "demoted", "largest difference", "SQNR", "seconds")
ROWS = (
    ("quantize-activations", "nothing to do", "1,234", "0", "0", "0.000123", "101.3 dB", "12.34"),
    ("fold-batchnorm", "holds", "20", "1", "0", "4.24e-05", "no noise", "0.10"),
)
FIGURES = frozenset(range(2, 8))
PROSE = "options: " + ", ".join(f"option_{index}=value_{index}" for index in range(20))
LISTED = Table("Sites", ("site", "written"), (("/layers/0/attention/query", "a text of several words " * 4),))


def lay_out(*tables: Table, width: int | None, lines: tuple[Line, ...] = ()) -> list[str]:
    return to_text(Document("in -> out", (Section("passes", "Passes", lines, tables),)), width).splitlines()[3:]


@pytest.mark.parametrize("width", [40, 60, 79, 80, 100, 132])
def test_nothing_is_wider_and_nothing_is_cut(width: int) -> None:
    lines = lay_out(Table("", HEADS, ROWS, FIGURES), LISTED, width=width, lines=(Line(PROSE),))
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    for row in ROWS:
        assert all(cell in text for cell in row[:2])
    assert " ".join(PROSE.split()) in text
    assert " ".join(LISTED.rows[0][1].split()) in text
    left = text.partition("no room for: ")[2].partition(" (--report")[0].split(", ") if "no room" in text else []
    gone = [at for at, head in enumerate(HEADS) if head in left]
    assert gone == list(range(8 - len(gone), 8)), "the last columns give way first"
    assert all(row[at] in text for row in ROWS for at in range(8) if at not in gone)


def test_without_a_terminal_every_column_is_in_one_line() -> None:
    lines = lay_out(Table("", HEADS, ROWS, FIGURES), width=None, lines=(Line(PROSE),))
    assert lines[0] == f"  {PROSE}"
    assert [line.split()[0] for line in lines[1:]] == ["pass", "quantize-activations", "fold-batchnorm"]
    assert all(head in lines[1] for head in HEADS)


def test_what_fits_keeps_its_indentation_as_far_as_there_is_room() -> None:
    table = Table("", ("a", "b"), (("x" * 20, "y" * 16),))
    assert [len(line) - len(line.lstrip()) for line in lay_out(table, width=80)] == [2, 2]
    assert [len(line) - len(line.lstrip()) for line in lay_out(table, width=39)] == [1, 1]
    assert lay_out(table, width=38)[1] == "x" * 20 + "  " + "y" * 16


def test_a_word_that_is_longer_than_the_line_stays_whole() -> None:
    name = "/very" * 20
    assert any(name in line for line in lay_out(Table("", ("site", "ms"), ((name, "1.0"),)), width=60))
    assert any(name in line for line in lay_out(width=60, lines=(Line(f"the time goes to {name}"),)))
