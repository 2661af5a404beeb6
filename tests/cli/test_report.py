"""The report of a run on the command line: its forms agree, and options reach the run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.testing import draw, model

TEXT = "g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }"


def test_nothing_is_claimed_without_checks(run: Any, tmp_path: Path) -> None:
    onnx.save(model(TEXT, opset=13, ir_version=7, w=draw(64, 64)), tmp_path / "in.onnx")
    words = ("--no-check", "--no-latency", "--report", "r.html", "quantize-weights", "--representation", "dq")
    done = run("optimize", "in.onnx", "out.onnx", *words)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for view in (done.stdout, page):
        assert "Done; nothing was checked." in view
        assert "verified" not in view
    after = onnx.load(tmp_path / "out.onnx")
    line = f"opset 13 -> {after.opset_import[0].version}, IR 7 -> {after.ir_version}"
    assert line.replace(">", "&gt;") in page
    assert line in done.stdout


def test_latency_is_measured_unless_told_otherwise(run: Any, tmp_path: Path) -> None:
    onnx.save(model(TEXT, w=draw(64, 64)), tmp_path / "in.onnx")
    latencies = []
    for words in (["--latency"], [], ["--no-latency"]):
        done = run("optimize", "in.onnx", "out.onnx", *words, "--report", "r.json", "fold-constants")
        assert done.returncode == 0, done.stderr
        latencies.append(json.loads((tmp_path / "r.json").read_text())["latency_ms"])
    assert [latency is None for latency in latencies] == [False, False, True]


def test_options_of_the_run_are_in_the_report(run: Any, tmp_path: Path) -> None:
    onnx.save(model(TEXT, w=draw(64, 64)), tmp_path / "in.onnx")
    np.savez(tmp_path / "d.npz", x=draw(8, 64))
    words = ["--data", "d.npz", "--max-drop", "1.5", "--max-opset", "19", "--keep-going", "--report", "r.json"]
    assert run("optimize", "in.onnx", "out.onnx", *words, "fold-constants").returncode == 0
    told = json.loads((tmp_path / "r.json").read_text())["circumstances"]
    assert told["data"] == "d.npz, 8 samples"
    options = {name: told["options"][name] for name in ("check", "keep_going", "max_drop", "max_opset")}
    assert options == {"check": True, "keep_going": True, "max_drop": 1.5, "max_opset": 19}
