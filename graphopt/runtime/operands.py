"""The weights of layers as the layers read them: stored as they are, moved on the way, shared, or computed."""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.evaluate import evaluate
from graphopt.graph.slots import rank_of, weight_slots
from graphopt.graph.view import GraphView, is_op
from graphopt.graph.weights import Weight, computed_from, is_stored, require_weight
from graphopt.result import Skip
from graphopt.runtime.evaluate import evaluate_cone


@dataclass(eq=False)
class Operand:
    """What one or several layers read as their weight.

    Attributes:
        weight: Where it comes from.
        values: As the layers read it.
        axis: The axis of ``values`` that holds the channels of all of them; None if they disagree.
        layers: All that read it.
    """

    weight: Weight
    values: NDArray[np.generic]
    axis: int | None
    layers: list[gs.Node]

    @property
    def name(self) -> str:
        """The name of the tensor that it comes from."""
        return str(self.weight.source.name)

    def store(self, view: GraphView, layers: list[gs.Node]) -> tuple[gs.Tensor, gs.Graph]:
        """Make ``layers`` read one stored tensor with these values; return it with the graph that stores it.

        It is the tensor that there was if all its layers are meant and read it as it is stored, otherwise a new one.
        """
        source, home = self.weight.source, self.weight.home
        meant = {id(node) for node in layers}
        direct = all(past_identities(view, use.layer.inputs[1]) is source for use in self.weight.uses)
        fits = tuple(source.shape or ()) == self.values.shape if isinstance(source, gs.Constant) else True
        if (
            not fits
            or not direct
            or not is_stored(view, source)
            or any(id(use.layer) not in meant for use in self.weight.uses)
        ):
            source, home = view.edit.constant(self.name, self.values), view.model.graph
        for node in layers:
            if node.inputs[1] is not source:
                view.edit.set_input(node, 1, source)
        return source, home


def require_operands(view: GraphView, weight: Weight) -> list[Operand]:
    """Return what the layers that use a weight, all of them in slot 1, read of it.

    Raises:
        Skip: It may not be replaced by an approximation, or what a layer reads cannot be told.
    """
    cone = computed_from(view, weight)
    computed = None if cone is None else evaluate_cone(view, cone)
    stored = require_weight(view, weight, computed)
    operands: list[Operand] = []
    for node in (use.layer for use in weight.uses):
        read = past_identities(view, node.inputs[1])
        values = stored if read is weight.source else evaluate(view, read)
        if values is None or _is_joined(view, read):
            raise Skip(f"{weight.source.name!r} lies behind {read.inputs[0].op}, fold constants first")
        axis = next((slot.channel for slot in weight_slots(view, node) if slot.index == 1), None)
        values, axis = _as_matrix(view, node, values, axis)
        same = next((each for each in operands if np.array_equal(each.values, values)), None)
        if same is None:
            operands.append(Operand(weight, values, axis, [node]))
        else:
            same.layers.append(node)
            same.axis = axis if axis == same.axis else None
    return operands


def _as_matrix(
    view: GraphView, node: gs.Node, values: NDArray[np.generic], axis: int | None
) -> tuple[NDArray[np.generic], int | None]:
    """Return a MatMul's weight without axes of size one in front, where the product is the same, and its channel axis.

    Integer kernels take scales per channel for matrices only: a stack of several matrices gets one scale.
    """
    batch = values.ndim - 2
    if not is_op(node, "MatMul") or batch < 1:
        return values, axis
    if any(size != 1 for size in values.shape[:batch]):
        return values, None
    if (rank_of(view, node.inputs[0]) or 0) < values.ndim:
        return values, None
    return values.reshape(values.shape[batch:]), None if axis is None else axis - batch


def past_identities(view: GraphView, tensor: gs.Tensor) -> gs.Tensor:
    """Return what a tensor is that may have come through Identity."""
    while (node := view.producer(tensor, "Identity")) is not None:
        tensor = node.inputs[0]
    return tensor


def _is_joined(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a tensor is put together from several."""
    while (node := view.producer(tensor)) is not None and not is_op(node, "Concat", "Constant"):
        tensor = node.inputs[0]
    return node is not None and is_op(node, "Concat")
