"""The second look excuses what rounding does, through discrete operators or bad conditioning; it excuses no lie."""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest

from graphopt.contract import BitExact, FloatExact, Lossy
from graphopt.model import Model, from_proto
from graphopt.numerics.compare import Comparer, Comparison
from graphopt.proof.discrete import find_decisions, tainted_tensors
from graphopt.proof.proof import compare_models
from graphopt.proof.review import Pair, review
from graphopt.runtime.data import ListData
from graphopt.runtime.feeds import from_arrays
from graphopt.runtime.session import Session
from graphopt.testing import model

TIGHT = FloatExact(rtol=1e-4, atol=1e-5)
RNG = np.random.default_rng(0)
F4 = np.float32

W = RNG.standard_normal((6, 40)).astype(F4)
W[:, 20:] = W[:, :20] * F4(1 + 2e-7)
V = RNG.standard_normal((40, 4)).astype(F4)
X = RNG.standard_normal((9, 6)).astype(F4)

DETECTION = """g (float[9,6] x) => (float[9,5,1] boxes, int64[9,5] labels, float[9,5] kept, float[9,4] features) {
    raw = MatMul(x, w)
    shifted = Add(raw, b)
    scores = Sigmoid(shifted)
    k = Constant<value_ints = [5]>()
    kept, labels = TopK(scores, k)
    all = MatMul(x, u)
    picked = GatherElements<axis = 1>(all, labels)
    two = Constant<value_ints = [2]>()
    scaled = Mul(picked, factor)
    boxes = Unsqueeze(scaled, two)
    features = MatMul(scores, v)
}"""

Weights = dict[str, np.ndarray]


def detector(change: Callable[[Weights], None] | None = None, text: str = DETECTION) -> onnx.ModelProto:
    """Scores in twin columns that are equal but for rounding, so that TopK's choice hangs on the last bit."""
    weights: Weights = {"w": W.copy(), "u": W[:, ::-1].copy(), "v": V.copy(), "b": np.zeros(40, F4), "factor": F4(1)}
    if change is not None:
        change(weights)
    return model(text, **weights)


def rounding(weights: Weights) -> None:
    """Swap the twins: every score moves by an ulp or so, and TopK prefers the other twin."""
    weights["w"] = np.roll(weights["w"], 20, axis=1)


def lie_in_a_score(weights: Weights) -> None:
    rounding(weights)
    weights["b"][3] = F4(1e-2)


def lie_behind_the_choice(weights: Weights) -> None:
    rounding(weights)
    weights["factor"] = F4(1.001)


def lie_beside_the_choice(weights: Weights) -> None:
    rounding(weights)
    weights["v"][0, 0] += F4(1e-2)


def judged(candidate: onnx.ModelProto, contract: FloatExact | Lossy | BitExact = TIGHT) -> Comparison:
    reference = from_proto(detector())
    return compare_models(reference, from_proto(candidate), from_arrays({"x": X}, reference), contract)


def test_choices_that_flip_are_judged_by_what_led_to_them() -> None:
    result = judged(detector(rounding))
    assert result.holds, result.problem
    assert len(result.notes) == 1
    assert "judged by what goes into the discrete operators (1 TopK)" in result.notes[0]
    assert "elements differ" in result.notes[0]
    names = {output.name for output in result.outputs}
    assert names == {"boxes", "features", "input 0 of TopK 'kept'", "input 1 of TopK 'kept'"}


@pytest.mark.parametrize(
    ("lie", "culprit"),
    [
        (lie_in_a_score, "input 0 of TopK 'kept'"),
        (lie_behind_the_choice, "boxes"),
        (lie_beside_the_choice, "features"),
    ],
)
@pytest.mark.parametrize("contract", [TIGHT, Lossy(80)], ids=str)
def test_a_lie_is_caught_wherever_it_is(
    lie: Callable[[Weights], None], culprit: str, contract: FloatExact | Lossy
) -> None:
    result = judged(detector(lie), contract)
    assert not result.holds
    assert next(output for output in result.outputs if output.name == culprit).problem
    assert contract != TIGHT or result.problem.startswith(f"{culprit}: ")


def test_a_discrete_operator_that_differs_itself_is_not_handed_over() -> None:
    smallest = DETECTION.replace("TopK(scores, k)", "TopK<largest = 0>(scores, k)")
    result = judged(detector(rounding, smallest))
    assert not result.holds
    assert not result.notes


def test_another_number_of_choices_is_caught() -> None:
    fewer = DETECTION.replace("value_ints = [5]", "value_ints = [4]").replace("9,5", "9,4")
    assert not judged(detector(rounding, fewer)).holds


def test_bit_exact_gets_no_second_look() -> None:
    result = judged(detector(rounding), BitExact())
    assert not result.holds
    assert not result.notes


def test_lossy_choices_keep_their_ratio() -> None:
    assert judged(detector(rounding), Lossy(100)).holds


CLASSIFIER = """g (float[9,6] x) => (float[1,9,40] y, float[9,4] z) {
    a = MatMul(x, w) logits = Mul(a, factor) p = {op}(logits) s = Constant<value_ints = [1, 9, 40]>()
    y = Reshape(p, s) z = MatMul(a, v) }"""


def sure(op: str, generated: bool, contract: FloatExact | Lossy, text: str = CLASSIFIER) -> Comparison:
    """A classifier that is quite sure, and another one with an error of a tenth in its weights."""
    weights = {"w": W[:, :20].repeat(2, axis=1), "v": V, "factor": F4(400)}
    weights["w"][:, ::2] *= F4(1.01)
    other = {**weights, "w": weights["w"] + F4(0.1) * np.roll(weights["w"], 7, axis=1)}
    before, after = (from_proto(model(text.replace("{op}", op), **each)) for each in (weights, other))
    data = ListData([{"x": X}], generated=generated)
    return compare_models(before, after, data, contract)


@pytest.mark.parametrize("op", ["Softmax", "Sigmoid"])
def test_a_classifier_that_is_sure_of_noise_is_judged_by_its_logits(op: str) -> None:
    result = sure(op, True, Lossy(15))
    assert result.holds, result.problem
    assert f"(1 {op})" in result.notes[0]
    assert {output.name for output in result.outputs} == {"y", "z", f"input 0 of {op} 'p'"}


def test_its_outputs_count_on_real_data_and_where_more_follows() -> None:
    assert not sure("Softmax", False, Lossy(15)).holds
    assert not sure("Softmax", True, TIGHT).holds
    more = CLASSIFIER.replace("y = Reshape(p, s)", "r = Reshape(p, s) y = Mul(r, factor)")
    assert not sure("Softmax", True, Lossy(15), more).holds


def test_logits_that_are_wrong_do_not_pass() -> None:
    result = sure("Softmax", True, Lossy(60))
    assert not result.holds
    assert next(output for output in result.outputs if output.name == "input 0 of Softmax 'p'").problem


def steps(op: str) -> str:
    return f"g (float[9,6] x) => (float[9,40] y) {{ a = MatMul(x, w) t = {op} y = Mul(t, a) }}"


@pytest.mark.parametrize(
    "op", ["Floor(a)", "Round(a)", "Cast<to: int = 7>(a) t = Cast<to: int = 1>(t_)", "Sign(a)"], ids=lambda op: op[:5]
)
def test_steps_between_integers(op: str) -> None:
    op = op.replace("Cast<to: int = 7>(a) t =", "Cast<to: int = 7>(a) t2 =").replace("t_", "t")
    text = steps(op).replace("Mul(t, a)", "Mul(t2, a)" if "t2" in op else "Mul(t, a)")
    on_edge = np.tile(np.eye(6, dtype=F4), (2, 1))[:9] * 2
    up, down = np.full((6, 40), 0.5, F4), np.nextafter(np.full((6, 40), 0.5, F4), F4(0))
    if "Round" in op:
        up, down = np.full((6, 40), 0.25 + 1e-7, F4), np.full((6, 40), 0.25 - 1e-7, F4)
    if "Sign" in op:
        up, down = np.full((6, 40), 1e-12, F4), np.full((6, 40), -1e-12, F4)
        text = text.replace("Mul(t, a)", "Identity(t)")
    reference, candidate = (from_proto(model(text, w=w)) for w in (up, down))
    data = from_arrays({"x": on_edge}, reference)
    result = compare_models(reference, candidate, data, FloatExact(rtol=1e-5, atol=1e-5))
    if "Sign" in op:  # all of the reference's a is 1e-12 or 0: the spread is as small, and so is the tolerance
        assert not result.holds
        return
    assert result.holds, result.problem
    assert "discrete operators" in result.notes[0]


LOOP = """g (float[9,6] x) => (float[9,40] y) {
    raw = MatMul(x, w)
    n = Constant<value_int = 1>()
    zero = Constant<value = float {0}>()
    start = Mul(raw, zero)
    carried = Loop(n, , start) <body = b (int64 i, bool c, float[9,40] s) => (bool d, float[9,40] t) {
        d = Identity(c)
        high = Greater(raw, s)
        f = Cast<to: int = 1>(high)
        t = Add(s, f)
    }>
    y = Mul(carried, factor)
}"""


def test_a_loop_with_a_discrete_body_is_one_decision() -> None:
    base = np.repeat(np.eye(6, dtype=F4), 7, axis=1)[:, :40]
    base[:, ::3] = 0
    tiny = base.copy()
    tiny[tiny == 0] = 1e-9
    reference = from_proto(model(LOOP, w=base, factor=F4(2)))
    data = from_arrays({"x": np.abs(X)}, reference)
    good = compare_models(reference, from_proto(model(LOOP, w=tiny, factor=F4(2))), data, TIGHT)
    assert good.holds, good.problem
    assert "1 Loop" in good.notes[0]
    lie = compare_models(reference, from_proto(model(LOOP, w=tiny, factor=F4(2.01))), data, TIGHT)
    assert lie.problem.startswith("y: ")
    other = LOOP.replace("Greater", "GreaterOrEqual")
    assert not compare_models(reference, from_proto(model(other, w=tiny, factor=F4(2))), data, TIGHT).holds


CANCELLING = "g (float[9,6] x) => (float[9,40] y) { a = MatMul(x, w) s = Add(a, k) y = Sub(s, k) }"
LARGE = np.full(40, 1e4, F4)


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 8), (23, 10), (9, 3)], ids=["usual", "newest", "oldest"])
def test_bad_conditioning_is_told_by_the_models_own_noise(opset: int, ir_version: int) -> None:
    text = CANCELLING if ir_version > 3 else CANCELLING.replace("x)", "x, float[6,40] w, float[40] k)", 1)
    reference = from_proto(model(text, opset, ir_version, w=W, k=LARGE))
    data = from_arrays({"x": X}, reference)
    exact = from_proto(model("g (float[9,6] x) => (float[9,40] y) { y = MatMul(x, w) }", w=W))
    result = compare_models(reference, exact, data, TIGHT)
    assert result.holds, result.problem
    assert result.max_abs > 1e-4
    assert "the model's own float noise" in result.notes[0]
    assert "an element moved by" in result.notes[0]


@pytest.mark.parametrize("contract", [Lossy(200), BitExact()], ids=str)
def test_noise_excuses_no_other_contract(contract: Lossy | BitExact) -> None:
    reference = from_proto(model(CANCELLING, w=W, k=LARGE))
    exact = from_proto(model("g (float[9,6] x) => (float[9,40] y) { y = MatMul(x, w) }", w=W))
    result = compare_models(reference, exact, from_arrays({"x": X}, reference), contract)
    assert not result.holds
    assert not result.notes


def test_the_noise_is_drawn_twice_on_all_of_the_data() -> None:
    reference = model(CANCELLING, w=W, k=LARGE)
    exact = model("g (float[9,6] x) => (float[9,40] y) { y = MatMul(x, w) }", w=W)
    plain = Comparer(TIGHT)
    plain.add(Session(reference).run({"x": X}), Session(exact).run({"x": X}), 9)
    asked = []

    def batches() -> Iterator[tuple[dict[str, np.ndarray], int]]:
        asked.append(X)
        yield {"x": X}, 9

    assert review(plain.result(), Pair(reference, exact), TIGHT, batches).holds
    assert len(asked) == 2


@pytest.mark.parametrize("what", ["one element", "everywhere"])
def test_a_lie_does_not_hide_in_the_noise(what: str) -> None:
    wrong = W.copy()
    if what == "one element":
        wrong[0, 0] += F4(0.02)
    else:
        wrong *= F4(1.005)
    reference = from_proto(model(CANCELLING, w=W, k=LARGE))
    candidate = from_proto(model(CANCELLING, w=wrong, k=LARGE))
    result = compare_models(reference, candidate, from_arrays({"x": X}, reference), TIGHT)
    assert not result.holds
    assert not result.notes


def test_an_output_that_is_mere_noise_excuses_nothing() -> None:
    reference = from_proto(model(CANCELLING, w=W, k=LARGE * F4(1e4)))
    candidate = from_proto(model(CANCELLING, w=-W, k=LARGE * F4(1e4)))
    assert not compare_models(reference, candidate, from_arrays({"x": X * 10}, reference), TIGHT).holds


def test_models_that_only_take_integers_are_shaken_in_their_weights() -> None:
    text = "g (int64[9] x) => (float[9,40] y) { a = Gather(w, x) s = Add(a, k) y = Sub(s, k) }"
    reference = from_proto(model(text, w=W, k=LARGE))
    exact = from_proto(model("g (int64[9] x) => (float[9,40] y) { y = Gather(w, x) }", w=W))
    data = from_arrays({"x": np.arange(9) % 6}, reference)
    assert compare_models(reference, exact, data, TIGHT).holds
    wrong = from_proto(model("g (int64[9] x) => (float[9,40] y) { y = Gather(w, x) }", w=W * F4(1.01)))
    assert not compare_models(reference, wrong, data, TIGHT).holds


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 8), (23, 10), (9, 3)], ids=["usual", "newest", "oldest"])
def test_what_is_computed_in_half_precision_has_its_noise(opset: int, ir_version: int) -> None:
    text = """g (float[9,6] x, float16[1] k, float16[1] l) => (float[9,6] y) {
        h = Cast<to = 10>(x) a = Mul(h, k) b = Mul(a, l) y = Cast<to = 1>(b) }"""
    text = text if ir_version < 4 else text.replace(", float16[1] k, float16[1] l", "")

    def scaled(first: float, second: float) -> Model:
        return from_proto(
            model(text, opset, ir_version, k=np.array([first], np.float16), l=np.array([second], np.float16))
        )

    reference, folded = scaled(1.3, 0.7), scaled(1.3 * 0.7, 1)
    data = from_arrays({"x": X.astype(np.float16).astype(F4)}, reference)
    assert compare_models(reference, folded, data, TIGHT).holds
    wrong = scaled(1.3, 0.71)
    assert not compare_models(reference, wrong, data, TIGHT).holds


def test_half_precision_has_coarser_noise() -> None:
    text = "g (float16[9,6] x) => (float16[9,40] y) { t = MatMul(x, w) y = Mul(t, k) }"
    half = W.astype(np.float16)
    reference = from_proto(model(text, w=half, k=np.float16(3)))
    folded = from_proto(model(text, w=(half.astype(F4) * 3).astype(np.float16), k=np.float16(1)))
    data = from_arrays({"x": X.astype(np.float16)}, reference)
    assert compare_models(reference, folded, data, TIGHT).holds
    wrong = from_proto(model(text, w=half, k=np.float16(3.03)))
    assert not compare_models(reference, wrong, data, TIGHT).holds


def test_noise_in_front_of_a_choice_is_told_too() -> None:
    """The choice is handed over, and what goes into it differs by the reference's own noise."""
    text = """g (float[9,6] x) => (float[9,40] y, float[9,40] z) {
        a = MatMul(x, w) s = Add(a, k) y = Sub(s, k) z = Floor(y) }"""
    reference = from_proto(model(text, w=W, k=LARGE))
    exact = "g (float[9,6] x) => (float[9,40] y, float[9,40] z) { y = MatMul(x, w) z = Floor(y) }"
    data = from_arrays({"x": X}, reference)
    result = compare_models(reference, from_proto(model(exact, w=W)), data, TIGHT)
    assert result.holds, result.problem
    assert "discrete operators (1 Floor)" in result.notes[0]
    assert "(and 1 more); that is at most 4 times the model's own float noise" in result.notes[1]
    assert not compare_models(reference, from_proto(model(exact, w=W * F4(1.005))), data, TIGHT).holds


def test_one_output_that_is_noise_is_no_more_than_one() -> None:
    reference = from_proto(model(CANCELLING, w=W, k=LARGE))
    exact = from_proto(model("g (float[9,6] x) => (float[9,40] y) { y = MatMul(x, w) }", w=W))
    (note,) = compare_models(reference, exact, from_arrays({"x": X}, reference), TIGHT).notes
    assert "more);" not in note
    assert "; that is at most 4 times" in note


def test_a_float_contract_counts_behind_a_softmax_on_generated_inputs_as_well() -> None:
    """The logits keep the contract, the scores do not."""
    close = np.stack([100 * W[:, 0], 100 * W[:, 0] + 0.1 * W[:, 1]], axis=1)
    moved = close * np.array([1 + 5e-5, 1], F4)
    data = ListData([{"x": X}], generated=True)
    for end, holds in (("Identity", True), ("Softmax", False)):
        text = f"g (float[9,6] x) => (float[9,2] y) {{ a = MatMul(x, w) y = {end}(a) }}"
        reference, candidate = (from_proto(model(text, w=each)) for each in (close, moved))
        assert compare_models(reference, candidate, data, TIGHT).holds is holds


def test_what_a_node_leaves_out_depends_on_nothing() -> None:
    graph = model(
        """g (float[4,1,3] x, float[2] c, float m) => (float[2] y, float[4] z) {
            , last = LSTM<hidden_size = 2>(x, w, r) y = Clip(k, , n) s = Shape(x) z = Add(c, c) }""",
        w=np.ones((1, 8, 3), F4), r=np.ones((1, 8, 2), F4), k=np.ones(2, F4), n=F4(1),
    ).graph  # fmt: skip
    assert tainted_tensors(graph) == {"x", "c", "m", "last", "z"}


def test_noise_that_cannot_be_measured_excuses_nothing_and_says_so() -> None:
    """Floats that are sizes: one unit in the last place less, and they are other sizes."""
    text = """g (float[9,6] x) => (float[9,40] y) {
        a = MatMul(x, w) s = Add(a, k) d = Sub(s, k) n = Cast<to = 7>(sizes) m = ReduceMin<keepdims = 0>(n)
        r = Unsqueeze(m, z) c = Concat<axis = 0>(r, q) y = Reshape(d, c) }"""
    stored = {"w": W, "k": LARGE, "sizes": np.full(16, 9, F4), "z": np.array([0]), "q": np.array([40])}
    reference = from_proto(model(text, **stored))
    exact = from_proto(model("g (float[9,6] x) => (float[9,40] y) { y = MatMul(x, w) }", w=W))
    result = compare_models(reference, exact, from_arrays({"x": X}, reference), TIGHT)
    assert not result.holds
    assert "the model's own float noise could not be measured: ONNX Runtime cannot run" in result.notes[-1]


@pytest.mark.parametrize(
    ("text", "discrete"),
    [
        ("y = Cast<to = 1>(x)", False),
        ("y = Cast<to = 11>(x)", False),
        ("y = Cast<to = 7>(x)", True),
        ("y = Cast<to = 9>(x)", True),
        ("y = MaxPool<kernel_shape = [2]>(x)", False),
        ("y, i = MaxPool<kernel_shape = [2]>(x)", True),
        ("y = Round(x)", True),
        ("y = Relu(x)", False),
    ],
)
def test_what_jumps_is_discrete(text: str, discrete: bool) -> None:
    kind = {"7>": "int64", "9>": "bool", "11": "double"}.get(text[12:14], "float")
    proto = model(f"g (float[1,2,4] x) => ({kind}[A,B,C] y) {{ {text} }}")
    found = find_decisions(proto, proto)
    assert [each.outputs for each in found] == ([("y", "i") if "i =" in text else ("y",)] if discrete else [])


def test_an_output_that_a_choice_leaves_out_is_not_handed_over() -> None:
    proto = model("g (float[1,9] x, int64[1] k) => (float[1,5] v) { v, i = TopK(x, k) }")
    proto.graph.node[0].output[1] = ""
    (found,) = find_decisions(proto, proto)
    assert (found.op, found.outputs, found.reference) == ("TopK", ("v",), ("x", "k"))


def test_a_pair_is_run_as_it_is_and_on_data_unless_that_is_said() -> None:
    proto = model("g (float[1,9] x) => (float[1,9] y) { y = Relu(x) }")
    assert Pair(proto, proto) == Pair(proto, proto, optimize=False, generated=False)
