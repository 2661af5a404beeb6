"""Choosing sites: what a pattern means, what is left out and why, and options for some sites only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from graphopt import GraphView, OptionError, Pass, create, optimize
from graphopt.choice import Choice
from graphopt.model import from_proto
from graphopt.recipe import parse_recipe, write_recipe
from graphopt.registry import discover
from graphopt.testing import assert_untouched, draw, draw_batchnorm, initializers, model, run_alone

WEIGHTS = {"wa": draw(16, 16), "wb": draw(16, 16, seed=1), "wc": draw(16, 16, seed=2), "bias": draw(16)}
LAYERS = "a = MatMul(x, wa)  p = Relu(a)  b = MatMul(p, wb)  c = Gemm(b, wc, bias)"
NET = f"g (float[N,16] x) => (float[N,16] c) {{ {LAYERS} }}"


def named(proto: onnx.ModelProto, **names: str) -> onnx.ModelProto:
    """Name the nodes that give out these tensors."""
    for node in proto.graph.node:
        node.name = names.get(node.output[0], "")
    return proto


def net() -> onnx.ModelProto:
    return named(model(NET, **WEIGHTS), a="/stem/first", b="/body/x[0]", c="/head/last")


def left(choice: Choice, proto: onnx.ModelProto, original: onnx.ModelProto | None = None) -> set[str]:
    """Return the nodes that a choice leaves out."""
    view = GraphView(from_proto(proto), original=None if original is None else from_proto(original))
    sites = {view.site(node) for node in view.nodes()}
    return sites & set(choice.left_out(view).reasons)


@pytest.mark.parametrize(
    ("pattern", "sites"),
    [
        pytest.param("a", {"a"}, id="a site"),
        pytest.param("/stem/first", {"a"}, id="a node"),
        pytest.param("wb", {"b"}, id="an initializer"),
        pytest.param("bias", {"c"}, id="a bias"),
        pytest.param("op:MatMul", {"a", "b"}, id="an operator"),
        pytest.param("op:ai.onnx.Gemm", {"c"}, id="an operator with its domain"),
        pytest.param("op:*", {"a", "p", "b", "c"}, id="any operator"),
        pytest.param("*", {"a", "p", "b", "c"}, id="any name"),
        pytest.param("/*/last", {"c"}, id="a star crosses slashes"),
        pytest.param("w?", {"a", "b", "c"}, id="any letter"),
        pytest.param("[ab]", {"a", "b"}, id="one of some letters"),
        pytest.param("/body/x[0]", {"b"}, id="brackets in a name are taken as they stand"),
        pytest.param("A", set(), id="case counts"),
        pytest.param("MatMul", set(), id="an operator without op:"),
        pytest.param("op:matmul", set(), id="an operator in another case"),
        pytest.param("first", set(), id="a part of a name"),
    ],
)
def test_a_pattern_means(pattern: str, sites: set[str]) -> None:
    assert left(Choice(skip=(pattern,)), net()) == sites
    assert left(Choice(only=(pattern,)), net()) == {"a", "p", "b", "c"} - sites


def test_skip_goes_before_only() -> None:
    assert left(Choice(only=("op:MatMul",), skip=("a",)), net()) == {"a", "p", "c"}


READ_AFAR = {
    "transposed": "t = Transpose(w)  y = MatMul(x, t)",
    "dequantized": "t = DequantizeLinear(q, s)  y = MatMul(x, t)",
    "multiplied": "t = Mul(w, s)  y = MatMul(x, t)",
}


@pytest.mark.parametrize("text", READ_AFAR.values(), ids=READ_AFAR.keys())
def test_an_initializer_means_the_layers_behind_what_is_computed_from_it(text: str) -> None:
    weights = {"w": draw(16, 16), "q": np.ones((16, 16), np.int8), "s": np.float32(2)}
    stored = {name: values for name, values in weights.items() if f"({name}" in text or f" {name})" in text}
    proto = model(f"g (float[N,16] x) => (float[N,16] z) {{ {text}  z = Relu(y) }}", **stored)
    assert left(Choice(skip=("q" if "q" in stored else "w",)), proto) == {"t", "y"}


IF = """g (float[N,16] x, bool c) => (float[N,16] y) {
    y = If(c) <then_branch = g1 () => (float[N,16] t) { t = MatMul(x, wa) },
               else_branch = g2 () => (float[N,16] e) { e = MatMul(x, wb) }> }"""


def test_what_holds_for_a_node_holds_for_its_bodies() -> None:
    proto = named(model(IF, wa=WEIGHTS["wa"], wb=WEIGHTS["wb"]), y="choice")
    assert left(Choice(skip=("choice",)), proto) == {"y", "t", "e"}
    assert left(Choice(skip=("t",)), proto) == {"t"}
    assert left(Choice(skip=("wb",)), proto) == {"e"}
    assert left(Choice(only=("op:If",)), proto) == set()


CALL = "g (float[N,16] x) => (float[N,16] y) { h = local.twice(x, wa)  y = Relu(h) }"
FUNCTION = '<domain: "local", opset_import: ["" : 17]> twice (u, v) => (o) { i = MatMul(u, v)  o = MatMul(i, v) }'


def test_functions_by_their_name_and_weights_that_are_handed_to_them() -> None:
    proto = model(f"{CALL} {FUNCTION}", wa=WEIGHTS["wa"])
    assert left(Choice(skip=("twice",)), proto) == {"i", "o"}
    assert left(Choice(skip=("op:twice",)), proto) == {"h"}
    assert left(Choice(skip=("op:local.twice",)), proto) == {"h"}
    assert left(Choice(skip=("wa",)), proto) == {"i", "o"}


FOLDED = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { h = Conv(x, w)  y = BatchNormalization(h, g, b, m, v) }"


@pytest.mark.parametrize("name", ["conv", ""], ids=["by its node's name", "by its weight's name"])
def test_a_layer_is_found_again_after_its_site_has_another_name(name: str) -> None:
    before = named(model(FOLDED, w=draw(4, 3, 3, 3), **draw_batchnorm(4)), h=name)
    after, _ = run_alone(create("fold-batchnorm"), before)
    assert [node.op_type for node in after.graph.node] == ["Conv"]
    assert left(Choice(skip=("h",)), after, before) == {"y"}
    assert left(Choice(skip=("h",)), after) == set()


@pytest.mark.parametrize(
    ("skip", "reason"), [("y", "left out by --skip y"), ("h", "'h' would change, which is left out by --skip h")]
)
def test_nothing_is_folded_into_a_layer_that_is_left_out(skip: str, reason: str) -> None:
    proto = model(FOLDED, w=draw(4, 3, 3, 3), **draw_batchnorm(4))
    (skipped,) = assert_untouched(create("fold-batchnorm", skip=[skip]), proto).skipped
    assert skipped.site == "y"
    assert reason in skipped.reason


AMOUNT = {"zero-channels": {"ratio": 0.5}, "zero-weights": {"ratio": 0.5}}
WIDE = """g (float[N,3,12,12] x) => (float[N,4] y, float[N,4] dead) {
    k = Constant <value = float[4] {1, 2, 3, 4}> ()
    p = Pad(x, pads)  h = Conv <kernel_shape = [3, 3]> (p, w1)
    n = BatchNormalization(h, g, b, m, v)
    r = Relu(n)  i = Identity(r)
    c = Conv <kernel_shape = [3, 3]> (i, w2)  q = ReduceMean <axes = [2, 3], keepdims = 0> (c)
    z = MatMul(q, w3)  z1 = MatMul(q, w4)  y = Add(z, k)  dead = Mul(z1, k)  unread = Relu(z1)
}"""
DEAD = draw(8, 3, 3, 3)
DEAD[:4] = 0
WIDE_WEIGHTS = {
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "w1": DEAD,
    **draw_batchnorm(8),
    "w2": draw(16, 8, 3, 3),
    "w3": draw(16, 4),
    "w4": draw(16, 4),
}


def wide() -> onnx.ModelProto:
    return model(WIDE, **WIDE_WEIGHTS)


@pytest.mark.parametrize("name", sorted(each for each in discover() if discover()[each].module.startswith("graphopt.")))
def test_every_pass_leaves_everything_alone_that_it_is_not_to_touch(name: str) -> None:
    for choice in ({"skip": ("*",)}, {"only": ("no such site",)}):
        result = assert_untouched(create(name, **AMOUNT.get(name, {}), **choice), wide())
        mine = [each for each in result.skipped if "left out by" not in each.reason]
        assert not mine or name in ("reconstruct", "quantize-activations", "prune-channels", "zero-channels"), mine


@pytest.mark.parametrize(
    "name", ["quantize-weights", "zero-weights", "fold-batchnorm", "eliminate-noops", "fold-constants"]
)
def test_only_rewrites_what_it_names(name: str) -> None:
    every = run_alone(create(name, **AMOUNT.get(name, {})), wide())[1].rewritten
    assert every
    for site in {each.site for each in every}:
        rewritten = run_alone(create(name, **AMOUNT.get(name, {}), only=[site]), wide())[1].rewritten
        assert {each.site for each in rewritten} <= {site}


# -- streams of channels ----------------------------------------------------------------------------------------------

STREAM = """g (float[N,4,8,8] x) => (float[N,4,8,8] y) {
    s = Conv <pads = [1, 1, 1, 1]> (x, w1)  b = Conv <pads = [1, 1, 1, 1]> (s, w2)
    t = Add(s, b)  r = Relu(t)  y = Conv <pads = [1, 1, 1, 1]> (r, w3) }"""


def stream() -> onnx.ModelProto:
    """A residual stream of 8 channels, of which the first four are dead."""
    first, second = draw(8, 4, 3, 3), draw(8, 8, 3, 3)
    first[:4], second[:4] = 0, 0
    return model(STREAM, w1=first, w2=second, w3=draw(4, 8, 3, 3))


@pytest.mark.parametrize("layer", ["s", "b"])
def test_no_layer_of_a_stream_is_cut_if_one_is_left_out(layer: str) -> None:
    assert run_alone(create("prune-channels"), stream())[1].rewritten
    (skipped,) = assert_untouched(create("prune-channels", skip=(layer,)), stream()).skipped
    assert f"left out by --skip {layer}" in skipped.reason


@pytest.mark.parametrize("layer", ["s", "b"])
def test_no_layer_of_a_stream_is_zeroed_if_one_is_left_out(layer: str) -> None:
    assert run_alone(create("zero-channels", ratio=0.75), stream())[1].rewritten
    result = assert_untouched(create("zero-channels", ratio=0.75, skip=(layer,)), stream())
    assert any(f"left out by --skip {layer}" in each.reason for each in result.skipped)


def test_the_inputs_of_a_layer_that_is_left_out_follow_what_is_cut_before_it() -> None:
    after, result = run_alone(create("prune-channels", skip=("y",)), stream())
    assert result.rewritten
    assert initializers(after)["w3"].shape == (4, 4, 3, 3)


# -- what is said ------------------------------------------------------------------------------------------------------


def notes(each: Pass) -> tuple[str, ...]:
    return run_alone(each, net())[1].notes


def test_a_pattern_that_matches_nothing_is_said() -> None:
    assert notes(create("quantize-weights", skip=("nosuch*", "a"), only=["op:Nope", "*"])) == (
        "quantize-weights: --only op:Nope matches no site, node, initializer or operator of the model",
        "quantize-weights: --skip nosuch* matches no site, node, initializer or operator of the model",
    )
    relu = "quantize-weights: --skip op:Relu matches no site that quantize-weights reports"
    assert notes(create("quantize-weights", skip=("op:Relu",))) == (relu,)
    assert notes(create("quantize-weights", skip=("a",))) == ()


def test_a_left_out_weight_asks_for_no_opset() -> None:
    each = create("quantize-weights", representation="dq", skip=("op:MatMul", "op:Gemm"))
    view = GraphView(from_proto(net()))
    each.prepare(view)
    assert each.required_opset(view) == 0
    assert create("quantize-weights", representation="dq").required_opset(GraphView(from_proto(net()))) > 17


# -- whole runs --------------------------------------------------------------------------------------------------------


def stored_as(proto: onnx.ModelProto) -> dict[str, str]:
    """Return the type in which each matrix is stored, by the name that its layer reads or begins with."""
    found = {}
    for name, values in initializers(proto).items():
        if values.shape == (16, 16):
            found[next(key for key in ("wa", "wb", "wc") if name.startswith(key))] = values.dtype.name
    return found


def outputs(proto: onnx.ModelProto, x: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": x})
    return result


X = draw(64, 16, seed=9)


def run(passes: Any, **options: Any) -> Any:
    return optimize(net(), passes, {"x": X}, latency=False, **options)


@pytest.mark.parametrize("where", ["of the pass", "of the run"])
def test_a_run_leaves_out_what_it_is_to(where: str) -> None:
    chosen = {"skip": ("wb",)}
    own, of_run = (chosen, {}) if where == "of the pass" else ({}, chosen)
    result = run([create("quantize-weights", **own)], **of_run)
    assert result.ok
    assert stored_as(result.model) == {"wa": "int8", "wb": "float32", "wc": "int8"}
    (told,) = result.report.passes
    assert {each.site: each.reason for each in told.result.skipped} == {"b": "left out by --skip wb"}
    assert np.array_equal(initializers(result.model)["wb"], WEIGHTS["wb"])


def test_a_run_whose_every_site_is_left_out_has_done_nothing() -> None:
    result = run(["quantize-weights"], skip=["*"])
    assert not result.ok
    assert result.report.failures == ("quantize-weights: nothing to do (a: left out by --skip *)",)


def test_notes_of_patterns_are_in_the_report_once() -> None:
    result = run([create("eliminate-noops", skip=["nosuch"])], fixed_point=True)
    text = "eliminate-noops: --skip nosuch matches no site, node, initializer or operator of the model"
    assert [note for note in result.report.notes if "nosuch" in note] == [text]


def test_options_for_some_sites() -> None:
    overrides = [{"sites": ["op:Gemm"], "dtype": "int16"}, {"sites": "wb", "dtype": "uint8", "symmetric": False}]
    result = run([create("quantize-weights", override=overrides)])
    assert result.ok
    assert stored_as(result.model) == {"wa": "int8", "wb": "uint8", "wc": "int16"}
    first, second, third = result.report.passes
    assert {each.site: each.reason for each in first.result.skipped} == {
        "b": "left to override wb",
        "c": "left to override op:Gemm",
    }
    assert [each.site for each in (*second.result.rewritten, *third.result.rewritten)] == ["c", "b"]
    assert second.options["override"] == [{"sites": ["op:Gemm"], "dtype": "int16"}]
    expected, given = outputs(net(), X), outputs(result.model, X)
    assert 10 * np.log10(np.square(expected - expected.mean()).sum() / np.square(expected - given).sum()) > 25


def test_the_last_override_that_matches_counts_and_a_site_left_out_has_none() -> None:
    overrides = [{"sites": ["op:*"], "dtype": "int16"}, {"sites": ["c"], "dtype": "uint8"}]
    result = run([create("quantize-weights", override=overrides, skip=["b"])])
    assert result.ok
    assert stored_as(result.model) == {"wa": "int16", "wb": "float32", "wc": "uint8"}


def scales(proto: onnx.ModelProto) -> Mapping[str, float]:
    return {name: float(value) for name, value in initializers(proto).items() if name.endswith("_s") and not value.ndim}


def test_options_of_layers_that_are_calibrated_together() -> None:
    loud = {"x": np.where(np.arange(64 * 16).reshape(64, 16) % 97 == 0, 30 * X, X)}
    proto = model(
        "g (float[N,16] x) => (float[N,16] a, float[N,16] b) { a = MatMul(x, wa)  r = Relu(x)  b = MatMul(r, wb) }",
        wa=WEIGHTS["wa"],
        wb=WEIGHTS["wb"],
    )
    found = []
    for override in ([], [{"sites": ["b"], "range": "percentile", "percentile": 90.0}]):
        each = create("quantize-activations", override=override)
        result = optimize(proto, [each], loud, check=False)
        assert len(result.report.passes) == 1
        assert {site.site for site in result.report.passes[0].result.rewritten} == {"a", "b"}
        found.append(scales(result.model))
    plain, other = found
    assert plain.keys() == other.keys()
    changed = {name for name in plain if other[name] < 0.5 * plain[name]}
    assert changed
    assert changed < set(plain)


RECIPE = """
[[pass]]
name = "quantize-weights"
only = "op:*"
skip = ["wa"]

[[pass.override]]
sites = ["op:Gemm", "wc"]
dtype = "int16"
"""


def test_recipes_carry_it() -> None:
    (read,) = parse_recipe(RECIPE)
    override = {"sites": ["op:Gemm", "wc"], "dtype": "int16"}
    assert read == create("quantize-weights", only=["op:*"], skip=["wa"], override=[override])
    assert parse_recipe(write_recipe([read])) == [read]
    assert stored_as(run([read]).model) == {"wa": "float32", "wb": "int8", "wc": "int16"}


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        pytest.param({"skip": [""]}, "'' is not a pattern", id="an empty pattern"),
        pytest.param({"only": ["op:"]}, "'op:' is not a pattern", id="no operator"),
        pytest.param({"skip": [3]}, "3 is not a pattern", id="a number"),
        pytest.param({"skip": 3}, "3 is not a list of patterns", id="a number alone"),
        pytest.param({"override": ["a"]}, "number 1: 'a' is not a table", id="no table"),
        pytest.param({"override": [{"dtype": "int8"}]}, "number 1: 'sites' must be a list", id="no sites"),
        pytest.param({"override": [{"sites": ["a"]}]}, "gives a no option", id="no option"),
        pytest.param({"override": [{"sites": [""], "dtype": "int8"}]}, "not a pattern", id="an empty pattern there"),
        pytest.param({"override": [{"sites": ["a"], "skip": ["b"]}]}, "'skip' cannot be given", id="a choice in it"),
        pytest.param({"override": [{"sites": ["a"], "gain": 1}]}, "'gain' cannot be given", id="unknown option"),
        pytest.param({"override": [{"sites": ["a"], "dtype": "int9"}]}, "'int9' is not one of", id="unusable value"),
    ],
)
def test_refusals_name_the_culprit(options: dict[str, Any], culprit: str) -> None:
    with pytest.raises(OptionError, match=r"^quantize-weights: --") as raised:
        create("quantize-weights", **options)
    assert culprit in str(raised.value)


def test_what_is_calibrated_together_has_few_options_for_some_sites() -> None:
    with pytest.raises(OptionError, match=r"'target' cannot be given for sites \(options: range, percentile\)"):
        create("quantize-activations", override=[{"sites": ["a"], "target": "tensorrt"}])
