"""One place where several nodes spell an operator out, and the questions that its recognition asks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.view import GraphView, is_op

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class SpelledOut:
    """Nodes that together are one operator.

    Attributes:
        operator: The standard operator, or what runtimes make of it in words if there is none.
        opset: The first opset that has the operator; 0 if none has.
        nodes: The nodes; the last one gives the result.
        source: What the operator reads.
        attributes: The operator's attributes.
        parameters: Its constant inputs behind the source.
    """

    operator: str
    opset: int
    nodes: tuple[gs.Node, ...]
    source: gs.Tensor
    attributes: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def output(self) -> gs.Tensor:
        """What the operator gives out."""
        return self.nodes[-1].outputs[0]


def scalar(view: GraphView, tensor: gs.Tensor) -> float | None:
    """Return the one number that a constant float tensor holds and that broadcasts nothing, None if it is another."""
    values = view.array(tensor)
    if values is None or values.size != 1 or values.ndim > 1 or values.dtype.kind != "f":
        return None
    return float(values.reshape(-1)[0])


def is_close(value: float | None, wanted: float) -> bool:
    """Whether a number that an exporter wrote is the wanted one, as far as float32 and its decimals tell."""
    return value is not None and abs(value - wanted) <= _TOLERANCE * max(abs(wanted), 1e-3)


def only_reader(view: GraphView, tensor: gs.Tensor) -> gs.Node | None:
    """Return the one node that reads ``tensor``, by one slot; None if there are more or a graph gives it out."""
    readers = view.readers(tensor)
    return readers[0] if len(readers) == 1 and not view.is_output(tensor) else None


def other_operand(node: gs.Node, tensor: gs.Tensor) -> gs.Tensor | None:
    """Return what a node of two operands reads beside ``tensor``; None if it reads anything else."""
    if len(node.inputs) != 2 or not any(operand is tensor for operand in node.inputs):
        return None
    return node.inputs[1] if node.inputs[0] is tensor else node.inputs[0]


def squared(view: GraphView, tensor: gs.Tensor) -> tuple[gs.Tensor, gs.Node] | None:
    """Return of what ``tensor`` is the square, and the Pow or Mul that says so."""
    node = view.producer(tensor, "Pow", "Mul")
    if node is None or len(node.inputs) != 2:
        return None
    base, by = node.inputs
    square = by is base if is_op(node, "Mul") else scalar(view, by) == 2
    return (base, node) if square else None


def is_closed(view: GraphView, nodes: tuple[gs.Node, ...]) -> bool:
    """Whether the nodes lie in one graph and nothing else reads what is between them."""
    inner, home = {id(node) for node in nodes}, view.edit.graph_of(nodes[-1])
    for node in nodes:
        if view.edit.graph_of(node) is not home or len([out for out in node.outputs if out.name]) != 1:
            return False
        result = node.outputs[0]
        if node is not nodes[-1] and (
            view.is_output(result) or any(id(reader) not in inner for reader in view.readers(result))
        ):
            return False
    return True


def trailing_axes(view: GraphView, node: gs.Node) -> int | None:
    """Return over how many of the last axes a ReduceMean averages, keeping them; None if over others or unknown."""
    given = view.array(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1].name else node.attrs.get("axes")
    if given is None or isinstance(given, gs.Node.AttributeRef) or node.attrs.get("keepdims", 1) != 1:
        return None
    axes = sorted(int(axis) for axis in np.reshape(given, -1))
    shape = view.shape(node.inputs[0])
    if axes and axes[0] >= 0 and shape is not None:
        axes = [axis - len(shape) for axis in axes]
    return len(axes) if axes and axes == list(range(-len(axes), 0)) else None
