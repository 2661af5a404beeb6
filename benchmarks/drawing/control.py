"""Layers that hold bodies or sequences: If, Loop, and lists of tensors."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from drawing.drawer import Drawer, Tensor, layer
from drawing.elementwise import step
from drawing.moving import extent


def body(d: Drawer, source: Tensor, steps: int) -> tuple[list[onnx.NodeProto], Tensor]:
    """Draw a few operators into a list of nodes of their own; what they make cannot be read outside."""
    outside, pool = d.nodes, list(d.pool)
    d.nodes, d.depth = [], d.depth + 1
    made = source
    for _ in range(steps):
        made = step(d, made)
    if not d.nodes:
        made = d.op("Identity", [made], made.shape)
    nodes, d.nodes, d.pool = d.nodes, outside, pool
    d.depth -= 1
    return nodes, made


def info(tensor: Tensor) -> onnx.ValueInfoProto:
    """Declare a float tensor of a body, sizes left open."""
    return helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, [None] * tensor.rank)


def condition(d: Drawer, source: Tensor) -> Tensor | str:
    """Draw what an If asks for: a constant, something of a shape, or something of the data."""
    way = d.below(3)
    if way == 0:
        return d.constant(d.chance(0.5), np.bool_)
    if way == 1 and source.rank:
        size = d.axed("Squeeze", extent(d, source, d.below(source.rank)), [0], ())
        return d.op(d.among("Equal", "Less"), [size, d.constant(d.among(1, 2, 5), np.int64)], (), "bool")
    whole = d.op("ReduceSum", [source], (), keepdims=0)
    return d.op("Greater", [whole, d.constant(0.0, np.float32)], (), "bool")


@layer(11)
def branches(d: Drawer) -> None:
    if source := d.pick():
        asked = condition(d, source)
        graphs = []
        for _ in range(2):
            nodes, made = body(d, source, d.below(4))
            graphs.append(helper.make_graph(nodes, "body", [], [info(made)]))
        d.add("If", [asked], source.shape, then_branch=graphs[0], else_branch=graphs[1])


@layer(11)
def loop(d: Drawer) -> None:
    if source := d.pick():
        count = d.among(0, 1, 1, 2, 3)
        times: Tensor | str = d.constant(count, np.int64)
        if d.chance(0.3) and source.rank:
            times, count = d.axed("Squeeze", extent(d, source, 0), [0], ()), -1
        turn, go, state = (d.name("l") for _ in range(3))
        went = d.name("l")
        nodes, made = body(d, Tensor(state, source.shape), d.below(4, 1))
        nodes.append(helper.make_node("Identity", [go], [went]))
        inputs = [
            helper.make_tensor_value_info(turn, TensorProto.INT64, []),
            helper.make_tensor_value_info(go, TensorProto.BOOL, []),
            info(Tensor(state, source.shape)),
        ]
        outputs = [helper.make_tensor_value_info(went, TensorProto.BOOL, []), info(made)]
        names = [d.name("t")]
        if d.chance(0.4):
            extra = d.name("l")
            nodes.append(helper.make_node("Identity", [made.name], [extra]))
            outputs.append(info(Tensor(extra, made.shape)))
            names.append(d.name("t"))
        graph = helper.make_graph(nodes, "loop", inputs, outputs)
        d.node("Loop", [times, d.constant(True, np.bool_) if d.chance(0.6) else "", source], names, body=graph)
        d.keep(Tensor(names[0], source.shape))
        if len(names) > 1 and source.rank < 4 and count:  # no standard says how large rows are where there are none
            d.pool.append(Tensor(names[1], (count if count >= 0 else source.shape[0], *source.shape)))


@layer(11)
def popped(d: Drawer) -> None:
    """Split a tensor into a sequence, and take one part or join them all again."""
    if source := d.pick(
        lambda each: each.rank >= 2 and any(each.known(k) and each.size(k) > 1 for k in range(each.rank))
    ):
        axis = d.among(*(k for k in range(source.rank) if source.known(k) and source.size(k) > 1))
        size, kept = source.size(axis), d.chance(0.5)
        rest = (source.shape[:axis], source.shape[axis + 1 :])
        first = d.below(size, 1)
        name = d.name("s")
        if kept:
            d.node("SplitToSequence", [source, d.ints(first, size - first)], [name], axis=axis)
            parts: list[int] = [first, size - first]
        else:
            d.node("SplitToSequence", [source], [name], axis=axis, keepdims=0)
            parts = [0] * size
        if d.chance(0.3) and kept:
            return d.add("ConcatFromSequence", [name], source.shape, axis=axis)
        for _ in range(d.below(3, 1)):
            place = d.below(len(parts))
            shape = (*rest[0], parts[place], *rest[1]) if kept else rest[0] + rest[1]
            given = place - len(parts) if d.chance(0.3) else place
            d.add("SequenceAt", [name, d.constant(given, np.int64)], shape)
    return None


@layer(11)
def gathered_sequence(d: Drawer) -> None:
    left = d.pick(lambda each: each.rank >= 2)
    right = d.pick(lambda each: left is not None and each.shape == left.shape)
    if left and right:
        name = d.name("s")
        d.node("SequenceConstruct", [left, right], [name])
        d.add("SequenceAt", [name, d.constant(d.below(2), np.int64)], left.shape)
