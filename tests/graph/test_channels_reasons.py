"""What prune-channels says of idle channels that stay: which layer, how many, and why."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from graphopt.graph import GraphView
from graphopt.graph.channels import Channels, channel_groups
from graphopt.model import from_proto
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import assert_untouched, draw, model, read_by, run_alone

IMAGE = "g (float[N,3,4,4] x) => (float[N,5,h,w] y)"
STEPS = "g (float[t,b,3] x) => (float[t,1,b,4] y)"


def weight(*shape: int, dead: tuple[int, ...] = (), axis: int = 0, seed: int = 0) -> NDArray[np.float32]:
    """Draw a positive weight, some slices of it zero."""
    values: NDArray[np.float32] = np.abs(draw(*shape, seed=seed)) + np.float32(0.1)
    values[(slice(None),) * axis + (list(dead),)] = 0
    return values


WEIGHTS: dict[str, NDArray[Any]] = {
    "w": weight(6, 3, 1, 1, dead=(1,)),
    "whole": weight(6, 3, 1, 1),
    "most": weight(6, 3, 1, 1, dead=(0, 2, 4)),
    "nothing": np.zeros((6, 3, 1, 1), dtype=np.float32),
    "bias": weight(6, seed=1),
    "v": weight(5, 6, 1, 1),
    "wide": weight(5, 6, 3, 3),
    "v2": weight(5, 6, 1, 1, seed=2),
    "unread": weight(5, 6, 1, 1, dead=(0, 3), axis=1),
    "output": weight(5, 6, 1, 1, dead=(2,)),
    "shift": weight(5, seed=3),
    "scale": weight(6, 1, 1, dead=(1, 2)),
    "lw": weight(1, 16, 3),
    "lr": weight(1, 16, 4),
    "project": weight(3, 4, dead=(1, 2), axis=1),
    "zeros": np.zeros((1, 1, 4), dtype=np.float32),
    "two": np.array(2, dtype=np.float32),
    "single": np.zeros((1, 3, 1, 1), dtype=np.float32),
    "first": weight(5, 1, 1, 1),
    "row": np.array([0, 1]),
    "scales": np.array([1, 1, 2, 2], dtype=np.float32),
    "i0": np.array([0]),
    "i1": np.array([1]),
    "i2": np.array([2]),
    "i4": np.array([4]),
    "i8": np.array([8]),
}


def judge(text: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return what pruning removes and what it says of the rest; the outputs must stay the same."""
    proto = model(text, **read_by(text, WEIGHTS))
    after, result = run_alone(create("prune-channels", multiple=1), proto)
    feeds = {"x": np.abs(draw(*(5, 2, 3) if text.startswith(STEPS) else (2, 3, 4, 4), seed=7))}
    np.testing.assert_allclose(Session(after).run(feeds)["y"], Session(proto).run(feeds)["y"], rtol=1e-5, atol=1e-5)
    removed = [(each.site, each.detail) for each in result.rewritten]
    return removed, [(each.site, each.reason) for each in result.skipped]


@pytest.mark.parametrize(
    ("nodes", "removed", "reasons"),
    [
        ("a = Conv(x, whole) y = Conv(a, v)", [], []),
        ("a = Conv(x, w) y = Conv(a, v)", [("a", "1 channel removed")], []),
        ("a = Conv(x, most) y = Conv(a, v)", [("a", "3 channels removed")], []),
        (
            "a = Conv(x, w) y = Conv(a, output)",
            [("a", "1 channel removed")],
            [("y", "1 idle channel stays: 'y' is an output of the model")],
        ),
        (
            "a = Conv(x, nothing) y = Conv(a, v, shift)",
            [("a", "5 channels removed")],
            [
                ("a", "1 idle channel stays: the last channel of a layer"),
                ("y", "5 idle channels stay: 'y' is an output of the model"),
            ],
        ),
        (
            "a = Conv(x, w, bias) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, wide)",
            [],
            [("a", "1 idle channel stays: 'r' holds a constant there that Conv 'y' cannot absorb")],
        ),
        (
            "a = Conv(x, most, bias) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, wide)",
            [("a", "2 channels removed")],
            [("a", "1 idle channel stays: 'r' holds a constant there that Conv 'y' cannot absorb")],
        ),
        (
            "a = Conv(x, w) b = Conv(x, whole) s = Add(a, b) y = Conv(s, v)",
            [],
            [("a", "1 idle channel stays: coupled with 'b', which is needed and not constant there")],
        ),
        (
            "b = Conv(x, whole) a = Conv(x, most) s = Add(b, a) y = Conv(s, v)",
            [],
            [("b", "3 idle channels stay: coupled with another channel of 'b', which is needed and not constant")],
        ),
        (
            "a = Conv(x, whole) p = Conv(a, unread) r = Relu(a) q = Conv(r, v2) y = Add(p, q)",
            [],
            [],
        ),
        (
            "a = Conv(x, most) b = Conv(x, whole) s = Add(a, b) t = Mul(a, b) p = Conv(s, v) q = Conv(t, v2) "
            "y = Add(p, q)",
            [],
            [("a", "3 idle channels stay: coupled with 'b', which is needed and not constant there")],
        ),
        (
            "a = Conv(x, whole) r = Relu(a) h = Shape(r) q = ConstantOfShape(h) u = Add(a, q) y = Conv(u, unread)",
            [("a", "2 channels removed"), ("q", "replaced by the constant that it computes")],
            [],
        ),
    ],
)
def test_reasons_of_convolutions(nodes: str, removed: list[tuple[str, str]], reasons: list[tuple[str, str]]) -> None:
    assert judge(f"{IMAGE} {{ {nodes} }}") == (removed, reasons)


@pytest.mark.parametrize(
    "nodes",
    [
        "b = Gather<axis=2>(a, i0)",
        "b = Gather<axis=2>(a, row)",
        "b = Transpose<perm=[0,1,3,2]>(a)",
        "b = Slice(a, i0, i2, i2)",
        "b = MaxPool<kernel_shape=[2,2]>(a)",
        "b = Identity(a)",
        "b = Concat<axis=2>(a, a)",
        "b = Resize(a, , scales)",
    ],
)
def test_the_last_channel_of_a_layer_stays_behind_anything(nodes: str) -> None:
    removed, reasons = judge(f"{IMAGE} {{ a = Conv(x, single) {nodes} y = Conv(b, first, shift) }}")
    assert not removed
    assert ("a", "1 idle channel stays: the last channel of a layer") in reasons


@pytest.mark.parametrize("target", ["copied", "named"])
def test_sizes_without_a_name_are_copied(target: str) -> None:
    """Zeros in the target of a Reshape say that an axis stays as it is, whatever its size is."""
    numbers = {"copied": [0, 0, -1], "named": [0, 6, -1]}
    proto = model(
        """g (float[?,3,?,4] x) => (float[?,2] y) { a = Conv(x, w) b = Reshape(a, target)
        c = ReduceMean<axes=[2],keepdims=0>(b) y = MatMul(c, v) }""",
        w=weight(6, 3, 1, 1, dead=(1, 4)),
        v=weight(6, 2),
        target=np.array(numbers[target]),
    )
    after, result = run_alone(create("prune-channels", multiple=1), proto)
    assert [(each.site, each.detail) for each in result.rewritten] == [("a", "2 channels removed")]
    feeds = {"x": draw(2, 3, 5, 4)}
    np.testing.assert_allclose(Session(after).run(feeds)["y"], Session(proto).run(feeds)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("starts", "ends"), [("open", "i2"), ("i0", "open"), ("open", "open")])
def test_bounds_of_which_not_even_the_number_is_known(starts: str, ends: str) -> None:
    nodes = f"a = Conv(x, w) b = Slice(a, {starts}, {ends}) y = Conv(b, v)"
    text = f"g (float[N,3,4,4] x, int64[k] open) => (float[N,5,h,w] y) {{ {nodes} }}"
    proto = model(text, **read_by(text, WEIGHTS))
    after, result = run_alone(create("prune-channels", multiple=1), proto)
    assert not result.rewritten
    assert after.SerializeToString() == proto.SerializeToString()


@pytest.mark.parametrize(
    ("scale", "size", "names"),
    [("float[8] s", 0, ["b"]), ("float[1] s", 0, ["b"]), ("", 8, ["b", "s"]), ("", 1, ["b"])],
)
def test_only_stored_scales_belong_to_a_group(scale: str, size: int, names: list[str]) -> None:
    """What a normalization hands on has the scale and the shift that are stored, element by element, and no others."""
    given = {"b": weight(8), "v": weight(8, 2)} | ({"s": weight(size)} if size else {})
    inputs = ", ".join(filter(None, ("float[N,8] x", scale)))
    nodes = "n = LayerNormalization(x, s, b) y = MatMul(n, v)"
    view = GraphView(from_proto(model(f"g ({inputs}) => (float[N,2] y) {{ {nodes} }}", **given)))
    groups = [group for group in channel_groups(Channels.analyze(view)) if group.blocked is None]
    assert len(groups) == 8
    for group in groups:
        assert sorted({str(part.node.inputs[part.slot].name) for part in group.weights}) == sorted([*names, "v"])


def test_a_product_of_no_elements_is_left_alone() -> None:
    text = "g (float[4,0] x) => (float[4,0] y) { a = Relu(x) y = Mul(a, c) }"
    assert_untouched(create("prune-channels", multiple=1), model(text, c=np.zeros((4, 0), np.float32)))


LSTM = "y = LSTM<hidden_size=4>(x, lw, lr, , , h, h)"
BATCH = "s = Shape(x) b = Slice(s, i1, i2)"
FILLERS = {
    "ConstantOfShape": f"{BATCH} c = Concat<axis=0>(i1, b, i4) h = ConstantOfShape(c)",
    "Expand": f"{BATCH} c = Concat<axis=0>(i1, b, i4) h = Expand(zeros, c)",
    "Tile": f"{BATCH} c = Concat<axis=0>(i1, b, i1) h = Tile(zeros, c)",
    "arithmetic": f"{BATCH} c = Concat<axis=0>(i1, b, i4) e = Expand(zeros, c) h = Mul(e, two)",
    "Reshape": f"{BATCH} c = Concat<axis=0>(b, i4) d = Concat<axis=0>(i1, b, i4) e = ConstantOfShape(c) "
    "h = Reshape(e, d)",
    "CastLike": f"{BATCH} c = Concat<axis=0>(i1, b, i4) e = ConstantOfShape(c) h = CastLike(e, x)",
}


@pytest.mark.parametrize("text", FILLERS.values(), ids=FILLERS)
def test_starting_states_of_zeros_are_no_idle_channels(text: str) -> None:
    assert judge(f"{STEPS} {{ {text} {LSTM} }}") == ([], [])


@pytest.mark.parametrize(
    "text",
    [
        "e = MatMul(x, project) h = ReduceSum(e, i0)",
        f"{BATCH} c = Concat<axis=0>(i1, b, i4) k = ConstantOfShape(c) m = Slice(x, i0, i1) e = MatMul(m, project) "
        "h = Add(k, e)",
        f"{BATCH} c = Concat<axis=0>(i1, b, i4) k = ConstantOfShape(c) m = Slice(x, i0, i1) e = MatMul(m, project) "
        "h = Add(e, k)",
    ],
)
def test_starting_states_that_are_computed_are_layers(text: str) -> None:
    assert judge(f"{STEPS} {{ {text} {LSTM} }}") == ([], [("e", "2 idle channels stay: 'y' is an output of the model")])


def test_what_a_slice_leaves_of_a_constant_has_a_name() -> None:
    """Half of the channels of a filled tensor go, which no layer feeds: the site is the operator that fills it."""
    text = f"{BATCH} c = Concat<axis=0>(i1, b, i8) e = ConstantOfShape(c) h = Slice(e, i0, i4, i2)"
    assert judge(f"{STEPS} {{ {text} {LSTM} }}") == ([("e", "4 channels removed")], [])


HANDED = {
    "Conv": (
        "a = Conv(p, w) r = Tanh(a) q = Conv(r, v)",
        "w",
        weight(4, 3, 1, 1, dead=(1, 2)),
        [("a", "2 idle channels stay: the weight 'w' of Conv 'a' is handed in from outside of its body")],
    ),
    "what is not read": (
        "a = Conv(p, w) r = Tanh(a) q = Conv(r, v)",
        "v",
        weight(3, 4, 1, 1, dead=(0,), axis=1),
        [("q", "1 idle channel stays: the weight 'v' of Conv 'q' is handed in from outside of its body")],
    ),
    "both": (
        "a = ConvTranspose(p, w) r = Tanh(a) q = Conv(r, v)",
        "v",
        weight(3, 4, 1, 1, dead=(0,)) * weight(3, 4, 1, 1, dead=(1, 2), axis=1),
        [("q", "3 idle channels stay: the weight 'v' of Conv 'q' is handed in from outside of its body")],
    ),
    "nothing": ("a = Conv(p, w) r = Tanh(a) q = Conv(r, v)", "w", weight(4, 3, 1, 1), []),
    "MatMul": (
        "a = MatMul(p, m) r = Tanh(a) q = MatMul(r, n)",
        "m",
        weight(4, 6, dead=(5,), axis=1),
        [("a", "1 idle channel stays: the weight 'm' of MatMul 'a' is handed in from outside of its body")],
    ),
    "a vector": ("a = MatMul(p, m) b = Unsqueeze(a, last) q = Expand(b, sizes)", "m", np.zeros(4, np.float32), []),
}


@pytest.mark.parametrize(("nodes", "name", "values", "expected"), HANDED.values(), ids=HANDED)
def test_weights_that_a_function_is_given(
    nodes: str, name: str, values: NDArray[np.float32], expected: list[tuple[str, str]]
) -> None:
    """What such a weight would lose is told, by the layer that reads it: rows and columns of zeros."""
    own = {
        "w": weight(3, 4, 1, 1, seed=5) if "ConvT" in nodes else weight(4, 3, 1, 1, seed=5),
        "v": weight(3, 4, 1, 1, seed=6),
        "m": weight(4, 6, seed=7),
        "n": weight(6, 4, seed=8),
        "last": np.array([-1]),
        "sizes": np.array([1, 1, 1, 4]),
    }
    body = onnx.parser.parse_function(f'<domain: "local", opset_import: ["": 17]> f (p, {name}) => (q) {{ {nodes} }}')
    stored = [
        onnx.helper.make_node("Constant", [], [key], value=onnx.numpy_helper.from_array(array, key))
        for key, array in own.items()
        if key != name and f", {key})" in nodes
    ]
    layers = [*stored, *body.node]
    del body.node[:]
    body.node.extend(layers)
    head = '<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[2,3,4,4] x) => (float[2,3,4,4] y) {'
    proto = onnx.parser.parse_model(f"{head} y = local.f(x, given) }}")
    proto.functions.append(body)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "given"))
    _, result = run_alone(create("prune-channels", multiple=1), proto)
    assert not result.rewritten
    assert [(each.site, each.reason) for each in result.skipped] == expected


@pytest.mark.parametrize(("training", "known"), [("false", [0.0, 0.25]), ("true", [0.0, None])])
def test_what_is_known_behind_a_dropout(training: str, known: list[float | None]) -> None:
    """Zeros stay zeros, also in training mode, which drops and scales everything else."""
    nodes = "a = Conv(x, w, b) y = Dropout<seed=1>(a, ratio, training)"
    text = f"g (float[1,3,4,4] x) => (float[1,3,4,4] y) {{ {nodes} }}"
    bias = np.array([0, 0.25, 1], dtype=np.float32)
    values = {"w": weight(3, 3, 1, 1, dead=(0, 1)), "b": bias, "ratio": np.array(0.5, np.float32)}
    proto = model(text, **values, training=np.array(training == "true"))
    facts = Channels.analyze(GraphView(from_proto(proto))).facts
    (out,) = facts.program[-1].outputs
    found = facts.known_axes(out)[1].tolist()
    assert [None if np.isnan(value) else value for value in found] == [*known, None]
    rows = Session(proto).run({"x": draw(1, 3, 4, 4)})["y"][0].reshape(3, -1)
    assert [row[0] if (row == row[0]).all() else None for row in rows] == [*known, None]
