"""Every layer and every large constant is in the report, whatever operator it hangs on, with what is true of it."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

import graphopt
from graphopt.model import from_proto
from graphopt.model.attributes import attribute_bytes
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


def trees(splits: int) -> onnx.ModelProto:
    """Return a chain of so many splits in the newer form, whose attributes are tensors and lists."""
    leaf, count = np.zeros(splits, np.uint8), np.arange(splits)
    last = count == splits - 1
    tensors = {
        "nodes_modes": leaf,
        "nodes_splits": draw(splits),
        "leaf_weights": draw(splits + 1),
    }
    node = onnx.helper.make_node(
        "TreeEnsemble",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        post_transform=0,
        tree_roots=[0],
        nodes_featureids=(count % 8).tolist(),
        nodes_trueleafs=[1] * splits,
        nodes_truenodeids=count.tolist(),
        nodes_falseleafs=last.astype(int).tolist(),
        nodes_falsenodeids=np.where(last, splits, count + 1).tolist(),
        leaf_targetids=[0] * (splits + 1),
        **{name: numpy_helper.from_array(values, name) for name, values in tensors.items()},
    )
    relu = onnx.helper.make_node("Relu", ["y"], ["z"])
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["N", d]) for n, d in (("x", 8), ("z", 1))]
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 5)]
    graph = onnx.helper.make_graph([node, relu], "g", ends[:1], ends[1:])
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("pass_", ["quantize-weights", "zero-weights"])
def test_attributes_are_constants_too(pass_: str) -> None:
    proto = trees(200)
    result = graphopt.optimize(proto, [create(pass_, **({"ratio": 0.5} if pass_ == "zero-weights" else {}))])
    ((site, reason),) = [(each.site, each.reason) for each in result.report.passes[0].result.skipped]
    size, rest = reason.removeprefix("TreeEnsemble of ai.onnx.ml has ").split(" ", 1)
    assert (site, rest) == ("y", "bytes in its attributes, which are no weights")
    names = sum(2 * len(each.name) + 24 for each in proto.graph.node[0].attribute)
    assert 0 <= proto.graph.node[0].ByteSize() - int(size.replace(",", "")) <= names
    assert result.report.failures == ((f"{pass_}: nothing to do (y: {reason})",) if pass_ == "quantize-weights" else ())
    assert result.model.SerializeToString() == proto.SerializeToString()


def test_small_attributes_are_no_places() -> None:
    result = graphopt.optimize(trees(5), ["quantize-weights"])
    assert not result.report.passes[0].result.skipped
    assert result.report.failures == ("quantize-weights: nothing to do (no place to work on)",)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ({"a": 1.5, "b": 3, "c": "four"}, 4 + 1 + 5),
        ({"a": [1.0] * 10}, 50),
        ({"a": [1, 127, 128, 1 << 20, -1]}, 2 + 2 + 3 + 4 + 11),
        ({"a": ["x", "yz"], "b": "\u4e2d"}, 3 + 4 + 4),
        ({"a": numpy_helper.from_array(draw(3, 5))}, 60),
        ({"a": parser.parse_graph("g (float[1] x) => (float[1] y) { y = Relu(x) }")}, 0),
    ],
    ids=["single values", "floats", "integers take more bytes with their size", "texts", "a tensor", "a body"],
)
def test_bytes_of_attributes(values: dict[str, Any], size: int) -> None:
    node = onnx.helper.make_node("Op", ["x"], ["y"], domain="some.where", **values)
    info = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("x", "y")]
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("some.where", 1)]
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:]), opset_imports=opsets)
    (read,) = from_proto(proto).graph.nodes
    assert attribute_bytes(read) == size


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
