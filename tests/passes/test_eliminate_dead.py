"""eliminate-dead: what no output depends on goes; what a caller or another domain could miss stays."""

import numpy as np
import onnx
from graphopt.passes.eliminate_dead import EliminateDead

from graphopt import GraphView
from graphopt.model import from_proto
from graphopt.testing import assert_rewrites, assert_skips, assert_untouched, model

ONES = np.ones(2, np.float32)


def test_dead_ends_go_whole() -> None:
    proto = model(
        "g (float[4] x) => (float[2] y) { a, b = Split<axis=0>(x) y = Exp(a) c = Neg(b) d = Add(c, w) e = Relu(d) }",
        w=ONES,
    )
    after = assert_rewrites(EliminateDead(), proto, ops={"Split": 1, "Exp": 1}, rewritten=4)
    assert not after.graph.initializer


def test_initializers_that_were_never_read_go() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Add(x, w) }", w=ONES, v=ONES, u=np.zeros((0, 3)))
    after = assert_rewrites(EliminateDead(), proto, ops={"Add": 1}, rewritten=2)
    assert [tensor.name for tensor in after.graph.initializer] == ["w"]


def test_what_a_caller_can_feed_stays() -> None:
    proto = model("g (float[2] x, float[2] z, float[2] v = {1.0, 2.0}) => (float[2] y) { y = Exp(x) }")
    assert_untouched(EliminateDead(), proto)


def test_an_initializer_that_is_an_output_stays() -> None:
    proto = model("g (float[2] x) => (float[2] y, float[2] w) { y = Exp(x) }", w=ONES)
    assert_untouched(EliminateDead(), proto)


def test_a_dead_node_frees_what_its_subgraphs_capture() -> None:
    proto = model(
        "g (bool c, float[2] x) => (float[2] y) { y = Exp(x) a = Neg(x) z = If (c) <"
        " then_branch = t () => (float[2] p) { p = Add(a, w) }, else_branch = e () => (float[2] q) { q = Neg(a) }> }",
        w=ONES,
    )
    feeds = {"c": np.array(True), "x": ONES}
    after = assert_rewrites(EliminateDead(), proto, ops={"Exp": 1}, feeds=feeds)
    assert not after.graph.initializer


def test_inside_subgraphs() -> None:
    proto = model(
        "g (bool c, float[2] x) => (float[2] y) { y = If (c) <"
        " then_branch = t () => (float[2] p) { a = Exp(x) b = Neg(a) p = Relu(x) },"
        " else_branch = e () => (float[2] q) { q = Neg(x) }> }"
    )
    after = assert_rewrites(EliminateDead(), proto, ops={"If": 1}, feeds={"c": np.array(True), "x": ONES}, rewritten=2)
    assert [len(attribute.g.node) for attribute in after.graph.node[0].attribute] == [1, 1]


def test_what_only_a_subgraph_reads_stays() -> None:
    proto = model(
        "g (bool c, float[2] x) => (float[2] y) { a = Exp(x) y = If (c) <"
        " then_branch = t () => (float[2] p) { p = Add(a, w) }, else_branch = e () => (float[2] q) { q = Neg(x) }> }",
        w=ONES,
    )
    assert_untouched(EliminateDead(), proto)


def test_functions_that_are_never_called_go() -> None:
    text = (
        "g (float[2] x) => (float[2] y) { y = local.outer(x) d = local.lost(x) }"
        '<domain: "local", opset_import: ["" : 17, "local" : 1]> outer (a) => (b) { c = local.inner(a) b = Neg(c) }'
        '<domain: "local", opset_import: ["" : 17]> inner (a) => (b) { b = Exp(a) d = Relu(a) }'
        '<domain: "local", opset_import: ["" : 17]> lost (a) => (b) { b = Exp(a) }'
    )
    after = assert_rewrites(EliminateDead(), model(text), ops={"outer": 1}, rewritten=3)
    assert [function.name for function in after.functions] == ["outer", "inner"]
    assert [node.op_type for node in after.functions[1].node] == ["Exp"]


def test_other_domains_stay() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = Exp(x) }")
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    proto.graph.node.append(onnx.helper.make_node("Log", ["x"], ["z"], domain="com.example"))
    assert_skips(EliminateDead(), proto, "com.example.Log may do more than compute")


def test_vetoed_site_stays() -> None:
    subject = from_proto(model("g (float[2] x) => (float[2] y) { y = Exp(x) a = Neg(x) b = Neg(a) }"))
    result = EliminateDead().apply(GraphView(subject, {"b": "not this one"}))
    assert not result.rewritten
    assert [(skipped.site, skipped.reason) for skipped in result.skipped] == [("b", "not this one")]
