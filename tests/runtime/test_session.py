"""Sessions: any form of a model, quiet, and one clear line when ONNX Runtime refuses."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt.errors import GraphoptError
from graphopt.model import from_proto, load
from graphopt.runtime import session as session_module
from graphopt.runtime.session import Session
from graphopt.testing import model

TEXT = "g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, w) y = Relu(h) }"
W = np.arange(12, dtype=np.float32).reshape(4, 3) - 6
X = np.ones((2, 4), np.float32)


def proto() -> onnx.ModelProto:
    return model(TEXT, w=W)


def saved(folder: Path, *, external: bool) -> Path:
    path = folder / "model.onnx"
    onnx.save(proto(), path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


def test_every_form_of_a_model_runs(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    inline, external = saved(tmp_path / "a", external=False), saved(tmp_path / "b", external=True)
    expected = np.maximum(X @ W, 0)
    for form in (proto(), from_proto(proto()), inline, str(inline), external, load(external)):
        np.testing.assert_array_equal(Session(form).run({"x": X})["y"], expected)


def test_extra_outputs_come_after_the_models_own(tmp_path: Path) -> None:
    for form in (proto(), from_proto(proto()), saved(tmp_path, external=True)):
        session = Session(form, extra_outputs=["h", "w", "y", "h"])
        assert session.outputs == ("y", "h", "w")
        out = session.run({"x": X})
        np.testing.assert_array_equal(out["h"], X @ W)
        np.testing.assert_array_equal(out["w"], W)


def test_extra_outputs_leave_the_proto_alone() -> None:
    mine = proto()
    before = mine.SerializeToString()
    Session(mine, extra_outputs=["h"])
    assert mine.SerializeToString() == before


def test_large_models_go_through_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "IN_MEMORY", 10)
    session = Session(from_proto(proto()), extra_outputs=["h"])
    np.testing.assert_array_equal(session.run({"x": X})["h"], X @ W)


def test_optimizations_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    real = onnxruntime.InferenceSession

    def spy(source: object, settings: object, **rest: object) -> object:
        levels.append(settings.graph_optimization_level)  # type: ignore[attr-defined]
        return real(source, settings, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    Session(proto())
    Session(proto(), optimize=True)
    level = onnxruntime.GraphOptimizationLevel
    assert levels == [level.ORT_DISABLE_ALL, level.ORT_ENABLE_ALL]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("g (float[2] x) => (float[2] y) { y = Nonsense(x) }", "Nonsense", id="unknown operator"),
        pytest.param("g (float[2] x, float[3] z) => (float[2] y) { y = Add(x, z) }", "Incompatible", id="shapes"),
    ],
)
def test_a_model_that_cannot_be_loaded(text: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    broken = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["":17]> {text}')
    with pytest.raises(GraphoptError, match=rf"^ONNX Runtime cannot load the model: .*{reason}") as caught:
        Session(broken)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_inputs_that_cannot_be_run(capfd: pytest.CaptureFixture[str]) -> None:
    session = Session(proto())
    with pytest.raises(GraphoptError, match=r"^input 'x' is not fed$"):
        session.run({"z": X})
    with pytest.raises(GraphoptError, match=r"^ONNX Runtime cannot run the model: .*x") as caught:
        session.run({"x": np.ones((2, 5), np.float32)})
    assert "\n" not in str(caught.value)
    with pytest.raises(GraphoptError, match="cannot run"):
        session.run({"x": X.astype(np.float64)})
    assert capfd.readouterr() == ("", "")


def test_missing_file(tmp_path: Path) -> None:
    for extra in ((), ("h",)):
        with pytest.raises(GraphoptError, match=r"gone\.onnx"):
            Session(tmp_path / "gone.onnx", extra_outputs=extra)
