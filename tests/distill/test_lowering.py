"""What derivative rules do not cover is rewritten: same values, and gradients like central differences in float64."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from graphopt.distill.gradients import LOSS, Gradients, with_shapes
from graphopt.runtime.session import Session
from graphopt.testing import model

CASES: dict[str, tuple[str, tuple[int, ...]]] = {
    "every other": ("y = Slice(x, b, e, a, s)", (2, 7)),
    "backwards, all of it": ("y = Slice(x, b_all, e_all, a, s_back)", (2, 6)),
    "backwards in steps, from the middle": ("y = Slice(x, b_mid, e_all, a, s_two)", (2, 7)),
    "two axes with steps, one without": ("y = Slice(x, b3, e3, a3, s3)", (5, 6, 4)),
    "no axes given": ("y = Slice(x, b2, e2, , s2)", (5, 6)),
    "negative axis and bounds": ("y = Slice(x, b_neg, e_neg, a_neg, s)", (2, 7)),
    "reflected": ('y = Pad<mode = "reflect">(x, around)', (3, 4)),
    "edges repeated": ('y = Pad<mode = "edge">(x, around)', (3, 4)),
    "edges repeated along one axis": ('y = Pad<mode = "edge">(x, ends, , a)', (3, 4)),
    "bounds from the shape": (
        "n = Shape(x) l = Gather(n, one) h = Div(l, two) u = Unsqueeze(h, zero) w = Unsqueeze(l, zero)"
        " y = Slice(x, u, w, a, s)",
        (2, 7),
    ),
    "a sequence of equal parts": (
        "q = SplitToSequence<axis = 1>(x, two) p = SequenceAt(q, zero_) r = SequenceAt(q, last) m = Mul(p, r)"
        " k = Tanh(m) y = Concat<axis = 1>(k, p)",
        (2, 6),
    ),
    "a sequence with a rest": (
        "q = SplitToSequence<axis = 1>(x, four) p = SequenceAt(q, one) k = Tanh(p) y = Mul(k, p)",
        (2, 6),
    ),
    "a sequence of given parts": (
        "q = SplitToSequence<axis = -1>(x, parts) p = SequenceAt(q, one) r = SequenceAt(q, last) y = Mul(p, r)",
        (2, 7),
    ),
    "a sequence of single rows": (
        "q = SplitToSequence<axis = 0, keepdims = 0>(x) p = SequenceAt(q, one) r = SequenceAt(q, zero_) y = Mul(p, r)",
        (3, 4),
    ),
}

NUMBERS: dict[str, Any] = {
    "b": [1], "e": [7], "a": [1], "s": [2], "b_all": [-1], "e_all": [-(2**63)], "s_back": [-1], "b_mid": [5],
    "s_two": [-2], "b3": [0, 5, 1], "e3": [5, 0, 3], "a3": [0, 1, 2], "s3": [2, -2, 1], "b2": [1, 0], "e2": [5, 6],
    "s2": [3, 2], "b_neg": [-6], "e_neg": [-1], "a_neg": [-1], "one": 1, "two": 2, "four": 4, "zero": [0], "zero_": 0,
    "last": -1, "around": [2, 1, 0, 3], "ends": [2, 5], "parts": [3, 1, 3],
}  # fmt: skip


def case(name: str) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """The sum of sin(y) y, so that no gradient is constant."""
    body, shape = CASES[name]
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {key: np.array(value, np.int64) for key, value in NUMBERS.items() if key in words}
    dims = ",".join(map(str, shape))
    end = "sine = Sin(y) both = Mul(sine, y) l_ = ReduceSum<keepdims = 0>(both)"
    proto = model(f"g (float[{dims}] x) => (float l_) {{ {body} {end} }}", 18, **used)
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = LOSS
    return proto, {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("name", CASES)
def test_values_stay_and_gradients_are_right(name: str) -> None:
    pytest.importorskip("onnx_ad")
    proto, feeds = case(name)
    lowered = with_shapes(proto, feeds)
    onnx.checker.check_model(lowered, full_check=True)
    assert not {"SplitToSequence", "SequenceAt", "Shape"} & {node.op_type for node in lowered.graph.node}
    assert Session(lowered).run(feeds)[LOSS] == Session(proto).run(feeds)[LOSS]
    _, given, _ = Gradients(proto, feeds, ["x"])(feeds)
    exact = in_double(proto)
    for at in np.ndindex(*feeds["x"].shape):
        ends = []
        for step in (1e-6, -1e-6):
            moved = feeds["x"].astype(np.float64)
            moved[at] += step
            ends.append(float(exact.run([LOSS], {"x": moved})[0]))
        assert given["x"][at] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-5), at


def in_double(proto: onnx.ModelProto) -> ReferenceEvaluator:
    wide = onnx.ModelProto.FromString(proto.SerializeToString())
    for info in [*wide.graph.input, *wide.graph.output]:
        info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return ReferenceEvaluator(wide)


def test_a_sequence_that_is_read_otherwise_stays() -> None:
    pytest.importorskip("onnx_ad")
    text = """g (float[2,6] x, int64 i) => (float l) {
      q = SplitToSequence<axis = 1>(x, two) p = SequenceAt(q, i) l = ReduceSum<keepdims = 0>(p) }"""
    proto = model(text, two=np.array(2, np.int64))
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = LOSS
    lowered = with_shapes(proto, {"x": np.ones((2, 6), np.float32), "i": np.array(1, np.int64)})
    assert [node.op_type for node in lowered.graph.node] == [node.op_type for node in proto.graph.node]


def test_what_depends_on_values_is_not_made_constant() -> None:
    """The place of the largest element follows from the data: it must not be frozen at what one sample had."""
    pytest.importorskip("onnx_ad")
    text = """g (float[1,4] x) => (float l) {
      i = ArgMax<axis = 1, keepdims = 1>(x) p = GatherElements<axis = 1>(x, i) l = ReduceSum<keepdims = 0>(p) }"""
    proto = model(text)
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = LOSS
    gradients = Gradients(proto, {"x": np.array([[1, 2, 3, 4]], np.float32)}, ["x"])
    _, given, _ = gradients({"x": np.array([[9, 2, 3, 4]], np.float32)})
    np.testing.assert_array_equal(given["x"], [[1, 0, 0, 0]])
