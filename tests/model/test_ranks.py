"""A wrongly declared output rank is put right, and the report says so."""

from pathlib import Path

import numpy as np
import onnx

import graphopt
from graphopt.testing import model


def wrong() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    proto = model("g (float[N,64] x) => (float[N,64] y, float[N,64] z) { y = MatMul(x, w)  z = Relu(y) }", w=weight)
    proto.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)
    return proto


def test_the_rank_is_repaired_and_reported(tmp_path: Path) -> None:
    onnx.save(wrong(), tmp_path / "in.onnx")
    result = graphopt.optimize(tmp_path / "in.onnx", ["quantize-weights"])
    assert result.ok, result.report.failures
    assert result.report.notes[0] == "output 'y' is declared with rank 3 but has 2"
    assert result.report.before.bytes == (tmp_path / "in.onnx").stat().st_size
    first, second = result.model.graph.output
    assert len(first.type.tensor_type.shape.dim) == 2
    assert second == wrong().graph.output[1]
    onnx.checker.check_model(result.model, full_check=True)


def test_right_ranks_are_left_alone() -> None:
    proto = wrong()
    proto.graph.output[0].type.tensor_type.shape.dim.pop()
    assert not any("rank" in note for note in graphopt.optimize(proto, []).report.notes)
    assert graphopt.optimize(proto, []).model.SerializeToString() == proto.SerializeToString()
