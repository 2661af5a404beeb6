"""Evaluates the small constant expressions that exporters leave in front of a layer's parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.constants import read_values
from graphopt.graph.slicing import slice_of
from graphopt.graph.view import GraphView, is_op, require_found

Values = NDArray[Any]

_PLAIN = (int, float, str, list, gs.Tensor)
_DEEPEST = 32
_LARGEST = 1 << 28


def evaluate(view: GraphView, tensor: gs.Tensor, depth: int = 0) -> Values | None:
    """Return the values of a constant tensor, or of one that is computed from constants by moving, casting or filling.

    Nothing is rounded on the way but by a Cast that the model itself makes.

    Returns:
        The values in the tensor's own type, read-only or a new array; None if they are not known.
    """
    known = view.array(tensor)
    node = view.producer(tensor)
    if known is not None or node is None or depth > _DEEPEST or tensor is not node.outputs[0]:
        return known
    if any(not isinstance(value, _PLAIN) for value in node.attrs.values()):
        return None
    if is_op(node, "Shape"):
        return _shape_of(view, node)
    if not is_op(node, *_RULES):
        return None
    inputs: list[Values | None] = []
    for index, source in enumerate(node.inputs):
        if node.op == "CastLike" and index == 1:
            inputs.append(None if source.dtype is None else np.empty(0, source.dtype))
        else:
            inputs.append(evaluate(view, source, depth + 1))
    given = [values for values in inputs if values is not None]
    if len(given) != len(node.inputs):
        return None
    values = _RULES[node.op](node, given)
    return None if values is None or values.size > _LARGEST else values


def move(node: gs.Node, inputs: Sequence[Values]) -> Values | None:
    """Return what a node that moves, casts or fills gives for these inputs; None for any other operator."""
    return _RULES[node.op](node, inputs) if is_op(node, *_RULES) else None


def require_values(view: GraphView, *tensors: gs.Tensor) -> list[NDArray[np.float64]]:
    """Return the values of constant or computed constant tensors as float64 arrays.

    Raises:
        Skip: A tensor is absent, not constant, not numeric, or holds NaN or Inf.
    """
    return [require_found(evaluate(view, tensor), tensor, view) for tensor in tensors]


def _shape_of(view: GraphView, node: gs.Node) -> Values | None:
    values = view.array(node.inputs[0])
    shape = view.shape(node.inputs[0]) if values is None else values.shape
    if shape is None:
        return None
    part = shape[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    return np.array(part, dtype=np.int64) if all(isinstance(size, int) for size in part) else None


def _cast(node: gs.Node, inputs: Sequence[Values]) -> Values | None:
    kind = node.attrs.get("to")
    return inputs[0].astype(onnx.helper.tensor_dtype_to_np_dtype(kind)) if isinstance(kind, int) else None


def _reshape(node: gs.Node, inputs: Sequence[Values]) -> Values | None:
    wanted = [int(size) for size in inputs[1]] if len(inputs) > 1 else list(node.attrs.get("shape", []))
    if not node.attrs.get("allowzero", 0):
        wanted = [inputs[0].shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return inputs[0].reshape(wanted)


def _squeeze(node: gs.Node, inputs: Sequence[Values]) -> Values | None:
    axes = _axes(node, inputs)
    return np.squeeze(inputs[0], tuple(axes) if axes is not None else None)


def _unsqueeze(node: gs.Node, inputs: Sequence[Values]) -> Values | None:
    axes = _axes(node, inputs)
    return None if axes is None else np.expand_dims(inputs[0], tuple(axes))


def _axes(node: gs.Node, inputs: Sequence[Values]) -> list[int] | None:
    axes = inputs[1] if len(inputs) > 1 else node.attrs.get("axes")
    return None if axes is None else [int(axis) for axis in axes]


def _slice(node: gs.Node, inputs: Sequence[Values]) -> Values | None:
    if len(inputs) > 2:
        starts, ends = inputs[1].tolist(), inputs[2].tolist()
        axes = inputs[3].tolist() if len(inputs) > 3 else list(range(len(starts)))
        steps = inputs[4].tolist() if len(inputs) > 4 else [1] * len(starts)
    else:
        starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
        axes, steps = list(node.attrs.get("axes", range(len(starts)))), [1] * len(starts)
    index = [slice(None)] * inputs[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice_of(inputs[0].shape[axis], start, end, step)
    return inputs[0][tuple(index)]


def _flatten(node: gs.Node, inputs: Sequence[Values]) -> Values | None:
    axis = node.attrs.get("axis", 1)
    axis += inputs[0].ndim if axis < 0 else 0
    return inputs[0].reshape(int(np.prod(inputs[0].shape[:axis])), -1)


def _expand(node: gs.Node, inputs: Sequence[Values]) -> Values | None:
    return np.broadcast_to(inputs[0], np.broadcast_shapes(inputs[0].shape, tuple(int(size) for size in inputs[1])))


def _constant_of_shape(node: gs.Node, inputs: Sequence[Values]) -> Values | None:
    value = node.attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else read_values(value) if isinstance(value, gs.Constant) else None
    return None if fill is None else np.broadcast_to(fill.reshape(-1)[0], [int(size) for size in inputs[0]])


_RULES: dict[str, Callable[[gs.Node, Sequence[Values]], Values | None]] = {
    "Identity": lambda node, inputs: inputs[0],
    "Transpose": lambda node, inputs: inputs[0].transpose(node.attrs.get("perm")),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "CastLike": lambda node, inputs: inputs[0].astype(inputs[1].dtype),
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Concat": lambda node, inputs: np.concatenate(inputs, node.attrs["axis"]),
    "Neg": lambda node, inputs: -inputs[0],
}
