"""Text, page and JSON are three views of one document, and none says more than was measured."""

import io
import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import graphopt
from graphopt import PassResult, Rewritten, Skipped
from graphopt.report import Check, Circumstances, Demoted, Latency, Metrics, PassReport, Report
from graphopt.report.html import to_html
from graphopt.report.text import print_report
from graphopt.testing import model

FIXTURE = Path(__file__).parent / "fixtures" / "report-1.json"
DOCS = Path(__file__).parents[2] / "docs" / "report.md"
BEFORE = Metrics(10, 1000, 5000, 2000, {"Conv": 2, "Relu": 1})


def sample(failure: str = "") -> Report:
    check = Check("bit-exact", not failure, math.inf if failure else 0.0, 0.0, None, failure)
    skipped = (Skipped("c", "has 2 readers"), Skipped("d", "has 2 readers"))
    result = PassResult((Rewritten("a", "<b>bold</b>"),), skipped)
    told = PassReport("some-pass", {"gain": 2.0}, 0.25, not failure, result, check, failure)
    after = Metrics(8, 500, 2500, None, {"Conv": 1, "Relu": 1})
    failures = (failure,) if failure else ()
    return Report("in.onnx", "out.onnx", BEFORE, after, (told,), check, (0.9, 0.89), None, failures)


def full() -> Report:
    """Return a report that has something in every field."""
    check = Check(
        "lossy(min_sqnr_db=20)",
        True,
        0.125,
        0.03,
        31.04,
        notes=("ran twice",),
        where="output 'dets', index 4 of axis 2",
        correlation=0.9999999,
        agreement=0.99999,
        samples=128,
        blind=("aux",),
    )
    demoted = (
        Demoted("conv:x:1", "blocks", "int8 per channel", "int8 in blocks of 32", 1500, 14.3),
        Demoted("conv:x:2", "float", "int8 per channel", "left float32", None, None),
    )
    skipped = tuple(Skipped(f"s{index}", f"reason {index // 2}") for index in range(14))
    result = PassResult((Rewritten("conv:x:1", "int8"), Rewritten("<i>", "int8 & more")), skipped)
    options = {"dtype": "int8", "only": (), "seed": None, "symmetric": True}
    quantize = PassReport("quantize-weights", options, 1.5, True, result, check, "", demoted, (13, 19))
    reverted = PassReport("fold", {}, 0.1, False, result, replace(check, holds=False, problem="y: moved"), "y: moved")
    idle = PassReport("idle", {}, 0.01, True, PassResult())
    latency = Latency(1.0, 2.5, 4, 0.05, (("conv:x:1", "DequantizeLinear", 1.25),), "use --representation mul")
    cpu = {"model": "A CPU", "avx2": True, "amx_int8": False, "i8mm": None}
    told = Circumstances(
        {"graphopt": "1.0", "onnx": None}, cpu, "x.npz, 128 samples", {"check": True}, (13, 19), (7, 9)
    )
    after = Metrics(8, 500, 2500, None, {"Conv": 1, "Relu": 1, "Mul": 3})
    passes = (quantize, reverted, idle)
    return Report(
        "in", "out", BEFORE, after, passes, check, (0.9, 0.885), latency, ("fold: y: moved",), ("so it is",), told
    )


REPORTS = {
    "full": full(),
    "good": sample(),
    "failed": sample("some-pass: broke"),
    "nothing": Report("a", "b", BEFORE, BEFORE, (), None),
}


def text_of(report: Report) -> str:
    stream = io.StringIO()
    print_report(report, stream)
    return stream.getvalue()


class Page(HTMLParser):
    """Collects what a page shows, and counts open tags, so that a page that does not close them is seen."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.open: list[str] = []
        self.shown: list[str] = []
        self.cells: list[tuple[str, bool]] = []
        self.figure = False
        self.feed(to_html(report))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.figure = ("class", "figure") in attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown.append(data)
        if self.open and self.open[-1] == "td":
            self.cells.append((data, self.figure))


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_what_the_document_says_all_views_say(report: Report) -> None:
    text, page, told = text_of(report), Page(report), json.loads(report.to_json())["document"]
    in_json = [each for section in told for each in section["lines"]]
    cells = [cell for section in told for table in section["tables"] for row in table["rows"] for cell in row]
    for section in report.document().sections:
        for line in section.lines:
            assert f"{line.text}\n" in text
            assert line.text in page.shown
            assert line.text in in_json
        for cell in (cell for table in section.tables for row in table.rows for cell in row if cell):
            assert cell in page.shown
        for cell in (cell for table in section.tables if not table.is_detail for row in table.rows for cell in row):
            assert cell in text
            assert cell in cells
    assert page.open == []


@pytest.mark.parametrize(
    ("report", "first", "outcome"),
    [
        pytest.param(sample(), "Done and verified.", "verified", id="checked"),
        pytest.param(replace(sample(), check=None), "Done; nothing was checked.", "unchecked", id="not checked"),
        pytest.param(
            replace(full(), failures=()), "Done; not proved for aux: ", "unproved", id="data that cannot tell"
        ),
        pytest.param(sample("no"), "Failed: no", "failed", id="failed"),
        pytest.param(replace(sample("no"), failures=()), "Failed: the check of the whole run", "failed", id="broken"),
    ],
)
def test_only_what_was_checked_is_verified(report: Report, first: str, outcome: str) -> None:
    lines = [line.text for line in report.document().sections[0].lines]
    assert lines[0].startswith(first)
    assert report.outcome == outcome
    assert report.checked == (report.check is not None)
    for view in (text_of(report), to_html(report), report.to_json()):
        assert ("verified" in view) == (outcome == "verified")


def test_a_failure_without_a_check_is_not_called_checked() -> None:
    lines = text_of(replace(sample("no"), check=None)).splitlines()
    assert lines[1:3] == ["Failed: no", "The result was not checked."]


def test_a_slower_result_and_demoted_sites_come_first() -> None:
    assert text_of(replace(full(), failures=())).splitlines()[2:6] == [
        "Slower than the original: 1 ms became 2.5 ms, 2.50 times as long",
        "The time goes to: conv:x:1 (DequantizeLinear) 1.25 ms",
        "What to do: use --representation mul",
        "quantize-weights wrote 2 sites more carefully than asked for: conv:x:1, conv:x:2",
    ]


@pytest.mark.parametrize(("after", "slower"), [(1.05, False), (1.06, True), (0.5, False)])
def test_slower_is_said_beyond_noise_only(after: float, slower: bool) -> None:
    report = replace(sample(), latency=Latency(1.0, after, 1, 0.05))
    assert ("Slower" in text_of(report)) == slower
    assert f"latency    {after:.2f} times the original's" in text_of(report)
    assert json.loads(report.to_json())["latency"]["slower"] is slower
    assert report.latency_ms == (1.0, after)


def test_a_result_that_is_the_original_is_said_to_be_so() -> None:
    report = replace(sample(), latency=Latency(1.0, 1.0, 2, 0.003, same=True))
    said = "1.00 times the original's, in a default session on one thread, 2 samples a run; the result is the original"
    assert f"latency    {said}" in text_of(report).splitlines()
    assert json.loads(report.to_json())["latency"]["same"] is True
    assert "equal models differ by up to 5%" in text_of(replace(sample(), latency=Latency(1.0, 1.0, 2, 0.05)))


def test_bytes_of_demoted_sites_are_summed_only_if_all_are_known() -> None:
    report = full()
    known = replace(report.passes[0], demoted=(report.passes[0].demoted[0],) * 2)
    assert "more carefully than asked for, for 3,000 bytes more: " in text_of(replace(report, passes=(known,)))


def test_unknown_and_unmeasured_are_never_zero() -> None:
    report = Report("a", "b", Metrics(1, 1, 1, 100, {}), Metrics(1, 1, 1, None, {}), (), None)
    rows = {row[0]: row[1:] for row in report.document().sections[1].tables[0].rows}
    assert rows["MACs"] == ("100", "unknown", "")
    assert rows["latency"] == rows["top-1"] == ("not measured", "not measured", "")
    told = json.loads(report.to_json())
    assert (told["after"]["macs"], told["latency"], told["latency_ms"], told["check"]) == (None,) * 4


def test_a_check_without_figures_has_none() -> None:
    check = Check("bit-exact", False, math.inf, None, None, "crashed")
    report = replace(sample("crashed"), check=check, passes=())
    (section,) = (each for each in report.document().sections if each.key == "check")
    rows = dict(row for row in section.tables[0].rows)
    assert rows["largest difference"] == rows["lowest SQNR"] == rows["lowest correlation"] == "not measured"
    assert json.loads(report.to_json())["check"]["max_abs"] is None


def test_only_all_is_a_hundred_percent() -> None:
    text = text_of(full())
    assert "99.99%" in text
    assert "0.999999" in text
    assert "100.00%" not in text


def test_the_change_of_opset_names_who_asked() -> None:
    assert "opset 13 -> 19, IR 7 -> 9 (quantize-weights asks for 19)\n" in text_of(full())
    same = replace(full(), passes=(), circumstances=Circumstances({}, {}, "", {}, (17, 17), (8, 8)))
    assert "opset 17, IR 8, unchanged\n" in text_of(same)


def test_passes_have_their_outcome() -> None:
    outcomes = {
        row[0]: row[1] for each in full().document().sections if each.key == "passes" for row in each.tables[0].rows
    }
    assert outcomes == {"quantize-weights": "not proved", "fold": "reverted", "idle": "nothing to do"}


@pytest.mark.parametrize("name", ["enc:x:bn", "[bold]x[/bold]", "a\tb\nc", "\x1b[31mred"])
def test_names_appear_as_they_are(name: str) -> None:
    skipped = PassReport("p", {}, 0.1, True, PassResult((), (Skipped(name, "no"),)))
    text = text_of(replace(sample(), passes=(skipped,)))
    printed = name.replace("\t", "\\t").replace("\n", "\\n").replace("\x1b", "\\x1b")
    assert f"p left {printed}: no\n" in text


def test_a_stream_that_lacks_a_character_gets_its_escape() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_report(replace(sample(), source="größe.onnx"), stream)
    stream.flush()
    assert raw.getvalue().startswith(b"gr\\xf6\\xdfe.onnx -> out.onnx")


def test_text_counts_the_rows_that_it_leaves_out() -> None:
    report = full()
    many = replace(report.passes[0], demoted=report.passes[0].demoted[:1] * 25)
    assert "and 5 more: --report FILE lists all" in text_of(replace(report, passes=(many,)))
    assert "2 more reasons: see the list of skipped sites" in text_of(report)


def test_text_groups_reasons_and_fits_a_pipe() -> None:
    text = text_of(sample())
    assert "some-pass left c and 1 more: has 2 readers" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_the_page_is_escaped_and_self_contained(report: Report) -> None:
    page = to_html(report)
    assert "<b>bold</b>" not in page
    assert "<i>" not in page
    assert "http" not in page


def test_figures_of_the_page_are_on_the_right() -> None:
    cells = dict(Page(sample()).cells)
    assert all(cells[figure] for figure in ("1,000", "500", "0.500", "unknown", "90.00%", "-1.00 points"))
    assert not cells["MACs"]
    assert not cells["some-pass"]


def keys_of(value: Any, path: str = "") -> set[str]:
    """Return the path of every key, below the free names of options, operators, versions and features too."""
    if isinstance(value, dict):
        return {f"{path}.{key}" for key in value}.union(
            *(keys_of(each, f"{path}.{key}") for key, each in value.items())
        )
    if isinstance(value, list):
        return set().union(*(keys_of(each, f"{path}[]") for each in value))
    return set()


def test_every_key_of_the_released_form_is_still_there() -> None:
    kept = json.loads(FIXTURE.read_text(encoding="utf-8"))
    told = json.loads(full().to_json())
    assert told["schema"] == kept["schema"] == 1
    assert keys_of(kept) <= keys_of(told)


def test_every_key_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    free = (".options.", ".ops.", ".versions.")
    names = {
        path.rpartition(".")[2] for path in keys_of(json.loads(full().to_json())) if not any(f in path for f in free)
    }
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_json_keeps_its_first_keys() -> None:
    told = json.loads(sample().to_json())
    assert told["passes"][0]["rewritten"] == [{"site": "a", "detail": "<b>bold</b>"}]
    assert told["passes"][0]["skipped"][0] == {"site": "c", "reason": "has 2 readers"}
    assert told["check"]["top1"] == [0.9, 0.89]
    assert told["latency_ms"] is None


def test_json_writes_null_for_what_json_cannot_say() -> None:
    assert json.loads(sample("broke").to_json())["check"]["max_abs"] is None


def test_json_writes_the_text_of_other_options() -> None:
    told = replace(sample().passes[0], options={"folder": Path("a/b"), "bound": -math.inf})
    assert json.loads(replace(sample(), passes=(told,)).to_json())["passes"][0]["options"] == {
        "folder": str(Path("a/b")),
        "bound": None,
    }


def test_a_note_says_when_inputs_were_generated() -> None:
    relu = model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    assert any("generated" in note for note in graphopt.optimize(relu, []).report.notes)


def test_a_run_says_what_it_was_made_with() -> None:
    relu = model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    told = json.loads(graphopt.optimize(relu, []).report.to_json())["circumstances"]
    assert set(told) == {"versions", "cpu", "data", "options", "opset", "ir"}
    assert (told["opset"], told["ir"]) == ([17, 17], [8, 8])
    assert told["data"].startswith("inputs generated from the model's signature, ")
    assert told["options"]["check"] is True


def test_a_run_without_checks_says_so() -> None:
    relu = model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    report = graphopt.optimize(relu, [], check=False).report
    assert (report.outcome, report.ok) == ("unchecked", True)
    assert "none: nothing was run" in text_of(report)
