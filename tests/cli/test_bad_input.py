"""Whatever is unusable is said in one line that names it: status 2, no traceback, no half-written target."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.testing import model

Prepare = Callable[[Path], list[str]]


def proto() -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    return model(
        "g (float[N,16] x) => (float[N,16] y) { h = MatMul(x, w)  y = Relu(h) }",
        w=rng.standard_normal((16, 16)).astype(np.float32),
    )


def text_file(folder: Path) -> list[str]:
    (folder / "bad.onnx").write_text("this is not a model\n" * 20)
    return ["bad.onnx", "out.onnx"]


def truncated(folder: Path) -> list[str]:
    (folder / "bad.onnx").write_bytes(proto().SerializeToString()[:-300])
    return ["bad.onnx", "out.onnx"]


def empty(folder: Path) -> list[str]:
    (folder / "bad.onnx").touch()
    return ["bad.onnx", "out.onnx"]


def directory(folder: Path) -> list[str]:
    (folder / "bad.onnx").mkdir()
    return ["bad.onnx", "out.onnx"]


def data(**arrays: Any) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        np.savez(folder / "bad.npz", **arrays)
        return ["in.onnx", "out.onnx", "--data", "bad.npz"]

    return prepare


def words(*arguments: str) -> Prepare:
    return lambda folder: list(arguments)


def broken_data(folder: Path) -> list[str]:
    (folder / "bad.npz").write_bytes(b"PK nothing")
    return ["in.onnx", "out.onnx", "--data", "bad.npz"]


def recipe(text: str) -> Prepare:
    def prepare(folder: Path) -> list[str]:
        (folder / "bad.toml").write_text(text)
        return ["in.onnx", "out.onnx", "--recipe", "bad.toml"]

    return prepare


X = np.zeros((4, 16), np.float32)

CASES = [
    pytest.param(words("missing.onnx", "out.onnx"), "missing.onnx", id="missing file"),
    pytest.param(directory, "bad.onnx", id="directory"),
    pytest.param(empty, "bad.onnx", id="empty file"),
    pytest.param(text_file, "bad.onnx", id="text file"),
    pytest.param(truncated, "bad.onnx", id="truncated model"),
    pytest.param(words("in.onnx"), "TARGET", id="no target"),
    pytest.param(words("in.onnx", "out.onnx", "fold-batchnrm"), "did you mean 'fold-batchnorm'", id="unknown pass"),
    pytest.param(words("in.onnx", "out.onnx", "--dtype"), "--dtype", id="unknown option of the command"),
    pytest.param(words("in.onnx", "out.onnx", "quantize-weights", "--dtype", "int9"), "int9", id="unknown value"),
    pytest.param(words("in.onnx", "out.onnx", "quantize-weights", "--nope", "1"), "--nope", id="unknown option"),
    pytest.param(words("in.onnx", "out.onnx", "fold-constants", "--max-growth", "big"), "big", id="not a number"),
    pytest.param(words("in.onnx", "nowhere/out.onnx"), "nowhere", id="target in a missing folder"),
    pytest.param(words("in.onnx", "."), "directory", id="target is a directory"),
    pytest.param(words("in.onnx", "out.onnx", "--report", "r.txt"), "r.txt", id="report of an unknown form"),
    pytest.param(words("in.onnx", "o.json", "--report", "o.json"), "is the target", id="report over the target"),
    pytest.param(words("in.onnx", "o.json", "--report", "./o.json"), "is the target", id="report over it, otherwise"),
    pytest.param(words("in.onnx", "out.onnx", "--max-drop", "-1"), "--max-drop", id="a bound below zero"),
    pytest.param(words("in.onnx", "out.onnx", "--preset", "magic"), "magic", id="unknown preset"),
    pytest.param(words("in.onnx", "out.onnx", "--data", "missing.npz"), "missing.npz", id="missing data"),
    pytest.param(broken_data, "bad.npz", id="data that is no npz"),
    pytest.param(data(z=X), "'z'", id="data with a wrong name"),
    pytest.param(data(x=np.zeros((4, 15), np.float32)), "15", id="data of a wrong shape"),
    pytest.param(data(x=np.zeros(4, np.float32)), "x", id="data of a wrong rank"),
    pytest.param(data(x=np.full((4, 16), "a")), "x", id="data of a wrong dtype"),
    pytest.param(data(x=X, labels=np.zeros(3, np.int64)), "labels", id="too few labels"),
    pytest.param(data(x=X[:0]), "x", id="no samples"),
    pytest.param(recipe("[[pass]]\nname = 3"), "bad.toml", id="recipe without a name"),
    pytest.param(recipe("what"), "bad.toml", id="recipe that is no TOML"),
    pytest.param(recipe('[[pass]]\nname = "fold-batchnorm"\ngain = 1'), "gain", id="recipe with an unknown option"),
]


@pytest.mark.parametrize(("prepare", "culprit"), CASES)
def test_one_clear_line(prepare: Prepare, culprit: str, run: Any, tmp_path: Path) -> None:
    onnx.save(proto(), tmp_path / "in.onnx")
    arguments = prepare(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = run("optimize", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("graphopt: error: ")
    assert culprit in done.stderr
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", [["validate", "in.onnx", "missing.onnx"], ["inspect", "missing.onnx"]])
def test_the_other_commands_say_it_in_one_line_too(command: list[str], run: Any, tmp_path: Path) -> None:
    onnx.save(proto(), tmp_path / "in.onnx")
    done = run(*command)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "missing.onnx" in done.stderr


def test_a_failed_run_leaves_an_existing_target_alone(run: Any, tmp_path: Path) -> None:
    relu = model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    onnx.save(relu, tmp_path / "in.onnx")
    (tmp_path / "out.onnx").write_bytes(b"precious")
    done = run("optimize", "in.onnx", "out.onnx", "quantize-weights")
    assert done.returncode == 1
    assert "nothing to do" in done.stderr
    assert (tmp_path / "out.onnx").read_bytes() == b"precious"
    done = run("optimize", "in.onnx", "out.onnx", "--keep-going", "quantize-weights")
    assert done.returncode == 1
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()
