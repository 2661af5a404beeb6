"""--only and --skip on the command line: of a pass, of a run, and of what a third party calls so."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from graphopt.testing import draw, model

NET = "g (float[N,16] x) => (float[N,16] b) { a = MatMul(x, wa)  b = MatMul(a, wb) }"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(model(NET, wa=draw(16, 16), wb=draw(16, 16, seed=1)), tmp_path / "in.onnx")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["quantize-weights", "--skip", "a"], id="behind the pass"),
        pytest.param(["quantize-weights", "--only=b"], id="with an equals sign"),
        pytest.param(["--skip", "a", "quantize-weights"], id="before the pass"),
        pytest.param(["--skip", "a", "--preset", "default"], id="of a preset"),
        pytest.param(["--only", "b"], id="of the passes by default"),
    ],
)
def test_the_site_is_left_out(words: list[str], run: Any, folder: Path) -> None:
    done = run("optimize", "in.onnx", "out.onnx", "--no-latency", "--report", "r.json", *words)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "r.json").read_text())
    told = report["passes"][-1]
    assert [each["site"] for each in told["rewritten"]] == ["b"]
    assert [(each["site"], each["reason"].split()[:3]) for each in told["skipped"]] == [("a", ["left", "out", "by"])]


def test_help_and_notes(run: Any, folder: Path) -> None:
    assert "--only PATTERN" in run("passes", "fold-batchnorm").stdout
    done = run("optimize", "in.onnx", "out.onnx", "--no-latency", "fold-constants", "--skip", "x*z")
    assert done.returncode == 0, done.stderr
    note = "fold-constants: --skip x*z matches no site, node, initializer or operator of the model"
    assert note in done.stdout
