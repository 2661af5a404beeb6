"""A model's own float noise: how far floats are moved, which ones, and how much of a difference it excuses."""

import dataclasses
import math

import numpy as np
import onnx
import pytest

from graphopt.model.inference import with_inferred_shapes
from graphopt.numerics.compare import BEYOND, Comparison, OutputDifference
from graphopt.numerics.parts import Part
from graphopt.proof.noise import DRAWS, FACTOR, MAX_SHARE, excused, shaken_feeds, shaken_model
from graphopt.runtime.session import Session
from graphopt.testing import draw, initializers, model

EPSILON = 2.0**-23


def test_the_thresholds_that_the_documentation_quotes() -> None:
    assert (FACTOR, MAX_SHARE, DRAWS) == (4.0, 0.05, 2)


# -- what is moved -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_moved_by_one_unit_in_the_last_place_up_or_down(dtype: type) -> None:
    values = draw(50, 40, dtype=dtype)
    values[0, :5] = [0, -0.0, np.inf, -np.inf, np.nan]
    values[1, :2] = [np.finfo(dtype).max, -np.finfo(dtype).max]
    moved = shaken_feeds({"x": values}, np.random.default_rng(0))["x"]
    assert moved.dtype == values.dtype
    np.testing.assert_array_equal(moved[0, :5], values[0, :5])
    assert np.isfinite(moved[1]).all()
    rest, other = values[2:], moved[2:]
    up = other == np.nextafter(rest, dtype(np.inf))
    down = other == np.nextafter(rest, dtype(-np.inf))
    assert (up ^ down).all()
    assert 0.4 < up.mean() < 0.6


def test_what_is_no_float_stays() -> None:
    feeds = {"i": np.arange(5), "b": np.array([True]), "s": np.array(["a"], object), "l": [np.ones(2)], "n": None}
    moved = shaken_feeds(feeds, np.random.default_rng(0))
    assert moved.keys() == feeds.keys()
    assert all(moved[name] is value for name, value in feeds.items())


def test_weights_of_16_elements_are_moved_and_settings_are_not() -> None:
    stored = {
        "w": draw(4, 4), "d": draw(16, dtype=np.float64), "h": draw(4, 4, dtype=np.float16), "few": draw(15),
        "i": np.arange(20),
    }  # fmt: skip
    proto = model("g (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", **stored)
    before = proto.SerializeToString()
    moved = initializers(shaken_model(proto, np.random.default_rng(0)))
    assert proto.SerializeToString() == before
    for name in ("w", "d", "h"):
        steps = moved[name].astype(float) - stored[name].astype(float)
        assert (np.abs(steps) <= np.spacing(np.abs(stored[name])) * 1.01).all()
        assert (steps != 0).all()
    for name in ("few", "i"):
        np.testing.assert_array_equal(moved[name], stored[name])


def noise_of(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The output without and with noise, in float64; the weights are too few to be moved."""
    typed = with_inferred_shapes(proto)
    shaken = shaken_model(typed, np.random.default_rng(seed))
    left, right = Session(proto).run(feeds)["y"], Session(shaken).run(feeds)["y"]
    assert left.dtype == right.dtype
    return left.astype(np.float64), right.astype(np.float64)


@pytest.mark.parametrize(("word", "dtype", "unit"), [("float", np.float32, EPSILON), ("float16", np.float16, 2.0**-10)])
def test_operators_are_off_by_up_to_one_unit_in_the_last_place(word: str, dtype: type, unit: float) -> None:
    proto = model(f"g ({word}[N] x) => ({word}[N] y) {{ y = Mul(x, two) }}", two=np.array(2, dtype))
    x = np.abs(draw(4000)).astype(dtype) + dtype(0.5)
    exact, moved = noise_of(proto, {"x": x})
    relative = (moved - exact) / exact
    assert unit < np.abs(relative).max() <= 1.51 * unit  # a half for rounding
    assert 0.6 * unit < relative.std() < 0.8 * unit  # the sine of an angle that is spread evenly has 0.71
    assert abs(relative.mean()) < 0.1 * unit
    other = noise_of(proto, {"x": x}, seed=1)[1]
    assert (other != moved).any()


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Erf"])
def test_what_is_approximated_is_off_by_a_unit_of_one(op: str) -> None:
    proto = model(f"g (float[N] x) => (float[N] y) {{ y = {op}(x) }}")
    x = (-14 - np.abs(draw(500))) if op == "Sigmoid" else draw(500) * np.float32(1e-5)
    exact, moved = noise_of(proto, {"x": x.astype(np.float32)})
    assert 0.8 * EPSILON < np.abs(moved - exact).max() <= 1.01 * EPSILON


def test_of_several_outputs_the_first_is_off() -> None:
    norm = "y, mean, var = BatchNormalization<training_mode = 1>(x, g, b, m, v)"
    ones, zeros = np.ones(3, "f4"), np.zeros(3, "f4")
    proto = model(f"g (float[N,3] x) => (float[N,3] y, float[3] var) {{ {norm} }}", g=ones, b=zeros, m=zeros, v=ones)
    exact, moved = noise_of(proto, {"x": draw(200, 3)})
    assert 0.8 * EPSILON < np.abs((moved - exact) / exact).max() <= 1.51 * EPSILON


def test_results_that_are_tiny_are_off_by_their_own_unit() -> None:
    proto = model("g (float[N] x) => (float[N] y) { y = Mul(x, x) }")
    x = draw(500) * np.float32(1e-5)
    exact, moved = noise_of(proto, {"x": x})
    assert 0 < np.abs(moved - exact).max() <= 1.51 * EPSILON * np.abs(exact).max()


def test_zero_and_what_is_not_finite_stay() -> None:
    proto = model("g (float[N] x) => (float[N] y) { y = Mul(x, one) }", one=np.array(1, np.float32))
    exact, moved = noise_of(proto, {"x": np.array([0, np.nan, np.inf], np.float32)})
    assert moved[0] == 0
    assert not np.isfinite(moved[1:]).any()
    assert not np.isfinite(exact[1:]).any()


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }",
        "g (float[N,4] x) => (int64[2] y) { s = Shape(x) y = Mul(s, s) }",
        "g (float[N,4] x) => (float[2] y) { s = Shape(x) f = Cast<to = 1>(s) y = Mul(f, f) }",
        "g (double[N,4] x) => (double[N,4] y) { y = Mul(x, x) }",
        "g (float[N,4] x) => (float[4] y) { y = Mul(c, c) }",
    ],
    ids=["no arithmetic", "integers", "of shapes", "double", "of constants"],
)
def test_what_is_not_computed_in_floats_of_the_input_has_no_noise(text: str) -> None:
    proto = with_inferred_shapes(model(text, **({"c": draw(4)} if "(c, c)" in text else {})))
    shaken = shaken_model(proto, np.random.default_rng(0))
    assert [node.op_type for node in shaken.graph.node] == [node.op_type for node in proto.graph.node]
    assert list(shaken.graph.node[-1].output) == ["y"]


def test_names_that_are_taken_are_left_alone() -> None:
    """Every name that the noise would take is a tensor, a node or a capture of the model already."""
    text = """g (float[4] turns, bool c) => (float[4] y) {
        tiny = Mul(turns, turns) a = Add(tiny, turns) exact = Mul(a, a)
        y = If(c) <then_branch = s () => (float[4] t) { t = Mul(exact, exact) },
                   else_branch = r () => (float[4] e) { e = Neg(a) }> }"""
    proto = model(text)
    taken = [
        f"{name} {part}" for name in ("tiny", "a", "exact") for part in ("exact", "phase", "size", "draw", "share")
    ]
    for name in [*taken, "one unit in the last place"]:
        proto.graph.node.add(op_type="Abs", input=["turns"], output=[name])
    proto.graph.node[0].name = "tiny moved"
    shaken = shaken_model(with_inferred_shapes(proto), np.random.default_rng(0))
    made = [name for node in shaken.graph.node for name in node.output]
    stored = [tensor.name for tensor in shaken.graph.initializer]
    assert len({*made, *stored}) == len(made) + len(stored)
    x = draw(4)
    for branch in (True, False):
        feeds = {"turns": x, "c": np.array(branch)}
        left, right = Session(proto).run(feeds)["y"], Session(shaken).run(feeds)["y"]
        np.testing.assert_allclose(right, left, rtol=1e-5)
        assert (left != right).any()


def test_initializers_of_old_models_need_not_be_inputs() -> None:
    proto = model("g (float[N,4] x, float[4] w) => (float[N,4] y) { y = Mul(x, w) }", 9, 3, w=draw(4))
    shaken = shaken_model(proto, np.random.default_rng(0))
    assert shaken.ir_version == 4
    Session(shaken)
    new = shaken_model(model("g (float[4] x) => (float[4] y) { y = Mul(x, x) }", 17, 9), np.random.default_rng(0))
    assert new.ir_version == 9


# -- what is excused ---------------------------------------------------------------------------------------------------


def output(largest: float, rms: float, alone: float = 1.0, **others: object) -> OutputDifference:
    """An output whose channel 1 breaks its contract, and differs by so much."""
    parts = {name: Part(name, alone, rms, largest, 60.0) for name in ("", "channel 1")}
    values = {"name": "y", "holds": False, "problem": "p", "severity": 2.0, "broken": ("channel 1",)} | others
    first = OutputDifference(
        name="y", holds=False, max_abs=largest, max_rel=largest, sqnr_db=60.0, spread=1.0, rms=rms, elements=100,
        differing=10, parts=parts,
    )  # fmt: skip
    return dataclasses.replace(first, **values)  # type: ignore[arg-type]


def comparison(*outputs: OutputDifference) -> Comparison:
    return Comparison(all(each.holds for each in outputs), "c", 1.0, 1.0, None, outputs)


NOISE = comparison(output(1e-3, 1e-4))


@pytest.mark.parametrize(
    ("largest", "rms", "fine"),
    [
        (4e-3, 4e-4, True),
        (4.001e-3, 1e-4, False),
        (1e-3, 4.001e-4, False),
        (1e-9, 1e-9, True),
    ],
)
def test_up_to_four_times_the_noise_is_noise(largest: float, rms: float, fine: bool) -> None:
    judged = excused(comparison(output(largest, rms)), [NOISE])
    assert (judged is not None) is fine
    if judged is not None:
        (accepted,) = judged
        assert (accepted.holds, accepted.problem, accepted.severity, accepted.broken) == (True, "", 0.0, ())
        assert accepted.max_abs == largest


def test_the_largest_noise_of_all_draws_counts() -> None:
    quiet = comparison(output(1e-5, 1e-6))
    for noises in ([quiet, NOISE], [NOISE, quiet]):
        assert excused(comparison(output(4e-3, 4e-4)), noises) is not None
    assert excused(comparison(output(4e-3, 4e-4)), [quiet, quiet]) is None
    mixed = [comparison(output(1e-3, 1e-6)), comparison(output(1e-5, 1e-4))]
    assert excused(comparison(output(4e-3, 4e-4)), mixed) is not None


@pytest.mark.parametrize(
    ("rms", "spread", "whole", "fine"),
    [
        (0.05, 1.0, 1.0, True),
        (0.0501, 1.0, 1.0, False),
        (0.5, 10.0, 1.0, True),
        (0.501, 10.0, 1.0, False),
        (EPSILON, 0.0, 0.5, True),
        (1.01 * EPSILON, 0.0, 0.5, False),
        (100 * EPSILON, 0.0, 100.0, True),
        (101 * EPSILON, 0.0, 100.0, False),
    ],
)
def test_more_than_a_share_of_the_spread_is_never_excused(rms: float, spread: float, whole: float, fine: bool) -> None:
    loud = comparison(output(100.0, 100.0))
    judged = excused(comparison(output(rms, rms, spread, spread=whole)), [loud])
    assert (judged is not None) is fine


def test_each_part_that_breaks_the_contract_has_to_be_noise() -> None:
    both = output(1e-3, 1e-4, broken=("", "channel 1"))
    parts = {"": both.parts[""], "channel 1": dataclasses.replace(both.parts["channel 1"], max_abs=1.0)}
    assert excused(comparison(both), [NOISE]) is not None
    assert excused(comparison(dataclasses.replace(both, parts=parts)), [NOISE]) is None
    assert excused(comparison(dataclasses.replace(both, parts=parts, broken=("",))), [NOISE]) is not None


def test_a_part_without_noise_of_its_own_excuses_nothing() -> None:
    bare = output(1e-3, 1e-4)
    without = comparison(dataclasses.replace(bare, parts={"": bare.parts[""]}))
    assert excused(comparison(bare), [without]) is None
    assert excused(comparison(bare), [without, NOISE]) is not None
    unknown = comparison(output(1e-3, 1e-4, name="z"))
    assert excused(comparison(bare), [unknown]) is None
    nothing = {name: dataclasses.replace(part, max_abs=None) for name, part in bare.parts.items()}
    assert excused(comparison(dataclasses.replace(bare, parts=nothing)), [NOISE]) is not None
    assert excused(comparison(bare), [comparison(dataclasses.replace(bare, parts=nothing))]) is None


@pytest.mark.parametrize("severity", [BEYOND, 2 * BEYOND])
def test_what_is_beyond_any_tolerance_is_no_noise(severity: float) -> None:
    assert excused(comparison(output(1e-3, 1e-4, severity=severity)), [NOISE]) is None
    beyond = comparison(output(1e-3, 1e-4, severity=severity))
    assert excused(comparison(output(1e-3, 1e-4)), [NOISE, beyond]) is None
    assert excused(comparison(output(1e-3, 1e-4, severity=math.nextafter(BEYOND, 0))), [NOISE]) is not None


def test_outputs_that_hold_stay_as_they_are_and_one_lie_is_enough() -> None:
    fine = output(9.0, 9.0, name="a", holds=True, severity=0.0, broken=(), problem="")
    good, lie = output(1e-3, 1e-4), output(1.0, 1.0, name="z")
    judged = excused(comparison(fine, good), [NOISE])
    assert judged is not None
    assert judged[0] is fine
    assert [each.holds for each in judged] == [True, True]
    assert excused(comparison(fine, good, lie), [NOISE, comparison(output(1.0, 0.01, name="z"))]) is None
    assert excused(comparison(output(1e-3, 1e-4, broken=())), [NOISE]) is None
