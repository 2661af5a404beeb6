"""Affine maps that stand on one of several branches: behind a Concat that takes them in part, or beside a Conv."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.affine.algebra import Affine, number, require_plain
from graphopt.graph.affine.backward import into_producers, split
from graphopt.graph.affine.change import Change, assign, carry, remove
from graphopt.graph.affine.extent import dimension, element_type
from graphopt.graph.evaluate import require_values
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip


def into_some_branches(view: GraphView, node: gs.Node, affine: Affine) -> list[Change] | None:
    """Agree on moving a BatchNormalization behind a Concat into all of the Concat's branches but one.

    The last branch keeps a BatchNormalization of its own, which is narrower than the one before.

    Returns:
        The changes, or None if there is no Concat.

    Raises:
        Skip: Two or more of the branches cannot take their part.
    """
    concat = view.producer(node.inputs[0], "Concat")
    if concat is None:
        return None
    view.require_private(concat.outputs[0])
    if view.edit.graph_of(concat) is not view.edit.graph_of(node):
        raise Skip(f"Concat {concat.outputs[0].name!r} is in another graph")
    changes: list[Change] = []
    left: list[tuple[int, Affine, str]] = []
    for slot, (tensor, part) in enumerate(split(view, concat, affine)):
        try:
            changes += into_producers(view, tensor, part)
        except Skip as reason:
            left.append((slot, part, str(reason)))
    if not changes or len(left) != 1:
        raise Skip(f"{len(left)} of {len(concat.inputs)} branches of its Concat cannot take it, as {left[0][2]}")
    slot, part, _ = left[0]
    return [*changes, _narrower(view, node, concat, slot, part)]


def _narrower(view: GraphView, node: gs.Node, concat: gs.Node, slot: int, part: Affine) -> Change:
    """Agree on a BatchNormalization for one branch of a Concat."""
    kind = element_type(view, node.inputs[1])
    size = dimension(view, concat.inputs[slot], 1)
    if size is None or view.opset < 7:
        raise Skip(f"{concat.inputs[slot].name!r} cannot get a BatchNormalization of its own")
    scale, shift = part.along(1, size)
    values = [carry(np.array(array), kind, "a narrower BatchNormalization") for array in (scale, shift)]
    values += [np.zeros(size, kind), np.ones(size, kind)]

    def make() -> None:
        stem = f"{concat.inputs[slot].name}_bn"
        names = ("scale", "shift", "mean", "var")
        parameters = [view.edit.constant(f"{stem}_{name}", array) for name, array in zip(names, values, strict=True)]
        source = concat.inputs[slot]
        out = view.variable_like(f"{source.name}_BatchNormalization", source)
        view.edit.add_node(node, "BatchNormalization", [source, *parameters], [out], {"epsilon": 0.0})
        view.edit.set_input(concat, slot, out)

    return Change(make, 1)


def into_parallel_conv(view: GraphView, node: gs.Node, affine: Affine) -> list[Change] | None:
    """Agree on moving an identity branch, Add(affine(x), Conv(x)), into the kernel's centre; the Add goes too.

    W[o, o, centre] becomes W + s[o] and b becomes b + t, if the Conv keeps shape and channels. Method: Ding et al.,
    2021, RepVGG.

    Returns:
        The changes, or None if there is no Conv of the same input beside it.

    Raises:
        Skip: There is one, but it changes the shape or cannot take the map.
    """
    source, out = node.inputs[0], node.outputs[0]
    adds = view.readers(out)
    if len(adds) != 1 or view.is_output(out) or not is_op(adds[0], "Add"):
        return None
    (add,) = adds
    other = add.inputs[1] if add.inputs[0] is out else add.inputs[0]
    conv = _conv_of(view, other, source)
    if conv is not None:
        require_plain(conv)
    if conv is None or not view.edit.graph_of(conv) is view.edit.graph_of(add) is view.edit.graph_of(node):
        return None
    (weight,) = require_values(view, conv.inputs[1])
    _require_same_shape(conv, weight.shape)
    scale, shift = affine.along(1, weight.shape[0])
    rows = np.arange(weight.shape[0])
    centre = tuple(size // 2 for size in weight.shape[2:])
    summed = weight.copy()
    summed[(rows, rows % weight.shape[1], *centre)] += scale
    bias = require_values(view, conv.inputs[2])[0] if len(conv.inputs) > 2 and conv.inputs[2].name else 0.0
    return [assign(view, conv, {1: summed, 2: bias + shift}), remove(view, add, other)]


def _conv_of(view: GraphView, tensor: gs.Tensor, source: gs.Tensor) -> gs.Node | None:
    """Return a Conv of ``source`` among the terms that sum up to ``tensor``, if nothing else reads what is between."""
    waiting = [tensor]
    while waiting:
        term = waiting.pop()
        node = view.producer(term)
        if node is None or view.is_output(term) or len(view.readers(term)) != 1:
            continue
        if is_op(node, "Conv") and node.inputs[0] is source:
            return node
        if is_op(node, "Add"):
            waiting += node.inputs
    return None


def _require_same_shape(conv: gs.Node, weight: tuple[int, ...]) -> None:
    """Raise Skip unless the Conv gives out what it takes in: channels, height and width."""
    name, kernel = f"Conv {conv.outputs[0].name!r}", weight[2:]
    if weight[1] * int(number(conv, "group", 1)) != weight[0]:
        raise Skip(f"{name} beside it changes the number of channels")
    dilations = conv.attrs.get("dilations", [1] * len(kernel))
    same = [(size - 1) * dilation // 2 for size, dilation in zip(kernel, dilations, strict=True)] * 2
    given = conv.attrs.get("pads", [0] * len(same))
    padded = given == same if conv.attrs.get("auto_pad", "NOTSET") == "NOTSET" else "SAME" in conv.attrs["auto_pad"]
    if any(size % 2 == 0 for size in kernel) or any(s != 1 for s in conv.attrs.get("strides", [])) or not padded:
        raise Skip(f"{name} beside it changes the shape")
