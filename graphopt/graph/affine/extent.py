"""Ranks, dimensions and types of tensors, also where shape inference gives up: a layer's weights tell them too."""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.evaluate import evaluate
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip

_SAME_SHAPE = (
    *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"),
    *("Identity", "Dropout", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Clip", "Elu", "Gelu"),
    *("Neg", "Cast"),
)


def rank(view: GraphView, tensor: gs.Tensor) -> int | None:
    """Return the number of axes of ``tensor``, or None if nothing tells it."""
    for _ in range(64):
        shape = view.shape(tensor)
        if shape is not None:
            return len(shape)
        node = view.producer(tensor)
        if node is None:
            return None
        if is_op(node, "Conv", "ConvTranspose"):
            weight = evaluate(view, node.inputs[1])
            return None if weight is None else weight.ndim
        if is_op(node, "Gemm"):
            return 2
        if not is_op(node, *_SAME_SHAPE):
            return None
        tensor = node.inputs[0]
    return None


def require_rank(view: GraphView, tensor: gs.Tensor) -> int:
    """Return the number of axes of ``tensor``.

    Raises:
        Skip: Nothing tells it.
    """
    found = rank(view, tensor)
    if found is None:
        raise Skip(f"the rank of {tensor.name!r} is unknown")
    return found


def dimension(view: GraphView, tensor: gs.Tensor, axis: int) -> int | None:
    """Return the size of one axis of ``tensor``, or None if it is unknown or symbolic."""
    for _ in range(64):
        shape = view.shape(tensor)
        if shape is not None and isinstance(size := shape[axis], int):
            return size
        node = view.producer(tensor)
        if node is None:
            return None
        if axis == 1 and is_op(node, "Conv", "ConvTranspose", "Gemm", "BatchNormalization"):
            return _channels(view, node)
        if not is_op(node, *_SAME_SHAPE):
            return None
        tensor = node.inputs[0]
    return None


def element_type(view: GraphView, tensor: gs.Tensor) -> "np.dtype[Any]":
    """Return the element type of a tensor: declared, held, or that of the layer before it.

    Raises:
        Skip: Nothing tells it.
    """
    source = tensor
    for _ in range(64):
        values = evaluate(view, source)
        if values is not None:
            return values.dtype
        if source.dtype is not None:
            kind: np.dtype[Any] = np.dtype(source.dtype)
            return kind
        node = view.producer(source)
        if node is None or not node.inputs:
            break
        layer = is_op(node, "Conv", "ConvTranspose", "Gemm") and evaluate(view, node.inputs[1]) is not None
        if (not layer and not is_op(node, *_SAME_SHAPE)) or is_op(node, "Cast"):
            break
        source = node.inputs[1 if layer else 0]
    raise Skip(f"the type of {tensor.name!r} is unknown")


def _channels(view: GraphView, node: gs.Node) -> int | None:
    """Return the number of channels that a layer gives out, from the shape of its weights."""
    weight = evaluate(view, node.inputs[1])
    if weight is None:
        return None
    if node.op == "ConvTranspose":
        group = node.attrs.get("group", 1)
        return int(weight.shape[1] * group) if isinstance(group, int) else None
    if node.op == "Gemm":
        return int(weight.shape[0 if node.attrs.get("transB", 0) else 1])
    return int(weight.shape[0])
