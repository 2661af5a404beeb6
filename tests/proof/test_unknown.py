"""Operators that ONNX Runtime does not know: what lies behind them stays, what goes into them is proved."""

import numpy as np
import onnx
import pytest
from onnxruntime_extensions import get_library_path

from graphopt import optimize
from graphopt.model import Model, from_proto, to_proto
from graphopt.proof.unknown import Unknown, provable
from graphopt.runtime.session import Session, use_custom_operators
from graphopt.testing import draw, model

DOMAINS = '"com.example" : 1, "com.microsoft" : 1, "local" : 1'


def parsed(text: str, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, {DOMAINS}]> {text}')
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return from_proto(proto)


def unknown(subject: Model) -> Unknown:
    found = Unknown.of(subject)
    assert found is not None
    return found


CHAIN = """g (float[N,4] x) => (float[N,4] y, float[N,4] z) {
    a = Relu(x) b = com.example.Secret(a, , w) c = Add(b, a) y = Neg(c) z = Abs(a) }"""


def test_the_part_is_what_is_unknown_and_what_depends_on_it() -> None:
    found = unknown(parsed(CHAIN, w=draw(4)))
    assert found.operators == ("com.example::Secret",)
    assert found.sites == {"b", "c", "y"}
    assert found.reason() == (
        "lies behind com.example::Secret, which ONNX Runtime does not know: nothing there can be proved"
    )
    assert found.note() == (
        "ONNX Runtime does not know com.example::Secret: what goes into it was compared, what lies behind it was left "
        "as it was (--custom-ops names a library that has it)"
    )


def test_the_rest_runs_and_gives_out_what_the_part_reads() -> None:
    weight = draw(4)
    session = Session(to_proto(provable(parsed(CHAIN, w=weight))))
    assert session.outputs == (
        "z",
        "input 0 of Secret 'b'",
        "input 2 of Secret 'b'",
        "input 1 of Add 'c'",
    )
    x = draw(3, 4)
    found = session.run({"x": x})
    np.testing.assert_array_equal(found["z"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["input 0 of Secret 'b'"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["input 1 of Add 'c'"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["input 2 of Secret 'b'"], weight)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }",
        "g (float[N,4] x) => (float[N,4] y) { y = com.microsoft.Gelu(x) }",
        """g (float[N,4] x) => (float[N,4] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 17]> f (u) => (v) { v = Relu(u) }""",
    ],
    ids=["standard", "of ONNX Runtime", "local function"],
)
def test_what_is_known_is_proved_whole(text: str) -> None:
    subject = parsed(text)
    assert Unknown.of(subject) is None
    assert provable(subject) is subject


@pytest.mark.parametrize(
    ("text", "operators", "sites"),
    [
        (
            "g (float[N,4] x) => (float[N,4] y) { y = NMS_TRT(x) }",
            ("NMS_TRT",),
            {"y"},
        ),
        (
            """g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = local.f(a) }
            <domain: "local", opset_import: ["" : 17, "com.example" : 1]> f (u) => (v) { v = com.example.Secret(u) }""",
            ("com.example::Secret",),
            {"y"},
        ),
        (
            """g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = local.f(a) }
            <domain: "local", opset_import: ["" : 17, "local" : 1]> f (u) => (v) { v = local.h(u) }
            <domain: "local", opset_import: ["" : 17, "com.example" : 1]> h (u) => (v) { v = com.example.Secret(u) }""",
            ("com.example::Secret",),
            {"y"},
        ),
        (
            """g (float[N,4] x, bool c) => (float[N,4] y) { a = Relu(x) y = If(c) <
                then_branch = s () => (float[N,4] t) { t = com.example.Secret(a) },
                else_branch = r () => (float[N,4] e) { e = Neg(a) }> }""",
            ("com.example::Secret",),
            {"y"},
        ),
        (
            """g (float[N,4] x, bool c) => (float[N,4] y) { a = com.example.Secret(x) y = If(c) <
                then_branch = s () => (float[N,4] t) { t = Relu(a) },
                else_branch = r () => (float[N,4] e) { e = Neg(x) }> }""",
            ("com.example::Secret",),
            {"a", "y"},
        ),
        (
            """g (float[N,4] x) => (float[N,4] y) {
                a = com.example.One(x) b = com.example.Two(a) y = com.example.One(b) }""",
            ("com.example::One", "com.example::Two"),
            {"a", "b", "y"},
        ),
    ],
    ids=["default domain", "in a function", "in a function of a function", "in a body", "captured", "two"],
)
def test_wherever_it_is(text: str, operators: tuple[str, ...], sites: set[str]) -> None:
    found = unknown(parsed(text))
    assert found.operators == operators
    assert found.sites == sites
    runnable = found.runnable(to_proto(parsed(text)))
    assert not sites & {name for node in runnable.graph.node for name in node.output}
    Session(runnable)


def test_what_is_left_out_is_no_tensor() -> None:
    """An output that an unknown operator leaves out is not what another leaves out of its inputs."""
    text = """g (float[N,4] x, float m) => (float[N,4] y, float[N,4] z) {
        y, , b = com.example.Secret(x) z = Clip(x, , m) }"""
    found = unknown(parsed(text))
    assert found.sites == {"y"}
    assert Session(to_proto(provable(parsed(text)))).outputs[0] == "z"


def test_what_a_body_captures_is_given_out() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y) { a = Relu(x) y = If(c) <
        then_branch = s () => (float[N,4] t) { t = com.example.Secret(a) },
        else_branch = r () => (float[N,4] e) { e = Neg(x) }> }"""
    assert Session(to_proto(provable(parsed(text)))).outputs == (
        "input 0 of If 'y'",
        "input 1 of If 'y'",
        "input 2 of If 'y'",
    )


def test_domains_that_nothing_uses_any_more_are_dropped() -> None:
    runnable = to_proto(
        provable(parsed("g (float[N,4] x) => (float[N,4] y) { a = com.microsoft.Gelu(x) y = Secret(a) }"))
    )
    assert {each.domain for each in runnable.opset_import} == {"", "com.microsoft"}
    text = """g (float[N,4] x) => (float[N,4] y) { a = local.f(x) y = com.example.Secret(a) }
        <domain: "local", opset_import: ["" : 17, "com.microsoft" : 1]> f (u) => (v) { v = com.microsoft.Gelu(u) }"""
    assert unknown(parsed(text)).sites == {"y"}  # not what the function that is known computes
    kept = to_proto(provable(parsed(text)))
    assert {"local", "com.microsoft"} <= {each.domain for each in kept.opset_import}  # bodies of functions use them
    Session(kept)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("Relu(x)", "Abs(x)", False),
        ("z = Abs(a)", "z = Neg(a)", False),
        ("Secret(a, , w)", "Secret(x, , w)", False),  # another tensor with, perhaps, the same values
        ("Secret(a, , w)", "Secret(a, w)", True),
        ("Secret(a, , w)", "Secret(a, x, w)", True),
        ("Secret(a, , w)", "Secret<k = 1>(a, , w)", True),
        ("c = Add(b, a)", "c = Sub(b, a)", True),
        ("c = Add(b, a)", "c = Add(a, b)", True),
        ("y = Neg(c)", "y = Neg(b)", True),
        ("c = Add(b, a) y = Neg(c)", "c = Add(b, a) d = Abs(c) y = Neg(d)", True),
        ("c = Add(b, a)", "c = Add(b, a) d = Neg(a)", False),
    ],
)
def test_the_part_has_to_stay_but_for_the_names_that_it_reads(old: str, new: str, changed: bool) -> None:
    found = unknown(parsed(CHAIN, w=draw(4)))
    assert old in CHAIN
    candidate = parsed(CHAIN.replace(old, new), w=draw(4))
    says = "what lies behind com.example::Secret has changed, which cannot be proved"
    assert found.changed(to_proto(candidate)) == (says if changed else "")


def test_the_outputs_of_the_part_have_to_stay() -> None:
    found = unknown(parsed(CHAIN, w=draw(4)))
    other = to_proto(parsed(CHAIN, w=draw(4)))
    del other.graph.output[0]
    assert found.changed(other)


def test_notes_of_tools_are_no_change() -> None:
    found = unknown(parsed(CHAIN, w=draw(4)))
    other = to_proto(parsed(CHAIN, w=draw(4)))
    for node in other.graph.node:
        node.metadata_props.add(key="tool", value="was here")
    assert not found.changed(other)


def test_with_libraries_of_operators_nothing_is_said_beforehand() -> None:
    subject = parsed(CHAIN, w=draw(4))
    try:
        use_custom_operators(["library"])
        assert Unknown.of(subject) is None
    finally:
        use_custom_operators([])
    assert Unknown.of(subject) is not None


def test_a_model_without_plugins_is_any_model() -> None:
    assert Unknown.of(from_proto(model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"))) is None


def test_a_library_of_operators_serves_the_whole_run() -> None:
    """Inputs are tried, models proved and timed with it."""
    text = "g (float[N,8] x) => (float[N,8] y) { a = Identity(x) b, c = ai.onnx.contrib.NegPos(a) d = MatMul(c, w) "
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "ai.onnx.contrib" : 1]> {text} y = Add(b, d) }}'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(draw(8, 8), "w"))
    try:
        result = optimize(proto, ["eliminate-noops"], custom_ops=[get_library_path()])
    finally:
        use_custom_operators([])
    assert result.ok
    assert result.report.check is not None
    assert result.report.check.holds
    assert result.report.latency is not None
    assert [each for each in result.report.notes if "does not know" in each] == []
