"""The bias behind a matrix product: scalars of rank 0, several readers, outputs, other operators."""

import numpy as np
import pytest

from graphopt.graph import GraphView
from graphopt.graph.added_bias import added_bias
from graphopt.model import from_proto
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import draw, model, run_alone


@pytest.mark.parametrize(
    ("text", "shape", "channels", "found"),
    [
        ("y = Add(m, b)", (4,), 4, 1),
        ("y = Add(b, m)", (4,), 4, 0),
        ("y = Add(m, b)", (1, 4), 4, 1),
        ("y = Add(m, b)", (), 1, 1),
        ("y = Add(m, b)", (1,), 1, 1),
        ("y = Add(m, b)", (), 4, None),
        ("y = Add(m, b)", (1,), 4, None),
        ("y = Add(m, b)", (2, 1), 2, None),
        ("y = Add(m, b)", (2, 4), 4, None),
        ("y = Sub(m, b)", (4,), 4, None),
        ("y = Add(m, x)", (4,), 4, None),
        ("n = Add(m, b) y = Add(n, m)", (4,), 4, None),
        ("i = Identity(b) y = Add(m, i)", (4,), 4, 1),
    ],
)
def test_which_constant_is_a_bias(text: str, shape: tuple[int, ...], channels: int, found: int | None) -> None:
    proto = model(
        f"g (float[2,{channels}] x) => (float[N,M] y) {{ m = MatMul(x, w) {text} }}",
        w=draw(channels, channels),
        b=draw(*shape),
    )
    view = GraphView(from_proto(proto))
    bias = added_bias(view, next(view.nodes("MatMul")), channels)
    assert (None if bias is None else bias.slot) == found
    if bias is not None:
        assert bias.node is next(view.nodes("Add"))
        np.testing.assert_array_equal(bias.values, draw(*shape))


def test_a_product_that_is_given_out_has_none() -> None:
    proto = model(
        "g (float[2,4] x) => (float[N,M] y, float[N,M] m) { m = MatMul(x, w) y = Add(m, b) }", w=draw(4, 4), b=draw(4)
    )
    view = GraphView(from_proto(proto))
    assert added_bias(view, next(view.nodes("MatMul")), 4) is None


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("outs", [1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_a_scalar_behind_a_product(flip: bool, outs: int, shape: tuple[int, ...]) -> None:
    """What constant channels contribute goes into a bias of one value, or into an Add of its own."""
    weight = draw(5, 6)
    weight[:, [1, 2]] = 0
    text = "y = Add(b, m)" if flip else "y = Add(m, b)"
    proto = model(
        f"g (float[4,5] x) => (float[N,M] y) {{ h = MatMul(x, w) r = Sigmoid(h) m = MatMul(r, v) {text} }}",
        w=weight,
        v=draw(6, outs),
        b=draw(*shape),
    )
    after, result = run_alone(create("prune-channels"), proto)
    assert result.rewritten
    ops = [node.op_type for node in after.graph.node]
    assert ops.count("Add") == (1 if outs == 1 else 2)
    feeds = {"x": draw(4, 5, seed=3)}
    np.testing.assert_allclose(Session(after).run(feeds)["y"], Session(proto).run(feeds)["y"], rtol=1e-5, atol=1e-6)
