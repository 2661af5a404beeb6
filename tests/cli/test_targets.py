"""Places that cannot be written are refused before any work, by every command; what is no file stays what it is."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.errors import ModelError
from graphopt.model import from_proto, load, save
from graphopt.testing import draw, model

NET = "g (float[N,8] x) => (float[N,4] y) { h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, v) }"
WEIGHTS = {"w": draw(8, 32), "v": draw(32, 4)}
POSIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are things of POSIX")

COMMANDS = {
    "optimize": ["optimize", "a.onnx", "{}", "fold-constants"],
    "transfer": ["transfer", "a.onnx", "b.onnx", "{}"],
    "distill": ["distill", "a.onnx", "b.onnx", "{}", "--data", "d.npz", "--checkpoint", "epochs"],
}
REPORTS = {
    "optimize": ["optimize", "a.onnx", "out.onnx", "--report", "{}", "fold-constants"],
    "validate": ["validate", "a.onnx", "b.onnx", "--report", "{}"],
    "transfer": ["transfer", "a.onnx", "b.onnx", "out.onnx", "--report", "{}"],
    "distill": ["distill", "a.onnx", "b.onnx", "out.onnx", "--data", "d.npz", "--report", "{}"],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        onnx.save(model(NET, **WEIGHTS), tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "d.npz", x=draw(64, 8))
    return tmp_path


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return what lies in a folder."""
    found = {}
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        found[path.name] = mode, path.read_bytes() if stat.S_ISREG(mode) else b""
    return found


def refuse(run: Any, folder: Path, words: list[str], target: str) -> str:
    """Run a command that must refuse a target at once; return what it said."""
    before = state(folder)
    done = run(*(word.format(target) for word in words))
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert state(folder) == before
    return str(done.stderr)


PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a folder": (a_folder, "is a directory"),
    "a pipe": (a_pipe, "is not a regular file"),
    "a loop of links": (a_loop, "cannot be written"),
}


@POSIX
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_looks_at_its_target_first(command: str, place: str, run: Any, folder: Path) -> None:
    make, why = PLACES[place]
    make(folder / "t.onnx")
    assert f"t.onnx: {why}" in refuse(run, folder, COMMANDS[command], "t.onnx")


@POSIX
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", REPORTS)
def test_every_command_looks_at_its_report_first(command: str, place: str, run: Any, folder: Path) -> None:
    make, why = PLACES[place]
    make(folder / "r.json")
    assert f"--report r.json: {why}" in refuse(run, folder, REPORTS[command], "r.json")


@pytest.mark.parametrize("command", REPORTS)
@pytest.mark.parametrize(("report", "why"), [("r.yaml", "must end in .json"), ("no/r.json", "does not exist")])
def test_reports_that_cannot_be(command: str, report: str, why: str, run: Any, folder: Path) -> None:
    assert why in refuse(run, folder, REPORTS[command], report)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["optimize", "a.onnx", "d.npz", "--data", "d.npz"], "d.npz: is the data"),
        (["optimize", "a.onnx", "o.json", "--report", "./o.json"], "--report ./o.json: is the target"),
        (["transfer", "a.onnx", "b.onnx", "o.json", "--report", "o.json"], "--report o.json: is the target"),
        (["distill", "a.onnx", "b.onnx", "d.npz", "--data", "d.npz"], "d.npz: is the data"),
        (["distill", "a.onnx", "b.onnx", "o", "--data", "d.npz", "--checkpoint", "o"], "o: is the checkpoint"),
        (["distill", "a.onnx", "b.onnx", "o", "--data", "d.npz", "--checkpoint", "a.onnx"], "a.onnx: is the teacher"),
        (["optimize", "a.onnx", "x" * 300], "File name too long"),
        (["optimize", "a.onnx", "a.onnx/o.onnx"], "cannot be written"),
    ],
)
def test_no_file_that_is_read_is_written_over(words: list[str], why: str, run: Any, folder: Path) -> None:
    assert why in refuse(run, folder, words, "")


@pytest.mark.parametrize(
    "words",
    [
        ["optimize", "e.onnx", "e.onnx.data", "quantize-weights"],
        ["optimize", "e.onnx", "o.onnx", "--report", "r.json", "quantize-weights"],
        ["transfer", "a.onnx", "e.onnx", "e.onnx.data"],
        ["transfer", "e.onnx", "a.onnx", "o.onnx", "--report", "r.json"],
        ["distill", "e.onnx", "a.onnx", "e.onnx.data", "--data", "d.npz"],
        ["distill", "a.onnx", "e.onnx", "o.onnx", "--data", "d.npz", "--checkpoint", "e.onnx.data"],
    ],
)
def test_weights_beside_a_model_are_not_written_over(words: list[str], run: Any, folder: Path) -> None:
    name = "r.json" if "r.json" in words else "e.onnx.data"
    onnx.save(model(NET, **WEIGHTS), folder / "e.onnx", save_as_external_data=True, location=name, size_threshold=0)
    assert f"{name}: holds weights of e.onnx" in refuse(run, folder, words, "")


def test_a_library_is_not_written_over(run: Any, folder: Path) -> None:
    (folder / "ops.so").write_bytes(b"")
    words = ["optimize", "a.onnx", "ops.so", "--custom-ops", "ops.so"]
    assert "ops.so: is the library ops.so" in refuse(run, folder, words, "")


@POSIX
def test_the_null_device_takes_a_target_and_stays(run: Any, folder: Path) -> None:
    link = folder / "null.onnx"
    link.symlink_to(os.devnull)
    before = os.stat(os.devnull)
    done = run("optimize", "a.onnx", "null.onnx", "--no-latency", "--report", "r.json", "--external-data", "always")
    assert done.returncode == 0, done.stderr
    assert link.is_symlink()
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert os.stat(os.devnull).st_ino == before.st_ino
    assert (folder / "r.json").stat().st_size > 1000
    assert not (Path(os.devnull).parent / "null.onnx.data").exists()


@POSIX
def test_a_device_is_not_replaced(run: Any, folder: Path) -> None:
    (folder / "t.onnx").symlink_to("/dev/full")
    assert "is not a regular file" in refuse(run, folder, COMMANDS["optimize"], "t.onnx")


@POSIX
def test_save_refuses_what_is_no_file(tmp_path: Path) -> None:
    subject = from_proto(model(NET, **WEIGHTS))
    for make in (a_pipe, a_folder, a_loop):
        path = tmp_path / make.__name__
        make(path)
        before = path.lstat().st_mode
        with pytest.raises(ModelError, match="cannot write it"):
            save(subject, path)
        assert path.lstat().st_mode == before
    with pytest.raises(ModelError, match="cannot write it"):
        save(subject, "a\0b.onnx")
    assert save(subject, os.devnull) > 1000


def test_long_names_of_letters_that_take_several_bytes(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 120 + ".onnx")
    save(from_proto(model(NET, **WEIGHTS)), path)
    assert [node.op for node in load(path).graph.nodes] == ["MatMul", "Relu", "MatMul"]
    assert list(tmp_path.iterdir()) == [path]


# -- standard output ---------------------------------------------------------------------------------------------------

WORDS = [
    ["optimize", "a.onnx", "out.onnx", "--no-latency", "fold-constants"],
    ["validate", "a.onnx", "b.onnx"],
    ["inspect", "a.onnx"],
    ["passes"],
    ["--help"],
]


def shell(folder: Path, words: list[str], redirection: str) -> "subprocess.CompletedProcess[str]":
    line = " ".join([sys.executable, "-m", "graphopt", *words, redirection])
    return subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


@POSIX
@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[0])
def test_an_output_that_is_full_is_one_line(words: list[str], folder: Path) -> None:
    done = shell(folder, words, "> /dev/full")
    assert (done.returncode, done.stderr) == (2, "graphopt: error: No space left on device\n")


@POSIX
@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[0])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_none_of_the_files(closed: str, words: list[str], folder: Path) -> None:
    done = shell(folder, words, closed)
    assert (done.returncode, done.stderr) == (0, "")
    if words[0] == "optimize":
        onnx.checker.check_model(folder / "out.onnx", full_check=True)


@POSIX
def test_the_target_cannot_be_where_the_text_goes(folder: Path) -> None:
    done = shell(folder, ["optimize", "a.onnx", "/dev/stdout", "fold-constants"], "> text")
    assert done.returncode == 2
    assert "is the standard output" in done.stderr
    assert (folder / "text").read_text() == ""
    done = shell(folder, ["optimize", "a.onnx", "/dev/stdout", "fold-constants"], "| cat")
    assert done.stdout == ""
    assert "is not a regular file" in done.stderr
