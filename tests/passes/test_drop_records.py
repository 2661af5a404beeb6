"""drop-records: what goes, what stays because it means something, and that nothing is computed otherwise."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import graphopt
from graphopt.graph import GraphView
from graphopt.model import from_proto, to_proto
from graphopt.presets import preset_passes
from graphopt.registry import create
from graphopt.testing import assert_untouched, draw, model, run_alone

TEXT = """g (float[N,4,8] x, bool c) => (float[N,4,8] y) <float[N,4,8] a, float["floor((N))",4,8] b, float[N,9,8] p> {
    a = MatMul(x, w) b = local.F(a) i = If (c) <then_branch = yes () => (u) { u = Exp(b) },
    else_branch = no () => (v) { v = Neg(b) }> r = Relu(i) y = Identity(r) }
    <domain: "local", opset_import: ["" : 17]> F (a) => (c) { c = Sigmoid(a) }"""
TRACE = 'File "/home/someone/project/model.py", line 3, in forward\n' * 8
USERS = {"names": "{0: 'cat'}", "stride": "32", "licence": "MIT"}


def traced() -> onnx.ModelProto:
    """A net with records at every level, the user's among them."""
    proto = model(TEXT.replace(", float[N,9,8] p", ""), w=draw(8, 8))
    nodes = [*proto.graph.node, *proto.functions[0].node]
    nodes += [inner for node in proto.graph.node for attribute in node.attribute for inner in attribute.g.node]
    for node in nodes:
        node.doc_string = TRACE
        for key in ("pkg.torch.onnx.stack_trace", "pkg.onnxscript.name", "namespace"):
            node.metadata_props.add(key=key, value=TRACE)
        node.metadata_props.add(key="precision", value="keep in float")
    things = [proto, proto.graph, proto.functions[0], *proto.graph.input, *proto.graph.value_info]
    for thing in things:
        thing.metadata_props.add(key="pkg.torch.export.graph_signature", value=TRACE)
        for key, value in USERS.items():
            thing.metadata_props.add(key=key, value=value)
    for thing in (proto, proto.graph, proto.functions[0]):
        thing.doc_string = "A net that finds cats."
    note = proto.graph.quantization_annotation.add(tensor_name="a")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    return proto


def test_debug_records_go_at_every_level_and_what_means_something_stays() -> None:
    before = traced()
    after, result = run_alone(create("drop-records"), before)
    text = str(after)
    assert "someone" not in text
    assert "pkg." not in text
    assert text.count('"keep in float"') == 8
    assert {entry.key: entry.value for entry in after.metadata_props} == USERS
    assert after.doc_string == after.graph.doc_string == after.functions[0].doc_string == "A net that finds cats."
    assert after.graph.quantization_annotation == before.graph.quantization_annotation
    assert after.graph.output == before.graph.output
    assert [info.type for info in after.graph.input] == [info.type for info in before.graph.input]
    said = sum(int(each.detail.split()[0].replace(",", "")) for each in result.rewritten)
    assert said > 0
    assert 0 <= before.ByteSize() - after.ByteSize() - said < 0.02 * said  # lengths of what holds the records


def test_shapes_go_where_inference_gives_them_back() -> None:
    text = """g (float[N,4,8] x) => (float[N,2] y) <float[N,4,8] a, float["floor(N)",32] f, float[N,2] h> {
        a = MatMul(x, w) f = Flatten(a) h = MatMul(f, v) y = Relu(h) }"""
    before = model(text, w=draw(8, 8), v=draw(32, 2))
    after, result = run_alone(create("drop-records"), before)
    assert not after.graph.value_info
    assert [each.detail.partition(" tensors")[0].rpartition(" ")[2] for each in result.rewritten] == ["3"]
    onnx.checker.check_model(after, full_check=True)
    assert graphopt.optimize(before, ["drop-records"]).ok


def test_shapes_that_inference_does_not_find_stay() -> None:
    text = "g (float[N,9] x, int64[K] s) => (float[N,5] y) <float[N,7] h> { h = Reshape(x, s) y = MatMul(h, v) }"
    before = model(text, v=draw(7, 5))
    after, _ = run_alone(create("drop-records"), before)
    assert "h" in {info.name for info in after.graph.value_info}


OFF = {
    "metadata": ({"documentation": False, "shapes": False}, "metadata of the main graph"),
    "documentation": ({"metadata": False, "shapes": False}, "documentation of the main graph"),
    "shapes": ({"metadata": False, "documentation": False}, "declared shapes"),
}


@pytest.mark.parametrize("name", OFF)
def test_each_kind_can_be_kept(name: str) -> None:
    options, site = OFF[name]
    proto = traced()
    for info in proto.graph.value_info:
        del info.metadata_props[:]
    _, result = run_alone(create("drop-records", **options), proto)
    assert {each.site.partition(" of ")[0] for each in result.rewritten} == {site.partition(" of ")[0]}
    none = dict.fromkeys(("metadata", "documentation", "shapes"), False)
    assert_untouched(create("drop-records", **none), proto)


def test_a_second_run_and_a_veto_leave_every_bit() -> None:
    once, _ = run_alone(create("drop-records"), traced())
    assert_untouched(create("drop-records"), once)
    subject = from_proto(traced())
    first = create("drop-records").apply(GraphView(subject.copy()))
    vetoes = {each.site: "it broke the contract" for each in first.rewritten}
    result = create("drop-records").apply(GraphView(subject, vetoes))
    assert not result.rewritten
    assert {each.site for each in result.skipped} == set(vetoes)
    assert to_proto(subject) == traced()


def test_the_copy_that_is_proved_against_keeps_its_records() -> None:
    subject = from_proto(traced())
    create("drop-records").apply(GraphView(subject.copy()))
    assert to_proto(subject) == traced()


def test_clean_drops_them_and_says_so() -> None:
    nodes = []
    for i in range(6):
        nodes.append(helper.make_node("MatMul", [f"t{i}", f"w{i}"], [f"t{i + 1}"], doc_string=TRACE))
    info = helper.make_tensor_value_info
    x, y = info("t0", TensorProto.FLOAT, ["N", 4]), info("t6", TensorProto.FLOAT, ["N", 4])
    weights = [onnx.numpy_helper.from_array(np.asarray(draw(4, 4, seed=i)), f"w{i}") for i in range(6)]
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), ir_version=8)
    del proto.opset_import[:]
    proto.opset_import.add(version=17)
    passes, fixed_point = preset_passes("clean")
    result = graphopt.optimize(proto, passes, fixed_point=fixed_point)
    assert result.ok
    assert "someone" not in str(result.model)
    assert "drop-records" in [each.name for each in result.report.passes if each.result.rewritten]
