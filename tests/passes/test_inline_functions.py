"""inline-functions: bodies stand in the place of their calls, to the bit; what a runtime may know otherwise stays."""

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

import graphopt
from graphopt import GraphView, create
from graphopt.model import from_proto, load, to_proto
from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, assert_skips, count_ops, draw, draw_batchnorm, model, run_alone

PASS = create("inline-functions")
YES = "t = Constant<value: tensor = bool {1}>()"


def function(text: str, opset: int = 17, domain: str = "local", more: str = "") -> str:
    """Write a local function."""
    return f'<domain: "{domain}", opset_import: ["" : {opset}{more}]> {text}'


def main(text: str, *functions: str, takes: str = "float[2,3] x", gives: str = "float[2,3] y") -> str:
    """Write a main graph and functions behind it."""
    return f"g ({takes}) => ({gives}) {{ {text} }} " + " ".join(functions)


def parsed(text: str, imports: str, ir_version: int = 8) -> onnx.ModelProto:
    """Parse a model that imports other domains than ``local``."""
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : 17{imports}]> {text}')


def feed(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    return {"x": draw(2, 3, seed=seed)}


SOFTEN = function("F <alpha: float = 3.0> (a) => (b) { b = LeakyRelu<alpha: float = @alpha>(a) }")
NO_DEFAULT = function("F <alpha> (a) => (b) { b = LeakyRelu<alpha: float = @alpha>(a) }")
NEGATE = function("F (a) => (b) { b = Neg(a) }")
HANDS_ON = function("G <beta> (a) => (b) { b = local.F<alpha: float = @beta>(a) }", more=', "local" : 1')
CLIPS = function("F (a, low, high) => (b) { b = Clip(a, low, high) }")
BRANCHES = (
    "b = If (t) <then_branch = yes () => (u) { u = LeakyRelu<alpha: float = @alpha>(a) }, "
    "else_branch = no () => (v) { v = Neg(a) }>"
)

CASES: dict[str, tuple[str, dict[str, int], int]] = {
    "one call": (main("y = local.F(x)", NEGATE), {"Neg": 1}, 1),
    "three calls": (main("a = local.F(x) b = local.F(a) y = local.F(b)", NEGATE), {"Neg": 3}, 3),
    "a call among nodes": (main("a = Exp(x) b = local.F(a) y = Sin(b)", NEGATE), {"Exp": 1, "Neg": 1, "Sin": 1}, 1),
    "the default of an attribute": (main("y = local.F(x)", SOFTEN), {"LeakyRelu": 1}, 1),
    "an attribute in place of its default": (main("y = local.F<alpha = 0.5>(x)", SOFTEN), {"LeakyRelu": 1}, 1),
    "an attribute without default": (main("y = local.F<alpha = 0.5>(x)", NO_DEFAULT), {"LeakyRelu": 1}, 1),
    "an attribute that is absent": (main("y = local.F(x)", NO_DEFAULT), {"LeakyRelu": 1}, 1),
    "an attribute that the function does not know": (main("y = local.F<gamma = 2>(x)", NEGATE), {"Neg": 1}, 1),
    "calls in functions": (main("y = local.G<beta = 0.25>(x)", HANDS_ON, SOFTEN), {"LeakyRelu": 1}, 2),
    "the inner default of an outer attribute that is absent": (
        main("y = local.G(x)", HANDS_ON, SOFTEN),
        {"LeakyRelu": 1},
        2,
    ),
    "an attribute of a node in a branch": (
        main("y = local.F<alpha = 0.5>(x)", function(f"F <alpha> (a) => (b) {{ {YES} {BRANCHES} }}")),
        {"If": 1},
        1,
    ),
    "a default of a node in a branch": (
        main("y = local.F(x)", function(f"F <alpha: float = 4.0> (a) => (b) {{ {YES} {BRANCHES} }}")),
        {"If": 1},
        1,
    ),
    "a constant from an attribute": (
        main(
            "y = local.F<k = 2.5>(x)",
            function("F <k> (a) => (b) { c = Constant<value_float: float = @k>() b = Mul(a, c) }"),
        ),
        {"Mul": 1},
        1,
    ),
    "inputs that the call leaves out": (main("y = local.F(x)", CLIPS), {"Clip": 1}, 1),
    "an empty input": (main('y = local.F(x, "", x0)', CLIPS, takes="float[2,3] x, float x0"), {"Clip": 1}, 1),
    "an output that the call does not name": (
        main('"", y = local.F(x)', function("F (a) => (b, c) { b = Neg(a) c = Exp(b) }")),
        {"Neg": 1, "Exp": 1},
        1,
    ),
    "an output that nothing reads": (
        main("z, y = local.F(x)", function("F (a) => (b, c) { b = Neg(a) c = Exp(b) }")),
        {"Neg": 1, "Exp": 1},
        1,
    ),
    "both are graph outputs": (
        main(
            "z, y = local.F(x)",
            function("F (a) => (b, c) { b = Neg(a) c = Exp(b) }"),
            gives="float[2,3] z, float[2,3] y",
        ),
        {"Neg": 1, "Exp": 1},
        1,
    ),
    "a call in a branch, whose names collide": (
        main(
            f"b = Exp(x) {YES} q = If (t) <then_branch = yes () => (u) {{ u = local.F(b) }}, "
            "else_branch = no () => (v) { v = Neg(b) }> y = Add(q, b)",
            function("F (x) => (b) { u = Neg(x) q = Exp(u) b = Sin(q) }"),
        ),
        {"Exp": 1, "If": 1, "Add": 1},
        1,
    ),
    "a constant that a branch gives out": (
        main(
            f"{YES} y = If (t) <then_branch = yes () => (u) {{ u = local.F(x) }}, "
            "else_branch = no () => (v) { v = Neg(x) }>",
            function("F (x) => (c) { c = Constant<value: tensor = float[2,3] {1,2,3,4,5,6}>() }"),
        ),
        {"If": 1},
        1,
    ),
    "a loop in a function": (
        main(
            "y = local.F(x)",
            function(
                'F (a) => (b) { n = Constant<value_int = 3>() b = Loop (n, "", a) <body = body (int64 i, bool c, '
                "float[2,3] s) => (c2, s2) { c2 = Identity(c) s2 = Mul(s, a) }> }"
            ),
        ),
        {"Loop": 1},
        1,
    ),
    "a call in a loop": (
        main(
            'n = Constant<value_int = 3>() y = Loop (n, "", x) <body = body (int64 i, bool c, float[2,3] s) '
            "=> (c2, s2) { c2 = Identity(c) s2 = local.F(s) }>",
            function("F (s) => (c2) { c = Neg(s) c2 = Exp(c) }"),
        ),
        {"Loop": 1},
        1,
    ),
    "a newer opset that says the same": (
        main("y = local.F(x)", function("F (a) => (b) { c = Relu(a) b = Neg(c) }", opset=18)),
        {"Relu": 1, "Neg": 1},
        1,
    ),
    "an older opset that says the same": (
        main("y = local.F(x)", function("F (a) => (b) { c = Relu(a) b = Add(a, c) }", opset=13)),
        {"Relu": 1, "Add": 1},
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_calls_become_nodes(name: str) -> None:
    text, ops, calls = CASES[name]
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "local" : 1]> {text}')
    feeds = feed() | ({"x0": np.array(0.25, np.float32)} if "x0" in text else {})
    after = assert_rewrites(PASS, proto, ops=ops, rewritten=calls, feeds=feeds)
    assert not after.functions
    assert [entry.domain for entry in after.opset_import] == [""]
    held, same = (Session(each).run(feeds) for each in (proto, after))
    assert all(held[key].tobytes() == same[key].tobytes() for key in held)


def test_weights_that_calls_hand_over_are_reached() -> None:
    body = function(
        "Layer (a, w, g, b, m, v) => (o) { c = Conv<pads = [1,1,1,1]>(a, w) d = BatchNormalization(c, g, b, m, v) "
        "o = Relu(d) }"
    )
    weights = draw_batchnorm(4, seed=1, suffix="1") | draw_batchnorm(4, seed=2, suffix="2")
    proto = model(
        main(
            "h = local.Layer(x, w1, g1, b1, m1, v1) y = local.Layer(h, w2, g2, b2, m2, v2)",
            body,
            takes="float[1,3,6,6] x",
            gives="float[1,4,6,6] y",
        ),
        w1=draw(4, 3, 3, 3),
        w2=draw(4, 4, 3, 3),
        **weights,
    )
    apart, _ = run_alone(create("fold-batchnorm"), proto)
    assert "BatchNormalization" in {node.op_type for each in apart.functions for node in each.node}
    result = graphopt.optimize(proto, ["inline-functions", "fold-batchnorm"])
    assert result.ok, result.report.failures
    assert count_ops(result.model) == {"Conv": 2, "Relu": 2}


@pytest.mark.parametrize("place", ["top", "branch"])
def test_constants_of_a_function_are_stored_once(place: str) -> None:
    table = "float[64,64] {" + ",".join(str(i % 251) for i in range(4096)) + "}"
    product = f"w = Constant<value: tensor = {table}>() b = MatMul(a, w)"
    if place == "branch":
        product = (
            f"{YES} b = If (t) <then_branch = yes () => (u) {{ w = Constant<value: tensor = {table}>() "
            "u = MatMul(a, w) }, else_branch = no () => (q) { q = Neg(a) }>"
        )
    proto = model(
        main(
            "h = local.F(x) k = local.F(h) y = local.F(k)",
            function(f"F (a) => (b) {{ {product} }}"),
            takes="float[2,64] x",
            gives="float[2,64] y",
        )
    )
    after, result = run_alone(PASS, proto)
    assert len(result.rewritten) == 3
    assert [list(tensor.dims) for tensor in after.graph.initializer if tensor.dims] == [[64, 64]]
    assert len(after.SerializeToString()) < len(proto.SerializeToString()) + 1500
    feeds = {"x": draw(2, 64)}
    assert Session(proto).run(feeds)["y"].tobytes() == Session(after).run(feeds)["y"].tobytes()


def test_a_weight_in_a_mapped_file_is_not_read(tmp_path: object) -> None:
    values = onnx.numpy_helper.from_array(draw(64, 64), "")
    proto = model(
        main("h = local.F(x) y = local.F(h)", takes="float[2,64] x", gives="float[2,64] y")
        + function("F (a) => (b) { w = Constant<value: tensor = float[1] {0}>() b = MatMul(a, w) }")
    )
    proto.functions[0].node[0].attribute[0].t.CopyFrom(values)
    path = str(tmp_path) + "/m.onnx"
    onnx.save(proto, path)
    view = GraphView(load(path))
    PASS.apply(view)
    [stored] = view.model.graph.initializers
    assert not isinstance(stored._values, np.ndarray)
    after = to_proto(view.model)
    assert after.graph.initializer[0].raw_data == values.raw_data
    feeds = {"x": draw(2, 64)}
    assert Session(proto).run(feeds)["y"].tobytes() == Session(after).run(feeds)["y"].tobytes()


def test_overloads_are_told_apart() -> None:
    text = main("h = local.F(x) y = local.F(h)")
    proto = parsed(text, ', "local" : 1', ir_version=10)
    for overload, op in (("one", "Neg"), ("two", "Exp")):
        body = onnx.helper.make_function("local", "F", ["a"], ["b"], [onnx.helper.make_node(op, ["a"], ["b"])], [])
        body.overload = overload
        body.opset_import.append(onnx.helper.make_opsetid("", 17))
        proto.functions.append(body)
    for node, overload in zip(proto.graph.node, ("two", "one"), strict=True):
        node.overload = overload
    after, result = run_alone(PASS, proto)
    assert [node.op_type for node in after.graph.node] == ["Exp", "Neg"]
    assert [each.detail for each in result.rewritten] == ["local.F.two: 1 node", "local.F.one: 1 node"]


def test_names_of_bodies_stay_where_they_are_free() -> None:
    proto = model(main("h = local.F(x) y = local.F(h)", function("F (h) => (o) { part = Exp(h) o = Neg(part) }")))
    after, _ = run_alone(PASS, proto)
    assert [list(node.output) for node in after.graph.node] == [["part"], ["h"], ["part_1"], ["y"]]


def test_what_a_body_declares_of_its_tensors_is_not_taken_over() -> None:
    """A dimension that the body calls N is another than the main graph's."""
    proto = model(
        main(
            "h = local.F(x) y = Neg(h)",
            function("F (a) => (b) { c = Transpose(a) b = Transpose(c) }"),
            takes="float[N,3] x",
            gives="float[N,3] y",
        )
    )
    proto.functions[0].value_info.append(onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, ["N", 7]))
    after = assert_rewrites(PASS, proto, ops={"Transpose": 2, "Neg": 1})
    assert not after.graph.value_info


def test_a_result_of_a_branch_that_only_an_unused_argument_reads_stays() -> None:
    branch = (
        "b = If (t) <then_branch = yes () => (u) { u = Exp(a) w = local.Ignores(u, a) }, "
        "else_branch = no () => (v) { v = Neg(a) }>"
    )
    proto = model(
        main(
            "y = local.F(x)",
            function(f"F (a) => (b) {{ {YES} {branch} }}", more=', "local" : 1'),
            function("Ignores (a, b) => (c) { c = Neg(b) }"),
        )
    )
    after = assert_rewrites(PASS, proto, ops={"If": 1}, rewritten=2)
    [chosen] = [each.g for node in after.graph.node for each in node.attribute if each.name == "then_branch"]
    assert sorted(node.op_type for node in chosen.node) == ["Exp", "Neg"]


def test_names_of_nodes_are_unique_and_absent_inputs_are_nobodys() -> None:
    proto = model(
        main("h = local.F(x) y = local.F(h)", function("F (a, low) => (c) { b = Clip(a, low) c = Clip(b, low) }"))
    )
    for index, node in enumerate(proto.functions[0].node):
        node.name = f"n{index}"
    subject = from_proto(proto)
    PASS.apply(GraphView(subject))
    assert [node.name for node in subject.graph.nodes] == ["n0", "n1", "n0_1", "n1_1"]
    assert len({id(node.inputs[1]) for node in subject.graph.nodes}) == 4


def test_declarations_in_branches_of_a_body_are_not_taken_over() -> None:
    proto = model(main("y = local.F<alpha = 0.5>(x)", function(f"F <alpha> (a) => (b) {{ {YES} {BRANCHES} }}")))
    [branch] = [each.g for node in proto.functions[0].node for each in node.attribute if each.name == "else_branch"]
    branch.node[0].output[0] = "w"
    branch.node.append(onnx.helper.make_node("Neg", ["w"], ["v"]))
    branch.value_info.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, ["N", 3]))
    after = assert_rewrites(PASS, proto, ops={"If": 1})
    [kept] = [each.g for node in after.graph.node for each in node.attribute if each.name == "else_branch"]
    assert not kept.value_info


def test_operator_sets_that_only_a_body_needs_are_imported() -> None:
    body = function("F (a) => (b) { b = com.microsoft.Gelu(a) }", more=', "com.microsoft" : 1')
    proto = parsed(main("y = local.F(x)", body), ', "local" : 1')
    after, _ = run_alone(PASS, proto)
    assert {entry.domain: entry.version for entry in after.opset_import} == {"": 17, "com.microsoft": 1}
    assert Session(proto).run(feed())["y"].tobytes() == Session(after).run(feed())["y"].tobytes()


def test_versions_of_domains_of_functions_do_not_matter() -> None:
    inner = function("G (a) => (b) { b = Neg(a) }", domain="other")
    outer = function("F (a) => (b) { b = other.G(a) }", more=', "other" : 1')
    proto = parsed(main("y = local.F(x)", outer, inner), ', "local" : 1, "other" : 2')
    assert_rewrites(PASS, proto, ops={"Neg": 1}, rewritten=2, feeds=feed())


def test_functions_that_something_else_calls_stay() -> None:
    """Nothing calls G, and it is not this pass's to drop; F, which it calls, stays with it."""
    unused = function("G (a) => (b) { b = local.F(a) }", more=', "local" : 1')
    proto = model(main("y = local.F(x)", NEGATE, unused))
    after, result = run_alone(PASS, proto)
    assert [node.op_type for node in after.graph.node] == ["Neg"]
    assert [each.name for each in after.functions] == ["F", "G"]
    assert [(each.site, each.reason) for each in result.skipped] == [("b", "is in local.G, which stays")]
    assert [entry.domain for entry in after.opset_import] == ["", "local"]


GIVEN_TWICE = {
    "an input that is given out": (main("y = local.F(x, x)", function("F (a, c) => (a) { b = Neg(c) }")), 1),
    "an input and a result": (
        main("y, z = local.F(x)", function("F (a) => (a, b) { b = Neg(a) }"), gives="float[2,3] y, float[2,3] z"),
        1,
    ),
    "one result twice": (
        main("y, z = local.F(x)", function("F (a) => (b, b) { b = Neg(a) }"), gives="float[2,3] y, float[2,3] z"),
        1,
    ),
    "fewer outputs than the function has": (
        main("y = local.F(x)", function("F (a) => (b, c) { b = Neg(a) c = Exp(b) }")),
        0,
    ),
}


@pytest.mark.parametrize("name", GIVEN_TWICE)
def test_bodies_that_onnx_runtime_refuses_run_once_they_are_inlined(name: str) -> None:
    text, identities = GIVEN_TWICE[name]
    proto = parsed(text, ', "local" : 1')
    after, _ = run_alone(PASS, proto)
    assert count_ops(after).get("Identity", 0) == identities
    onnx.checker.check_model(after, full_check=True)
    found = Session(after).run(feed())
    wanted = dict(zip(found, ReferenceEvaluator(proto).run(None, feed()), strict=True))
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


SKIPS: dict[str, tuple[str, str, str]] = {
    "a contrib operator": (
        main("y = com.microsoft.Gelu(x)", function("Gelu (a) => (b) { b = Neg(a) }", domain="com.microsoft")),
        ', "com.microsoft" : 1',
        "^runtimes may have a kernel of their own for com.microsoft.Gelu$",
    ),
    "an operator of ONNX": (
        main("y = Relu(x)", function("Relu (a) => (b) { b = Neg(a) }", domain="")),
        "",
        "^runtimes may have a kernel of their own for Relu$",
    ),
    "an operator of ONNX's machine learning domain": (
        main("y = ai.onnx.ml.Scaler(x)", function("Scaler (a) => (b) { b = Neg(a) }", domain="ai.onnx.ml")),
        ', "ai.onnx.ml" : 3',
        "kernel of their own for ai.onnx.ml.Scaler",
    ),
    "an older opset that says something else": (
        main("y = local.F(x)", function("F (a) => (b) { c = Neg(a) b = Softmax(c) }", opset=12)),
        ', "local" : 1',
        "^its Softmax is of ai.onnx 12, the model imports ai.onnx 17$",
    ),
    "a newer opset": (
        main("y = local.F(x)", function("F (a) => (b) { b = ReduceMax<keepdims = 0>(a) }", opset=18)),
        ', "local" : 1',
        "^its ReduceMax is of ai.onnx 18, the model imports ai.onnx 17$",
    ),
    "another version of a domain that nobody knows": (
        main("y = local.F(x)", function("F (a) => (b) { b = odd.Thing(a) }", more=', "odd" : 1')),
        ', "local" : 1, "odd" : 2',
        "^its Thing is of odd 1, the model imports odd 2$",
    ),
    "too many inputs": (
        main("y = local.F(x, x, x)", NEGATE),
        ', "local" : 1',
        "^the call has 3 inputs, local.F only 1$",
    ),
    "too many outputs": (
        main("y, z = local.F(x)", NEGATE),
        ', "local" : 1',
        "^the call has 2 outputs, local.F only 1$",
    ),
    "a graph handed over": (
        main("y = local.F <body = b () => (u) { u = Neg(x) }>(x)", NEGATE),
        ', "local" : 1',
        "^local.F is handed 'body', which is no plain attribute$",
    ),
    "an absent input that is given out": (
        main("y, z = local.F(x)", function("F (a, c) => (b, c) { b = Neg(a) }")),
        ', "local" : 1',
        "^local.F gives out its input 'c', which the call leaves out$",
    ),
    "an attribute that a constant needs": (
        main("y = local.F(x)", function("F <k> (a) => (b) { c = Constant<value_float: float = @k>() b = Mul(a, c) }")),
        ', "local" : 1',
        "^local.F needs the attribute 'k', which the call leaves out$",
    ),
}


@pytest.mark.parametrize("name", SKIPS)
def test_skips(name: str) -> None:
    text, imports, reason = SKIPS[name]
    assert_skips(PASS, parsed(text, imports), reason)


@pytest.mark.parametrize("keep", [("local",), ("local.F",), ("other", "local.F")])
def test_functions_that_are_to_be_kept(keep: tuple[str, ...]) -> None:
    assert_skips(create("inline-functions", keep=keep), model(main("y = local.F(x)", NEGATE)), "local.F is to be kept")


def test_only_the_kept_ones_stay_and_what_they_call_is_told() -> None:
    proto = model(main("h = local.G<beta = 0.5>(x) y = local.F(h)", HANDS_ON, SOFTEN))
    after, result = run_alone(create("inline-functions", keep=("local.G",)), proto)
    assert [node.op_type for node in after.graph.node] == ["G", "LeakyRelu"]
    assert [each.name for each in after.functions] == ["G", "F"]
    assert [each.reason for each in result.skipped] == ["local.G is to be kept", "is in local.G, which stays"]
    assert Session(proto).run(feed())["y"].tobytes() == Session(after).run(feed())["y"].tobytes()


def test_a_vetoed_call_stays_alone() -> None:
    proto = model(main("h = local.F(x) y = local.F(h)", NEGATE))
    subject = from_proto(proto)
    result = PASS.apply(GraphView(subject, {"h": "not this one"}))
    assert [node.op for node in subject.graph.nodes] == ["F", "Neg"]
    assert [(each.site, each.reason) for each in result.skipped] == [("h", "not this one")]
    assert len(subject.functions) == 1


def test_calls_that_would_make_the_file_too_large_stay() -> None:
    nodes = " ".join(f"h{i} = Neg({f'h{i - 1}' if i else 'a'})" for i in range(40))
    calls = " ".join(f"c{i} = local.F({f'c{i - 1}' if i else 'x'})" for i in range(20)) + " y = local.F(c19)"
    proto = model(main(calls, function(f"F (a) => (b) {{ {nodes} b = Neg(h39) }}")))
    assert_skips(
        create("inline-functions", max_growth=10_000), proto, r"^the 21 calls of local.F would add 1\d{4} bytes"
    )
    after, _ = run_alone(create("inline-functions", max_growth=20_000), proto)
    grown = len(after.SerializeToString()) - len(proto.SerializeToString())
    assert count_ops(after) == {"Neg": 41 * 21}
    assert 10_000 < grown < 25_000


def test_functions_that_double_at_each_level_come_to_an_end() -> None:
    levels = [
        function(f"F{i} (a) => (b) {{ c = local.F{i + 1}(a) b = local.F{i + 1}(c) }}", more=', "local" : 1')
        for i in range(30)
    ]
    proto = parsed(main("y = local.F0(x)", *levels, function("F30 (a) => (b) { b = Neg(a) }")), ', "local" : 1')
    after, result = run_alone(create("inline-functions", max_growth=5_000), proto)
    assert 100 < len(result.rewritten) < 1_000
    assert all("would add" in each.reason or "which stays" in each.reason for each in result.skipped)
    assert len(after.SerializeToString()) < 40_000


def test_the_options_come_from_the_command_line() -> None:
    result = graphopt.optimize(model(main("y = local.F(x)", NEGATE)), [create("inline-functions", keep=("local",))])
    assert result.ok
    assert result.report.passes[0].options == {"keep": ("local",), "max_growth": 1 << 20}


def test_the_default_begins_with_it() -> None:
    layer = function("F (a, w) => (b) { b = MatMul(a, w) }")
    taken = {"takes": "float[2,64] x", "gives": "float[2,64] y"}
    called = graphopt.optimize(model(main("y = local.F(x, w)", layer, **taken), w=draw(64, 64)))
    plain = graphopt.optimize(model(main("y = MatMul(x, w)", **taken), w=draw(64, 64)))
    assert called.ok
    assert plain.ok
    for result, rewritten in ((called, ["inline-functions", "quantize-weights"]), (plain, ["quantize-weights"])):
        assert result.report.passes[0].name == "inline-functions"
        assert [each.name for each in result.report.passes if each.result.rewritten] == rewritten
    assert count_ops(called.model) == count_ops(plain.model) == {"Cast": 1, "Mul": 1, "MatMul": 1}


@st.composite
def programs(draw_: st.DrawFn) -> str:
    """Draw a main graph and functions that call each other, with attributes, branches and names that collide."""
    names = ["a", "b", "c", "d"]
    texts: list[str] = []
    levels = draw_(st.integers(1, 4))
    for level in range(levels):
        known = ["x"]
        nodes: list[str] = []
        for index in range(draw_(st.integers(1, 4))):
            source, other = draw_(st.sampled_from(known)), draw_(st.sampled_from(known))
            name = f"{names[index]}{draw_(st.integers(0, 1)) if index else ''}"
            kinds = ["Neg", "Add", "LeakyRelu", "If", *(["call", "call", "bare"] if level else [])]
            kind = draw_(st.sampled_from(kinds))
            inner = draw_(st.integers(0, level - 1)) if level else 0
            leaky = f"LeakyRelu<alpha: float = @alpha>({source})"
            nodes.append(
                {
                    "Neg": f"{name} = Neg({source})",
                    "Add": f"{name} = Add({source}, {other})",
                    "LeakyRelu": f"{name} = {leaky}",
                    "If": f"t{index} = Constant<value_int = {index % 2}>() s{index} = Cast<to = 9>(t{index}) "
                    f"{name} = If (s{index}) <then_branch = yes () => (u) {{ u = {leaky} }}, "
                    f"else_branch = no () => (v) {{ w = Neg({source}) v = Add(w, {other}) }}>",
                    "call": f"{name} = local.F{inner}<alpha: float = @alpha>({source}, {other})",
                    "bare": f"{name} = local.F{inner}({source})",
                }[kind]
            )
            known.append(name)
        default = draw_(st.sampled_from(["alpha", "alpha: float = 0.5"]))
        texts.append(f"F{level} <{default}> (x, z) => ({known[-1]}) {{ {' '.join(nodes)} }}")
    bodies = [function(text, more=', "local" : 1') for text in texts]
    calls = [
        f"{out} = local.F{draw_(st.integers(0, levels - 1))}{draw_(st.sampled_from(['', '<alpha = 0.25>']))}({source})"
        for out, source in (("a", "x"), ("y", "a"))
    ]
    return main(" ".join(calls), *bodies)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(programs())
def test_any_program_computes_the_same_bits(text: str) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "local" : 1]> {text}')
    after, result = run_alone(PASS, proto)
    assert not [each for each in result.skipped if "which stays" not in each.reason]
    onnx.checker.check_model(after, full_check=True)
    assert Session(proto).run(feed())["y"].tobytes() == Session(after).run(feed())["y"].tobytes()
