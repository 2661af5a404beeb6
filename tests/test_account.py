"""Every layer and every large constant is in the report, whatever operator it hangs on, with what is true of it."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

import graphopt
from graphopt.registry import create
from graphopt.testing import draw

Arrays = dict[str, NDArray[Any]]


def net(text: str, **weights: NDArray[Any]) -> onnx.ModelProto:
    """Parse a graph that may use ONNX Runtime's own operators."""
    head = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'
    proto = parser.parse_model(f"{head} {text}")
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    return proto


FUSED = "is not an operator that this pass knows; take the file from before ONNX Runtime optimized it"

PLACES: dict[str, tuple[str, Arrays, str, str]] = {
    "FusedConv": (
        "g (float[N,4,8,8] x) => (float[N,16,6,6] y) "
        '{ y = com.microsoft.FusedConv<activation="Relu", kernel_shape=[3,3]>(x, w) }',
        {"w": draw(16, 4, 3, 3)},
        "y",
        f"FusedConv of com.microsoft {FUSED}",
    ),
    "FusedMatMul behind a Transpose": (
        "g (float[N,32] x) => (float[N,16] y) { t = Transpose(w) y = com.microsoft.FusedMatMul<alpha=0.5>(x, t) }",
        {"w": draw(16, 32)},
        "y",
        f"FusedMatMul of com.microsoft {FUSED}",
    ),
    "an operator that no optimizer has written": (
        "g (float[N,32] x) => (float[N,16] y) { y = com.microsoft.TransposeMatMul(x, w) }",
        {"w": draw(32, 16)},
        "y",
        "TransposeMatMul of com.microsoft is not an operator that this pass knows",
    ),
    "slopes": (
        "g (float[N,64,8] x) => (float[N,64,8] y) { y = PRelu(x, w) }",
        {"w": draw(64, 8)},
        "y",
        "'w', 2,048 bytes, is read by PRelu, which is no layer with a weight",
    ),
    "an elementwise constant behind a Cast": (
        "g (float[N,64,8] x) => (float[N,64,8] y) { c = Cast<to=1>(w) y = Add(x, c) }",
        {"w": draw(64, 8, dtype=np.float16)},
        "y",
        "'w', 1,024 bytes, is read by Add, which is no layer with a weight",
    ),
    "positions that are given out": (
        "g (float[N,8] x) => (float[N,8] y, float[64,8] w) { y = Relu(x) }",
        {"w": draw(64, 8)},
        "w",
        "'w', 2,048 bytes, is given out as it is",
    ),
    "read by nothing": (
        "g (float[N,8] x) => (float[N,8] y) { y = Relu(x) }",
        {"w": draw(64, 8)},
        "w",
        "'w', 2,048 bytes, is read by nothing, eliminate-dead drops it",
    ),
    "given out behind a Reshape": (
        "g (float[N,8] x) => (float[N,8] y, float[8,64] z) { y = Relu(x) s = Constant<value_ints=[8,64]>() "
        "z = Reshape(w, s) }",
        {"w": draw(64, 8)},
        "w",
        "'w', 2,048 bytes, is given out, only moved or cast",
    ),
    "given out by a branch": (
        "g (float[64,8] x, bool c) => (float[64,8] y) { y = If (c) "
        "<then_branch = t () => (float[64,8] a) { a = Identity(w) }, else_branch = e () => (float[64,8] b) "
        "{ b = Relu(x) }> }",
        {"w": draw(64, 8)},
        "w",
        "'w', 2,048 bytes, is given out, only moved or cast",
    ),
    "asked for its shape": (
        "g (float[N,8] x) => (float[N,8] y, int64[2] z) { y = Relu(x) z = Shape(w) }",
        {"w": draw(64, 8)},
        "w",
        "'w', 2,048 bytes, is read for its shape only",
    ),
    "a target of a Reshape that leads to an output": (
        "g (float[N] x) => (float[A,B,C,D,E,F,G,H] y) { y = Reshape(x, w) }",
        {"w": np.array([1, 1, 1, 1, 1, 1, 1, -1])},
        "y",
        "'w', 64 bytes, holds int64 values for Reshape",
    ),
    "bounds of a Slice before floats are computed": (
        "g (float[N,8] x) => (float[M,8] y) { s = Slice(x, w, e) y = Softmax(s) }",
        {"w": np.array([1, 1]), "e": np.array([5, 8])},
        "s",
        "'w', 16 bytes, holds int64 values for Slice",
    ),
    "sizes of a Split that leads to outputs": (
        "g (float[N,8] x) => (float[N,3] y, float[N,5] z) { y, z = Split<axis=1>(x, w) }",
        {"w": np.array([3, 5])},
        "y",
        "'w', 16 bytes, holds int64 values for Split",
    ),
    "a table of integers": (
        "g (float[N,400] x) => (float[N,200] y) { y = Gather<axis=1>(x, w) }",
        {"w": np.arange(200)},
        "y",
        "'w', 1,600 bytes, holds int64 values for Gather",
    ),
}


@pytest.mark.parametrize("pass_", ["quantize-weights", "zero-weights"])
@pytest.mark.parametrize("name", PLACES)
def test_places_that_a_pass_has_no_word_for(name: str, pass_: str) -> None:
    text, weights, site, reason = PLACES[name]
    options = {"ratio": 0.5} if pass_ == "zero-weights" else {}
    result = graphopt.optimize(net(text, **weights), [create(pass_, **options)])
    (told,) = result.report.passes
    assert [(each.site, each.reason) for each in told.result.skipped] == [(site, reason)]
    assert not told.result.rewritten
    assert result.model.SerializeToString() == net(text, **weights).SerializeToString()


@pytest.mark.parametrize("pass_", ["prune-channels", "zero-channels"])
def test_channel_passes_name_operators_that_they_do_not_know(pass_: str) -> None:
    text, weights, site, reason = PLACES["FusedConv"]
    options = {"ratio": 0.5} if pass_ == "zero-channels" else {}
    result = graphopt.optimize(net(text, **weights), [create(pass_, **options)])
    (told,) = result.report.passes
    assert (site, reason) in [(each.site, each.reason) for each in told.result.skipped]


def test_what_a_pass_names_is_not_named_again() -> None:
    text = "g (float[N,64] x) => (float[N,32] y) { h = Gemm(x, w, b) r = PRelu(h, s) y = MatMul(r, v) }"
    proto = net(text, w=draw(64, 32), b=draw(32), s=np.full(1, 0.25, np.float32), v=draw(32, 32))
    result = graphopt.optimize(proto, ["quantize-weights"])
    (told,) = result.report.passes
    assert {each.site for each in told.result.rewritten} == {"h", "y"}
    assert not told.result.skipped
    again = graphopt.optimize(result.model, [create("zero-weights", ratio=0.5)])
    assert {each.reason for each in again.report.passes[0].result.skipped} <= {
        "'w' is quantized already",
        "'v' is quantized already",
    }
