"""What ``validate`` says of an output: a difference only where one was measured."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from graphopt.testing import model

REFERENCE = "g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }"
WHOLE = "g (int64[N,4] x) => (int64[N,4] y) { y = Identity(x) }"


@pytest.mark.parametrize(
    ("reference", "text", "line", "measured"),
    [
        pytest.param(REFERENCE, "g (float[N,4] x) => (float[N,4] z) { z = Identity(x) }", "y: gone", False, id="gone"),
        pytest.param(
            REFERENCE,
            "g (float[N,4] x) => (float[4,N] y) { y = Transpose(x) }",
            "y: not comparable: shape (2, 4) became (4, 2)",
            False,
            id="shape",
        ),
        pytest.param(
            REFERENCE,
            "g (float[N,4] x) => (double[N,4] y) { y = Cast<to=11>(x) }",
            "y: not comparable: float32 became float64",
            False,
            id="type",
        ),
        pytest.param(
            REFERENCE, "g (float[N,4] x) => (float[N,4] y) { z = Sub(x, x) y = Div(x, z) }", "y: ", False, id="all Inf"
        ),
        pytest.param(
            REFERENCE,
            "g (float[N,4] x) => (float[N,4] y) { y = Add(x, x) }",
            "y: largest difference ",
            True,
            id="other values",
        ),
        pytest.param(
            WHOLE,
            "g (int64[N,4] x) => (int64[N,4] y) { o = Constant<value_int=1>() y = Add(x, o) }",
            "y: largest difference 1 ",
            True,
            id="other integers",
        ),
        pytest.param(REFERENCE, REFERENCE, "y: largest difference 0 (relative 0)", True, id="equal"),
    ],
)
def test_an_output(reference: str, text: str, line: str, measured: bool, run: Any, tmp_path: Path) -> None:
    onnx.save(model(reference), tmp_path / "a.onnx")
    onnx.save(model(text), tmp_path / "b.onnx")
    done = run("validate", "a.onnx", "b.onnx", "--report", "r.json")
    assert done.returncode == int(reference != text)
    assert done.stdout.startswith(line)
    assert ("largest difference" in done.stdout) == measured
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["schema"] == 1
    figures = [told["outputs"][0][name] for name in ("max_abs", "max_rel")]
    assert (None not in figures) == measured
    assert measured or figures == [None, None]


@pytest.mark.parametrize("name", ["r.html", "b.onnx"])
def test_a_report_that_cannot_be_is_refused_first(name: str, run: Any, tmp_path: Path) -> None:
    onnx.save(model(REFERENCE), tmp_path / "b.onnx")
    before = (tmp_path / "b.onnx").read_bytes()
    done = run("validate", "b.onnx", "b.onnx", "--report", name)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (tmp_path / "b.onnx").read_bytes() == before
