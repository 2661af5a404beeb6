"""The channel analysis: coupled groups, zeroing them, plugins, and its cost."""

import time

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, numpy_helper

from graphopt.graph import GraphView
from graphopt.graph.channels import (
    TABLE,
    Channels,
    Facts,
    Labels,
    Transfer,
    channel_groups,
    register,
    transfer_of,
    zero,
)
from graphopt.graph.channels.elementwise import Elementwise
from graphopt.graph.channels.evaluate import evaluate
from graphopt.graph.channels.labels import components
from graphopt.model import from_proto, to_proto
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import model, random_feeds, run_alone

RNG = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    """Draw a weight."""
    return RNG.standard_normal(shape).astype(np.float32)


def residual() -> onnx.ModelProto:
    """Return a residual block between a stem and a head, with a dense concatenation behind it."""
    return model(
        """g (float[N,3,8,8] x) => (float[N,5,8,8] y) {
        a = Conv(x, s) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w, c) d = Add(r, b) e = Concat<axis=1>(d, b)
        f = BatchNormalization(e, scale, shift, mean, var) y = Conv(f, v) }""",
        s=weight(4, 3, 1, 1),
        w=weight(4, 4, 3, 3),
        c=weight(4),
        scale=weight(8),
        shift=weight(8),
        mean=weight(8),
        var=np.abs(weight(8)),
        v=weight(5, 8, 1, 1),
    )


def test_groups_name_every_slice() -> None:
    channels = Channels.analyze(GraphView(from_proto(residual())))
    groups = [group for group in channel_groups(channels) if group.blocked is None]
    assert len(groups) == 4
    for index, group in enumerate(groups):
        assert group.site == "a"
        assert not group.removable
        found = {
            (str(part.node.inputs[part.slot].name), part.axis): (part.indices.tolist(), part.role)
            for part in group.weights
        }
        assert found == {
            ("s", 0): ([index], "feeds"),
            ("w", 0): ([index], "feeds"),
            ("w", 1): ([index], "reads"),
            ("c", 0): ([index], "feeds"),
            ("scale", 0): ([index, index + 4], "scales"),
            ("shift", 0): ([index, index + 4], "feeds"),
            ("mean", 0): ([index, index + 4], "aside"),
            ("var", 0): ([index, index + 4], "aside"),
            ("v", 1): ([index, index + 4], "reads"),
        }
        assert {part.tensor.name for part in group.tensors} == set("arbdef")


def test_the_outputs_are_blocked() -> None:
    channels = Channels.analyze(GraphView(from_proto(residual())))
    blocked = [group for group in channel_groups(channels) if group.blocked is not None]
    assert {(group.site, group.blocked) for group in blocked} == {("y", "'y' is an output of the model")}


def test_a_zeroed_group_can_be_cut_exactly() -> None:
    subject = from_proto(residual())
    view = GraphView(subject)
    channels = Channels.analyze(view)
    groups = [group for group in channel_groups(channels) if group.blocked is None]
    zero(channels, groups[1:3], view.edit)
    view.edit.settle()
    zeroed = onnx.ModelProto.FromString(to_proto(subject).SerializeToString())
    again = [g for g in channel_groups(Channels.analyze(GraphView(from_proto(zeroed)))) if g.blocked is None]
    assert [group.removable for group in again] == [False, True, True, False]
    pruned, _ = run_alone(create("prune-channels", multiple=1), zeroed)
    feeds = random_feeds(zeroed, 0)
    assert np.abs(Session(zeroed).run(feeds)["y"] - Session(pruned).run(feeds)["y"]).max() <= 1e-6
    assert {tuple(t.dims) for t in pruned.graph.initializer if len(t.dims) == 4} == {
        (2, 3, 1, 1),
        (2, 2, 3, 3),
        (5, 4, 1, 1),
    }


def test_evaluation_is_of_the_operator_itself() -> None:
    values = np.array([0.0, 1.0, np.nan])
    for op, expected in (
        ("Sigmoid", 0.5),
        ("HardSwish", 0.0),
        ("Softplus", np.log(2)),
        ("Cos", 1.0),
        ("HardSigmoid", 0.5),
    ):
        found = evaluate(gs.Node(op), [values], 17)
        assert found is not None
        assert found[0] == pytest.approx(expected, abs=1e-7)
        assert np.isnan(found[2])


def test_an_operator_that_cannot_be_evaluated_is_unknown() -> None:
    assert evaluate(gs.Node("NoSuchOperator"), [np.zeros(2)], 17) is None


def test_components_of_long_chains() -> None:
    count = 100_000
    order = np.random.default_rng(0).permutation(count)
    assert (components(count, order[:-1], order[1:]) == 0).all()
    assert components(4, np.array([3]), np.array([1])).tolist() == [0, 1, 2, 1]


def test_a_plugin_teaches_an_operator() -> None:
    node = helper.make_node("Scaled", ["a"], ["b"], domain="custom")
    weights = {"w": weight(4, 3, 1, 1), "v": weight(2, 4, 1, 1)}
    weights["w"][1] = 0
    info = [helper.make_tensor_value_info(n, 1, ["N", c, 8, 8]) for n, c in (("x", 3), ("y", 2), ("b", 4))]
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), node, helper.make_node("Conv", ["b", "v"], ["y"])]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:2], stored, value_info=info[2:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)]
    proto = helper.make_model(graph, ir_version=8, opset_imports=imports)
    assert not run_alone(create("prune-channels", multiple=1), proto)[1].rewritten

    @register("Scaled", domain="custom")
    class Scaled(Elementwise):
        """A stand-in that keeps nought."""

        def forward(self, node: gs.Node, facts: Facts) -> None:
            known = facts.uniform(node.inputs[0], 1)
            facts.learn(node.outputs[0], 1, None if known is None else np.where(known == 0, known, np.nan))

    try:
        pruned, result = run_alone(create("prune-channels", multiple=1), proto)
    finally:
        del TABLE["custom", "Scaled"]
    assert [rewritten.detail for rewritten in result.rewritten] == ["1 channel removed"]
    assert {tuple(tensor.dims) for tensor in pruned.graph.initializer} == {(3, 3, 1, 1), (2, 3, 1, 1)}


def test_an_unknown_operator_has_the_transfer_that_knows_nothing() -> None:
    assert type(transfer_of(gs.Node("Conv", domain="custom"))) is Transfer
    assert type(transfer_of(gs.Node("NonMaxSuppression"))) is Transfer
    assert transfer_of(gs.Node("Conv", domain="ai.onnx")) is TABLE["", "Conv"]


def chain(length: int) -> onnx.ModelProto:
    """Return a chain of element-wise operators and additions between two convolutions, one channel of it nought."""
    first = weight(4, 3, 1, 1)
    first[2] = 0
    nodes = [helper.make_node("Conv", ["x", "w"], ["t0"])]
    for index in range(length):
        inputs = [f"t{index}", f"t{max(0, index - 1)}"] if index % 2 else [f"t{index}"]
        nodes.append(helper.make_node("Add" if index % 2 else "Tanh", inputs, [f"t{index + 1}"]))
    nodes.append(helper.make_node("Conv", [f"t{length}", "v"], ["y"]))
    info = [helper.make_tensor_value_info(name, 1, ["N", c, 2, 2]) for name, c in (("x", 3), ("y", 2))]
    stored = [numpy_helper.from_array(array, name) for name, array in (("w", first), ("v", weight(2, 4, 1, 1)))]
    graph = helper.make_graph(nodes, "chain", info[:1], info[1:], stored)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_cost_grows_linearly() -> None:
    seconds = []
    for length in (2_000, 20_000):
        subject = from_proto(chain(length))
        start = time.process_time()
        result = create("prune-channels", multiple=1).apply(GraphView(subject))
        seconds.append(time.process_time() - start)
        assert [rewritten.detail for rewritten in result.rewritten] == ["1 channel removed"]
    assert seconds[1] < 25 * seconds[0], f"{seconds}"
    assert seconds[1] < 30, f"{seconds}"


def test_labels_of_a_program_are_born_in_floats_only() -> None:
    proto = model(
        """g (float[N,6] x) => (float[N,3] y) { a = Reshape(x, s) b = Gather<axis=1>(a, i)
        y = ReduceSum<keepdims=0>(b, k) }""",
        s=np.array([0, 3, 2]),
        i=np.array([0, 1, 2]),
        k=np.array([2]),
    )
    view = GraphView(from_proto(proto))
    channels = Channels.analyze(view)
    assert isinstance(channels.labels, Labels)
    assert channels.labels.count == 0
    assert channel_groups(channels) == []
