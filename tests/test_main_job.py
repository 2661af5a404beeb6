"""The job graphopt exists for, on real trained networks, as a newcomer's first command does it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import openvino
import pytest
from onnx.reference import ReferenceEvaluator

NETWORKS = ["resnet14_bn", "resnet14_zeroed", "resnet14_filterzero", "mobilenetv2s_bn", "mobilenetv2s_zeroed"]
PARAMETERS_AT_MOST = {"resnet14_zeroed": 0.40, "mobilenetv2s_zeroed": 0.67}
BYTES_AT_MOST = {"resnet14_zeroed": 0.13}
WHOLE_NETWORK = 0.35


def optimize(source: Path, target: Path, data: Path, *words: str) -> dict[str, Any]:
    report = target.with_suffix(".json")
    command = [sys.executable, "-m", "graphopt", "optimize", source, target, "--data", data, "--report", report, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(report.read_text())
    assert told["check"]["holds"]
    assert all(each["kept"] and (each["check"] is None or each["check"]["holds"]) for each in told["passes"])
    return told


def images(models: Path, count: int) -> np.ndarray:
    with np.load(models / "fashion_mnist.npz") as data:
        return (data["image"][:count] * data["image.scale"] + data["image.offset"]).astype(np.float32)


@pytest.mark.parametrize("network", NETWORKS)
def test_default_passes(network: str, models: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    told = optimize(models / f"fmnist_{network}.onnx", target, models / "fashion_mnist.npz")

    assert "BatchNormalization" not in told["after"]["ops"]
    parameters = told["after"]["parameters"] / told["before"]["parameters"]
    size = told["after"]["bytes"] / told["before"]["bytes"]
    assert parameters <= PARAMETERS_AT_MOST.get(network, 1.0)
    assert size <= BYTES_AT_MOST.get(network, WHOLE_NETWORK)
    assert told["after"]["bytes"] == target.stat().st_size
    before, after = told["check"]["top1"]
    assert after >= before - 0.002

    proto = onnx.load(target)
    onnx.checker.check_model(proto, full_check=True)
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    assert {each.domain for each in proto.opset_import} <= {"", "ai.onnx"}
    x = images(models, 16)
    (expected,) = ort.InferenceSession(target).run(None, {"image": x})
    (reference,) = ReferenceEvaluator(proto).run(None, {"image": x[:4]})
    # Otherwise OpenVINO quantizes what a layer with integer weights reads, on the fly.
    compiled = openvino.compile_model(target, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    np.testing.assert_allclose(reference, expected[:4], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(compiled(x)[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_exact_passes_alone(network: str, models: Path, tmp_path: Path) -> None:
    source, target = models / f"fmnist_{network}.onnx", tmp_path / "out.onnx"
    told = optimize(source, target, models / "fashion_mnist.npz", "fold-batchnorm", "prune-channels")

    assert "BatchNormalization" not in told["after"]["ops"]
    assert told["after"]["parameters"] / told["before"]["parameters"] <= PARAMETERS_AT_MOST.get(network, 1.0)
    x = images(models, 2000)
    (before,), (after,) = (ort.InferenceSession(path).run(None, {"image": x}) for path in (source, target))
    assert np.abs(before - after).max() <= 1e-4
    assert told["check"]["max_abs"] <= 1e-4
