"""Concats, Slices and scalings in a row become one, and a Split of which one part is used becomes a Slice."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from graphopt import create
from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, assert_untouched, count_ops, model, run_alone

PASS = create("eliminate-noops")


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


CONSTANTS = {
    "i0": ints(0),
    "column": ints(-1, 1),
    "i1": ints(1),
    "i2": ints(2),
    "i3": ints(3),
    "m1": ints(-1),
    "end": ints(2**63 - 1),
    "two": np.array(2, np.float32),
    "half": np.array([[0.3]], np.float32),
    "tiny": np.array(1e-30, np.float32),
    "sizes": ints(1, 2, 5),
    "row": np.arange(1, 9, dtype=np.float32),
    "cell": np.ones((1, 1), np.float32),
    "square": np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32),
    "flat": np.ones(8, np.float32),
    "rows": np.ones((5, 1), np.float32),
}
JOINED: dict[str, tuple[str, dict[str, int]]] = {
    "Concats": ("a = Neg(x) b = Concat<axis = 1>(x, a) y = Concat<axis = 1>(b, a)", {"Neg": 1, "Concat": 1}),
    "Concats, axes counted from either end": (
        "a = Neg(x) b = Concat<axis = -1>(a, x) y = Concat<axis = 1>(a, b, x)",
        {"Neg": 1, "Concat": 1},
    ),
    "Concats, deep": (
        "a = Concat<axis = 1>(x, x) b = Concat<axis = 1>(a, x) c = Concat<axis = 1>(x, b) y = Concat<axis = 1>(c, x)",
        {"Concat": 1},
    ),
    "Slices of other axes": ("a = Slice(x, i0, i2, i0) y = Slice(a, i1, end, i1, i2)", {"Slice": 1}),
    "Slices of other axes, of unknown extent": ("a = Slice(x, i1, end, i0, i2) y = Slice(a, i1, i3, i1)", {"Slice": 1}),
    "Slices of one axis": ("a = Slice(x, i1, end, i1, i2) y = Slice(a, i1, m1, i1)", {"Slice": 1}),
    "Slices of one axis, with steps": ("a = Slice(x, i0, end, i1, i2) y = Slice(a, i1, end, i1, i3)", {"Slice": 1}),
    "two Slices of a Slice": (
        "a = Slice(x, i1, end, i1) b = Slice(a, i0, i1, i0) c = Slice(a, i1, i2, i0) y = Add(b, c)",
        {"Slice": 2, "Add": 1},
    ),
    "scalings": ("a = Mul(x, two) y = Mul(half, a)", {"Mul": 1}),
    "three scalings": ("a = Mul(x, two) b = Mul(a, half) y = Mul(b, two)", {"Mul": 1}),
    "a reduction that puts its axis back": (
        "a = ReduceSum<keepdims = 0>(x, i1) b = Unsqueeze(a, i1) y = Sub(x, b)",
        {"ReduceSum": 1, "Sub": 1},
    ),
    "a reduction that puts its axis back by a Reshape": (
        "a = ReduceMean<keepdims = 0, axes = [-1]>(x) b = Reshape(a, column) y = Sub(x, b)",
        {"ReduceMean": 1, "Sub": 1},
    ),
    "a reduction that drops its axis": (
        "a = ReduceMax<axes = [1]>(x) b = Squeeze(a, m1) c = Neg(b) y = Reshape(c, column)",
        {"ReduceMax": 1, "Neg": 1, "Reshape": 1},
    ),
    "the place of the greatest": (
        "a = ArgMax<axis = -1, keepdims = 0>(x) b = Unsqueeze(a, m1) c = Cast<to = 1>(b) y = Sub(x, c)",
        {"ArgMax": 1, "Cast": 1, "Sub": 1},
    ),
    "a matrix product and a row": ("a = MatMul(x, square) y = Add(row, a)", {"Gemm": 1}),
    "a matrix product and a cell": ("a = MatMul(x, square) y = Add(a, cell)", {"Gemm": 1}),
    "a product of two tensors": ("t = Transpose(x) a = MatMul(t, x) y = Add(a, row)", {"Transpose": 1, "Gemm": 1}),
    "one part of a Split": ("a, b, c = Split<axis = 1>(x, sizes) y = Neg(b)", {"Slice": 1, "Neg": 1}),
    "the last part of a Split is an output": ("a, b, y = Split<axis = -1>(x, sizes)", {"Slice": 1}),
}
LEFT = {
    "Concats along different axes": "a = Concat<axis = 0>(x, x) y = Concat<axis = 1>(a, a)",
    "a Concat that something else reads": "a = Concat<axis = 1>(x, x) b = Concat<axis = 1>(a, x) c = Neg(a) "
    "d = Neg(b) y = Concat<axis = 1>(d, c)",
    "a Concat that is read twice": "a = Concat<axis = 1>(x, x) y = Concat<axis = 1>(a, a)",
    "a Slice that something else reads": "a = Slice(x, i1, end, i1) b = Slice(a, i0, i1, i0) c = Neg(a) y = Add(b, c)",
    "Slices of one axis of unknown extent": "a = Slice(x, i1, end, i0) y = Slice(a, i1, end, i0)",
    "a Slice backwards": "a = Slice(x, m1, i0, i1, m1) y = Slice(a, i1, i3, i1)",
    "a scaling by very little": "a = Mul(x, tiny) y = Mul(a, two)",
    "a scaling by a row": "a = Mul(x, row) y = Mul(a, two)",
    "a reduction whose result is read twice": "a = ReduceSum<keepdims = 0>(x, i1) b = Unsqueeze(a, i1) c = Mul(x, b) "
    "d = Unsqueeze(a, i0) y = MatMul(d, c)",
    "a reduction that gets its axis back elsewhere": "a = ReduceSum<keepdims = 0>(x, i0) b = Unsqueeze(a, i1) "
    "y = MatMul(x, b)",
    "a product that is read twice": "a = MatMul(x, square) b = Add(a, row) y = Mul(a, b)",
    "a product with a vector": "a = MatMul(x, flat) y = Add(a, x)",
    "a bias that broadcasts the batch": "a = MatMul(x, square) y = Add(a, rows)",
    "two parts of a Split": "a, b, c = Split<axis = 1>(x, sizes) y = Concat<axis = 1>(c, a)",
}


def build(text: str, opset: int = 17) -> onnx.ModelProto:
    used = {name: values for name, values in CONSTANTS.items() if any(name in part for part in text.split())}
    names = {word.strip("(),") for word in text.replace("(", "( ").split()}
    return model(
        f"g (float[N,8] x) => (float[A,B] y) {{ {text} }}", opset, **{n: v for n, v in used.items() if n in names}
    )


@pytest.mark.parametrize("name", JOINED)
def test_joined(name: str) -> None:
    text, ops = JOINED[name]
    assert_rewrites(PASS, build(text), ops=ops, feeds={"x": np.random.default_rng(0).normal(size=(5, 8)).astype("f")})


@pytest.mark.parametrize("name", LEFT)
def test_left(name: str) -> None:
    proto = build(LEFT[name])
    assert_untouched(PASS, proto)


def test_a_slice_in_the_middle_that_is_an_output_stays() -> None:
    text = "g (float[N,8] x) => (float[A,8] a, float[B,3] y) { a = Slice(x, i1, end, i0) y = Slice(a, i0, i3, i1) }"
    proto = model(text, **{name: CONSTANTS[name] for name in ("i0", "i1", "i3", "end")})
    assert not run_alone(PASS, proto)[1].rewritten


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_quantized_lstm_goes_without_a_state_of_zeros(start: float) -> None:
    rng = np.random.default_rng(3)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> '
        "g (float[7,N,6] x) => (float[7,1,N,5] y) { s = Shape<start=1, end=2>(x) t = Concat<axis=0>(three, s, five) "
        "z = Expand(start, t) h = Slice(z, i0, i1, i0) c = Slice(z, i1, i2, i0) "
        "y = com.microsoft.DynamicQuantizeLSTM<hidden_size=5>(x, w, r, , , h, c, , ws, wz, rs, rz) }"
    )
    arrays = {
        "w": rng.integers(-99, 99, (1, 6, 20), dtype=np.int8),
        "r": rng.integers(-99, 99, (1, 5, 20), dtype=np.int8),
        "start": np.array(start, np.float32),
        **{name: np.full(1, 0.02, np.float32) for name in ("ws", "rs")},
        **{name: np.zeros(1, np.int8) for name in ("wz", "rz")},
        "i0": ints(0),
        "i1": ints(1),
        "i2": ints(2),
        "three": ints(3),
        "five": ints(5),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in arrays.items())
    if start:
        assert_untouched(PASS, proto)
        return
    after, result = run_alone(PASS, proto)
    assert [(each.site, each.detail) for each in result.rewritten] == [("y", "starts from zeros by itself")]
    assert list(after.graph.node[-1].input[4:8]) == [""] * 4
    for size in (1, 3):
        feeds = {"x": rng.normal(size=(7, size, 6)).astype(np.float32)}
        for optimize in (False, True):
            wanted = Session(proto, optimize=optimize).run(feeds)["y"]
            assert np.abs(wanted).max() > 0.1
            assert np.array_equal(Session(after, optimize=optimize).run(feeds)["y"], wanted)


def test_attributes_of_old_opsets() -> None:
    text = "a = Slice<axes = [1], starts = [1], ends = [9]>(x) b = Slice<axes = [0], starts = [1], ends = [4]>(a) "
    text += "c, y = Split<axis = 1, split = [3, 4]>(b)"
    feeds = {"x": np.random.default_rng(0).normal(size=(5, 8)).astype("f")}
    after = assert_rewrites(PASS, build(text, 9), ops={"Slice": 1}, feeds=feeds)
    assert [list(a.ints) for a in after.graph.node[0].attribute] == [[1, 4], [4, 8], [0, 1]]


ANY_CUT = st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([-2, -1, 1, 2, 3]))
WIDE_CUT = st.tuples(st.integers(0, 2), st.sampled_from([-1, 5, 9]), st.sampled_from([1, 2]))


def test_random_slices() -> None:
    told: list[bool] = []

    @settings(max_examples=60, derandomize=True, deadline=None)
    @given(st.lists(WIDE_CUT, min_size=2, max_size=4) | st.lists(WIDE_CUT | ANY_CUT, min_size=2, max_size=4))
    def check(cuts: Sequence[tuple[int, int, int]]) -> None:
        nodes, constants, source = [], {"axis": ints(1)}, "x"
        for index, cut in enumerate(cuts):
            constants |= {f"{name}{index}": ints(value) for name, value in zip("bes", cut, strict=True)}
            nodes.append(f"t{index} = Slice({source}, b{index}, e{index}, axis, s{index})")
            source = f"t{index}"
        text = f"g (float[N,8] x) => (float[N,M] y) {{ {' '.join(nodes)} y = Identity({source}) }}"
        proto = model(text, **constants)
        after, _ = run_alone(PASS, proto)
        feeds = {"x": np.arange(16, dtype=np.float32).reshape(2, 8)}
        wanted = Session(proto).run(feeds)["y"]
        assert np.array_equal(Session(after).run(feeds)["y"], wanted)
        told.append(wanted.size > 0 and count_ops(after)["Slice"] < len(cuts))

    check()
    assert sum(told) > len(told) // 10, "next to nothing was joined"
