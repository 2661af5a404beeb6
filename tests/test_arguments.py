"""The Python interface's arguments: every form that is taken, and one clear error for what is not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import DataError, GraphoptError, ModelError, OptionError
from graphopt.arguments import as_data, as_model, as_passes
from graphopt.contract import FloatExact
from graphopt.runtime.data import ArrayData, Data, ListData
from graphopt.testing import draw, model

W = draw(6, 4)
X = draw(10, 6)
ONE = "g (float[N,6] x) => (float[N,4] y) { y = MatMul(x, w) }"
TWO = "g (float[N,6] x, float[N,6] z) => (float[N,4] y) { s = Add(x, z)  y = MatMul(s, w) }"


def net(text: str = ONE) -> onnx.ModelProto:
    return model(text, w=W)


def batches() -> list[dict[str, Any]]:
    return [{"x": X[:4]}, {"x": X[4:8]}, {"x": X[8:]}]


class Loader:
    """What frameworks call a data loader: it can be iterated over, as often as needed."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(batches())


class Tensor:
    """What frameworks call a tensor."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(X, dtype=dtype, copy=copy)


def fed(data: Data) -> np.ndarray:
    return np.concatenate([feeds["x"] for feeds in data.batches()])


FORMS = {
    "arrays by name": {"x": X},
    "an array": X,
    "a tensor of a framework": Tensor(),
    "a list of batches": batches(),
    "a tuple of batches": tuple(batches()),
    "a list of arrays": [X[:4], X[4:]],
    "a loader": Loader(),
    "a callable": lambda: iter(batches()),
    "a callable that returns a list": batches,
}


@pytest.mark.parametrize("form", FORMS)
def test_data_in_every_form(form: str) -> None:
    data, known = as_data(FORMS[form], as_model(net()))
    assert isinstance(data, ArrayData)
    assert (data.size, tuple(known)) == (10, ())
    assert np.array_equal(fed(data), X)
    assert np.array_equal(fed(data), X), "a second time"


def test_data_as_a_generator_serves_a_whole_run() -> None:
    zero = graphopt.create("zero-weights", ratio=0.2)
    result = graphopt.optimize(net(), [zero, "eliminate-dead"], (each for each in batches()), latency=False)
    assert result.ok
    assert result.report.check is not None
    assert result.report.check.samples == 10


def test_batches_carry_labels_and_a_calibration_split() -> None:
    labelled = [{"x": X[:4], "labels": np.arange(4) % 3}, {"x": X[4:], "labels": np.arange(6) % 3}]
    data, _ = as_data(labelled, as_model(net()))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 0, 1, 2]
    split, _ = as_data([{"x": X[:4], "calibration/x": X[4:8]}], as_model(net()))
    assert np.array_equal(fed(split.calibration()), X[4:8])


def test_batches_that_cannot_be_joined_stay_runs_of_their_own() -> None:
    proto = model("g (float[N,T,6] x) => (float[N,T,4] y) { y = MatMul(x, w) }", w=W)
    long, short = draw(2, 5, 6), draw(3, 4, 6)
    data, _ = as_data([{"x": long}, {"x": long}, {"x": short}], as_model(proto))
    assert isinstance(data, ListData)
    assert [feeds["x"].shape for feeds in data.batches()] == [(2, 5, 6), (2, 5, 6), (3, 4, 6)]
    assert np.array_equal(data.feeds[1]["x"], long)
    zero = graphopt.create("zero-weights", ratio=0.2)
    assert graphopt.optimize(proto, zero, [{"x": long}, {"x": short}], latency=False).ok


def test_texts_in_batches() -> None:
    proto = model("g (string[N] x) => (string[N] y) { y = Identity(x) }")
    data, _ = as_data([{"x": np.array(["a", "bc"], object)}, {"x": np.array(["d"], object)}], as_model(proto))
    assert fed(data).tolist() == ["a", "bc", "d"]


BAD_DATA: dict[str, tuple[Any, str]] = {
    "a number": (3, "data: a int cannot be used"),
    "bytes": (b"abc", "data: a bytes cannot be used"),
    "a class": (dict, "data: the class dict cannot be used"),
    "no batch": ([], "data: there is no batch"),
    "a generator without batches": (iter(()), "data: there is no batch"),
    "batches of numbers": ([1, 2], "batch 1 is a int"),
    "batches of tuples": ([(X, 3)], "batch 1 is a tuple"),
    "a second batch of another kind": ([{"x": X}, None], "batch 2 is a NoneType"),
    "a batch with an unknown name": ([{"x": X}, {"x": X, "q": X}], "batch 2: 'q': is no input"),
    "a batch without an input": ([{"x": X}, {}], "batch 2: no array for the model's input 'x'"),
    "a batch of another type": ([{"x": X}, {"x": X.astype(np.float64)}], "batch 2: 'x' holds float64"),
    "a batch of another shape": ([{"x": X}, {"x": X[:, :5]}], "batch 2: 'x' has shape (10, 5)"),
    "all batches of another type": ([{"x": X.astype(np.int32)}], "'x' holds int32"),
    "labels that cannot be joined": ([{"x": X, "labels": np.arange(3)}], "have no labels"),
    "a name that is a number": ({3: X}, "3 is no input's name"),
    "a name that is a number, in a batch": ([{3: X}], "batch 1: 3 is no input's name"),
    "ragged lists": ({"x": [[1.0], [1.0, 2.0]]}, "'x' cannot be made an array"),
    "a callable that wants an argument": (lambda path: batches(), "data: the callable is called without arguments"),
    "a callable that gives nothing": (lambda: None, "data: a NoneType cannot be used"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_unusable_data_is_named(name: str) -> None:
    data, culprit = BAD_DATA[name]
    with pytest.raises(DataError) as raised:
        as_data(data, as_model(net()))
    assert culprit in str(raised.value)


def test_one_array_for_a_model_of_two_inputs_is_refused() -> None:
    for data, where in ((X, "data"), ([X], "batch 1")):
        with pytest.raises(DataError, match=f"^{where} is one array; the model's inputs are 'x', 'z': give"):
            as_data(data, as_model(net(TWO)))


def test_what_a_loop_of_the_user_raises_is_the_users() -> None:
    def broken() -> Iterator[Any]:
        yield {"x": X}
        raise FileNotFoundError("frame_0002.png")

    with pytest.raises(FileNotFoundError, match=r"frame_0002\.png"):
        as_data(broken(), as_model(net()))


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_a_model_in_memory(form: Any) -> None:
    loaded = as_model(form(net().SerializeToString()))
    assert [node.op for node in loaded.graph.nodes] == ["MatMul"]


@pytest.mark.parametrize(
    ("given", "culprit"),
    [
        pytest.param(None, "a NoneType is no model", id="nothing"),
        pytest.param(3, "a int is no model", id="a number"),
        pytest.param([1], "a list is no model", id="a list"),
        pytest.param(onnx.ModelProto, "the class ModelProto is no model", id="a class"),
        pytest.param(b"\xff\xff\xff", "these bytes are no ONNX model", id="other bytes"),
    ],
)
def test_what_is_no_model_is_named(given: Any, culprit: str) -> None:
    for call in (
        lambda: graphopt.optimize(given, ["eliminate-dead"], check=False),
        lambda: graphopt.validate(given, net()),
        lambda: graphopt.validate(net(), given),
        lambda: graphopt.save(given, "nowhere.onnx"),
    ):
        with pytest.raises(ModelError) as raised:
            call()
        assert culprit in str(raised.value)


def test_one_pass_by_its_name_or_by_itself() -> None:
    fold = graphopt.create("fold-batchnorm")
    for given in ("fold-batchnorm", fold, ["fold-batchnorm"], (fold,), iter([fold])):
        assert as_passes(given) == [fold]


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        pytest.param({"passes": 3}, "passes: a int cannot be used", id="a number"),
        pytest.param({"passes": {"fold-batchnorm": {}}}, "passes: a dict cannot be used", id="a mapping"),
        pytest.param({"passes": type(graphopt.create("fold-batchnorm"))}, "the class FoldBatchNorm", id="a class"),
        pytest.param({"passes": [type(graphopt.create("fold-batchnorm"))]}, "the class FoldBatchNorm", id="its list"),
        pytest.param({"passes": [None]}, "passes: a NoneType is no pass", id="nothing in a list"),
        pytest.param({"passes": "fold-batchnrm"}, "did you mean 'fold-batchnorm'", id="a misspelt name"),
        pytest.param({"skip": 3}, "skip: a int cannot be used", id="skip"),
        pytest.param({"only": [3]}, "only: a int is no text", id="only"),
        pytest.param({"custom_ops": 3}, "custom_ops: a int cannot be used", id="custom_ops"),
        pytest.param({"max_drop": "2"}, "max_drop: a str cannot be used", id="max_drop"),
        pytest.param({"max_opset": 17.5}, "max_opset: a float cannot be used", id="max_opset"),
        pytest.param({"progress": 3}, "progress: 3 cannot be called", id="progress"),
    ],
)
def test_other_arguments_of_the_wrong_kind_are_named(arguments: dict[str, Any], culprit: str) -> None:
    with pytest.raises(OptionError) as raised:
        graphopt.optimize(net(), **{"passes": ["eliminate-dead"], "check": False, **arguments})
    assert culprit in str(raised.value)


def test_one_pattern_alone_is_one() -> None:
    result = graphopt.optimize(net(), "quantize-weights", {"x": X}, skip="y", latency=False)
    assert [each.reason for each in result.report.passes[0].result.skipped] == ["left out by --skip y"]


def test_validate_and_save_name_theirs(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="contract: 3 is none"):
        graphopt.validate(net(), net(), contract=3)
    assert graphopt.validate(net(), net(), [X], FloatExact(0, 0)).holds
    with pytest.raises(OptionError, match="path: a int cannot be used"):
        graphopt.save(net(), 3)
    with pytest.raises(OptionError, match="external_data: 'sometimes' is not one of"):
        graphopt.save(net(), tmp_path / "out.onnx", "sometimes")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OptionError, match="3 is not the name of a pass"):
        graphopt.create(3)
    assert issubclass(OptionError, GraphoptError)
