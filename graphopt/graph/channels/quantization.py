"""Transfer functions of QuantizeLinear and DequantizeLinear, and the values of weights that are stored as integers."""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.facts import Facts, Vector
from graphopt.graph.channels.labels import Label, Labels, describe
from graphopt.graph.channels.table import Transfer, register
from graphopt.graph.evaluate import move
from graphopt.graph.view import is_op
from graphopt.numerics.grouping import aligned

MOVES = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")


@register("QuantizeLinear", "DequantizeLinear")
class Quantization(Transfer):
    """Element by element; scales and zero points of one axis go with it."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Nought stays nought, which is the zero point; other values are rounded."""
        if node.op == "QuantizeLinear":
            for axis, known in facts.known_axes(node.inputs[0]).items():
                facts.memory[id(node.outputs[0]), f"nought along {axis}"] = known == 0
            return
        producer = facts.view.producer(node.inputs[0], "QuantizeLinear")
        if producer is not None and _same_parameters(producer, node, facts):
            for axis in range(facts.rank(node.outputs[0]) or 0):
                zero = facts.memory.get((id(node.inputs[0]), f"nought along {axis}"))
                if zero is not None:
                    facts.learn(node.outputs[0], axis, np.where(zero, 0.0, np.nan))
        elif (array := dequantized(node.outputs[0], facts)) is not None:
            for axis, size in enumerate(array.shape):
                flat = np.moveaxis(array, axis, 0).reshape(size, -1)
                if flat.size:
                    same = (flat == flat[:, :1]).all(axis=1)
                    facts.learn(node.outputs[0], axis, np.where(same, flat[:, 0].astype(np.float64), np.nan))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """An element is needed where the output's is."""
        out = node.outputs[0]
        if facts.is_needed(out):
            masks = facts.needed_axes(out)
            facts.need(node.inputs[0], masks)
            axis = _axis(node, facts)
            for tensor in node.inputs[1:]:
                facts.need(tensor, {0: masks[axis]} if facts.rank(tensor) == 1 and axis in masks else {})

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Every axis passes; blocks of scales pin theirs."""
        rank, axis = facts.rank(node.inputs[0]), _axis(node, facts)
        if rank is None or facts.rank(node.outputs[0]) is None:
            super().couple(node, facts, labels)
            return
        axes: list[Label | None] = labels.axes(node, 0)
        for slot in range(1, len(node.inputs)):
            tensor = node.inputs[slot]
            own = facts.rank(tensor) if tensor.name else 0
            if own == 1 and facts.dim(tensor, 0) != 1 and facts.is_constant(tensor):
                label = axes[axis]
                if label is not None and facts.dim(tensor, 0) == len(label):
                    labels.attach(node, slot, 0, label, "aside")
                    continue
            if own:
                labels.block(axes[axis], f"{describe(node)} has scales along axis {axis} that cannot be cut")
                for other in axes if own > 1 else ():
                    labels.block(other, f"{describe(node)} has blocks of scales")
        labels.set(node.outputs[0], axes)


def dequantized(tensor: gs.Tensor, facts: Facts) -> NDArray[np.generic] | None:
    """Return the values of a weight in any form that integers are stored in; None for anything else.

    DequantizeLinear with one scale, one for each channel or one for each block; or Mul, and Sub before it, of what is
    cast from integers; either of them moved. What the forms are written by is ``graph.dequantize``.
    """
    node = facts.view.producer(tensor)
    if node is None:
        return None
    if is_op(node, "DequantizeLinear"):
        return _scaled(node, facts)
    if is_op(node, "Mul", "Sub") and facts.view.opset >= 7:
        sides: list[NDArray[Any]] = [side for each in node.inputs if (side := readable(each, facts)) is not None]
        if len(sides) < 2:
            return None
        return np.asarray(sides[0] * sides[1] if node.op == "Mul" else sides[0] - sides[1])
    if is_op(node, *MOVES) and all(facts.is_constant(side) for side in node.inputs[1:]):
        moved = readable(node.inputs[0], facts)
        more = [array for side in node.inputs[1:] if (array := facts.array(side)) is not None]
        return None if moved is None or len(more) < len(node.inputs) - 1 else move(node, [moved, *more])
    return None


def _scaled(node: gs.Node, facts: Facts) -> NDArray[np.generic] | None:
    """Return what a DequantizeLinear makes of stored integers."""
    if not facts.is_constant(node.inputs[0]) or node.attrs.get("output_dtype", 0):
        return None
    array, scale = facts.array(node.inputs[0]), facts.array(node.inputs[1])
    given = len(node.inputs) > 2 and bool(node.inputs[2].name)
    zero = facts.array(node.inputs[2]) if given else np.zeros(())
    if array is None or scale is None or zero is None:
        return None
    axis, block = _axis(node, facts), int(node.attrs.get("block_size", 0))
    if scale.ndim > 1 and (not block or scale.ndim != array.ndim):
        return None
    if block:
        scale, zero = (_of_blocks(part, array.shape[axis], axis, block) for part in (scale, zero))
    spread: list[NDArray[np.float32]] = [
        part.astype(np.float32) if part.ndim > 1 else aligned(part.astype(np.float32), array.shape, axis)
        for part in (scale, zero)
    ]
    values: NDArray[np.generic] = ((array.astype(np.float32) - spread[1]) * spread[0]).astype(scale.dtype)
    return values


def _of_blocks(part: NDArray[Any], size: int, axis: int, block: int) -> NDArray[Any]:
    """Return one scale or zero point for each element of an axis, of which ``block`` have each in common."""
    return part if part.ndim < 2 else np.take(np.repeat(part, block, axis), np.arange(size), axis)


def readable(tensor: gs.Tensor, facts: Facts) -> NDArray[np.generic] | None:
    """Return the values of a weight, stored as floats or as integers."""
    return facts.array(tensor) if facts.is_constant(tensor) else dequantized(tensor, facts)


def is_readable(tensor: gs.Tensor, facts: Facts) -> bool:
    """Whether ``readable`` gives the values."""
    if facts.is_constant(tensor):
        return True
    key = (id(tensor), "readable")
    if key not in facts.memory:
        facts.memory[key] = dequantized(tensor, facts) is not None
    return bool(facts.memory[key])


def _axis(node: gs.Node, facts: Facts) -> int:
    """Return the axis that the scales belong to."""
    return int(node.attrs.get("axis", 1)) % max(facts.rank(node.inputs[0]) or 1, 1)


def _same_parameters(left: gs.Node, right: gs.Node, facts: Facts) -> bool:
    """Whether two nodes have equal scales and zero points, so that nought comes back as nought."""
    if left.attrs.get("axis", 1) != right.attrs.get("axis", 1):
        return False
    pairs: list[tuple[Vector | NDArray[np.generic] | None, NDArray[np.generic] | None]] = [
        (_values(left, slot, facts), _values(right, slot, facts)) for slot in (1, 2)
    ]
    return all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairs)


def _values(node: gs.Node, slot: int, facts: Facts) -> NDArray[np.generic] | None:
    """Return a constant parameter; an absent zero point is nought."""
    if slot < len(node.inputs) and node.inputs[slot].name:
        return facts.array(node.inputs[slot])
    return np.zeros(())
