"""The plugin package as its users meet it: installed beside graphopt, found by name, proved like our own passes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt import create
from graphopt.registry import discover
from graphopt.testing import assert_rewrites, assert_skips, model

pytestmark = pytest.mark.skipif("name-relu6" not in discover(), reason="the plugin package is not installed")

RELU6 = "g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  y = Min(r, six) }"


def test_rewrites() -> None:
    after = assert_rewrites(
        create("name-relu6"), model(RELU6, six=np.float32(6)), ops={"Clip": 1}, feeds={"x": np.float32([[-1, 3, 9, 6]])}
    )
    assert after.graph.output[0].name == "y"


@pytest.mark.parametrize(
    ("bound", "options", "reason"),
    [
        pytest.param(np.float32(-1), {}, "negative", id="negative bound"),
        pytest.param(np.float32([6]), {}, "not a scalar", id="bound is a vector"),
        pytest.param(np.float32(4), {"only": 6.0}, "not 6", id="another bound"),
    ],
)
def test_skips(bound: np.ndarray, options: dict[str, float], reason: str) -> None:
    assert_skips(create("name-relu6", **options), model(RELU6, six=bound), reason)


def test_command_line(tmp_path: Path) -> None:
    onnx.save(model(RELU6, six=np.float32(6)), tmp_path / "in.onnx")
    command = [sys.executable, "-m", "graphopt", "optimize", "in.onnx", "out.onnx", "--report", "r.json", "name-relu6"]
    subprocess.run([*command, "--only", "6"], cwd=tmp_path, check=True)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["after"]["ops"] == {"Clip": 1}
    assert report["passes"][0]["check"]["contract"] == "bit-exact"
