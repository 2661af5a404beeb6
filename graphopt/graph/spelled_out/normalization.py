"""Recognizes LayerNormalization and RMSNormalization by the square root in them."""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.spelled_out.pattern import (
    SpelledOut,
    is_closed,
    only_reader,
    other_operand,
    scalar,
    squared,
    trailing_axes,
)
from graphopt.graph.view import GraphView, is_op


def normalization(view: GraphView, root: gs.Node) -> SpelledOut | None:
    """Recognize what a Sqrt belongs to.

    With d = x - mean(x) the one is d / sqrt(mean(d^2) + epsilon) * gain + shift, the other x / sqrt(mean(x^2) +
    epsilon) * gain. The mean is over the last axes; the quotient may be a product with a Reciprocal; gain and shift
    may be missing.
    """
    spread = _spread(view, root)
    if spread is None:
        return None
    centred, axes, epsilon, nodes = spread
    divided = _divided(view, root, centred)
    if divided is None:
        return None
    mean = _mean_before(view, centred, axes)
    nodes = [*mean[1], *nodes, *divided] if mean else [*nodes, *divided]
    source = mean[0] if mean else centred
    parameters: dict[str, NDArray[Any]] = {}
    for name, op in (("gain", "Mul"), ("shift", "Add"))[: 2 if mean else 1]:
        found = _along(view, nodes[-1].outputs[0], op, axes)
        if found is not None:
            nodes.append(found[0])
            parameters[name] = found[1]
    operator, opset = ("LayerNormalization", 17) if mean else ("RMSNormalization", 23)
    attributes = {"axis": -axes, "epsilon": epsilon}
    found_nodes = tuple(nodes)
    if not is_closed(view, found_nodes):
        return None
    return SpelledOut(operator, opset, found_nodes, source, attributes, parameters)


def _spread(view: GraphView, root: gs.Node) -> tuple[gs.Tensor, int, float, list[gs.Node]] | None:
    """Return what the root of the mean square plus epsilon is taken of, over how many axes, epsilon, and the nodes."""
    added = view.producer(root.inputs[0], "Add")
    for operand in added.inputs if added is not None else ():
        mean, beside = view.producer(operand, "ReduceMean"), other_operand(added, operand)
        epsilon = None if beside is None else scalar(view, beside)
        square = squared(view, mean.inputs[0]) if mean is not None else None
        axes = trailing_axes(view, mean) if mean is not None else None
        if added is None or mean is None or epsilon is None or square is None or axes is None or not 0 <= epsilon < 1:
            continue
        return square[0], axes, epsilon, [square[1], mean, added, root]
    return None


def _divided(view: GraphView, root: gs.Node, centred: gs.Tensor) -> list[gs.Node] | None:
    """Return the nodes that divide ``centred`` by the root."""
    node = only_reader(view, root.outputs[0])
    if node is None:
        return None
    if is_op(node, "Div") and node.inputs[0] is centred:
        return [node]
    product = only_reader(view, node.outputs[0]) if is_op(node, "Reciprocal") else None
    if product is not None and is_op(product, "Mul") and other_operand(product, node.outputs[0]) is centred:
        return [node, product]
    return None


def _mean_before(view: GraphView, centred: gs.Tensor, axes: int) -> tuple[gs.Tensor, list[gs.Node]] | None:
    """Return what a mean over the last axes is subtracted from, and the nodes."""
    node = view.producer(centred, "Sub")
    mean = view.producer(node.inputs[1], "ReduceMean") if node is not None else None
    if node is None or mean is None or mean.inputs[0] is not node.inputs[0] or trailing_axes(view, mean) != axes:
        return None
    return node.inputs[0], [mean, node]


def _along(view: GraphView, tensor: gs.Tensor, op: str, axes: int) -> tuple[gs.Node, NDArray[Any]] | None:
    """Return the node that multiplies or adds a constant along the last axes, and the constant."""
    node = only_reader(view, tensor)
    beside = other_operand(node, tensor) if node is not None and is_op(node, op) else None
    values = None if beside is None else view.array(beside)
    if node is None or values is None or values.dtype.kind != "f":
        return None
    while values.ndim > axes and values.shape[0] == 1:
        values = values[0]
    shape = view.shape(tensor)
    known = (None,) * values.ndim if shape is None else shape[len(shape) - values.ndim :]
    if values.ndim > axes or any(n not in (1, size) for n, size in zip(values.shape, known, strict=False)):
        return None
    return node, np.asarray(values)
