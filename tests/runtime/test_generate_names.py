"""Sizes of generated feeds: names of dimensions count as far as the model needs them, and no further."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest

from graphopt.model import from_proto
from graphopt.runtime.data import ListData
from graphopt.runtime.feeds import generate
from graphopt.testing import model


def drawn(
    text: str, renamed: Mapping[str, str] = MappingProxyType({}), opset: int = 17, **weights: np.ndarray
) -> ListData:
    """Generate feeds for a model, some of its dimensions renamed to what the text form cannot say."""
    proto = model(text, opset=opset, **weights)
    for info in [*proto.graph.input, *proto.graph.output]:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]
    return generate(from_proto(proto))


MEANS = (
    "g (float[B,S,8] a, float[B,S,8] b) => (float[B,8] y)"
    " { p = ReduceMean<axes = [1], keepdims = 0>(a) q = ReduceMean<axes = [1], keepdims = 0>(b) y = Add(p, q) }"
)


def test_a_name_that_the_model_does_not_need_is_drawn_apart() -> None:
    data = drawn(MEANS)
    assert data.unbound == {"S"}
    first, second = data.feeds
    assert first["a"].shape == first["b"].shape
    assert second["a"].shape[0] == second["b"].shape[0]
    assert second["a"].shape[1] != second["b"].shape[1]


def test_a_name_that_the_model_needs_binds() -> None:
    data = drawn("g (float[B,S] a, float[B,S] b) => (float[B,S] y) { y = Add(a, b) }")
    assert data.unbound == frozenset()
    assert all(feeds["a"].shape == feeds["b"].shape for feeds in data.feeds)


def test_a_longer_table_does_not_unbind_its_name() -> None:
    text = "g (float[S] table, float[S] x) => (float[S] y) "
    text += "{ s = Shape(x) z = Constant<value_int = 0>() k = Constant<value_int = 1>() e = Squeeze(s) "
    text += "r = Range(z, e, k) t = Gather(table, r) y = Add(t, x) }"
    data = drawn(text)
    assert data.unbound == frozenset()


def test_one_name_for_two_axes_of_a_tensor() -> None:
    data = drawn("g (float[N,N,8] x) => (float[N,N,8] y) { y = Relu(x) }")
    assert data.unbound == {"N"}
    batch, length, _ = data.feeds[1]["x"].shape
    assert batch != length


@pytest.mark.parametrize("name", ["?", "None", "-1", "*", "unk", " ", "dynamic"])
def test_placeholders_are_no_names(name: str) -> None:
    data = drawn("g (float[P,3,P,P] x) => (float[a,b,c,d] y) { y = Transpose<perm = [0,1,3,2]>(x) }", {"P": name})
    assert data.unbound == frozenset()
    first, second = (feeds["x"].shape for feeds in data.feeds)
    assert first[0] == 2
    assert second[2] != second[3]


def test_names_that_bind_only_within_tensors_of_one_kind() -> None:
    """A cache of keys and values of one length, beside states of another that have the same name."""
    data = drawn(
        "g (float[B,E,8] states, float[B,2,E,4] key, float[B,2,E,4] value) => (float[B,8] y, float[B,2,E,4] z)"
        " { y = ReduceMean<axes = [1], keepdims = 0>(states) z = Add(key, value) }"
    )
    assert data.unbound == {"B", "E"}
    second = data.feeds[1]
    assert second["key"].shape == second["value"].shape
    assert second["states"].shape[0] != second["key"].shape[0]
    assert second["states"].shape[1] != second["key"].shape[2]


def test_different_names_have_different_sizes() -> None:
    data = drawn("g (float[B,S] a, float[B,T] b) => (float[B,U] y) { y = Concat<axis = 1>(a, b) }")
    second = data.feeds[1]
    assert second["a"].shape[1] != second["b"].shape[1]


CACHED = (
    "g (int64[B,S] input_ids, int64[M,W] attention_mask, float[B,P,4] past_key_values) => (float[B,S,4] y)"
    " { x = Gather(table, input_ids) k = Concat<axis = 1>(past_key_values, x) t = Transpose<perm = [0,2,1]>(k)"
    " s = MatMul(x, t) c = Cast<to = 1>(attention_mask) one = Constant<value_ints = [1]>() m = Unsqueeze(c, one)"
    " p = Add(s, m) w = Softmax(p) y = MatMul(w, k) }"
)


def test_a_mask_is_as_long_as_the_past_and_the_new_steps() -> None:
    """None of the names says so."""
    data = drawn(CACHED, table=np.ones((5, 4), np.float32))
    first = data.feeds[0]
    past, steps = first["past_key_values"].shape[1], first["input_ids"].shape[1]
    assert past > 0
    assert first["attention_mask"].shape[1] == past + steps


def test_expressions_that_divide_by_zero() -> None:
    text = "g (float[N,past_len] a, float[N,Q] b) => (float[N,past_len] y, float[N,Q] z) { y = Relu(a) z = Relu(b) }"
    assert drawn(text, {"Q": "8//(past_len*0)"}).feeds
