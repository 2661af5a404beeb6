"""Classifiers that give out a sequence of maps, one a sample, as skl2onnx writes them where nobody asks for tensors."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import graphopt
from graphopt.testing import draw

CLASSES: dict[str, dict[str, Any]] = {
    "numbers": {"classlabels_int64s": [3, 5, 7]},
    "texts": {"classlabels_strings": ["a", "b", "c"]},
}


def classifier(classes: str, noop: bool = False) -> onnx.ModelProto:
    """Return one layer, Softmax and ZipMap; with ``noop``, something that clean-up takes out."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Identity", ["h"], ["i"]),
        helper.make_node("Softmax", ["i" if noop else "h"], ["p"], axis=1),
        helper.make_node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", **CLASSES[classes]),
    ]
    key = onnx.TensorProto.INT64 if classes == "numbers" else onnx.TensorProto.STRING
    kind = helper.make_map_type_proto(key, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, []))
    outputs = [helper.make_value_info("y", helper.make_sequence_type_proto(kind))]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 64])]
    weight = numpy_helper.from_array(draw(64, 3) * np.float32(0.1), "w")
    graph = helper.make_graph(nodes if noop else [*nodes[:1], *nodes[2:]], "g", inputs, outputs, [weight])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def given(proto: onnx.ModelProto, x: Any) -> list[dict[Any, float]]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (maps,) = session.run(None, {"x": x})
    return list(maps)


@pytest.mark.parametrize("data", [None, {"x": draw(40, 64)}], ids=["generated inputs", "data"])
@pytest.mark.parametrize("classes", CLASSES)
def test_maps_are_compared_entry_by_entry(classes: str, data: Any) -> None:
    proto, x = classifier(classes, noop=True), draw(5, 64)
    result = graphopt.optimize(proto, ["eliminate-noops", "quantize-weights"], data=data)
    assert not result.report.failures
    assert result.report.check is not None
    assert result.report.check.holds
    noise = result.report.check.sqnr_db
    assert noise is not None
    assert 20 < noise < 70
    before, after = given(proto, x), given(result.model, x)
    assert [list(each) for each in after] == [list(each) for each in before]
    left, right = ([list(each.values()) for each in maps] for maps in (before, after))
    assert 0 < np.abs(np.subtract(left, right)).max() < 0.05
    assert [node.op_type for node in result.model.graph.node if node.op_type in ("Identity", "ZipMap")] == ["ZipMap"]


@pytest.mark.parametrize("classes", CLASSES)
def test_maps_that_differ_break_a_contract(classes: str) -> None:
    other = classifier(classes)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(draw(64, 3) * np.float32(-0.1), "w"))
    assert graphopt.validate(classifier(classes), classifier(classes)).holds
    assert not graphopt.validate(classifier(classes), other).holds
