"""Carries an affine map of a tensor backward, into the layers that compute it."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.affine import outputs
from graphopt.graph.affine.algebra import FARTHEST, Affine, arithmetic, number, require_plain
from graphopt.graph.affine.change import Change, remove
from graphopt.graph.affine.extent import dimension, rank, require_rank
from graphopt.graph.affine.layout import through_layout
from graphopt.graph.affine.padding import through_pad
from graphopt.graph.affine.pooling import through_pooling
from graphopt.graph.evaluate import evaluate
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip


def into_producers(view: GraphView, tensor: gs.Tensor, affine: Affine) -> list[Change]:
    """Agree on changes after which ``tensor`` holds ``affine`` of what it held; its one reader must be going away.

    Raises:
        Skip: A tensor on the way has other readers, or what computes it cannot take the map.
    """
    changes: list[Change] = []
    for _ in range(FARTHEST):
        node = _own_producer(view, tensor)
        if is_op(node, *outputs.TAKES) and not _is_product(view, node):
            return [*changes, outputs.TAKES[node.op](view, node, affine)]
        if is_op(node, "Concat"):
            return changes + [each for part in split(view, node, affine) for each in into_producers(view, *part)]
        found = arithmetic(view, node)
        if found is not None:
            changes.append(remove(view, node, found[0]))
            tensor, affine = found[0], found[1].then(affine)
            continue
        if is_op(node, "Add", "Sub"):
            return changes + _both_terms(view, node, affine)
        if not affine.shifts and (is_op(node, "Mul") or (is_op(node, "MatMul") and not affine.varying())):
            return changes + _one_factor(view, node, affine)
        border, affine = _through(view, node, affine)
        changes += border
        tensor = node.inputs[0]
    raise Skip(f"no layer among the {FARTHEST} operators before it")


def _own_producer(view: GraphView, tensor: gs.Tensor) -> gs.Node:
    """Return the node that computes ``tensor`` for one reader alone, in the same graph."""
    view.require_private(tensor)
    node = view.producer(tensor)
    if node is None:
        raise Skip(f"{tensor.name!r} is a graph input" if view.is_input(tensor) else f"{tensor.name!r} has no producer")
    if view.edit.graph_of(node) is not view.edit.graph_of(view.readers(tensor)[0]):
        raise Skip(f"{tensor.name!r} is computed in another graph")
    require_plain(node)
    if tensor is not node.outputs[0]:
        raise Skip(f"{tensor.name!r} is not the first output of {node.op}")
    return node


def _through(view: GraphView, node: gs.Node, affine: Affine) -> tuple[list[Change], Affine]:
    """Carry the map through an operator that moves values, pools or pads; return its map and what changes there."""
    border = through_pad(view, node, affine, forward=False)
    if border is not None:
        return border, affine
    moved = through_layout(view, node, affine, forward=False) or through_pooling(view, node, affine, forward=False)
    if moved is None or node.inputs[0].is_empty():
        raise Skip(f"{node.op} {node.outputs[0].name!r} cannot take it in")
    return [], moved


def _is_product(view: GraphView, node: gs.Node) -> bool:
    """Whether ``node`` is a MatMul of two tensors that are computed."""
    return is_op(node, "MatMul") and all(evaluate(view, tensor) is None for tensor in node.inputs)


def _one_factor(view: GraphView, node: gs.Node, affine: Affine) -> list[Change]:
    """Scale one factor of a product of two tensors, whichever can take it."""
    refusals = []
    for factor in node.inputs:
        if affine.varying() and rank(view, factor) != require_rank(view, node.outputs[0]):
            refusals.append(f"{factor.name!r} is broadcast")
            continue
        try:
            return into_producers(view, factor, affine)
        except Skip as reason:
            refusals.append(str(reason))
    raise Skip(f"{node.op} {node.outputs[0].name!r} has no factor that takes it: {'; '.join(refusals)}")


def _both_terms(view: GraphView, node: gs.Node, affine: Affine) -> list[Change]:
    """Scale both terms of a sum; the first takes the shift too."""
    first, second = node.inputs
    if affine.varying():
        axes = require_rank(view, node.outputs[0])
        if require_rank(view, first) != axes or require_rank(view, second) != axes:
            raise Skip(f"{node.op} {node.outputs[0].name!r} broadcasts one of its terms")
    scaled = Affine.of(affine.scale, 0.0)
    try:
        return [*into_producers(view, first, affine), *into_producers(view, second, scaled)]
    except Skip as reason:
        raise Skip(f"{node.op} {node.outputs[0].name!r} needs both of its terms scaled: {reason}") from reason


def split(view: GraphView, node: gs.Node, affine: Affine) -> list[tuple[gs.Tensor, Affine]]:
    """Return the part of a Concat's map that falls on each of its inputs."""
    axis = int(number(node, "axis", 1))
    if axis < 0 and affine.varying():
        axis += require_rank(view, node.outputs[0])
    if axis not in affine.varying():
        return [(tensor, affine) for tensor in node.inputs]
    sizes = [dimension(view, tensor, axis) for tensor in node.inputs]
    known = [size for size in sizes if size is not None]
    if len(known) != len(sizes) or sum(known) != affine.scale.shape[axis]:
        raise Skip(f"the sizes of what Concat {node.outputs[0].name!r} joins are unknown")
    cuts = np.cumsum(known)[:-1]
    pairs = zip(np.split(affine.scale, cuts, axis), np.split(affine.shift, cuts, axis), strict=True)
    return [(tensor, Affine.of(*pair)) for tensor, pair in zip(node.inputs, pairs, strict=True)]
