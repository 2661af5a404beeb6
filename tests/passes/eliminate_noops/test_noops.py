"""eliminate-noops: what does nothing goes, what nearly does nothing stays."""

from typing import Any

import numpy as np
import pytest
from graphopt.passes.eliminate_noops import EliminateNoops
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt import GraphView
from graphopt.model import from_proto, to_proto
from graphopt.testing import assert_rewrites, assert_skips, assert_untouched, count_ops, model, run_alone

Arrays = dict[str, NDArray[Any]]
ZEROS_AND_NAN = np.array([[0.0, -0.0, 1e-40], [np.inf, -np.inf, np.nan]], dtype=np.float32)


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def scalar(value: float, dtype: Any = np.float32) -> NDArray[Any]:
    return np.array(value, dtype=dtype)


def between(nodes: str, shape: str = "2,3", out: str | None = None) -> str:
    """Return a graph of ``nodes``, which make b of a, with an operator on either side."""
    return f"g (float[{shape}] x) => (float[{out or shape}] y) {{ a = Neg(x) {nodes} y = Exp(b) }}"


CASES: dict[str, tuple[str, Arrays, dict[str, int], int]] = {
    "identity": (between("b = Identity(a)"), {}, {}, 17),
    "dropout": (between("b = Dropout(a)"), {}, {}, 17),
    "dropout with a ratio, training off": (
        between("b = Dropout(a, r, t)"),
        {"r": scalar(0.9), "t": np.array(False)},
        {},
        17,
    ),
    "dropout of opset 7": (between("b = Dropout<ratio=0.5>(a)"), {}, {}, 9),
    "cast to the same type": (between("b = Cast<to=1>(a)"), {}, {}, 17),
    "cast forth and back": (between("c = Cast<to=11>(a) b = Cast<to=1>(c)"), {}, {}, 17),
    "cast like the same type": (between("b = CastLike(a, x)"), {}, {}, 17),
    "transpose that keeps": (between("b = Transpose<perm=[0,1]>(a)"), {}, {}, 17),
    "transpose default of a vector": (between("b = Transpose(a)", "3"), {}, {}, 17),
    "transposes that cancel": (between("c = Transpose(a) b = Transpose(c)"), {}, {}, 17),
    "transposes that cancel, three axes": (
        between("c = Transpose<perm=[1,2,0]>(a) b = Transpose<perm=[2,0,1]>(c)", "2,3,4"),
        {},
        {},
        17,
    ),
    "transposes in a row": (
        between("c = Transpose<perm=[1,2,0]>(a) b = Transpose<perm=[1,2,0]>(c)", "2,3,4", "4,2,3"),
        {},
        {"Transpose": 1},
        17,
    ),
    "reshape to its own shape": (between("b = Reshape(a, s)", "N,3"), {"s": ints(0, 3)}, {}, 17),
    "reshape to its own shape, derived": (between("b = Reshape(a, s)", "N,3"), {"s": ints(-1, 3)}, {}, 17),
    "reshapes that cancel": (
        between("c = Reshape(a, s) b = Reshape(c, t)", "N,3,4"),
        {"s": ints(0, -1), "t": ints(-1, 3, 4)},
        {},
        17,
    ),
    "reshapes in a row": (
        between("c = Reshape(a, s) b = Reshape(c, t)", "N,3,4", "N,2,6"),
        {"s": ints(0, -1), "t": ints(-1, 2, 6)},
        {"Reshape": 1},
        17,
    ),
    "squeeze, unsqueeze": (
        between("c = Squeeze(a, s) b = Unsqueeze(c, s)", "N,1,4"),
        {"s": ints(1)},
        {},
        17,
    ),
    "unsqueezes in a row": (
        between("c = Unsqueeze(a, s) b = Unsqueeze(c, t)", "N,4", "N,1,4,1"),
        {"s": ints(1), "t": ints(3)},
        {"Reshape": 1},
        17,
    ),
    "squeeze before opset 13": (
        between("c = Squeeze<axes=[1]>(a) b = Unsqueeze<axes=[1]>(c)", "N,1,4"),
        {},
        {},
        11,
    ),
    "flatten of a matrix": (between("b = Flatten(a)", "N,4"), {}, {}, 17),
    "flatten, reshape": (
        between("c = Flatten(a) b = Reshape(c, s)", "N,3,4"),
        {"s": ints(-1, 3, 4)},
        {},
        17,
    ),
    "transpose of axes of extent one, beside a reshape": (
        between("c = Transpose<perm=[0,2,1,3]>(a) b = Reshape(c, s)", "N,1,3,4", "N,12"),
        {"s": ints(0, -1)},
        {"Reshape": 1},
        17,
    ),
    "expand to its own shape": (between("b = Expand(a, s)", "N,3"), {"s": ints(1, 3)}, {}, 17),
    "tile once": (between("b = Tile(a, s)", "N,3"), {"s": ints(1, 1)}, {}, 17),
    "slice of everything": (
        between("b = Slice(a, s, e)", "N,3"),
        {"s": ints(0, 0), "e": ints(2**63 - 1, 3)},
        {},
        17,
    ),
    "slice of everything, attributes": (between("b = Slice<starts=[0], ends=[3], axes=[1]>(a)", "N,3"), {}, {}, 9),
    "pad by nothing": (between("b = Pad(a, p)"), {"p": ints(0, 0, 0, 0)}, {}, 17),
    "reflect by nothing": (between('b = Pad<mode="reflect">(a, p)'), {"p": ints(0, 0, 0, 0)}, {}, 17),
    "pad by nothing, attributes": (between("b = Pad<pads=[0,0,0,0]>(a)"), {}, {}, 9),
    "concat of one": (between("b = Concat<axis=0>(a)"), {}, {}, 17),
    "sum of one": (between("b = Sum(a)"), {}, {}, 17),
    "split into one": (between("b = Split<axis=0>(a, s)"), {"s": ints(2)}, {}, 17),
    "pooling of single elements": (between("b = MaxPool<kernel_shape=[1,1]>(a)", "N,2,3,3"), {}, {}, 17),
    "plus minus zero": (between("b = Add(a, z)"), {"z": scalar(-0.0)}, {}, 17),
    "plus zero": (between("b = Add(z, a)"), {"z": np.zeros((1, 3), np.float32)}, {}, 17),
    "minus zero": (between("b = Sub(a, z)"), {"z": scalar(0.0)}, {}, 17),
    "times one": (between("b = Mul(o, a)"), {"o": np.ones((2, 3), np.float32)}, {}, 17),
    "over one": (between("b = Div(a, o)"), {"o": scalar(1)}, {}, 17),
    "to the power of one": (between("b = Pow(a, o)"), {"o": scalar(1, np.int64)}, {}, 17),
    "where of one choice": (
        between("b = Where(c, a, x)", "2,3"),
        {"c": np.ones((2, 1), bool)},
        {},
        17,
    ),
    "relu twice": (between("c = Relu(a) b = Relu(c)"), {}, {"Relu": 1}, 17),
    "negated twice": (between("c = Neg(a) d = Neg(c) b = Relu(d)"), {}, {"Relu": 1}, 17),
    "cast like another type": (
        "g (float[2] x, double[2] z) => (double[2] y) { a = Neg(x) b = CastLike(a, z) y = Exp(b) }",
        {},
        {"Cast": 1},
        17,
    ),
    "sequence taken apart at once": (
        "g (float[N,6] x) => (float[N,2] y) { a = Neg(x) s = SplitToSequence<axis=1>(a, n) p = SequenceAt(s, i) "
        "q = SequenceAt(s, j) b = Mul(p, q) y = Exp(b) }",
        {"n": scalar(2, np.int64), "i": scalar(0, np.int64), "j": scalar(-1, np.int64)},
        {"Split": 1, "Mul": 1},
        17,
    ),
    "lstm that starts from zeros": (
        "g (float[5,N,3] x) => (float[5,1,N,4] y) { a = Neg(x) s = Shape<start=1, end=2>(x) t ="
        " Concat<axis=0>(o, s, f) "
        "z = ConstantOfShape(t) b, h, c = LSTM<hidden_size=4>(a, w, r, , , z, z) y = Exp(b) }",
        {
            "o": ints(1),
            "f": ints(4),
            "w": np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 16, 3),
            "r": np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 16, 4),
        },
        {"LSTM": 1},
        17,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrites(name: str) -> None:
    text, weights, ops, opset = CASES[name]
    assert_rewrites(EliminateNoops(), model(text, opset, **weights), ops={"Neg": 1, "Exp": 1, **ops})


def test_values_keep_every_bit_through_x_times_one() -> None:
    proto = model("g (float[2,3] x) => (float[2,3] y) { a = Mul(x, o) y = Neg(a) }", o=scalar(1))
    assert_rewrites(EliminateNoops(), proto, ops={"Neg": 1}, feeds={"x": ZEROS_AND_NAN})


SKIPS: dict[str, tuple[str, Arrays, str, int]] = {
    "dropout in training": (
        between("b = Dropout(a, r, t)"),
        {"r": scalar(0.5), "t": np.array(True)},
        "training mode",
        17,
    ),
    "dropout that may train": (
        "g (float[2] x, bool t) => (float[2] y) { y = Dropout(x, r, t) }",
        {"r": scalar(0.5)},
        "may be turned on",
        17,
    ),
    "dropout whose mask is used": (
        "g (float[2] x) => (float[2] y, bool[2] m) { y, m = Dropout(x) }",
        {},
        "its mask 'm' is used",
        17,
    ),
    "cast that loses on the way": (
        between("c = Cast<to=10>(a) b = Cast<to=1>(c)"),
        {},
        "casting to float16 and back is not lossless",
        17,
    ),
    "integers through float": (
        "g (int64[2] x) => (int64[2] y) { a = Cast<to=1>(x) y = Cast<to=7>(a) }",
        {},
        "casting to float and back",
        17,
    ),
    "identity of an input": (
        "g (float[2] x) => (float[2] y) { y = Identity(x) }",
        {},
        "joins 'x' to a graph output",
        17,
    ),
    "identity of an output": (
        "g (float[2] x) => (float[2] y, float[2] z) { z = Neg(x) y = Identity(z) }",
        {},
        "joins 'z' to a graph output",
        17,
    ),
    "plus zero, then one over it": (
        "g (float[2] x) => (float[2] y) { a = Add(x, z) b = Mul(a, a) y = Reciprocal(a) }",
        {"z": scalar(0)},
        "'z' changes the sign of zero, which matters",
        17,
    ),
    "plus zero, then a denominator": (
        "g (float[2] x) => (float[2] y) { a = Add(x, z) b = Relu(a) y = Div(x, b) }",
        {"z": scalar(0)},
        "'z' changes the sign of zero",
        17,
    ),
}


@pytest.mark.parametrize("name", SKIPS)
def test_skips(name: str) -> None:
    text, weights, reason, opset = SKIPS[name]
    assert_skips(EliminateNoops(), model(text, opset, **weights), reason)


UNTOUCHED: dict[str, tuple[str, Arrays]] = {
    "reshape to the same count, not shape": (between("b = Reshape(a, s)", "2,3", "3,2"), {"s": ints(3, 2)}),
    "transpose of equal extents": (between("b = Transpose(a)", "3,3"), {}),
    "reshape between equal extents": (
        between("c = Transpose(a) b = Reshape(c, s)", "3,3", "9"),
        {"s": ints(9)},
    ),
    "zero that broadcasts": (between("b = Add(a, z)", "1,3", "2,3"), {"z": np.zeros((2, 1), np.float32)}),
    "zero that adds a rank": (between("b = Add(a, z)", "3", "1,3"), {"z": np.zeros((1, 1), np.float32)}),
    "one over x": (between("b = Div(o, a)"), {"o": scalar(1)}),
    "zero minus x": (between("b = Sub(z, a)"), {"z": scalar(0)}),
    "nearly one": (between("b = Mul(a, o)"), {"o": np.array([1, 1, np.nextafter(np.float32(1), 2)], np.float32)}),
    "slice backwards": (
        between("b = Slice(a, s, e, x0, t)", "2,3"),
        {"s": ints(-1), "e": ints(-4), "x0": ints(1), "t": ints(-1)},
    ),
    "slice of all but one": (between("b = Slice(a, s, e)", "3", "2"), {"s": ints(0), "e": ints(-1)}),
    "pad and cut": (between("b = Pad(a, p)"), {"p": ints(0, 1, 0, -1)}),
    "symbolic extent sliced at a number": (between("b = Slice(a, s, e)", "N", "M"), {"s": ints(0), "e": ints(5)}),
    "expand of an unknown extent": (between("b = Expand(a, s)", "N", "M"), {"s": ints(7)}),
    "pooling that strides": (
        between("b = MaxPool<kernel_shape=[1,1], strides=[2,2]>(a)", "1,2,4,4", "1,2,2,2"),
        {},
    ),
    "overridable one": (
        "g (float[2] x, float o = {1.0}) => (float[2] y) { y = Mul(x, o) }",
        {},
    ),
    "where of two choices": (between("b = Where(c, a, x)"), {"c": np.array([True, False, True])}),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_untouched(name: str) -> None:
    text, weights = UNTOUCHED[name]
    proto = model(text, **weights)
    assert_untouched(EliminateNoops(), proto)


def test_output_names_stay() -> None:
    proto = model(
        "g (float[2] x) => (float[2] y) { a = Neg(x) b = Identity(a) c = Exp(a) d = Add(b, c) y = Identity(d) }"
    )
    after = assert_rewrites(EliminateNoops(), proto, ops={"Neg": 1, "Exp": 1, "Add": 1})
    assert [output.name for output in after.graph.output] == ["y"]


def test_output_read_by_others_too() -> None:
    proto = model("g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x) y = Identity(a) z = Exp(a) }")
    assert_rewrites(EliminateNoops(), proto, ops={"Neg": 1, "Exp": 1})


def test_unused_outputs_lose_their_names() -> None:
    proto = model("g (float[1,2,4,4] x) => (float[1,2,3,3] y) { y, i = MaxPool<kernel_shape=[2,2]>(x) }")
    after = assert_rewrites(EliminateNoops(), proto, ops={"MaxPool": 1})
    assert list(after.graph.node[0].output) == ["y"]


@pytest.mark.parametrize("opset", [10, 11, 13, 23])
@pytest.mark.parametrize(("start", "end"), [(0, 1), (-1, 99)], ids=["first row", "last row"])
def test_a_row_of_a_free_axis_is_not_everything(opset: int, start: int, end: int) -> None:
    bounds = {"s": ints(start), "e": ints(end), "z": ints(0)}
    assert_untouched(EliminateNoops(), model(between("b = Slice(a, s, e, z)", "N,3", "M,3"), opset, **bounds))


def test_subgraphs() -> None:
    proto = model(
        "g (bool c, float[N,3] x) => (float[N,3] y) { a = Identity(x) y = If (c) <"
        " then_branch = t () => (float[N,3] p) { d = Identity(a) p = Exp(d) },"
        " else_branch = e () => (float[N,3] q) { f = Identity(x) q = Identity(f) }> }"
    )
    feeds = {"c": np.array(True), "x": np.ones((2, 3), np.float32)}
    after = assert_rewrites(EliminateNoops(), proto, ops={"If": 1}, feeds=feeds)
    branches = {a.name: [node.op_type for node in a.g.node] for a in after.graph.node[0].attribute}
    assert branches == {"then_branch": ["Exp"], "else_branch": ["Identity"]}


def test_local_functions() -> None:
    proto = model(
        "g (float[2] x) => (float[2] y) { y = local.f(x) }"
        '<domain: "local", opset_import: ["" : 17]> f (a) => (b)'
        " { c = Transpose(a) d = Identity(c) e = Transpose(d) b = Neg(e) }"
    )
    after = assert_rewrites(EliminateNoops(), proto, ops={"f": 1})
    assert [node.op_type for node in after.functions[0].node] == ["Transpose", "Transpose", "Neg"]


def test_vetoed_site_stays() -> None:
    subject = from_proto(model("g (float[2] x) => (float[2] y) { a = Identity(x) b = Identity(a) y = Exp(b) }"))
    result = EliminateNoops().apply(GraphView(subject, {"b": "not this one"}))
    assert [rewritten.site for rewritten in result.rewritten] == ["a"]
    assert [(skipped.site, skipped.reason) for skipped in result.skipped] == [("b", "not this one")]
    assert count_ops(to_proto(subject)) == {"Identity": 1, "Exp": 1}


STEPS = {
    "transpose": "{o} = Transpose<perm=[0,2,1]>({i})",
    "turn": "{o} = Transpose<perm=[1,2,0]>({i})",
    "identity": "{o} = Identity({i})",
    "one": "{o} = Mul({i}, one)",
    "zero": "{o} = Add({i}, zero)",
    "cast": "{o} = Cast<to=1>({i})",
    "reshape": "{o} = Reshape({i}, cube)",
    "flat": "{o}f = Flatten({i}) {o} = Reshape({o}f, cube)",
    "slice": "{o} = Slice({i}, begin, end)",
    "relu": "{o} = Relu({i})",
    "neg": "{o} = Neg({i})",
    "concat": "{o} = Concat<axis=1>({i})",
}


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8))
def test_random_chains_keep_their_outputs(steps: list[str]) -> None:
    names = ["x", *(f"t{index}" for index in range(len(steps)))]
    body = " ".join(STEPS[step].format(i=names[index], o=names[index + 1]) for index, step in enumerate(steps))
    proto = model(
        f"g (float[4,4,4] x) => (float[4,4,4] y) {{ {body} y = Exp({names[-1]}) }}",
        one=scalar(1),
        zero=scalar(0),
        cube=ints(4, 4, 4),
        begin=ints(0),
        end=ints(9),
    )
    after, result = run_alone(EliminateNoops(), proto)
    kept = count_ops(after)
    if not result.rewritten:
        assert kept == count_ops(proto)
        return
    assert kept.keys() <= {"Transpose", "Relu", "Neg", "Exp", "Reshape"}
    assert_rewrites(EliminateNoops(), proto, ops=kept)


def test_an_identity_behind_joined_reshapes_hands_its_name_to_the_join() -> None:
    proto = model(
        "g (float[N,3,5] x) => (float[N,15] y, float[N,15] z) { a = Exp(x) b = Reshape(a, s) c = Reshape(b, t) "
        "y = Identity(c) z = Neg(c) }",
        s=ints(0, 15, 1),
        t=ints(0, 15),
    )
    assert_rewrites(EliminateNoops(), proto, ops={"Exp": 1, "Reshape": 1, "Neg": 1})
