"""Passes chained on the command line, their options made from the dataclass."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest

from graphopt import OptionError, create
from graphopt.cli.chain import split_passes
from graphopt.cli.optimize import optimize
from graphopt.testing import model

FOLD, PRUNE = "fold-constants", "prune-channels"


@pytest.mark.parametrize(
    ("line", "own", "passes"),
    [
        pytest.param("a b", "a b", [], id="no pass"),
        pytest.param("a b --data d", "--data d a b", [], id="options after the files"),
        pytest.param("--data d a b", "--data d a b", [], id="options before the files"),
        pytest.param(f"a b {FOLD}", "a b", [(FOLD, {})], id="one pass"),
        pytest.param(f"a b {FOLD} {PRUNE}", "a b", [(FOLD, {}), (PRUNE, {})], id="two passes"),
        pytest.param(
            f"a b {FOLD} --max-growth 5 {PRUNE}", "a b", [(FOLD, {"max_growth": 5}), (PRUNE, {})], id="option"
        ),
        pytest.param(f"a b {FOLD} --max-growth=5", "a b", [(FOLD, {"max_growth": 5})], id="option with equals sign"),
        pytest.param(f"a b {FOLD} --report r.json", "--report r.json a b", [(FOLD, {})], id="our option at the end"),
        pytest.param(f"a b --keep-going {FOLD}", "--keep-going a b", [(FOLD, {})], id="flag before the passes"),
        pytest.param(f"a b {FOLD} {FOLD}", "a b", [(FOLD, {}), (FOLD, {})], id="a pass twice"),
        pytest.param("-- -a -b", "-- -a -b", [], id="files that begin with a dash"),
        pytest.param(f"--data d -- a -b {FOLD}", "--data d -- a -b", [(FOLD, {})], id="a pass behind two dashes"),
        pytest.param(f"a b --report {FOLD}", f"--report {FOLD} a b", [], id="an option's value that is a pass's name"),
    ],
)
def test_split(line: str, own: str, passes: list[tuple[str, dict[str, Any]]]) -> None:
    assert split_passes(optimize, line.split()) == (own.split(), [create(name, **values) for name, values in passes])


@pytest.mark.parametrize(
    ("line", "error", "culprit"),
    [
        pytest.param("a b nonsense", OptionError, "unknown pass 'nonsense'", id="unknown pass"),
        pytest.param(f"a b {FOLD} --nonsense 3", click.UsageError, "--nonsense", id="unknown option"),
        pytest.param(f"a b {FOLD} --max-growth x", click.UsageError, "'x'", id="not a number"),
        pytest.param(f"a b {FOLD} --max-growth", click.UsageError, "--max-growth", id="no value"),
        pytest.param(f"a b {FOLD} --max-growth -1", OptionError, "-1", id="out of range"),
    ],
)
def test_refusals_name_the_culprit(line: str, error: type[Exception], culprit: str) -> None:
    with pytest.raises(error, match=culprit):
        split_passes(optimize, line.split())


def test_help_does_not_load_onnx() -> None:
    script = "import sys\nfrom graphopt.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    script += "assert not {'onnx', 'onnxruntime', 'numpy'} & set(sys.modules), 'loaded'"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("optimize", "validate", "inspect", "passes"):
        assert command in done.stdout


def test_passes_lists_and_explains(run: Any) -> None:
    listed = run("passes")
    assert listed.returncode == 0
    assert FOLD in listed.stdout
    explained = run("passes", FOLD)
    assert explained.returncode == 0
    assert "--max-growth" in explained.stdout
    assert run("passes", "nonsense").returncode == 2


@pytest.mark.parametrize(
    "words", [[], ["--max-growth", "5"], [PRUNE]], ids=["alone", "behind an option", "the last pass"]
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_behind_a_pass_explains_it(flag: str, words: list[str], run: Any) -> None:
    asked = run("optimize", "in.onnx", "out.onnx", FOLD, *words, flag, "--nonsense")
    name = PRUNE if words == [PRUNE] else FOLD
    assert (asked.returncode, asked.stdout) == (0, run("passes", name).stdout)


def test_help_before_a_pass_is_the_commands(run: Any) -> None:
    for words in (["--help"], ["--help", "a", "b", FOLD], ["a", "b", "-h", FOLD], ["a", "--help"]):
        done = run("optimize", *words)
        assert done.returncode == 0
        assert done.stdout.startswith("Usage:")
        assert "graphopt passes PASS" in " ".join(done.stdout.split())


def test_help_as_a_value_or_behind_two_dashes_is_none() -> None:
    with pytest.raises(OptionError, match="unknown pass '--help'"):
        split_passes(optimize, ["a", "b", "--", "--help"])
    assert split_passes(optimize, ["a", "b", "--data", "--help"])[0] == ["--data", "--help", "a", "b"]
    assert split_passes(optimize, ["--", "--help", "b"])[0] == ["--", "--help", "b"]


def test_the_bare_command_shows_its_help(run: Any) -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == run("--help").stdout.strip()


def test_inspect_and_validate(run: Any, tmp_path: Path) -> None:
    weight = np.eye(4, dtype=np.float32)
    onnx.save(model("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", w=weight), tmp_path / "a.onnx")
    onnx.save(model("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", w=weight * 2), tmp_path / "b.onnx")
    facts = json.loads(run("inspect", "a.onnx", "--json").stdout)
    assert (facts["nodes"], facts["parameters"], facts["macs"], facts["opset"]) == (1, 16, 16, 17)
    assert facts["bytes"] == (tmp_path / "a.onnx").stat().st_size
    assert "MatMul 1" in run("inspect", "a.onnx").stdout
    assert run("validate", "a.onnx", "a.onnx").returncode == 0
    differs = run("validate", "a.onnx", "b.onnx", "--report", "r.json")
    assert differs.returncode == 1
    assert "y" in differs.stdout
    assert json.loads((tmp_path / "r.json").read_text())["check"]["holds"] is False
