"""Carries an affine map of a tensor forward, into the layers that read it."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.affine import inputs
from graphopt.graph.affine.algebra import Affine, Array, arithmetic, number, require_plain
from graphopt.graph.affine.change import Change, remove
from graphopt.graph.affine.extent import dimension, require_rank
from graphopt.graph.affine.layout import through_layout
from graphopt.graph.affine.padding import through_pad
from graphopt.graph.affine.pooling import through_pooling
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip


def into_readers(view: GraphView, tensor: gs.Tensor, affine: Affine) -> list[Change]:
    """Agree on changes after which the readers of ``tensor`` apply ``affine`` to it themselves.

    Raises:
        Skip: It is a graph output, or one of its readers cannot take the map.
    """
    if view.is_output(tensor):
        raise Skip(f"{tensor.name!r} is a graph output")
    readers = list({id(node): node for node in view.readers(tensor)}.values())
    if not readers:
        raise Skip(f"nothing reads {tensor.name!r}")
    home = view.edit.graph_of(producer) if (producer := view.producer(tensor)) else None
    changes: list[Change] = []
    for node in readers:
        if home is not None and view.edit.graph_of(node) is not home:
            raise Skip(f"{tensor.name!r} is read in another graph")
        changes += _into(view, node, tensor, affine)
    return changes


def _into(view: GraphView, node: gs.Node, tensor: gs.Tensor, affine: Affine) -> list[Change]:
    """Carry the map of one input of ``node`` into it or through it."""
    require_plain(node)
    if is_op(node, "Concat"):
        return into_readers(view, node.outputs[0], _widen(view, node, tensor, affine))
    slots = [slot for slot, source in enumerate(node.inputs) if source is tensor]
    name = f"{node.op} {node.outputs[0].name!r}"
    if len(slots) == 1 and is_op(node, *inputs.TAKES) and (slots == [0] or node.op == "MatMul"):
        return [inputs.TAKES[node.op](view, node, slots[0], affine)]
    found = arithmetic(view, node) if len(slots) == 1 else None
    if found is not None:
        return [*into_readers(view, node.outputs[0], affine.then(found[1])), remove(view, node, tensor)]
    border = through_pad(view, node, affine, forward=True) if slots == [0] else None
    if border is not None:
        return [*into_readers(view, node.outputs[0], affine), *border]
    moved = None
    if slots == [0]:
        moved = through_layout(view, node, affine, forward=True) or through_pooling(view, node, affine, forward=True)
    if moved is None:
        raise Skip(f"{name} cannot take it in")
    return into_readers(view, node.outputs[0], moved)


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
