"""Generated feeds that a model survives, and that tell it from a constant."""

import re

import numpy as np
import onnx
import pytest

from graphopt.errors import DataError
from graphopt.model import from_proto
from graphopt.runtime.data import ListData
from graphopt.runtime.feeds import generate
from graphopt.runtime.overrides import overridden
from graphopt.testing import draw, model

F4 = np.float32
STEPS = "b (float[N,2] kept, float[N,2] step) => (float[N,2] next, float[N,2] sum) "
STEPS += "{ next = Identity(step) sum = Add(kept, step) }"
SCAN = f"Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], body = {STEPS}>"
"""A Scan of no steps is an integer division by zero in some versions of ONNX Runtime, which ends the process."""


def drawn(text: str, opset: int = 17, **weights: np.ndarray) -> ListData:
    return generate(from_proto(model(text, opset=opset, **weights)))


def test_a_crash_is_a_refusal() -> None:
    text = f"g (float[2,2] k, float[2,0,2] x) => (float[2,2] a, float[2,0,2] y) {{ a, y = {SCAN}(k, x) }}"
    reason = ""
    try:
        assert drawn(text).feeds
    except DataError as error:
        reason = str(error)
    pattern = r"cannot generate inputs .* ONNX Runtime crashes on these inputs \(.*\)"
    assert not reason or re.fullmatch(pattern, reason)


def test_lengths_that_crash_are_passed_over() -> None:
    """Of a sequence, what follows the first 30 entries is looked at two by two."""
    text = "g (float[N,2] k, float[N,S] x) => (float[N,2] a, float[N,T,2] y) "
    text += "{ from = Constant<value_ints = [30]>() to = Constant<value_ints = [1000]>() "
    text += "one = Constant<value_ints = [1]>() z = Slice(x, from, to, one) "
    text += f"pairs = Constant<value_ints = [0, -1, 2]>() s = Reshape(z, pairs) a, y = {SCAN}(k, s) }}"
    assert max(feeds["x"].shape[1] for feeds in drawn(text).feeds) > 30


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((1, 2_000_000, 64_000, 64), id="more than memory"),
        pytest.param((2**62,), id="more than an address"),
        pytest.param((2**31, 2**31, 2**31), id="more than an integer"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_they_are_drawn(shape: tuple[int, ...]) -> None:
    dims = ",".join(map(str, shape))
    with pytest.raises(DataError, match=r"cannot generate inputs .* 'x' of shape .* takes too much memory"):
        drawn(f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Relu(x) }}")


@pytest.mark.parametrize("name", ["+".join(["n"] * 20000), "(" * 300 + "n" + ")" * 300, "-" * 400 + "n", "9" * 5000])
def test_long_names_of_dimensions(name: str) -> None:
    proto = model("g (float[L] x) => (float[M] y) { y = Relu(x) }")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    assert generate(from_proto(proto)).feeds


@pytest.mark.parametrize("number", [-np.inf, np.inf, np.nan, 1e30])
def test_numbers_that_are_no_shifts(number: float) -> None:
    data = drawn("g (float[N,8] x) => (float[N,8] y) { s = Add(x, c) y = Max(s, x) }", c=F4(number))
    assert len(data.feeds) == 2


def test_longer_inputs_are_tried_where_short_ones_say_nothing() -> None:
    text = "g (float[N,L] x) => (float[N,1] y) { a = Constant<value_ints = [50]>() b = Constant<value_ints = [90]>() "
    text += "k = Constant<value_ints = [1]>() s = Slice(x, a, b, k) y = ReduceSum(s, k) }"
    data = drawn(text)
    assert data.feeds[0]["x"].shape[1] > 50
    assert data.silent == ()


def test_other_values_are_tried_where_small_ones_say_nothing() -> None:
    text = "g (int64[N] x) => (int64[N] y) { k = Constant<value_ints = [10]>() y = Div(x, k) }"
    assert drawn(text).silent == ()


def test_outputs_that_never_move_are_named() -> None:
    text = "g (float[N,3] x) => (float[N,3] y, float[N,3] z, int64[2] s) { y = Relu(x) z = Sub(x, x) s = Shape(x) }"
    assert drawn(text).silent == ("z",)
    assert drawn("g (float[4] x) => (float[4] y) { z = Sub(x, x) y = Div(z, z) }").silent == ("y",)


def test_fixed_shapes_are_compared_between_draws() -> None:
    data = drawn("g (float[1,3] x) => (float[1,1] y) { y = ReduceSum<keepdims = 1>(x) }")
    assert data.silent == ()
    assert len(data.feeds) == 3


def test_pictures_differ_in_more_than_noise() -> None:
    data = drawn("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }")
    one, two = data.feeds[0]["x"]
    # The means of noise would differ by about 1 / sqrt(3 * 64 * 64).
    assert abs(one.mean() - two.mean()) > 10 / np.sqrt(one.size)
    # Those of 16 by 16 pixels would differ by 1 / 16.
    patches = one.reshape(3, 4, 16, 4, 16).mean((2, 4))
    assert patches.std() > 5 / 16


def test_sound_is_long() -> None:
    text = "g (float[N,samples] wave) => (float[N,samples] y) { y = Tanh(wave) }"
    assert min(feeds["wave"].shape[1] for feeds in drawn(text).feeds) >= 4000


# -- initializers that a caller can override ---------------------------------------------------------------------------


def overridable(text: str, names: tuple[str, ...], **weights: np.ndarray) -> onnx.ModelProto:
    """Return a model whose initializers ``names`` are listed as inputs."""
    proto = model(text, **weights)
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return proto


MATMUL = "g (float[N,3] x) => (float[N,3] y) { y = MatMul(x, w) }"


def test_one_draw_overrides_what_can_be() -> None:
    proto = overridable(MATMUL, ("w",), w=np.ones((3, 3), F4))
    feeds = list(generate(from_proto(proto)).batches())
    assert [list(each) for each in feeds] == [["x"], ["x"], ["x", "w"]]
    assert (feeds[2]["w"] > 0).all()
    assert (feeds[2]["w"] != 1).all()


def test_initializers_of_old_models_are_no_defaults() -> None:
    proto = overridable(MATMUL, ("w",), w=np.ones((3, 3), F4))
    proto.ir_version = 3
    assert [list(each) for each in generate(from_proto(proto)).batches()] == [["x"], ["x"]]


def test_sizes_that_cannot_be_overridden_keep_their_defaults() -> None:
    text = "g (float[N,6] x) => (float[N,2,3] y) { s = Mul(x, k) y = Reshape(s, shape) }"
    proto = overridable(text, ("k", "shape"), k=F4(2), shape=np.array([-1, 2, 3]))
    assert list(list(generate(from_proto(proto)).batches())[-1]) == ["x", "k"]


@pytest.mark.parametrize(
    ("default", "holds"),
    [
        pytest.param(np.array([0.5, 2.0], F4), lambda v: (v > 0).all() and (v < 4).all(), id="positive"),
        pytest.param(np.zeros(2, F4), lambda v: (v != 0).all(), id="zeros"),
        pytest.param(np.array([-1.0, 1.0], F4), lambda v: (np.abs(v) < 6).all(), id="both signs"),
        pytest.param(np.array([True, False]), lambda v: v.tolist() == [False, True], id="bool"),
        pytest.param(np.array([7, 7]), lambda v: (v == 8).all(), id="equal integers"),
        pytest.param(np.array([3, 9]), lambda v: (v >= 3).all() and (v <= 9).all(), id="integers"),
        pytest.param(np.array([-np.inf, 1.0], F4), lambda v: v[0] == -np.inf, id="infinite"),
    ],
)
def test_other_values(default: np.ndarray, holds) -> None:  # type: ignore[no-untyped-def]
    kind = onnx.helper.np_dtype_to_tensor_dtype(default.dtype)
    name = onnx.TensorProto.DataType.Name(kind).lower()
    proto = overridable(
        f"g ({name}[2] x) => ({name}[2] y, {name}[2] z) {{ y = Identity(x) z = Identity(d) }}", ("d",), d=default
    )
    other = overridden(from_proto(proto), {}, np.random.default_rng(0))["d"]
    assert (other.dtype, other.shape) == (default.dtype, default.shape)
    assert not np.array_equal(other, default)
    assert holds(other)


def test_indices_stay_within_their_table_and_change() -> None:
    text = "g (float[N,3] x) => (float[N,6] y, float[N,2] z) { y = MatMul(x, w) z = Gather<axis = 1>(y, i) }"
    proto = overridable(text, ("i",), w=draw(3, 6), i=np.array([0, 5]))
    for seed in range(20):
        other = overridden(from_proto(proto), {}, np.random.default_rng(seed))["i"]
        assert ((other >= 0) & (other < 6)).all()
        assert (other != [0, 5]).all()
