"""Generated feeds: whatever the signature and the graph demand, the model runs on them."""

import numpy as np
import onnx
import pytest

from graphopt.errors import DataError, GraphoptError
from graphopt.model import from_proto
from graphopt.runtime.feeds import Feeds, generate
from graphopt.testing import model

F4 = np.float32
TABLE = np.ones((5, 2), F4)


def drawn(text: str, seed: int = 0, opset: int = 17, **weights: np.ndarray) -> list[Feeds]:
    data = generate(from_proto(model(text, opset=opset, **weights)), seed)
    assert data.generated
    assert data.labels is None
    return list(data.batches())


def test_two_sizes_of_a_dynamic_batch() -> None:
    one, two = drawn("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert (one["x"].shape, two["x"].shape) == ((2, 3), (1, 3))
    assert one["x"].dtype == F4


def test_three_draws_where_nothing_is_dynamic() -> None:
    batches = drawn("g (float[4,3] x) => (float[4,3] y) { y = Relu(x) }")
    assert [feeds["x"].shape for feeds in batches] == [(4, 3)] * 3
    assert len({feeds["x"].tobytes() for feeds in batches}) == 3


def test_the_seed_decides() -> None:
    text = "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"
    np.testing.assert_array_equal(drawn(text, 1)[0]["x"], drawn(text, 1)[0]["x"])
    assert not np.array_equal(drawn(text, 1)[0]["x"], drawn(text, 2)[0]["x"])


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        pytest.param("y = Gather(w, i)", {}, id="Gather"),
        pytest.param("j = Cast<to: int = 6>(i) y = Gather(w, j)", {}, id="through Cast"),
        pytest.param("s = Constant<value_ints = [-1]>() j = Reshape(i, s) y = Gather(w, j)", {}, id="through Reshape"),
        pytest.param("v = Identity(w) y = Gather(v, i)", {}, id="table behind Identity"),
        pytest.param("t = Transpose(w) y = Gather<axis = 1>(t, i)", {}, id="axis of an inferred shape"),
        pytest.param("d = Constant<value_int = 5>() y = OneHot(i, d, v)", {"v": np.array([0, 1], F4)}, id="OneHot"),
    ],
)
def test_indices_stay_within_the_table(body: str, weights: dict[str, np.ndarray]) -> None:
    text = f"g (int64[N,S] i) => (float y) {{ {body} }}"
    text = text.replace("float y", "float[A,B,C] y" if "Reshape" not in body else "float[A,B] y")
    batches = drawn(text, w=TABLE, **weights)
    assert len(batches) == 2
    values = np.concatenate([feeds["i"].ravel() for feeds in batches])
    assert set(values) == {0, 1, 2, 3, 4}


def test_indices_that_the_graph_shifts() -> None:
    text = "g (int64[N,S] i) => (float[N,S,2] y) { k = Constant<value_int = 2>() j = Add(i, k) y = Gather(w, j) }"
    values = np.concatenate([feeds["i"].ravel() for feeds in drawn(text, w=TABLE)])
    assert set(values) == {0, 1, 2}


def test_floats_that_become_indices() -> None:
    text = "g (float[N,S] i) => (float[N,S,2] y) { j = Cast<to: int = 7>(i) y = Gather(w, j) }"
    (one, _) = drawn(text, w=TABLE)
    assert one["i"].dtype == F4
    assert set(one["i"].ravel()) <= {0, 1, 2, 3, 4}


def test_masks_are_padding_masks() -> None:
    text = "g (int64[N,S] attention_mask) => (float[N,S] y) { y = Cast<to: int = 1>(attention_mask) }"
    for feeds in drawn(text):
        mask = feeds["attention_mask"]
        assert set(mask.ravel()) <= {0, 1}
        assert (np.diff(mask, axis=1) <= 0).all()
        assert mask[:, 0].all()
        assert mask[0].all()


def test_lengths_fit_the_sequence() -> None:
    text = "g (float[S,N,3] x, int64[N] n) => (float[S,N,3] y) { y = ReverseSequence<batch_axis = 1>(x, n) }"
    for feeds in drawn(text):
        assert feeds["x"].shape[1] == feeds["n"].shape[0]
        assert (feeds["n"] >= 1).all()
        assert (feeds["n"] <= feeds["x"].shape[0]).all()


def test_equally_named_axes_are_equally_long() -> None:
    text = "g (float[batch,seq] a, float[batch,seq] b, float[seq] c) => (float[batch,seq] y) "
    text += "{ t = Mul(a, b) y = Add(t, c) }"
    batches = drawn(text)
    assert len({feeds["a"].shape for feeds in batches}) == 2
    for feeds in batches:
        assert feeds["a"].shape == feeds["b"].shape
        assert feeds["c"].shape == feeds["a"].shape[1:]


def test_names_that_are_sums() -> None:
    proto = model("g (float[N,past] a, float[N,seq] b, float[N,total] c) => (float[N,total] y) "
                  "{ t = Concat<axis = 1>(a, b) y = Add(t, c) }")  # fmt: skip
    proto.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "past + seq"
    for feeds in generate(from_proto(proto)).batches():
        assert feeds["c"].shape[1] == feeds["a"].shape[1] + feeds["b"].shape[1]


def test_a_cache_may_have_to_be_empty() -> None:
    one, two = drawn(
        "g (float[N,past_len] a, float[N,seq] b, float[N,total] c) => (float[N,total] y) "
        "{ t = Concat<axis = 1>(a, b) y = Add(t, c) }"
    )
    assert [feeds["a"].shape[1] for feeds in (one, two)] == [0, 0]
    assert one["b"].shape != two["b"].shape


@pytest.mark.parametrize(
    ("text", "axis", "length", "weight"),
    [
        pytest.param("y = Conv(x, w)", 1, 6, np.ones((4, 3, 1, 1), F4), id="grouped Conv"),
        pytest.param("t = Sub(x, k) y = Conv(t, w)", 1, 6, np.ones((4, 3, 1, 1), F4), id="behind a shift"),
        pytest.param(
            "t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv(t, w)", 3, 6, np.ones((4, 3, 1, 1), F4), id="NHWC"
        ),
        pytest.param("y = MatMul(x, w)", 3, 6, np.ones((6, 2), F4), id="MatMul"),
    ],
)
def test_axes_are_as_long_as_weights_demand(text: str, axis: int, length: int, weight: np.ndarray) -> None:
    text = text.replace("Conv(", "Conv<group = 2>(")
    (one, _) = drawn(f"g (float[a,b,c,d] x) => (float[e,f,g,h] y) {{ {text} }}", w=weight, k=np.ones((1,), F4))
    assert one["x"].shape[axis] == length


def test_sizes_that_the_graph_refuses_are_given_up() -> None:
    text = "g (float[N,L] x) => (float[N,20] y) { s = Constant<value_ints = [-1, 100]>() "
    text += "t = Reshape(x, s) y = MatMul(t, w) }"
    for feeds in drawn(text, w=np.ones((100, 20), F4)):
        assert feeds["x"].shape[1] % 50 == 0


def test_a_batch_that_the_graph_fixes_after_all() -> None:
    text = "g (float[N,8] x) => (float[1,8] y) { s = Constant<value_ints = [1, 8]>() y = Reshape(x, s) }"
    batches = drawn(text)
    assert {feeds["x"].shape for feeds in batches} == {(1, 8)}
    assert len({feeds["x"].tobytes() for feeds in batches}) == len(batches) > 1


def test_values_that_give_something_finite_are_preferred() -> None:
    for feeds in drawn("g (float[4] x) => (float y) { s = Sqrt(x) y = ReduceSum(s) }"):
        assert (feeds["x"] >= 0).all()


def test_outputs_that_are_never_finite_are_no_obstacle() -> None:
    assert drawn("g (float[4] x) => (float[4] y) { z = Sub(x, x) y = Div(z, z) }")


@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "int32", "uint64", "float16", "double"])
def test_element_types(kind: str) -> None:
    (one, _) = drawn(f"g ({kind}[N,3] x) => ({kind}[N,3] y) {{ y = Identity(x) }}")
    assert one["x"].dtype == onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.upper()))


def test_text() -> None:
    one = drawn("g (string[N,3] x) => (string[N,3] y) { y = Identity(x) }")[0]
    assert isinstance(one["x"][0, 0], str)


def test_scalars_and_empty_shapes() -> None:
    one = drawn("g (float x, float[0,3] z) => (float y, float[0,3] v) { y = Relu(x) v = Relu(z) }")[0]
    assert one["x"].shape == ()
    assert one["z"].shape == (0, 3)


def test_unknown_rank() -> None:
    proto = model("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert list(generate(from_proto(proto)).batches())


def test_unknown_rank_is_read_off_the_weights() -> None:
    proto = model(
        "g (float[N,3,H,W] x) => (float[N,4,H,W] y) { r = Relu(x) y = Conv(r, w) }", w=np.ones((4, 3, 1, 1), F4)
    )
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    for feeds in generate(from_proto(proto)).batches():
        assert feeds["x"].shape[1] == 3


def test_unnamed_and_negative_dimensions() -> None:
    proto = model("g (float[N,M] x) => (float[N,M] y) { y = Relu(x) }")
    proto.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -1
    one, two = generate(from_proto(proto)).batches()
    assert (one["x"].shape[0], two["x"].shape[0]) == (2, 1)


def test_sequences_and_optionals() -> None:
    one = drawn("g (seq(float[N,3]) x) => (float[M,3] y) { y = ConcatFromSequence<axis = 0>(x) }")[0]
    assert [type(each) for each in one["x"]] == [np.ndarray] * 2
    one = drawn("g (optional(float[2]) x) => (float[2] y) { y = OptionalGetElement(x) }", opset=18)[0]
    assert one["x"].shape == (2,)


def test_a_model_without_inputs() -> None:
    assert drawn("g () => (float[3,3] y) { y = Identity(w) }", w=np.ones((3, 3), F4)) == [{}]


def test_no_draw_runs() -> None:
    text = (
        "g (float[N,2] x) => (float[2] y) { z = Mul(x, zero) s = ReduceSum<keepdims = 0>(z) i = Cast<to: int = 7>(s) "
    )
    text += "j = Add(i, far) y = Gather(w, j) }"
    reason = "cannot generate inputs that the model runs on, give it data; ONNX Runtime cannot run the model: .*Gather"
    with pytest.raises(DataError, match=reason):
        drawn(text, zero=np.zeros((), F4), far=np.array(100), w=TABLE)


def test_a_model_that_does_not_load() -> None:
    broken = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g (float[2] x) => (float[2] y) { y = No(x) }'
    )
    with pytest.raises(GraphoptError, match="cannot load the model"):
        generate(from_proto(broken))


def test_a_mode_is_drawn_from_the_values_that_the_graph_knows() -> None:
    for feeds in drawn(
        "g (float[N,3] x, int64 rate) => (float[N,3] y, bool fast)"
        " { known = Constant<value_int: int = 16000>()  fast = Equal(rate, known)  y = Relu(x) }"
    ):
        assert feeds["rate"] == 16000


def test_the_state_of_a_recurrent_layer_has_the_batch_in_the_middle() -> None:
    for feeds in drawn(
        "g (float[N,3] x, float[2,?,4] h) => (float[N,3] y, float[2,?,4] z) { y = Relu(x)  z = Relu(h) }"
    ):
        assert feeds["h"].shape == (2, len(feeds["x"]), 4)
