"""What goes together where an axis is split, what picking costs, and what multiply-accumulates are foretold."""

import numpy as np
import onnx
import pytest

from graphopt.graph import GraphView
from graphopt.graph.channels import Channels, channel_groups
from graphopt.graph.channels.cost import Cost
from graphopt.graph.channels.labels import Pick
from graphopt.model import from_proto
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import draw, model, run_alone

HEADS = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
FEATURES = [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
GATHERS = "q = Gather<axis={0}>({1}, k0) k = Gather<axis={0}>({1}, k1) v = Gather<axis={0}>({1}, k2) y = Sum(q, k, v)"
SLICES = "q = Slice({1}, i0, i1, i{0}) k = Slice({1}, i1, i2, i{0}) v = Slice({1}, i2, i3, i{0}) y = Sum(q, k, v)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = Relu(b)", HEADS),
        (GATHERS.format(2, "b"), FEATURES),
        (GATHERS.format(3, "b"), FEATURES),  # one of the four is not needed
        ("c = Transpose<perm=[2,0,1,3]>(b) " + GATHERS.format(0, "c"), FEATURES),
        ("c = Transpose<perm=[2,0,1,3]>(b) " + GATHERS.format(3, "c"), FEATURES),
        ("c = Identity(b) " + GATHERS.format(-2, "c"), FEATURES),
        ("q = Gather<axis=2>(b, i0) y = Relu(q)", HEADS),
        ("q, k, v = Split<axis=2>(b) y = Sum(q, k, v)", FEATURES),
        ("q, k = Split<axis=3>(b) y = Add(q, k)", HEADS),
        (SLICES.format(2, "b"), FEATURES),
        ("y = Slice(b, i0, i2, i2)", HEADS),
    ],
)
def test_an_axis_that_is_taken_apart_is_not_the_one_that_is_cut(text: str, expected: list[list[int]]) -> None:
    """Queries, keys and values of one product lose the same features; heads go whole."""
    numbers = {f"k{n}": np.array(n) for n in range(3)} | {f"i{n}": np.array([n]) for n in range(4)}
    nodes = f"a = MatMul(x, w) b = Reshape(a, h) {text} z = ReduceMax<keepdims=0>(y)"
    proto = model(
        f"g (float[6,2,5] x) => (float[N] z) {{ {nodes} }}",
        w=draw(5, 12),
        h=np.array([6, 2, 3, 4]),
        **{name: value for name, value in numbers.items() if f", {name}" in text},
    )
    channels = Channels.analyze(GraphView(from_proto(proto)))
    roots = channels.root[channels.labels.uses[next(iter(channels.labels.uses))].axes[1]]
    groups = [np.flatnonzero(roots == root).tolist() for root in dict.fromkeys(roots.tolist())]
    assert groups == expected


@pytest.mark.parametrize(
    ("gone", "stored"),
    [
        ((), 0),
        ((0,), 3),
        ((5,), 3),
        ((0, 5), 3),
        ((0, 1, 2), 3),
        ((2,), 5),
        ((1, 3), 4),
        ((0, 2), 4),
        ((1, 2, 3, 4), 2),
    ],
)
def test_what_picking_stores(gone: tuple[int, ...], stored: int) -> None:
    """Indices of all that stays, or three bounds of a Slice where that lies together."""
    mask = np.zeros(8, dtype=bool)
    mask[[place + 2 for place in gone]] = True
    node = next(iter(from_proto(model("g (float[2] x) => (float[2] y) { y = Relu(x) }")).graph.nodes))
    assert Pick(node, None, -1, np.arange(2, 8)).indices(mask) == stored


@pytest.mark.parametrize(("batch", "times"), [("N", 1), ("1", 1), ("4", 4)])
def test_multiply_accumulates(batch: str, times: int) -> None:
    """A batch of unknown size counts as one, a batch of known size as it is."""
    proto = model(
        f"""g (float[{batch},3,5,5] x) => (float[{batch},4] y) {{
        a = Conv(x, w) r = Relu(a) f = Conv<group=2>(r, u) p = ReduceMax<axes=[2,3],keepdims=0>(f) y = Gemm(p, v) }}""",
        w=draw(6, 3, 3, 3),
        u=draw(8, 3, 1, 1),
        v=draw(8, 4),
    )
    channels = Channels.analyze(GraphView(from_proto(proto)))
    cost = Cost.of(channels)
    nothing = np.zeros(len(channels.root), dtype=bool)
    assert not cost.unknown
    assert cost.macs(nothing) == times * (6 * 3 * 9 * 9 + 8 * 3 * 9 + 8 * 4)
    assert cost.parameters(nothing) == 6 * 3 * 9 + 8 * 3 + 8 * 4


def test_a_shape_is_written_down_only_where_a_size_that_changes_is_read() -> None:
    """Of a Shape of which only the batch is read nothing changes; one whose channels are read becomes a constant."""
    weight = draw(6, 3, 1, 1)
    weight[[1, 2]] = 0
    for axis, left in ((0, 1), (1, 0)):
        proto = model(
            """g (float[2,3,4,4] x) => (float[N,3,4,4] y) { a = Conv(x, w) r = Relu(a) h = Shape(r) n = Gather(h, k)
            f = Cast<to=1>(n) b = Conv(r, v) y = Mul(b, f) }""",
            w=weight,
            k=np.array(axis),
            v=draw(3, 6, 1, 1),
        )
        after, _ = run_alone(create("prune-channels", multiple=1), proto)
        assert sum(node.op_type == "Shape" for node in after.graph.node) == left
        given = {"x": draw(2, 3, 4, 4)}
        np.testing.assert_allclose(Session(after).run(given)["y"], Session(proto).run(given)["y"], rtol=1e-5, atol=1e-5)


def test_groups_are_numbered_by_their_smallest_label() -> None:
    proto = model(
        "g (float[N,3] x) => (float[N,2] y) { a = MatMul(x, w) y = MatMul(a, v) }", w=draw(3, 4), v=draw(4, 2)
    )
    channels = Channels.analyze(GraphView(from_proto(proto)))
    assert [group.index for group in channel_groups(channels) if group.blocked is None] == sorted(
        int(root) for root in set(channels.root.tolist()) if root not in channels.blocked and channels.present[root]
    )


def test_an_axis_of_a_size_that_is_not_known_may_be_repeated_or_not() -> None:
    v = draw(8, 3)
    v[6:] = 0
    proto = model("g (float[N,K] x) => (float[2,3] z) { y = Expand(x, s) z = MatMul(y, v) }", s=np.array([2, 8]), v=v)
    pruned, result = run_alone(create("prune-channels", multiple=1), proto)
    assert not result.rewritten
    for shape in ((1, 1), (2, 1), (1, 8), (2, 8)):
        feeds = {"x": draw(*shape)}
        np.testing.assert_array_equal(Session(pruned).run(feeds)["z"], Session(proto).run(feeds)["z"])


def test_what_a_product_contracts_is_as_long_as_the_weight_where_the_input_does_not_tell() -> None:
    w, v = draw(5, 4), draw(4, 3)
    w[:, 1] = 0
    proto = model("g (float[N,K] x) => (float[N,3] z) { h = MatMul(x, w) z = MatMul(h, v) }", w=w, v=v)
    pruned, result = run_alone(create("prune-channels", multiple=1), proto)
    assert [(each.site, each.detail) for each in result.rewritten] == [("h", "1 channel removed")]
    feeds = {"x": draw(6, 5)}
    np.testing.assert_allclose(Session(pruned).run(feeds)["z"], Session(proto).run(feeds)["z"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shapes", [("2,5", "2,3,5"), ("2,5", "7,5"), ("2,5", "2,5")])
def test_a_function_knows_of_its_input_what_all_calls_have_in_common(shapes: tuple[str, str]) -> None:
    first, second = shapes
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "l": 1]> '
        f"g (float[{first}] x, float[{second}] s, float[5,4] w) => (float z, float t) "
        "{ z = l.f(x, w) t = l.f(s, w) } "
        '<domain: "l", opset_import: ["": 17]> f (a, w) => (b) { b = MatMul(a, w) }'
    )
    for out in proto.graph.output:
        out.type.tensor_type.ClearField("shape")
    view = GraphView(from_proto(proto))
    facts = Channels.analyze(view).facts
    (given,) = (tensor for function in view.model.functions for tensor in function.inputs if tensor.name == "a")
    ranks = [text.count(",") + 1 for text in shapes]
    known = tuple(
        int(left) if left == right else None for left, right in zip(first.split(","), second.split(","), strict=False)
    )
    assert facts.shape(given) == (known if len(set(ranks)) == 1 else None)


@pytest.mark.parametrize(("dead", "fine"), [([1], False), ([1, 3, 5, 7], True), ([1, 2], True), ([3], False)])
def test_every_other_channel_is_sliced_while_what_stays_is_evenly_spaced(dead: list[int], fine: bool) -> None:
    w = draw(8, 3, 1, 1)
    w[dead] = 0
    proto = model(
        "g (float[2,3,5,5] x) => (float[2,3,5,5] z, float[2,2,5,5] t) "
        "{ a = Conv(x, w) y = Slice(a, i0, i8, i1, i2) z = Conv(y, v) t = Conv(a, u) }",
        w=w, v=draw(3, 4, 1, 1), u=draw(2, 8, 1, 1), **{f"i{n}": np.array([n]) for n in (0, 1, 2, 8)},
    )  # fmt: skip
    pruned, result = run_alone(create("prune-channels", multiple=1), proto)
    assert bool(result.rewritten) is fine, result
    if not fine:
        assert any("is not evenly spaced" in each.reason for each in result.skipped)
    feeds = {"x": draw(2, 3, 5, 5)}
    before, after = Session(proto).run(feeds), Session(pruned).run(feeds)
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)
