"""Taps give inner tensors as the whole model computes them, and run no more than they need."""

import numpy as np
import onnx
import pytest

from graphopt.errors import ModelError
from graphopt.model import from_proto
from graphopt.runtime.session import Session
from graphopt.runtime.taps import Taps, cut
from graphopt.testing import model

TEXT = """g (float[N,3] x, bool c, float[2] z) => (float[N,3] y) {
  a = Mul(x, k) b = If(c) <then_branch = t () => (float[N,3] p) { p = Mul(a, k) },
                           else_branch = e () => (float[N,3] q) { q = Neg(a) }>
  d = Exp(b) y = Add(d, w) }"""
FEEDS = {"x": np.ones((2, 3), np.float32), "c": np.asarray(True), "z": np.zeros(2, np.float32)}


def net() -> onnx.ModelProto:
    return model(TEXT, k=np.full(3, 2, np.float32), w=np.ones(3, np.float32))


def test_values_are_those_of_the_whole_model() -> None:
    whole = Session(net(), extra_outputs=["a", "b", "d"]).run(FEEDS)
    found = Taps(from_proto(net()), ["d", "a", "b"]).run(FEEDS)
    assert list(found) == ["d", "a", "b"]
    for name, value in found.items():
        np.testing.assert_array_equal(value, whole[name])


def test_inputs_can_be_tapped_too() -> None:
    taps = Taps(from_proto(net()), ["x"])
    assert taps.run(FEEDS)["x"] is FEEDS["x"]
    both = Taps(from_proto(net()), ["x", "a"]).run(FEEDS)
    np.testing.assert_array_equal(both["a"], 2 * both["x"])


def test_initializers_can_be_tapped_too() -> None:
    """One that a caller can override holds what is fed, or what is stored where nothing is."""
    proto = model(
        "g (float[N,3] x, float[3] w) => (float[N,3] y) { a = Mul(x, k) y = Add(a, w) }",
        k=np.full(3, 2, np.float32),
        w=np.ones(3, np.float32),
    )
    taps, feeds = Taps(from_proto(proto), ["w", "k", "y"]), {"x": np.ones((2, 3), np.float32)}
    for more, expected in (({}, 1), ({"w": np.full(3, 5, np.float32)}, 5), ({"k": np.zeros(3, np.float32)}, 1)):
        found = taps.run(feeds | more)
        np.testing.assert_array_equal(found["w"], np.full(3, expected, np.float32))
        np.testing.assert_array_equal(found["k"], np.full(3, 2, np.float32))
        np.testing.assert_array_equal(found["y"], np.full((2, 3), 2 + expected, np.float32))
    alone = Taps(from_proto(proto), ["w"])
    np.testing.assert_array_equal(alone.run({})["w"], np.ones(3, np.float32))


def test_only_what_is_needed_is_left() -> None:
    left = cut(net(), ["b"])
    assert [node.op_type for node in left.graph.node] == ["Mul", "If"]
    assert [info.name for info in left.graph.input] == ["x", "c"]
    assert [tensor.name for tensor in left.graph.initializer] == ["k"]


def test_an_unknown_name() -> None:
    with pytest.raises(ModelError, match="the model has no tensor 'nowhere'"):
        Taps(from_proto(net()), ["nowhere"])
