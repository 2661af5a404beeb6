"""The indices of a Slice: against ONNX Runtime, for bounds inside and outside of the axis, forwards and backwards."""

import itertools

import numpy as np
import pytest

from graphopt.graph import GraphView
from graphopt.graph.evaluate import evaluate
from graphopt.graph.slicing import slice_indices, slice_of
from graphopt.model import from_proto
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import draw, model, run_alone

BOUNDS = (-(2**63), -9, -5, -4, -1, 0, 1, 3, 4, 5, 2**31 - 2, 2**31 - 1, 2**63 - 1)
STEPS = (1, 2, 7, -1, -2, -(2**62))


@pytest.mark.parametrize("size", [0, 1, 4])
def test_every_bound_is_read_as_onnx_runtime_does(size: int) -> None:
    proto = model(
        "g (float[N] x, int64[1] s, int64[1] e, int64[1] t) => (float[M] y) { y = Slice(x, s, e, a, t) }", a=[0]
    )
    session = Session(proto)
    data = np.arange(size, dtype=np.float32)
    for start, end, step in itertools.product(BOUNDS, BOUNDS, STEPS):
        feeds = {"x": data, "s": np.array([start]), "e": np.array([end]), "t": np.array([step])}
        expected = session.run(feeds)["y"]
        assert data[slice_of(size, start, end, step)].tolist() == expected.tolist(), (start, end, step)
        assert list(slice_indices(size, start, end, step)) == expected.tolist()


CASES = [(-100, -1, -1), (-100, -(2**63), -1), (4, -100, -3), (1, 100, 2), (-100, 2, 1), (100, 0, -2)]


@pytest.mark.parametrize("bounds", CASES)
def test_constant_expressions(bounds: tuple[int, int, int]) -> None:
    values = draw(3, 6, 2)
    proto = model(
        "g (float[N] x) => (float[a,b,c] y) { w = Slice(v, s, e, a, t) z = Identity(w) y = Add(z, x) }",
        v=values,
        **{name: np.array([bound]) for name, bound in zip("set", bounds, strict=True)},
        a=[-2],
    )
    expected = Session(proto).run({"x": np.zeros(1, np.float32)})["y"]
    view = GraphView(from_proto(proto))
    found = evaluate(view, next(view.nodes("Add")).inputs[0])
    assert found is not None
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bounds", [case for case in CASES if slice_indices(6, *case)])
@pytest.mark.parametrize("axis", [1, -3])
def test_channels_are_followed(bounds: tuple[int, int, int], axis: int) -> None:
    count = len(slice_indices(6, *bounds))
    weight = draw(6, 3, 1, 1)
    weight[[1, 2, 4]] = 0
    proto = model(
        "g (float[N,3,2,2] x) => (float[N,M,2,2] y) { c = Conv(x, w) d = Slice(c, s, e, a, t) y = Conv(d, v) }",
        w=weight,
        v=draw(2, count, 1, 1),
        **{name: np.array([bound]) for name, bound in zip("set", bounds, strict=True)},
        a=[axis],
    )
    after, _ = run_alone(create("prune-channels"), proto)
    feeds = {"x": draw(2, 3, 2, 2)}
    np.testing.assert_allclose(Session(after).run(feeds)["y"], Session(proto).run(feeds)["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bounds", CASES)
def test_shapes_that_are_sliced(bounds: tuple[int, int, int]) -> None:
    """A Reshape to a size that a backward Slice picks out of a shape."""
    weight = draw(6, 3, 1, 1)
    weight[[1, 2, 4]] = 0
    proto = model(
        """g (float[2,3,5,4] x) => (float[a,b] y) { c = Conv(x, w) h = Shape(c) p = Slice(h, s, e, a, t)
        k = Concat<axis=0>(p, m) f = Reshape(c, k) z = Identity(f) r = ReduceSum<keepdims=0>(z) l = Reshape(r, o)
        y = Add(l, l) }""",
        w=weight,
        m=np.array([-1]),
        o=np.array([1, 1]),
        **{name: np.array([bound]) for name, bound in zip("set", bounds, strict=True)},
        a=[0],
    )
    after, _ = run_alone(create("prune-channels"), proto)
    feeds = {"x": draw(2, 3, 5, 4)}
    np.testing.assert_allclose(Session(after).run(feeds)["y"], Session(proto).run(feeds)["y"], rtol=1e-5, atol=1e-5)
