"""Carries an affine map of a tensor forward, into the layers that read it."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.affine import inputs
from graphopt.graph.affine.algebra import FARTHEST, Affine, Array, arithmetic, number, require_plain
from graphopt.graph.affine.change import Change, remove
from graphopt.graph.affine.extent import dimension, require_rank
from graphopt.graph.affine.layout import through_layout
from graphopt.graph.affine.padding import through_pad
from graphopt.graph.affine.pooling import through_pooling
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip

_MOST = 256
"""Operators that may have to change."""


def into_readers(view: GraphView, tensor: gs.Tensor, affine: Affine) -> list[Change]:
    """Agree on changes after which the readers of ``tensor`` apply ``affine`` to it themselves.

    Raises:
        Skip: It is a graph output, one of its readers cannot take the map, or one would get it by two ways.
    """
    changes: list[Change] = []
    reached: set[int] = set()
    waiting = [(tensor, affine, 0)]
    while waiting:
        source, own, distance = waiting.pop()
        if distance > FARTHEST:
            raise Skip(f"no layer among the {FARTHEST} operators behind it")
        for node in _readers(view, source):
            if id(node) in reached:
                raise Skip(f"{node.op} {node.outputs[0].name!r} would get it by two ways")
            reached.add(id(node))
            if len(reached) > _MOST:
                raise Skip(f"more than {_MOST} operators would have to change")
            made, moved = _into(view, node, source, own)
            changes += made
            if moved is not None:
                waiting.append((node.outputs[0], moved, distance + 1))
    return changes


def _readers(view: GraphView, tensor: gs.Tensor) -> list[gs.Node]:
    """Return the nodes that read ``tensor``, all in the graph that computes it."""
    if view.is_output(tensor):
        raise Skip(f"{tensor.name!r} is a graph output")
    readers = list({id(node): node for node in view.readers(tensor)}.values())
    if not readers:
        raise Skip(f"nothing reads {tensor.name!r}")
    producer = view.producer(tensor)
    home = None if producer is None else view.edit.graph_of(producer)
    if any(view.edit.graph_of(node) is not home for node in readers):
        raise Skip(f"{tensor.name!r} is read in another graph")
    return readers


def _into(view: GraphView, node: gs.Node, tensor: gs.Tensor, affine: Affine) -> tuple[list[Change], Affine | None]:
    """Carry the map of one input of ``node`` into it, or through it: then the map of its output comes second."""
    require_plain(node)
    if is_op(node, "Concat"):
        return [], _widen(view, node, tensor, affine)
    slots = [slot for slot, source in enumerate(node.inputs) if source is tensor]
    if len(slots) == 1 and is_op(node, *inputs.TAKES) and (slots == [0] or node.op == "MatMul"):
        return [inputs.TAKES[node.op](view, node, slots[0], affine)], None
    found = arithmetic(view, node) if len(slots) == 1 else None
    if found is not None:
        return [remove(view, node, tensor)], affine.then(found[1])
    moved = None
    if slots == [0]:
        border = through_pad(view, node, affine, forward=True)
        if border is not None:
            return border, affine
        moved = through_layout(view, node, affine, forward=True) or through_pooling(view, node, affine, forward=True)
    if moved is None:
        raise Skip(f"{node.op} {node.outputs[0].name!r} cannot take it in")
    return [], moved


def _widen(view: GraphView, node: gs.Node, tensor: gs.Tensor, affine: Affine) -> Affine:
    """Return the map of a Concat's output that is ``affine`` on the part of ``tensor`` and leaves the rest alone."""
    axis = int(number(node, "axis", 1))
    axis += require_rank(view, tensor) if axis < 0 else 0
    scale, shift = affine.padded(max(affine.scale.ndim, axis + 1))
    parts: list[tuple[Array, Array]] = []
    for source in node.inputs:
        size = dimension(view, source, axis)
        if size is None:
            raise Skip(f"the size of {source.name!r} along axis {axis} is unknown")
        shape = (*scale.shape[:axis], size, *scale.shape[axis + 1 :])
        if source is tensor:
            parts.append((np.broadcast_to(scale, shape), np.broadcast_to(shift, shape)))
        else:
            parts.append((np.ones(shape), np.zeros(shape)))
    return Affine.of(*(np.concatenate(values, axis) for values in zip(*parts, strict=True)))
