"""Follows an affine map through pooling, reductions and resizing, which it commutes with."""

import onnx_graphsurgeon as gs

from graphopt.graph.affine.algebra import Affine, number
from graphopt.graph.affine.extent import dimension, require_rank
from graphopt.graph.evaluate import evaluate
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip

_AVERAGES = ("AveragePool", "GlobalAveragePool", "ReduceMean")
_MAXIMA = ("MaxPool", "GlobalMaxPool", "ReduceMax")


def through_pooling(view: GraphView, node: gs.Node, affine: Affine, *, forward: bool) -> Affine | None:
    """Return the same map as seen on the other side of ``node``; None if the node does not pool.

    An average is affine in what it averages; a maximum commutes with a map whose scale is not negative.

    Raises:
        Skip: The node pools, but not in a way that the map commutes with.
    """
    if is_op(node, "Resize", "Upsample"):
        return _resized(view, node, affine)
    if not is_op(node, *_AVERAGES, *_MAXIMA):
        return None
    name = f"{node.op} {node.outputs[0].name!r}"
    if node.op in _MAXIMA and (affine.scale < 0).any():
        raise Skip(f"{name} does not commute with a negative scale")
    if any(view.readers(out) or view.is_output(out) for out in list(node.outputs)[1:] if out.name):
        raise Skip(f"{name} gives out indices")
    if node.op == "AveragePool" and affine.shifts and _counts_padding(node):
        raise Skip(f"{name} counts its zero padding")
    if not node.op.startswith("Reduce"):
        if affine.varying() - {0, 1}:
            raise Skip(f"it varies along an axis that {name} pools over")
        return affine
    axes = _axes(view, node)
    if number(node, "keepdims", 1):
        if affine.varying() & set(axes):
            raise Skip(f"it varies along an axis that {name} reduces")
        return affine
    return affine.delete_axes(axes) if forward else affine.insert_axes(axes)


def _resized(view: GraphView, node: gs.Node, affine: Affine) -> Affine:
    """Carry the map through an interpolation, whose weights add up to one."""
    name = f"{node.op} {node.outputs[0].name!r}"
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Skip(f"{name} puts a value of its own outside of the image")
    for axis in affine.varying():
        size = dimension(view, node.inputs[0], axis)
        if size is None or size != dimension(view, node.outputs[0], axis):
            raise Skip(f"{name} may resize axis {axis}, which it varies along")
    return affine


def _counts_padding(node: gs.Node) -> bool:
    """Whether zeros from the border enter the average."""
    padded = any(node.attrs.get("pads", [0])) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return bool(node.attrs.get("count_include_pad", 0)) and bool(padded or node.attrs.get("ceil_mode", 0))


def _axes(view: GraphView, node: gs.Node) -> list[int]:
    """Return the axes that a reduction runs over, an input from opset 18 on."""
    values = node.attrs.get("axes")
    if values is None and len(node.inputs) > 1 and node.inputs[1].name:
        values = evaluate(view, node.inputs[1])
    if values is None or not len(values):
        raise Skip(f"the axes of {node.op} {node.outputs[0].name!r} are not known")
    axes = [int(axis) for axis in values]
    return [axis % require_rank(view, node.inputs[0]) for axis in axes] if min(axes) < 0 else axes
