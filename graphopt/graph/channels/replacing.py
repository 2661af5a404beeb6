"""Layers of which nothing remains: what they compute, as a constant, takes their place."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.facts import Facts
from graphopt.graph.channels.inference import element_type
from graphopt.graph.constants import cast
from graphopt.graph.edit import Edit
from graphopt.graph.symbolic import Facts as Types
from graphopt.graph.symbolic.fact import element_type as declared_type
from graphopt.result import Skip

_BROADCASTING = ("Add", "Sub", "Mul", "Div", "Max", "Min")


def replace_constant_branches(facts: Facts, edit: Edit, vetoes: Mapping[str, str]) -> list[str]:
    """Replace each operand that is uniform along all of an axis, and joins one that is not, by a broadcast constant.

    A residual branch of which every channel is nought disappears so, and the addition with it.

    Returns:
        The sites of the layers whose outputs were replaced.
    """
    found: list[str] = []
    for node in facts.program:
        if node.op not in _BROADCASTING or node.domain not in (None, "", "ai.onnx") or len(node.inputs) != 2:
            continue
        out = node.outputs[0]
        if not facts.is_needed(out) or _vector(out, facts) is not None:
            continue
        for slot, tensor in enumerate(node.inputs):
            values = None if facts.is_constant(tensor) else _vector(tensor, facts)
            producer = facts.view.producer(tensor)
            if values is None or producer is None or not _same_shape(node.inputs[1 - slot], out, facts):
                continue
            site = facts.view.site(producer)
            if site in vetoes:
                continue
            neutral = not values.any() and (node.op == "Add" or (node.op == "Sub" and slot == 1))
            try:
                _replace(node, slot, values, None if neutral else _type(node, facts), edit)
            except Skip:
                continue
            found.append(site)
            break
    return found


def _replace(node: gs.Node, slot: int, values: NDArray[np.float64], kind: int | None, edit: Edit) -> None:
    """Put a constant of an element type in a slot; where it changes nothing (None), take the node out."""
    if kind is None:
        edit.set_input(node, 0, node.inputs[1 - slot])
        edit.bypass(node)
        return
    name = str(node.inputs[slot].name)
    edit.set_input(node, slot, edit.constant(name, cast(values, onnx.helper.tensor_dtype_to_np_dtype(kind), name)))


def _type(node: gs.Node, facts: Facts) -> int:
    """Return the element type of a node's operands and its output, which have the same."""
    around = [*node.inputs, node.outputs[0]]
    if declared := next(filter(None, map(declared_type, around)), 0):
        return declared
    known = Types(facts.view.model)  # not the view's own: what that says of shapes is no longer true after a cut
    return next(filter(None, map(known.type, around)), 0) or element_type(node.inputs[0], facts)


def _vector(tensor: gs.Tensor, facts: Facts) -> NDArray[np.float64] | None:
    """Return a tensor that is uniform at every index of an axis, with that axis alone longer than 1."""
    rank = facts.rank(tensor)
    for axis, known in facts.known_axes(tensor).items():
        if rank is not None and not np.isnan(known).any():
            return known.reshape([-1 if place == axis else 1 for place in range(rank)])
    return None


def _same_shape(tensor: gs.Tensor, out: gs.Tensor, facts: Facts) -> bool:
    """Whether a tensor has the output's shape without the other operand's help."""
    own, whole = facts.shape(tensor), facts.shape(out)
    return own is not None and None not in own and own == whole and not facts.is_constant(tensor)
