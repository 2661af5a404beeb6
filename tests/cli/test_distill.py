"""The command distill, from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.testing import model

NET = """g (float[N,1,4,4] x) => (float[N,3] y) {
  a = Conv(x, w) r = Relu(a) p = GlobalAveragePool(r) q = Flatten(p) y = Gemm<transB = 1>(q, u, b) }"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    given = {
        "w": rng.standard_normal((4, 1, 3, 3)).astype(np.float32),
        "u": rng.standard_normal((3, 4)).astype(np.float32),
        "b": np.zeros(3, np.float32),
    }
    onnx.save(model(NET, **given), tmp_path / "teacher.onnx")
    onnx.save(model(NET, **{**given, "u": given["u"] * np.float32(0.3)}), tmp_path / "student.onnx")
    x, labels = rng.standard_normal((64, 1, 4, 4)).astype(np.float32), rng.integers(0, 3, 64)
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    return tmp_path


def test_distill(run: Callable[..., Any], folder: Path) -> None:
    pytest.importorskip("onnx_ad")
    options = ["--data", "data.npz", "--epochs", "6", "--batch", "16", "--rate", "0.02", "--flip", "--threads", "1"]
    models = ["teacher.onnx", "student.onnx", "tuned.onnx"]
    done = run("distill", *models, *options, "--checkpoint", "state.npz", "--report", "told.json")
    assert done.returncode == 0, done.stderr
    assert "top-1: teacher" in done.stdout
    told = json.loads((folder / "told.json").read_text())
    assert told["history"][told["best_epoch"]] < told["history"][0]
    first = (folder / "tuned.onnx").read_bytes()
    again = run("distill", *models, *options, "--checkpoint", "state.npz", "--resume")
    assert again.returncode == 0, again.stderr
    assert (folder / "tuned.onnx").read_bytes() == first


@pytest.mark.usefixtures("folder")
def test_without_held_out_samples_the_training_loss_is_told_as_such(run: Callable[..., Any]) -> None:
    pytest.importorskip("onnx_ad")
    options = ["--data", "data.npz", "--epochs", "2", "--batch", "16", "--held-out", "0", "--threads", "1"]
    done = run("distill", "teacher.onnx", "student.onnx", "tuned.onnx", *options)
    assert done.returncode == 0, done.stderr
    assert "training loss" in done.stdout
    assert "became" in done.stdout
    assert "in epoch 2" in done.stdout
    assert "held-out" not in done.stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--data", "none.npz"], "no such file"),
        (["--data", "data.npz", "--resume"], "--resume needs --checkpoint"),
        (["--data", "data.npz", "--labels", "1", "--mix", "1"], "labels do not hold for mixed images"),
        (["--data", "data.npz", "--labels", "1", "--paste", "1"], "labels do not hold for mixed images"),
        (["--data", "data.npz", "--no-views", "--mix", "1"], "--no-views and --mix contradict each other"),
        (["--data", "data.npz", "--feature", "z"], "the student has no tensor 'z'"),
        (["--data", "data.npz", "--schedule", "wild"], "is not one of"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    run: Callable[..., Any], folder: Path, options: list[str], reason: str
) -> None:
    done = run("distill", "teacher.onnx", "student.onnx", "tuned.onnx", *options)
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "tuned.onnx").exists()
