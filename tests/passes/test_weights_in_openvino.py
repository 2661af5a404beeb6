"""Weights of every shape and form, computed by ONNX Runtime and OpenVINO: both load the result and give the same."""

from typing import Any

import numpy as np
import onnxruntime as ort
import openvino
import pytest
from graphopt.passes.quantize_weights import QuantizeWeights
from numpy.typing import NDArray

from graphopt import optimize
from graphopt.testing import Feeds, assert_skips, draw, initializers, model

FORMS: dict[str, dict[str, Any]] = {
    "auto": {},
    "dq": {"representation": "dq"},
    "mul": {"representation": "mul"},
    "qdq": {"representation": "qdq"},
    "one scale": {"granularity": "tensor"},
    "uint8": {"dtype": "uint8", "symmetric": False},
    "int4": {"dtype": "int4"},
    "int4 in blocks": {"dtype": "int4", "granularity": "block"},
    "int4 in blocks, dq": {"dtype": "int4", "granularity": "block", "representation": "dq"},
    "uint4 in blocks": {"dtype": "uint4", "granularity": "block", "symmetric": False},
}

PRODUCT = "y = MatMul(x, w)"
SHAPES: dict[str, tuple[str, str, str, tuple[int, ...]]] = {
    "matrix": ("N,4,10,64", "N,4,10,32", PRODUCT, (64, 32)),
    "one axis of one": ("N,4,10,64", "N,4,10,32", PRODUCT, (1, 64, 32)),
    "two axes of one": ("N,4,10,64", "N,4,10,32", PRODUCT, (1, 1, 64, 32)),
    "three axes of one": ("N,2,4,10,64", "N,2,4,10,32", PRODUCT, (1, 1, 1, 64, 32)),
    "an axis of one before a batch": ("N,4,10,64", "N,4,10,32", PRODUCT, (1, 4, 64, 32)),
    "more axes than the data": ("N,10,64", "1,N,10,32", PRODUCT, (1, 1, 64, 32)),
    "few values to sum": ("N,4,10,16", "N,4,10,64", PRODUCT, (1, 1, 16, 64)),
    "on the left": ("N,4,64,10", "N,4,32,10", "y = MatMul(w, x)", (1, 1, 32, 64)),
    "transposed": ("N,4,10,64", "N,4,10,32", "t = Transpose<perm=[0,1,3,2]>(w) y = MatMul(x, t)", (1, 1, 32, 64)),
    "used twice": ("N,4,10,64", "N,4,10,64", "t = MatMul(x, w) u = Relu(t) y = MatMul(u, w)", (1, 1, 64, 64)),
    "convolution of one pixel": ("N,64,4,4", "N,32,4,4", "y = Conv(x, w)", (32, 64, 1, 1)),
    "convolution along one axis": ("N,64,10", "N,32,10", "y = Conv(x, w)", (32, 64, 1)),
}


EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""OpenVINO's own roundings off: by default it quantizes what goes into a product with integer weights."""


def run_openvino(proto: bytes, feeds: Feeds) -> NDArray[Any]:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(proto), "CPU", EXACT)
    return np.asarray(compiled(dict(feeds))[0], np.float64)


def run_onnxruntime(proto: bytes, feeds: Feeds) -> NDArray[Any]:
    options = ort.SessionOptions()  # optimized, it too rounds what goes into a product with integer weights
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0], np.float64)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_both_runtimes_compute_the_same(shape: tuple[str, str, str, tuple[int, ...]], form: dict[str, Any]) -> None:
    given, out, nodes, weight = shape
    proto = model(f"g (float[{given}] x) => (float[{out}] y) {{ {nodes} }}", w=draw(*weight))
    feeds = {"x": draw(*(3 if size == "N" else int(size) for size in given.split(",")), seed=1)}
    result = optimize(proto, [QuantizeWeights(**form)], feeds, latency=False)
    assert result.report.ok
    stored = initializers(result.model)
    assert any(values.size == np.prod(weight) for values in stored.values())
    wanted = run_onnxruntime(result.model.SerializeToString(), feeds)
    found = run_openvino(result.model.SerializeToString(), feeds)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-4 * wanted.std()


def test_a_weight_with_axes_of_one_in_front_is_stored_as_a_matrix() -> None:
    proto = model("g (float[N,4,10,64] x) => (float[N,4,10,32] y) { y = MatMul(x, w) }", w=draw(1, 1, 64, 32))
    result = optimize(proto, [QuantizeWeights()], {"x": draw(3, 4, 10, 64)}, latency=False)
    (levels,) = (values for values in initializers(result.model).values() if values.dtype == np.int8)
    assert levels.shape == (64, 32)


def test_einsum_behind_quantize_linear_is_refused() -> None:
    text = 'g (float[N,10,64] x) => (float[N,10,4,8] y) { y = Einsum<equation="bte,ehd->bthd">(x, w) }'
    reason = "OpenVINO loads no Einsum that reads 'w' behind QuantizeLinear"
    assert_skips(QuantizeWeights(representation="qdq"), model(text, w=draw(64, 4, 8)), reason)
