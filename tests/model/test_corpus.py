"""Models of others come back byte for byte: onnx's own test cases, and the networks of this repository."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt.model import Model, from_proto, load, save, to_proto

SAMPLE = 4
"""Every how many of onnx's test cases are taken; ``benchmarks/round_trips.py corpus`` takes all."""


@pytest.fixture(scope="module")
def cases() -> list[tuple[onnx.ModelProto, list[tuple[list[object], list[object]]]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx.backend.test.case.model as models
        import onnx.backend.test.case.node as nodes

        found = [*nodes.collect_testcases(None), *models.collect_testcases()]
    return [(case.model, case.data_sets or []) for case in found if case.model is not None][::SAMPLE]


def steps(model: Model) -> Iterator[tuple[str, Model]]:
    yield "untouched", model
    yield "copied", model.copy()
    for constant in model.constants():
        assert constant.values is not None
    yield "read", model
    for constant in model.constants():
        constant.values = np.array(constant.values)
    yield "replaced", model


def test_test_cases_of_onnx(cases: list[tuple[onnx.ModelProto, list[object]]]) -> None:
    assert len(cases) > 400
    for proto, _ in cases:
        expected = proto.SerializeToString()
        for step, model in steps(from_proto(proto)):
            assert to_proto(model).SerializeToString() == expected, f"{proto.graph.name}: {step}"


def test_models_that_the_onnx_wheel_ships() -> None:
    paths = sorted(Path(onnx.__file__).parent.rglob("*.onnx"))
    assert len(paths) >= 100
    for path in paths:
        for step, model in steps(load(path)):
            assert to_proto(model).SerializeToString() == path.read_bytes(), f"{path.name}: {step}"


def test_outputs_of_test_cases_stay(
    cases: list[tuple[onnx.ModelProto, list[tuple[list[object], list[object]]]]],
) -> None:
    """With every weight replaced and the nodes shuffled, what ONNX Runtime computes is the same to the bit."""
    compared = 0
    rng = np.random.default_rng(0)
    for proto, data_sets in cases[::3]:
        if not data_sets or not all(isinstance(value, np.ndarray) for value in data_sets[0][0]):
            continue
        feeds = dict(zip([info.name for info in proto.graph.input], data_sets[0][0], strict=False))
        try:
            expected = run(proto, feeds)
        except Exception:  # the runtime does not know every operator in every type
            continue
        model = from_proto(proto)
        for constant in model.constants():
            constant.values = np.array(constant.values)
        model.graph.nodes[:] = [model.graph.nodes[i] for i in rng.permutation(len(model.graph.nodes))]
        again = from_proto(to_proto(model))
        for name, value in run(to_proto(again), feeds).items():
            if not is_random(proto):
                np.testing.assert_array_equal(np.asarray(value), np.asarray(expected[name]), proto.graph.name)
        compared += 1
    assert compared > 80


def is_random(proto: onnx.ModelProto) -> bool:
    return any(node.op_type.startswith(("Random", "Bernoulli", "Multinomial", "Dropout")) for node in proto.graph.node)


def run(proto: onnx.ModelProto, feeds: dict[str, object]) -> dict[str, object]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([out.name for out in session.get_outputs()], session.run(None, feeds), strict=True))


def test_trained_networks(models: Path, tmp_path: Path) -> None:
    paths = sorted(models.glob("*.onnx"))
    assert paths
    for path in paths:
        model = load(path)
        save(model, tmp_path / "inline.onnx")
        assert (tmp_path / "inline.onnx").read_bytes() == path.read_bytes()
        for step, changed in steps(model):
            assert to_proto(changed).SerializeToString() == path.read_bytes(), f"{path.name}: {step}"
