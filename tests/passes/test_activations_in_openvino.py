"""Static quantization in ONNX Runtime and OpenVINO: both load the result and are equally near to the float model."""

from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from graphopt.passes.quantize_activations import QuantizeActivations
from numpy.typing import NDArray

from graphopt.graph import GraphView
from graphopt.model import from_proto, to_proto
from graphopt.result import PassResult
from graphopt.runtime.feeds import from_arrays
from graphopt.runtime.session import Session
from graphopt.testing import draw, model

TARGETS = ("cpu", "openvino", "generic")
IMAGE = "g (float[N,4,8,8] x) => (float[N,{}] y) "
SHAPES = {"rows": [0, 8, 64], "tall": [32, 1, 8], "groups": [0, 2, 4, 8, 8], "back": [0, 8, 8, 8]}
WEIGHTS = {"w": (8, 4, 1, 1), "u": (8, 8, 1, 1), "h": (4, 4, 1, 1), "v": (8, 8), "p": (1, 64, 8), "token": (1, 1, 8)}
DOUBLE = {"d": (8, 16, 1, 1), "wide": (16, 8)}
CASES = {
    "concat of convolutions": ("8,8,8", "a = Conv(x, w) b = Conv(a, u) j = Concat<axis=1>(a, b) y = Conv(j, d)"),
    "concat behind Relu": (
        "8,8,8",
        "a = Conv(x, w) r = Relu(a) b = Conv(r, u) s = Relu(b) j = Concat<axis=1>(r, s) y = Conv(j, d)",
    ),
    "concat of a tensor with itself": ("8,8,8", "a = Conv(x, w) j = Concat<axis=1>(a, a) y = Conv(j, d)"),
    "concat with what is pooled": (
        "8,8,8",
        "a = Conv(x, w) q = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) j = Concat<axis=1>(a, q) y = Conv(j, d)",
    ),
    "concat of a part": (
        "8,8,8",
        "a = Conv(x, w) b, c = Split<axis=1, num_outputs=2>(a) e = Conv(b, h) j = Concat<axis=1>(c, e) y = Conv(j, u)",
    ),
    "concat with floats": ("8,8,8", "a = Conv(x, w) e = Sigmoid(a) j = Concat<axis=1>(e, a) y = Conv(j, d)"),
    "positions": (
        "64,8",
        "a = Conv(x, w) r = Reshape(a, rows) t = Transpose<perm=[0,2,1]>(r) k = Add(t, p) y = MatMul(k, v)",
    ),
    "shuffled channels": (
        "8,8,8",
        "a = Conv(x, w) r = Reshape(a, groups) t = Transpose<perm=[0,2,1,3,4]>(r) b = Reshape(t, back) y = Conv(b, u)",
    ),
    "residual": ("8,8,8", "a = Conv(x, w) b = Conv(a, u) c = Add(a, b) r = Relu(c) y = Conv(r, u)"),
    "largest of a concat": (
        "8",
        "a = Conv(x, w) b = Conv(a, u) j = Concat<axis=1>(a, b) m = GlobalMaxPool(j) f = Flatten(m) "
        "y = MatMul(f, wide)",
    ),
}


def build(text: str) -> onnx.ModelProto:
    named = {
        name: draw(*shape, seed=index) * np.float32(0.4)
        for index, (name, shape) in enumerate({**WEIGHTS, **DOUBLE}.items())
    }
    named |= {name: np.array(values, np.int64) for name, values in SHAPES.items()}
    return model(text, 19, 9, **{name: values for name, values in named.items() if name in words(text)})


def words(text: str) -> set[str]:
    return {word.strip("(),") for part in text.split() for word in part.replace("(", " ").split()}


def quantized(proto: onnx.ModelProto, x: NDArray[Any], target: Any) -> tuple[onnx.ModelProto, PassResult]:
    subject = from_proto(proto)
    view = GraphView(subject, calibration=from_arrays({"x": x}, subject))
    result = QuantizeActivations(target=target).apply(view)
    return to_proto(subject), result


def decibels(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    wide = wanted.astype(np.float64)
    return float(10 * np.log10(wide.var() / np.square(wide - found).mean()))


def run_openvino(proto: onnx.ModelProto, x: NDArray[Any]) -> NDArray[Any]:
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(proto.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return np.asarray(compiled({"x": x})[0])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("out", "nodes"), CASES.values(), ids=CASES)
def test_both_runtimes_are_equally_near(out: str, nodes: str, target: str) -> None:
    proto, x = build(IMAGE.format(out) + "{ " + nodes + " }"), draw(32, 4, 8, 8, seed=9)
    after, result = quantized(proto, x, target)
    assert result.rewritten
    assert not result.skipped
    wanted = Session(from_proto(proto)).run({"x": x})["y"]
    plain, fused = (
        decibels(wanted, Session(from_proto(after), optimize=on).run({"x": x})["y"]) for on in (False, True)
    )
    found = decibels(wanted, run_openvino(after, x))
    assert min(plain, fused) > 25
    assert found > min(plain, fused) - 1


@pytest.mark.parametrize("target", ["openvino", "generic"])
def test_rows_that_a_concat_joins_stay_float(target: str) -> None:
    text = IMAGE.format("65,8").replace("N,", "32,") + (
        "{ a = Conv(x, w) r = Reshape(a, rows) t = Transpose<perm=[0,2,1]>(r) k = Expand(token, tall) "
        "j = Concat<axis=1>(k, t) y = MatMul(j, v) }"
    )
    proto, x = build(text), draw(32, 4, 8, 8, seed=9)
    after, result = quantized(proto, x, target)
    assert [(each.site, each.reason) for each in result.skipped] == [
        ("y", "'j' joins rows, and OpenVINO loads no integer product of these")
    ]
    wanted = Session(from_proto(proto)).run({"x": x})["y"]
    assert decibels(wanted, run_openvino(after, x)) > 25


@pytest.mark.parametrize("target", [*TARGETS, "tensorrt"])
@pytest.mark.parametrize("lead", [(1,), (1, 1), (4,), (1, 4)], ids=str)
def test_weights_of_higher_rank(lead: tuple[int, ...], target: str) -> None:
    proto = model("g (float[N,4,10,64] x) => (float[N,4,10,64] y) { y = MatMul(x, w) }", 19, 9, w=draw(*lead, 64, 64))
    x = draw(32, 4, 10, 64, seed=9)
    after, result = quantized(proto, x, target)
    assert [each.site for each in result.rewritten] == ["y"]
    wanted = Session(from_proto(proto)).run({"x": x})["y"]
    assert decibels(wanted, Session(from_proto(after), optimize=True).run({"x": x})["y"]) > 34
    assert decibels(wanted, run_openvino(after, x)) > 34
