"""Errors of the system are reported in one line too."""

import os
import subprocess
import sys

import click
import pytest

from graphopt import cli


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "out.onnx"), "out.onnx: No space left on device"),
        (OSError("odd"), "odd"),
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 9 TiB"), "out of memory: Unable to allocate 9 TiB"),
        (RecursionError("maximum depth"), "the input is nested too deeply"),
    ],
)
def test_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli, "graphopt", failing)
    with pytest.raises(SystemExit) as left:
        cli.main([])
    assert left.value.code == 2
    assert capsys.readouterr().err == f"graphopt: error: {line}\n"


def test_a_reader_that_has_left_is_no_error_to_report() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "graphopt", "passes"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=300)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
