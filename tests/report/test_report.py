"""The report's three forms tell the same story, and JSON stays JSON whatever the figures are."""

import io
import json
import math
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import PassResult, Rewritten, Skipped
from graphopt.graph.symbolic import Facts
from graphopt.model import from_proto
from graphopt.model.exporter import serialized_size
from graphopt.report import Check, Metrics, PassReport, Report, measure
from graphopt.report.html import to_html
from graphopt.report.text import print_report
from graphopt.testing import model


def sample(failure: str = "") -> Report:
    check = Check("bit-exact", not failure, math.inf if failure else 0.0, 0.0, None, failure)
    skipped = (Skipped("c", "has 2 readers"), Skipped("d", "has 2 readers"))
    result = PassResult((Rewritten("a", "<b>bold</b>"),), skipped)
    told = PassReport("some-pass", {"gain": 2.0}, 0.25, not failure, result, check, failure)
    before, after = Metrics(10, 1000, 5000, 2000, {"Conv": 2}), Metrics(8, 500, 2500, None, {"Conv": 1})
    failures = (failure,) if failure else ()
    return Report("in.onnx", "out.onnx", before, after, (told,), check, (0.9, 0.89), None, failures)


def test_json_has_the_agreed_form() -> None:
    told = json.loads(sample().to_json())
    assert set(told) >= {"source", "target", "before", "after", "passes", "check", "latency_ms"}
    assert set(told["before"]) == {"nodes", "parameters", "bytes", "macs", "ops"}
    assert told["passes"][0]["rewritten"] == [{"site": "a", "detail": "<b>bold</b>"}]
    assert told["passes"][0]["skipped"][0] == {"site": "c", "reason": "has 2 readers"}
    assert set(told["passes"][0]) >= {"name", "options", "seconds", "kept", "rewritten", "skipped", "check"}
    assert set(told["check"]) >= {"holds", "max_abs", "max_rel", "sqnr_db", "top1"}
    assert told["check"]["top1"] == [0.9, 0.89]
    assert told["latency_ms"] is None


def test_json_writes_null_for_what_json_cannot_say() -> None:
    assert json.loads(sample("broke").to_json())["check"]["max_abs"] is None


class Balance(HTMLParser):
    """Counts open tags, so that a page that does not close them is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("failure", ["", "some-pass: broke & burned"])
def test_html_is_balanced_escaped_and_self_contained(failure: str) -> None:
    page = to_html(sample(failure))
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "<b>bold</b>" not in page
    assert "&lt;b&gt;bold" in page
    assert "http" not in page
    assert ("taken back" in page) == bool(failure)


def test_text_groups_reasons_and_fits_a_pipe() -> None:
    stream = io.StringIO()
    print_report(sample(), stream)
    text = stream.getvalue()
    assert "some-pass left c and 1 more: has 2 readers" in text
    assert "0.500 of the original" in text
    assert "90.00% -> 89.00%" in text
    assert max(map(len, text.splitlines())) <= 120


def test_metrics_of_a_model() -> None:
    weights = {"w": np.zeros((8, 4, 3, 3), np.float32), "v": np.zeros((8 * 36, 5), np.float32)}
    graph = "g (float[N,4,8,8] x) => (float[N,5] y) { h = Conv(x, w)  f = Flatten(h)  y = MatMul(f, v) }"
    proto = model(graph, **weights)
    metrics = measure(from_proto(proto))
    assert metrics.parameters == 8 * 36 + 8 * 36 * 5
    assert metrics.macs == 8 * 36 * 36 + 8 * 36 * 5
    assert metrics.ops == {"Conv": 1, "Flatten": 1, "MatMul": 1}
    assert abs(serialized_size(from_proto(proto)) - proto.ByteSize()) <= 16


def test_macs_count_rows_that_the_batch_is_folded_into() -> None:
    text = "g (float[N,4,3] x) => (float[M,5] y) { h = Reshape(x, rows) y = MatMul(h, v) }"
    subject = from_proto(model(text, rows=np.array([-1, 3]), v=np.zeros((3, 5), np.float32)))
    assert measure(subject).macs == measure(subject, Facts(subject)).macs == 4 * 3 * 5


def test_macs_believe_a_declaration_where_nothing_else_is_known() -> None:
    text = "g (float[N,3] x) => (float[N,5] y) <float[N,7] h> { h = other.op(x) y = MatMul(h, v) }"
    header = '<ir_version: 8, opset_import: ["" : 17, "other" : 1]>'
    proto = onnx.parser.parse_model(f"{header} {text}")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((7, 5), np.float32), "v"))
    subject = from_proto(proto)
    assert measure(subject).macs == measure(subject, Facts(subject)).macs == 7 * 5


def test_macs_are_unknown_where_space_is() -> None:
    subject = from_proto(
        model("g (float[N,4,H,W] x) => (float[N,8,A,B] y) { y = Conv(x, w) }", w=np.zeros((8, 4, 1, 1), np.float32))
    )
    assert measure(subject).macs is None


def test_a_note_says_when_inputs_were_generated() -> None:
    relu = model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    assert any("generated" in note for note in graphopt.optimize(relu, []).report.notes)


def test_nodes_of_functions_count_once_for_each_call() -> None:
    proto = model(
        """g (float[2] x) => (float[2] y) { a = local.F(x) b = local.G(a) c = local.F(b) y = Neg(c) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]> F (a) => (c) { b = local.G(a) c = local.G(b) }
        <domain: "local", opset_import: ["" : 17]> G (a) => (c) {
            t = Constant<value: tensor = bool {1}>()
            b = If (t) <then_branch = yes () => (u) { u = Exp(a) }, else_branch = no () => (v) { v = Neg(a) }>
            c = Neg(b)
        }
        <domain: "local", opset_import: ["" : 17]> H (a) => (b) { b = Sin(a) }"""
    )
    metrics = measure(from_proto(proto))
    assert metrics.ops == {"Exp": 5, "If": 5, "Neg": 11}
    assert metrics.nodes == 21
