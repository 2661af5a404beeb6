"""Transfer functions of QuantizeLinear and DequantizeLinear, and the weights that stand behind the latter."""

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.facts import Facts, Vector
from graphopt.graph.channels.labels import Label, Labels, describe
from graphopt.graph.channels.table import Transfer, register
from graphopt.numerics.grouping import aligned


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
    """Return the values of a stored weight behind DequantizeLinear; None for anything else and for blocks of scales."""
    node = facts.view.producer(tensor, "DequantizeLinear")
    if node is None or not facts.is_constant(node.inputs[0]) or node.attrs.get("output_dtype", 0):
        return None
    array, scale = facts.array(node.inputs[0]), facts.array(node.inputs[1])
    given = len(node.inputs) > 2 and bool(node.inputs[2].name)
    zero = facts.array(node.inputs[2]) if given else np.zeros(())
    if array is None or scale is None or zero is None or scale.ndim > 1:
        return None
    spread: list[NDArray[np.float32]] = [
        aligned(part.astype(np.float32), array.shape, _axis(node, facts)) for part in (scale, zero)
    ]
    values: NDArray[np.generic] = ((array.astype(np.float32) - spread[1]) * spread[0]).astype(scale.dtype)
    return values


def readable(tensor: gs.Tensor, facts: Facts) -> NDArray[np.generic] | None:
    """Return the values of a weight, stored as floats or behind DequantizeLinear."""
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
