"""Carries an affine map backward from a tensor into the layers that compute it."""

import onnx_graphsurgeon as gs

from graphopt.graph.affine import outputs
from graphopt.graph.affine.algebra import Affine, arithmetic
from graphopt.graph.affine.change import Change
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip


def into_producers(view: GraphView, tensor: gs.Tensor, affine: Affine) -> list[Change]:
    """Agree on changes after which ``tensor`` holds ``affine`` of what it held; its one reader must be going away.

    Raises:
        Skip: A tensor on the way has other readers, or what computes it cannot take the map.
    """
    view.require_private(tensor)
    node = view.producer(tensor)
    if node is None:
        raise Skip(f"{tensor.name!r} is not computed by a layer")
    if view.edit.graph_of(node) is not view.edit.graph_of(view.readers(tensor)[0]):
        raise Skip(f"{tensor.name!r} is computed in another graph")
    if is_op(node, *outputs.TAKES):
        return [outputs.TAKES[node.op](view, node, affine)]
    found = arithmetic(view, node)
    if found is not None:
        operand, inner = found
        return [*into_producers(view, operand, inner.then(affine)), lambda: drop(view, node, operand)]
    if is_op(node, "Identity"):
        return into_producers(view, node.inputs[0], affine)
    raise Skip(f"{node.op} {tensor.name!r} cannot take it")


def drop(view: GraphView, node: gs.Node, operand: gs.Tensor) -> None:
    """Remove a node whose map has gone elsewhere; what read its output reads ``operand``."""
    if node.inputs[0] is not operand:
        view.edit.set_input(node, 1, node.inputs[0])
        view.edit.set_input(node, 0, operand)
    view.edit.bypass(node)
