"""Follows an affine map through a Pad, whose border changes with it."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.affine.algebra import Affine, number
from graphopt.graph.affine.change import Change, carry
from graphopt.graph.affine.extent import element_type, require_rank
from graphopt.graph.evaluate import evaluate, require_values
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip


def through_pad(view: GraphView, node: gs.Node, affine: Affine, *, forward: bool) -> list[Change] | None:
    """Agree on what becomes of a Pad's border when the map changes sides; the map itself stays as it is.

    Before the map the border is b, behind it s * b + t. Copied borders (reflect, edge, wrap) need nothing.

    Returns:
        The changes, or None if ``node`` is no Pad.

    Raises:
        Skip: The Pad pads an axis that the map varies along, or its border would differ between channels.
    """
    if not is_op(node, "Pad"):
        return None
    name = f"Pad {node.outputs[0].name!r}"
    if affine.varying() & _padded_axes(view, node, name):
        raise Skip(f"{name} pads an axis that it varies along")
    if node.attrs.get("mode", "constant") != "constant":
        return []
    old = _border(view, node)
    if forward and not affine.scale.all():
        if affine.shifts or old:
            raise Skip(f"{name} has a border that a channel of scale zero cannot give")
        return []
    border = (old - affine.shift) / affine.scale if forward else old * affine.scale + affine.shift
    if not (border == border.flat[0]).all():
        raise Skip(f"{name} would need a border of its own for each channel")
    return [] if border.flat[0] == old else [_new_border(view, node, border.reshape(-1)[0])]


def _padded_axes(view: GraphView, node: gs.Node, name: str) -> set[int]:
    """Return the axes that are padded."""
    given = node.attrs.get("pads", node.attrs.get("paddings"))
    widths = evaluate(view, node.inputs[1]) if given is None and len(node.inputs) > 1 else given
    if widths is None:
        raise Skip(f"the widths of {name} are not constant")
    count = len(widths) // 2
    axes = list(range(count))
    if len(node.inputs) > 3 and node.inputs[3].name:
        chosen = evaluate(view, node.inputs[3])
        if chosen is None:
            raise Skip(f"the axes of {name} are not constant")
        axes = [int(axis) % require_rank(view, node.inputs[0]) for axis in chosen]
    return {axis for place, axis in enumerate(axes) if widths[place] or widths[place + count]}


def _border(view: GraphView, node: gs.Node) -> float:
    """Return the constant that is padded with."""
    if len(node.inputs) > 2 and node.inputs[2].name:
        return float(require_values(view, node.inputs[2])[0].reshape(-1)[0])
    return number(node, "value", 0.0)


def _new_border(view: GraphView, node: gs.Node, border: np.float64) -> Change:
    """Agree on another constant to pad with."""
    name = f"border of {node.outputs[0].name}"
    if view.opset < 11:
        value = float(carry(np.asarray(border), np.dtype(np.float32), name))
        return Change(lambda: node.attrs.__setitem__("value", value))
    given = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else node.inputs[0]
    narrow = carry(np.asarray(border), element_type(view, given), name)
    return Change(lambda: view.edit.set_input(node, 2, view.edit.constant(name.replace(" ", "_"), narrow)))
