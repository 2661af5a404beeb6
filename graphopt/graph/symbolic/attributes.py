"""Reads what operators say in attributes or in constant inputs, depending on their opset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.symbolic.expression import Entry

Value = NDArray[np.object_]
"""An integer or boolean tensor whose elements are int, bool, Expression, or None where nothing is known."""


def attribute(node: gs.Node, name: str, default: Any = None) -> Any:
    """Return an attribute of a plain kind; the default where it is absent or refers to a function's attribute."""
    value = node.attrs.get(name, default)
    return value if isinstance(value, (int, float, str, list)) or value is default else default


def has_reference(node: gs.Node) -> bool:
    """Whether an attribute takes its value from the call of the function that the node is in."""
    return any(isinstance(value, gs.Node.AttributeRef) for value in node.attrs.values())


def integers(value: Value | None) -> list[int] | None:
    """Return a value as a flat list of plain integers, or None if an element is symbolic or unknown."""
    if value is None:
        return None
    flat = value.reshape(-1).tolist()
    return [int(entry) for entry in flat] if all(isinstance(entry, int) for entry in flat) else None


def axes_of(node: gs.Node, operands: Sequence[Value | None], slot: int) -> list[int] | None:
    """Return the axes of Squeeze, Unsqueeze or a reduction, from the input (newer) or attribute; None if unknown.

    An empty list stands for axes that are not given.
    """
    if len(node.inputs) > slot and node.inputs[slot].name:
        return integers(operands[slot])
    return list(attribute(node, "axes", []))


def tuple_of(value: Value | None) -> tuple[Entry | None, ...] | None:
    """Return a 1-D value as a tuple, or None."""
    return None if value is None or value.ndim != 1 else tuple(value.tolist())
