"""The short form of ``run.py``: small architectures of every kind through the passes that run by default."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, RUN, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["audiocnn1d_op13", "bert_tiny_dynamo_op18", "bert_tiny_op17", "lstm_gru_op17"])
def test_small_architectures_run_everywhere(name: str) -> None:
    done = run(name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"ok   {name}: ")


@pytest.mark.parametrize(
    "name",
    ["gpt2_small4l_dynamo_op18", "mobilenet_v3_small_op17", "shufflenet_v2_x1_0_op17", "unet_convtranspose_op17"],
)
def test_larger_architectures_run_in_onnx_runtime_and_openvino(name: str) -> None:
    done = run("--no-reference", name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_detection_model_holds_though_its_choices_flip() -> None:
    done = run("--no-reference", "ssdlite320_mobilenet_v3_op17", "--", "fold-batchnorm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fold-batchnorm 70/0" in done.stdout


@pytest.mark.parametrize("name", ["audiocnn1d_op13", "bert_tiny_op17", "mobilenet_v3_small_op17"])
def test_channels_zeroed_at_random_are_cut_out_exactly(name: str) -> None:
    done = run("--no-reference", name, "--", "zero-channels:criterion=random,ratio=0.3", "prune-channels")
    assert done.returncode == 0, done.stdout + done.stderr
    moved = re.search(r"prune-channels \d+/0 moved (\S+),", done.stdout)
    assert moved is not None, done.stdout
    assert float(moved[1]) <= 1e-4
