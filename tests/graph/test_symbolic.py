"""Symbolic shapes against ONNX Runtime: whatever the sweep claims of a tensor must be so when the model runs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from graphopt.graph import GraphView
from graphopt.graph.edit import Edit
from graphopt.graph.symbolic import Facts
from graphopt.graph.symbolic import expression as ex
from graphopt.graph.symbolic.targets import expand_numbers, reshape_numbers
from graphopt.model import from_proto, to_proto
from graphopt.runtime.session import Session
from graphopt.testing import model, random_feeds


class _Spelled:
    """Evaluates an operation as an expression's name spells it out: ``div[a,b]`` indexes this object."""

    def __init__(self, operation: Any) -> None:
        self.operation = operation

    def __getitem__(self, operands: Any) -> Any:
        return self.operation(*operands) if isinstance(operands, tuple) else operands


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


OPERATIONS = {
    "div": _Spelled(truncated),
    "mod": _Spelled(lambda a, b: a % b),
    "max": _Spelled(max),
    "min": _Spelled(min),
    "extent": _Spelled(None),
}


def evaluate(entry: ex.Entry, sizes: Mapping[str, int]) -> int:
    return int(eval(str(entry).replace("~", ""), {**OPERATIONS, **sizes}))


SIZES = st.fixed_dictionaries({"N": st.integers(0, 9), "H": st.integers(0, 40), "W": st.integers(1, 40)})
LEAVES = st.one_of(st.integers(-8, 8), st.sampled_from(["N", "H", "W"]).map(ex.name))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.tuples(
        st.sampled_from(["add", "subtract", "multiply", "divide", "modulo", "maximum", "minimum"]), inner, inner
    ),
    max_leaves=8,
)
PLAIN: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": truncated,
    "modulo": lambda a, b: a % b,
    "maximum": max,
    "minimum": min,
}


def build(tree: Any) -> ex.Entry | None:
    if not isinstance(tree, tuple):
        return tree  # type: ignore[no-any-return]
    left, right = build(tree[1]), build(tree[2])
    if left is None or right is None:
        return None
    return getattr(ex, tree[0])(left, right)  # type: ignore[no-any-return]


def compute(tree: Any, sizes: Mapping[str, int]) -> int:
    if not isinstance(tree, tuple):
        return evaluate(tree, sizes)
    return int(PLAIN[tree[0]](compute(tree[1], sizes), compute(tree[2], sizes)))


@settings(derandomize=True, max_examples=400, deadline=None)
@given(TREES, SIZES)
def test_arithmetic_agrees_with_integers(tree: Any, sizes: dict[str, int]) -> None:
    try:
        expected = compute(tree, sizes)
    except ZeroDivisionError:
        return
    entry = build(tree)
    if entry is not None:
        assert evaluate(entry, sizes) == expected


@settings(derandomize=True, max_examples=400, deadline=None)
@given(TREES, TREES, SIZES)
def test_what_is_certain_is_so(left: Any, right: Any, sizes: dict[str, int]) -> None:
    try:
        a, b = build(left), build(right)
        if a is None or b is None:
            return
        x, y = evaluate(a, sizes), evaluate(b, sizes)
    except ZeroDivisionError:
        return
    assert not ex.nonnegative(a) or x >= 0
    assert not ex.positive(a) or x > 0
    assert ex.equal(a, b) in (None, x == y)


N, H = ex.name("N"), ex.name("H")


def grown(start: ex.Entry, step: Any, steps: int = 200) -> list[ex.Entry]:
    found = [start]
    for _ in range(steps):
        found.append(step(found[-1]))
    return found


STEPS: dict[str, Any] = {
    "square": lambda a: ex.multiply(a, a),
    "square of a sum": lambda a: ex.multiply(ex.add(a, H), ex.add(a, N)),
    "larger of halves": lambda a: ex.maximum(ex.divide(a, 2) or 0, ex.subtract(a, H)),
    "popped": lambda a: ex.maximum(0, ex.subtract(ex.minimum(a, 1 << 40), ex.minimum(a, 1))),
    "rest of itself": lambda a: ex.modulo(ex.multiply(a, 3), ex.add(a, 1)),
    "sum with the last": lambda a: ex.add(ex.multiply(a, 2), ex.minimum(a, H)),
}


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("start", [N, ex.add(N, 3), ex.multiply(N, 7), 3], ids=str)
def test_no_chain_lets_an_expression_grow(kind: str, start: ex.Entry) -> None:
    first, again = grown(start, STEPS[kind]), grown(start, STEPS[kind])
    assert first == again
    assert max(len(str(entry)) for entry in first) < ex.MOST_TERMS * ex.MOST_FACTORS * (ex.LONGEST + 20)
    assert all(not isinstance(entry, int) or -(1 << 63) <= entry < 1 << 63 for entry in first)
    if len(set(first)) > 1:  # steps on other operands stay other names
        assert grown(ex.name("M"), STEPS[kind])[-1] != first[-1]


def test_what_is_within_bounds_stays_a_polynomial() -> None:
    names = [ex.name(letter) for letter in "abcdefgh"]
    sums = [ex.add(a, b) for a, b in zip(names[::2], names[1::2], strict=True)]
    whole = ex.product(sums)
    assert isinstance(whole, ex.Expression)
    assert len(whole.terms) == 16
    assert ex.quotient(ex.multiply(whole, N), N) == whole
    assert ex.product([N] * ex.MOST_FACTORS) != ex.name("~mul[N,N]")
    assert str(ex.product([N] * ex.MOST_FACTORS)) == "*".join(["N"] * ex.MOST_FACTORS)
    assert str(ex.multiply(ex.product([N] * ex.MOST_FACTORS), N)).startswith("~mul[")
    assert ex.add((1 << 63) - 1, 0) == (1 << 63) - 1
    assert isinstance(ex.add((1 << 63) - 1, 1), ex.Expression)
    assert isinstance(ex.multiply(1 << 62, -2), int)
    assert isinstance(ex.multiply(1 << 62, 2), ex.Expression)


def test_what_nobody_named_is_still_seen_in_a_digest() -> None:
    long = [ex.name("x" * ex.LONGEST), ex.name("?" + "x" * ex.LONGEST)]
    shortened = [ex.divide(each, H) for each in long]
    assert [ex.is_fresh(each) for each in shortened if each is not None] == [False, True]
    assert [each.at_ones() for each in shortened if isinstance(each, ex.Expression)] == [None, None]
    assert all(len(str(each)) < ex.LONGEST for each in shortened)
    assert ex.divide(long[0], H) == shortened[0] != ex.divide(long[0], N)


TARGETS: dict[str, tuple[list[Any], Any, list[int] | None]] = {
    "copies": ([N, 12], (N, 3, 4), [0, 12]),
    "derives": ([ex.multiply(N, 3), 4], (N, 3, 4), [-1, 4]),
    "copies and keeps its own -1": ([N, -1], (N, 3, 4), [0, -1]),
    "two to derive": ([H, N], (N, H), None),
    "derived beside a dimension that may be zero": ([N, ex.multiply(H, 2)], (N, H, 2), None),
    "derived beside its own -1": ([ex.multiply(N, 3), -1], (N, 3, 4), None),
    "derived beside a literal copy": ([ex.multiply(N, 3), 0], (N, 4, 3), None),
    "unknown entry derived": ([None, 4], (N, 4), [-1, 4]),
    "unknown data": ([N, 4], None, [-1, 4]),
    "all plain": ([2, 3], (N,), [2, 3]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_reshape_targets(name: str) -> None:
    target, data, numbers = TARGETS[name]
    assert reshape_numbers(target, data) == numbers


def test_expand_targets() -> None:
    assert expand_numbers([N, 3], (N, 1)) == [1, 3]
    assert expand_numbers([2, N, 3], (N, 3)) == [2, 1, 3]
    assert expand_numbers([N, 3], (1, 3)) is None
    assert expand_numbers([N, 3], None) is None
    assert expand_numbers([N, 3], (3,)) is None


def check_claims(proto: onnx.ModelProto, feeds: dict[str, Any], sizes: Mapping[str, int]) -> int:
    """Compare every claim with what ONNX Runtime computes; return how many were not plain numbers."""
    subject = from_proto(proto)
    facts = Facts(subject)
    tensors = {out.name: out for node in subject.graph.nodes for out in node.outputs if out.name}
    results = Session(proto, extra_outputs=list(tensors)).run(feeds)
    symbolic = 0
    for name, tensor in tensors.items():
        result, shape, value = results[name], facts.shape(tensor), facts.value(tensor)
        assert facts.type(tensor) in (0, onnx.helper.np_dtype_to_tensor_dtype(result.dtype)), name
        claims = [] if shape is None else list(zip(shape, result.shape, strict=True))
        if value is not None:
            assert value.shape == result.shape, name
            claims += [(e, r) for e, r in zip(value.reshape(-1), result.reshape(-1), strict=True) if e is not None]
        for claimed, actual in claims:
            if "?" not in str(claimed):
                assert evaluate(claimed, sizes) == actual, f"{name}: {claimed} is {actual}"
                symbolic += not isinstance(claimed, int)
    return symbolic


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


WEIGHTS = {f"i{n}": ints(n) for n in (0, 1, 2, 3, 4)} | {"m1": ints(-1), "far": ints(2**63 - 1), "s2": np.array(2)}
BODIES = {
    "windows": "a = Conv<strides=[2,1], pads=[1,1,1,1]>(x, w) b = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) "
    "c = AveragePool<kernel_shape=[3,3], pads=[0,1,0,1]>(b)",
    "slices": "a = Slice(x, i1, m1, i2) b = Slice(x, i0, far, i3) c = Slice(x, i2, i4, i2) d = Slice(x, m1, far, i3)",
    "arithmetic": "s = Shape(x) h = Slice(s, i2, i3) a = Div(h, i2) b = Mul(a, i2) c = Sub(h, b) d = Mod(h, i3) "
    "e = Min(h, i4) f = Max(h, i4) g = Neg(d) k = Equal(c, i0) l = Where(k, h, a) m = ReduceProd<keepdims=0>(s)",
    "targets": "s = Shape<end=2>(x) t = Concat<axis=0>(s, m1) a = Reshape(x, t) b = Flatten<axis=2>(x) "
    "u = Shape<start=2>(x) v = ReduceProd<keepdims=1>(u) r = Concat<axis=0>(m1, v) c = Reshape(x, r)",
    "ranges": "s = Shape(x) h = Gather(s, s2) z = Sub(h, h) o = Div(s2, s2) a = Range(z, h, o) b = Unsqueeze(a, i0) "
    "e = Concat<axis=0>(i3, hv) hv = Unsqueeze(h, i0) c = Expand(b, e) d = Tile(b, e) f = ConstantOfShape(e)",
    "pads": "p = Concat<axis=0>(i0, i0, i1, i2, i0, i0, i3, i0) a = Pad(x, p) b = Concat<axis=2>(x, a2) a2 = Relu(x) "
    "c = Transpose<perm=[2,0,1,3]>(b) d = Squeeze(e2, i0) e2 = Unsqueeze(c, i0)",
}


@pytest.mark.parametrize("sizes", [(1, 12, 9), (3, 10, 7), (2, 13, 11)])
@pytest.mark.parametrize("name", BODIES)
def test_claims_hold_on_onnx_runtime(name: str, sizes: tuple[int, int, int]) -> None:
    last = BODIES[name].split(" = ")[0].split()[0]
    end = f"q = Shape({last}) qf = Cast<to=1>(q) y = ReduceSum<keepdims=0>(qf)"
    text = f"g (float[N,3,H,W] x) => (float y) {{ {BODIES[name]} {end} }}"
    proto = from_text(text)
    feeds = {"x": np.random.default_rng(0).standard_normal((sizes[0], 3, *sizes[1:])).astype(np.float32)}
    assert check_claims(proto, feeds, dict(zip("NHW", sizes, strict=True))) > 3


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 23])
@pytest.mark.parametrize(("start", "end"), [(0, 1), (-1, 99), (0, 99), (2, -1)], ids=str)
def test_a_slice_of_a_free_axis_in_every_opset(opset: int, start: int, end: int) -> None:
    """ONNX's own inference says of version 10 that a cut axis is as long as before."""
    bounds = {"s": ints(start), "e": ints(end), "i0": ints(0)}
    node = f"Slice<axes=[0], starts=[{start}], ends=[{end}]>(x)" if opset < 10 else "Slice(x, s, e, i0)"
    proto = model(
        f"g (float[N,3] x) => (float[M,3] y) {{ a = Relu(x) y = {node} }}", opset, **(bounds if opset >= 10 else {})
    )
    facts = Facts(subject := from_proto(proto))
    claimed = facts.shape(subject.graph.outputs[0])
    assert claimed is not None
    for size in (3, 5):
        result = Session(proto).run({"x": np.zeros((size, 3), np.float32)})["y"]
        assert (claimed[0] == ex.name("N")) <= (len(result) == size)
        assert claimed[1] == 3


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_what_a_quantizer_makes_of_an_lstm_has_the_shapes_of_one(direction: str) -> None:
    directions, rng = 1 + (direction == "bidirectional"), np.random.default_rng(0)
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> '
        "g (float[N,6] x) => (float[A,B,C,D] y) { c = Unsqueeze(x, i1) xs = Concat<axis=1>(c, c, c) "
        f'y, h, o = com.microsoft.DynamicQuantizeLSTM<hidden_size=5, direction="{direction}">'
        "(xs, w, r, , , , , , ws, wz, rs, rz) s = Shape(y) t = Transpose<perm=[0,2,1,3]>(y) u = Reshape(t, joined) }"
    )
    arrays = {
        "w": rng.integers(-9, 9, (directions, 6, 20), dtype=np.int8),
        "r": rng.integers(-9, 9, (directions, 5, 20), dtype=np.int8),
        "joined": ints(0, 0, -1),
        **{name: np.full(directions, 0.1, np.float32) for name in ("ws", "rs")},
        **{name: np.zeros(directions, np.int8) for name in ("wz", "rz")},
        "i1": ints(1),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(values, name) for name, values in arrays.items())
    feeds = {"x": rng.standard_normal((4, 6)).astype(np.float32)}
    assert check_claims(proto, feeds, {"N": 4}) > 5
    facts = Facts(subject := from_proto(proto))
    shapes = {out.name: facts.shape(out) for node in subject.graph.nodes for out in node.outputs}
    assert shapes["y"] == (ex.name("N"), directions, 3, 5)
    assert shapes["u"] == (ex.name("N"), 3, 5 * directions)
    assert shapes["h"] == shapes["o"] == (directions, 3, 5)


POOLS = "kernel_shape=[3,3], strides=[3,3], pads=[1,1,1,1], ceil_mode=1"
WRONG_IN_ONNX = {
    "windows in the padding, 10": (10, "float[N,3,2,2] x, float[N,3,4,4] k", f"y = MaxPool<{POOLS}>(x)"),
    "windows in the padding, 12": (12, "float[N,3,2,2] x, float[N,3,4,4] k", f"y = MaxPool<{POOLS}>(x)"),
    "windows in the padding, 17": (17, "float[N,3,2,2] x, float[N,3,4,4] k", f"y = AveragePool<{POOLS}>(x)"),
    "windows in the padding, 21": (21, "float[N,3,2,2] x, float[N,3,4,4] k", f"y = AveragePool<{POOLS}>(x)"),
    "one side is the default": (17, "float[N,128,1] x, float[N] k", "y = STFT(x, step, , frame)"),
    "scores of a free length": (23, "float[N,2,4,8] x, float[N,2,M,8] k", "a, b, c, y = Attention(x, k, k)"),
    "one head of a free width": (
        23,
        "float[N,4,8] x, float[N,6,M] k",
        "y = Attention<q_num_heads=2, kv_num_heads=2>(x, k, k)",
    ),
}


@pytest.mark.parametrize("name", WRONG_IN_ONNX)
def test_what_the_inference_of_onnx_says_wrongly(name: str) -> None:
    opset, inputs, node = WRONG_IN_ONNX[name]
    rank = 3 if "width" in name else 4
    out = ",".join("ABCD"[:rank])
    stored = {"step": np.array(8), "frame": np.array(16)} if "STFT" in node else {}
    proto = model(f"g ({inputs}) => (float[{out}] y) {{ {node} }}", opset, 8 if opset < 23 else 11, **stored)
    facts = Facts(subject := from_proto(proto))
    claimed = facts.shape(subject.graph.outputs[0])
    assert claimed is not None
    result = Session(proto).run(random_feeds(proto, 0, 8))["y"]
    numbers = [(entry, size) for entry, size in zip(claimed, result.shape, strict=True) if isinstance(entry, int)]
    assert numbers
    assert all(entry == size for entry, size in numbers), f"{claimed} instead of {result.shape}"


def from_text(text: str) -> onnx.ModelProto:
    """Parse without the checker, which wants sorted nodes, and sort by importing."""
    header = '<ir_version: 8, opset_import: ["" : 18]>'
    proto = onnx.parser.parse_model(f"{header} {text}")
    weights = {**WEIGHTS, "w": np.ones((2, 3, 3, 3), dtype=np.float32)}
    for key, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), key))
    return to_proto(from_proto(proto))


def test_equal_names_are_equal_and_unnamed_dimensions_are_not() -> None:
    proto = model("g (float[N,?] x, float[N,?] z) => (float y) { y = ReduceSum<keepdims=0>(x) }")
    subject = from_proto(proto)
    facts = Facts(subject)
    first, second = (facts.shape(tensor) for tensor in subject.graph.inputs)
    assert first is not None
    assert second is not None
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_malformed_nodes_are_unknown() -> None:
    proto = model(
        "g (float[N,3] x) => (float[N,3] y) { s = Shape(x) a = Gather(s, far) b = Reshape(s, t) y = Relu(x) }",
        far=ints(7),
        t=ints(5, 5),
    )
    subject = from_proto(proto)
    facts = Facts(subject)
    by_name = {out.name: facts.value(out) for node in subject.graph.nodes for out in node.outputs}
    assert by_name["a"] is None
    assert by_name["b"] is None


def test_what_both_branches_tell_is_known_of_an_if() -> None:
    proto = model(
        "g (bool c, float[N,3] x) => (float[A,B] y) { h = If (c) <"
        "then_branch = yes () => (float[A,B] t) { t = Relu(x) }, "
        "else_branch = no () => (float[A,B] e) { e = Concat<axis = 0>(x, x) }> s = Shape(h) y = Expand(h, s) }"
    )
    subject = from_proto(proto)
    facts = Facts(subject)
    held = facts.of(subject.graph.nodes[0].outputs[0])
    assert held.type == onnx.TensorProto.FLOAT
    assert held.shape is not None
    assert held.shape[1] == 3
    assert "?" in str(held.shape[0])
    feeds = {"x": np.ones((2, 3), np.float32), "c": np.array(False)}
    check_claims(proto, feeds, {"N": 2})


def test_a_refresh_finds_what_a_fresh_sweep_finds() -> None:
    proto = from_text("g (float[N,3,H,W] x) => (float y) { " + BODIES["targets"] + " y = ReduceSum<keepdims=0>(c) }")
    subject = from_proto(proto)
    facts = Facts(subject)
    copy = subject.copy()
    moved = facts.moved_to(copy)
    fresh = Facts(copy)
    tensors = [out for node in copy.graph.nodes for out in node.outputs]
    assert [str(moved.of(t)) for t in tensors] == [str(fresh.of(t)) for t in tensors]
    known = [moved.of(tensor) for tensor in tensors]
    moved.refresh()
    assert all(moved.of(tensor) is fact for tensor, fact in zip(tensors, known, strict=True))
    edit = Edit(copy)
    edit.bypass(next(node for node in copy.graph.nodes if node.op == "Flatten"))
    edit.settle()
    moved.refresh()
    assert all(node.outputs[0] in tensors and id(node) in moved for node in copy.graph.nodes)


def test_shapes_that_a_view_forgets_are_found_out_anew() -> None:
    """What is known symbolically says nothing of shapes any more once they are forgotten, unless it is kept."""
    text = "g (float[N,3] x) => (float[N,M] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"
    view = GraphView(from_proto(model(text, w=np.ones((3, 4), np.float32), v=np.ones((4, 2), np.float32))))
    first, second, last = view.nodes()
    assert view.facts.shape(second.outputs[0]) is not None
    assert view.shape(second.outputs[0])[1:] == (4,)
    view.edit.set_values(first, 1, np.ones((3, 5)))
    view.edit.set_values(last, 1, np.ones((5, 2)))
    view.edit.settle()
    kept = view.facts
    view.forget_shapes(facts=False)
    assert view.facts is kept
    view.forget_shapes()
    assert view.shape(second.outputs[0])[1:] == (5,)
