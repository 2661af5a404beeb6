"""Edits keep the graph wired, whatever is shared, captured or given out, and cost what they touch."""

import time
from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt.graph import Edit
from graphopt.model import Model, from_proto, to_proto
from graphopt.model.order import sort_nodes
from graphopt.result import Skip
from graphopt.runtime.session import Session
from graphopt.testing import random_feeds


def model(text: str, opset: int = 17, ir_version: int = 10, **weights: np.ndarray) -> Model:
    proto = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}, "f": 1]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    return from_proto(proto)


def node(subject: Model, output: str) -> gs.Node:
    return next(n for g in subject.graphs() for n in g.nodes if any(out.name == output for out in n.outputs))


def text(subject: Model) -> list[str]:
    assert_wired(subject)
    proto = to_proto(subject)
    onnx.checker.check_model(proto)
    return [f"{','.join(n.output)} = {n.op_type}({','.join(n.input)})" for n in proto.graph.node]


def assert_wired(subject: Model) -> None:
    """Every link is there from both ends, as often, and no node is linked that no graph has."""
    nodes = {id(n): n for g in subject.graphs() for n in g.nodes}
    tensors = {id(t): t for n in nodes.values() for t in [*n.inputs, *n.outputs]}
    for tensor in tensors.values():
        reading = [id(n) for n in nodes.values() for t in n.inputs if t is tensor]
        assert sorted(map(id, tensor.outputs)) == sorted(reading), tensor.name
        assert [id(n) for n in tensor.inputs] == [id(n) for n in nodes.values() if any(t is tensor for t in n.outputs)]


CHAIN = "g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) c = Abs(b) y = Exp(c) }"


def test_bypass_in_the_middle() -> None:
    subject = model(CHAIN)
    edit = Edit(subject)
    edit.bypass(node(subject, "b"))
    edit.settle()
    assert text(subject) == ["a = Relu(x)", "c = Abs(a)", "y = Exp(c)"]


def test_bypass_before_a_graph_output_keeps_its_name() -> None:
    subject = model(CHAIN)
    edit = Edit(subject)
    edit.bypass(node(subject, "y"))
    edit.settle()
    assert text(subject) == ["a = Relu(x)", "b = Neg(a)", "y = Abs(b)"]


def test_bypass_between_graph_input_and_output_leaves_an_identity() -> None:
    subject = model("g (float[2] x) => (float[2] y) { y, m = Dropout(x, r) }", r=np.float32(0.5))
    edit = Edit(subject)
    edit.bypass(node(subject, "y"))
    edit.settle()
    assert text(subject) == ["y = Identity(x)"]
    assert [c.name for c in subject.constants()] == []


def test_bypass_of_a_node_whose_other_output_is_read_is_refused() -> None:
    subject = model("g (float[2] x) => (float[2] y, bool[2] n) { y, m = Dropout(x) n = Not(m) }")
    before = to_proto(subject).SerializeToString()
    with pytest.raises(Skip, match="'m', another output of the node, is used"):
        Edit(subject).bypass(node(subject, "y"))
    assert to_proto(subject).SerializeToString() == before


def test_splice_out_gives_the_name_to_the_producer() -> None:
    subject = model(CHAIN)
    edit = Edit(subject)
    edit.splice_out(node(subject, "c"), keep=node(subject, "c").outputs[0])
    edit.settle()
    assert text(subject) == ["a = Relu(x)", "c = Neg(a)", "y = Exp(c)"]


def test_a_reader_in_a_subgraph_counts() -> None:
    subject = model(
        "g (float[2] x, bool q) => (float[2] y) { a = Relu(x) b = Neg(a) y = If(q) "
        "<then_branch = t () => (float[2] z) { z = Abs(b) }, else_branch = e () => (float[2] z2) { z2 = Exp(b) }> }"
    )
    edit = Edit(subject)
    edit.bypass(node(subject, "b"))
    edit.settle()
    assert text(subject) == ["a = Relu(x)", "y = If(q)"]
    assert [n.inputs[0].name for n in (node(subject, "z"), node(subject, "z2"))] == ["a", "a"]


def test_removing_a_node_frees_what_its_subgraphs_read() -> None:
    subject = model(
        "g (float[2] x, bool q) => (float[2] y) { a = Add(x, w) u = If(q) "
        "<then_branch = t () => (float[2] z) { z = Add(a, v) }, else_branch = e () => (float[2] z2) { z2 = Exp(a) }> "
        "y = Relu(x) }",
        w=np.ones(2, np.float32),
        v=np.ones(2, np.float32),
    )
    edit = Edit(subject)
    edit.remove([node(subject, "u")])
    edit.settle()
    assert "y = Relu(x)" in text(subject)
    assert "v" not in [c.name for c in subject.constants()]


def test_values_of_a_shared_constant_are_copied_on_write() -> None:
    subject = model("g (float[2] x) => (float[2] y) { a = Mul(x, w) y = Mul(a, w) }", w=np.ones(2, np.float32))
    edit = Edit(subject)
    edit.set_values(node(subject, "a"), 1, [3.0, 4.0])
    edit.settle()
    stored = {t.name: numpy_helper.to_array(t).tolist() for t in to_proto(subject).graph.initializer}
    assert stored == {"w": [1, 1], "w_1": [3, 4]}
    assert text(subject) == ["a = Mul(x,w_1)", "y = Mul(a,w)"]


def test_values_of_a_constant_that_is_given_out_are_copied_on_write() -> None:
    subject = model("g (float[2] x) => (float[2] y, float[2] w) { y = Mul(x, w) }", w=np.ones(2, np.float32))
    edit = Edit(subject)
    edit.set_values(node(subject, "y"), 1, [3.0, 4.0])
    edit.settle()
    assert text(subject) == ["y = Mul(x,w_1)"]


def test_values_that_overflow_are_refused_before_anything_changes() -> None:
    subject = model("g (float16[2] x) => (float16[2] y) { y = Mul(x, w) }", w=np.ones(2, np.float16))
    before = to_proto(subject).SerializeToString()
    with pytest.raises(Skip, match="'w' would overflow float16"):
        Edit(subject).set_values(node(subject, "y"), 1, [1e6, 1.0])
    assert to_proto(subject).SerializeToString() == before


def test_fresh_names_collide_with_nothing() -> None:
    subject = model(CHAIN)
    edit = Edit(subject)
    assert [edit.fresh_name(stem) for stem in ("a", "a", "new", "new", "", "x", "y")] == [
        *("a_1", "a_2", "new", "new_1", "_1", "x_1", "y_1")
    ]


NESTED = (
    "g (float[2] x, bool q) => (float[2] y) { y = If(q) "
    "<then_branch = t () => (float[2] z) { z = Relu(x) }, else_branch = e () => (float[2] z2) { z2 = If(q) "
    "<then_branch = tt () => (float[2] v) { v = Abs(x) }, else_branch = ee () => (float[2] v2) { v2 = Neg(x) }> }> }"
)


@pytest.mark.parametrize(
    ("readers", "owner"),
    [(["v"], "tt"), (["v", "v2"], "e"), (["v", "z"], "g"), (["v", "y"], "g"), (["z", "z"], "t")],
    ids=["one branch", "two inner branches", "inner and outer branch", "inner branch and main graph", "twice in one"],
)
def test_a_new_constant_belongs_to_the_innermost_graph_that_all_readers_see(readers: list[str], owner: str) -> None:
    subject = model(NESTED)
    edit = Edit(subject)
    new = edit.constant("new", np.ones(2, np.float32))
    for reader in readers:
        edit.add_node(node(subject, reader), "Add", [node(subject, "v").inputs[0], new])
    edit.settle()
    assert [g.name for g in subject.graphs() if any(c is new for c in g.initializers)] == [owner]
    onnx.checker.check_model(to_proto(subject), full_check=True)
    assert to_proto(from_proto(to_proto(subject))) == to_proto(subject)


def test_a_constant_moves_when_a_reader_elsewhere_joins() -> None:
    subject = model(NESTED)
    edit = Edit(subject)
    new = edit.constant("new", np.ones(2, np.float32))
    edit.add_node(node(subject, "v"), "Neg", [new])
    edit.settle()
    edit.add_node(node(subject, "z"), "Neg", [new])
    edit.settle()
    assert [g.name for g in subject.graphs() if any(c is new for c in g.initializers)] == ["g"]


def test_a_new_constant_in_a_function_becomes_a_constant_node() -> None:
    subject = model(
        "g (float[2] x) => (float[2] y) { y = f.act(x) } "
        '<opset_import: ["": 17], domain: "f"> act (p) => (q) { q = Relu(p) }'
    )
    edit = Edit(subject)
    edit.set_input(node(subject, "q"), 0, edit.constant("new", np.ones(2, np.float32)))
    edit.settle()
    proto = to_proto(subject)
    onnx.checker.check_model(proto)
    assert [n.op_type for n in proto.functions[0].node] == ["Constant", "Relu"]
    assert to_proto(from_proto(proto)) == proto
    assert to_proto(subject.copy()) == proto


def test_a_new_constant_in_ir_version_3_is_an_input_of_the_main_graph() -> None:
    subject = model(NESTED, ir_version=3)
    edit = Edit(subject)
    edit.set_input(node(subject, "v"), 0, edit.constant("new", np.ones(2, np.float32)))
    edit.settle()
    proto = to_proto(subject)
    onnx.checker.check_model(proto)
    assert [info.name for info in proto.graph.input] == ["x", "q", "new"]


def with_shapes() -> Model:
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 17]> g (float[N,3,8,8] x) => (float[N,2,8,8] y) '
        "{ b = Relu(x) t = Conv(b, w) u = Relu(t) y = Conv(u, v) }"
    )
    for name, shape in (("w", (4, 3, 1, 1)), ("v", (2, 4, 1, 1))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    proto = onnx.shape_inference.infer_shapes(proto)
    proto.graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 1, 1]))
    return from_proto(proto)


def shapes(subject: Model) -> dict[str, list[int | str]]:
    return {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in to_proto(subject).graph.value_info
    }


def test_shapes_downstream_of_a_cut_weight_are_declared_anew() -> None:
    subject = with_shapes()
    assert shapes(subject) == {"b": ["N", 3, 8, 8], "t": ["N", 4, 8, 8], "u": ["N", 4, 8, 8], "w": [4, 3, 1, 1]}
    edit = Edit(subject)
    edit.set_values(node(subject, "t"), 1, np.ones((3, 3, 1, 1)))
    edit.set_values(node(subject, "y"), 1, np.ones((2, 3, 1, 1)))
    edit.settle()
    assert shapes(subject) == {"b": ["N", 3, 8, 8], "t": ["N", 3, 8, 8], "u": ["N", 3, 8, 8]}
    onnx.checker.check_model(to_proto(subject), full_check=True)


def test_shapes_that_cannot_be_inferred_anew_are_dropped() -> None:
    subject = with_shapes()
    edit = Edit(subject)
    node(subject, "t").domain = "custom"
    edit.forget_shapes(node(subject, "t"))
    edit.settle()
    assert shapes(subject) == {"b": ["N", 3, 8, 8], "w": [4, 3, 1, 1]}


def test_inputs_of_a_loop_keep_their_ranks() -> None:
    subject = model("""g (float[2,4] x) => (float[2,4] y) {
        s = Relu(x) n = Constant<value = int64 {2}>()
        y = Loop(n, , s) <body = b (int64 i, bool c, float[2,4] h) => (bool d, float[2,4] k)
            { d = Identity(c) f = Cast<to = 1>(i) k = Add(h, f) }> }""")
    before = to_proto(subject)
    edit = Edit(subject)
    edit.forget_shapes(node(subject, "s"))
    edit.settle()
    after = to_proto(subject)
    body = after.graph.node[2].attribute[0].g
    assert [len(each.type.tensor_type.shape.dim) for each in body.input] == [0, 0, 2]
    assert all(each.type.tensor_type.HasField("shape") for each in body.input)
    feeds = random_feeds(before, 0)
    np.testing.assert_array_equal(Session(after).run(feeds)["y"], Session(before).run(feeds)["y"])


def test_a_shape_set_to_none_is_dropped_without_more_ado() -> None:
    subject = with_shapes()
    node(subject, "u").outputs[0].shape = None
    assert "u" not in shapes(subject)
    assert "u" not in shapes(subject.copy())


def test_a_shape_that_a_pass_sets_is_declared() -> None:
    subject = with_shapes()
    node(subject, "u").outputs[0].shape = [7, 4, 8, 8]
    assert shapes(subject)["u"] == [7, 4, 8, 8]


def test_sorting_is_stable_and_sees_captures() -> None:
    subject = model(NESTED)
    edit = Edit(subject)
    late = edit.add_node(node(subject, "y"), "Neg", [subject.graph.inputs[0]])
    edit.set_input(node(subject, "v2"), 0, late.outputs[0])
    assert sort_nodes(subject.graph)
    assert [n.op for n in subject.graph.nodes] == ["Neg", "If"]
    assert not sort_nodes(subject.graph)


def star(count: int) -> Model:
    """One Relu with ``count`` readers."""
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }'
    )
    for index in range(count):
        proto.graph.node.add(op_type="Mul", input=["a", "w"], output=[f"t{index}"])
        proto.graph.output.append(helper.make_tensor_value_info(f"t{index}", TensorProto.FLOAT, [2]))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    return from_proto(proto)


def remove_all(subject: Model) -> None:
    edit = Edit(subject)
    edit.remove([n for n in subject.graph.nodes if n.op == "Mul"])
    subject.graph.outputs[:] = subject.graph.outputs[:1]
    edit.settle()
    assert len(subject.graph.nodes) == 2


def rewire_all(order: int) -> Callable[[Model], None]:
    def work(subject: Model) -> None:
        edit = Edit(subject)
        for reader in list(subject.graph.nodes)[2:][::order]:
            edit.set_input(reader, 0, subject.graph.inputs[0])
        edit.settle()
        assert len(node(subject, "a").outputs[0].outputs) == 1

    return work


def weigh_all(subject: Model) -> None:
    edit = Edit(subject)
    for reader in list(subject.graph.nodes)[2:]:
        edit.set_values(reader, 1, [3.0, 3.0])
    edit.settle()
    assert [c.name for c in subject.constants()] == ["w_1"]


@pytest.mark.parametrize(
    "work",
    [remove_all, rewire_all(1), rewire_all(-1), weigh_all],
    ids=["remove", "rewire", "rewire backwards", "weigh"],
)
def test_the_cost_of_a_tensor_with_many_readers_is_linear(work: Callable[[Model], None]) -> None:
    """Ten times as many readers may take at most forty times as long; a quadratic step would take a hundred."""

    def seconds(count: int) -> float:
        subject = star(count)
        start = time.process_time()
        work(subject)
        return time.process_time() - start

    small = max(min(seconds(300) for _ in range(3)), 1e-3)
    assert seconds(3000) < 40 * small
