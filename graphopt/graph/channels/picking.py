"""Picking: of an axis that a normalization needs whole, a Gather or Slice behind it hands on only what is read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.view import is_op

if TYPE_CHECKING:
    from graphopt.graph.channels.cutting import Cut
    from graphopt.graph.channels.facts import Facts, Mask
    from graphopt.graph.channels.labels import Label
    from graphopt.graph.edit import Edit

WORTH = 16
"""How many weights must go for each element that is copied on: a multiplication costs that much less than a copy."""

_PASSING = ("Cast", "Identity", "Dropout")
_STATISTICS = ("Sqrt", "Reciprocal", "Pow", "Add", "Max", "Clip", "Div", *_PASSING)


@dataclass(frozen=True, eq=False)
class Pick:
    """A place where the channels of an axis that stays whole can be picked.

    Attributes:
        node: The node at which it happens.
        slot: The input of the node in front of which; None for behind the first output.
        axis: The axis, counted from the end.
        label: Its labels, which only what comes after the place has.
    """

    node: gs.Node
    slot: int | None
    axis: int
    label: "Label"

    def indices(self, gone: "Mask") -> int:
        """Return how many stored indices picking takes."""
        places = np.flatnonzero(~gone[self.label])
        return 0 if len(places) == len(self.label) else len(places) if places[-1] - places[0] >= len(places) else 3

    def plan(self, cut: "Cut") -> None:
        """Plan the node that picks what stays, unless what comes next picks already."""
        keep = ~cut.gone[self.label]
        if keep.all():
            return
        node, slot, opset = self.node, self.slot, cut.facts.view.opset
        source = node.outputs[0] if slot is None else node.inputs[slot]
        axis = self.axis + (cut.facts.rank(source) or 0)
        if slot is None and _is_picked(source, axis, cut.facts):
            cut.leave_whole(source)
            return
        if slot is not None and (through := _through(source, keep, axis, cut.facts)) is not None:
            source, keep = through

        def put(edit: "Edit") -> None:
            picked = edit.variable(f"{source.name}_picked", like=source)
            if slot is None:
                edit.replace_uses(source, picked)
                cut.leave_whole(source)
            else:
                edit.set_input(node, slot, picked)
            _add(node, source, picked, axis, keep, opset, edit)

        cut.step(put)


def is_normalized(tensor: gs.Tensor, axis: int, facts: "Facts") -> bool:
    """Whether a tensor is a quotient by a mean over an axis (counted from the end): a normalization written out."""
    node = facts.view.producer(tensor)
    if node is not None and picks_along(node, axis + (facts.rank(tensor) or 0), facts):
        tensor = node.inputs[0]
    size, node = facts.dim(tensor, axis), _behind(tensor, _PASSING, facts)
    if size is None or node is None or not is_op(node, "Div", "Mul"):
        return False
    for slot in (1,) if node.op == "Div" else (0, 1):
        side, other = node.inputs[slot], node.inputs[1 - slot]
        if facts.dim(side, axis) == 1 and facts.dim(other, axis) == size:
            mean = _behind(side, _STATISTICS, facts)
            if mean is not None and is_op(mean, "ReduceMean") and facts.dim(mean.inputs[0], axis) == size:
                return True
    return False


def _behind(tensor: gs.Tensor, through: tuple[str, ...], facts: "Facts") -> gs.Node | None:
    """Return the first producer that is none of some operators, each followed along its one computed input."""
    for _ in range(8):
        node = facts.view.producer(tensor)
        if node is None or not is_op(node, *through):
            return node
        computed = [source for source in node.inputs if source.name and not facts.is_constant(source)]
        if len(computed) != 1:
            return node
        tensor = computed[0]
    return None


def _is_picked(tensor: gs.Tensor, axis: int, facts: "Facts") -> bool:
    """Whether a Gather of known indices along an axis is all that reads a tensor, so that it can pick less."""
    readers = facts.view.readers(tensor)
    return len(readers) == 1 and not facts.view.is_output(tensor) and picks_along(readers[0], axis, facts)


def picks_along(node: gs.Node, axis: int, facts: "Facts") -> bool:
    """Whether a node is a Gather of a row of stored indices along an axis."""
    if not is_op(node, "Gather") or not facts.is_constant(node.inputs[1]) or facts.rank(node.inputs[1]) != 1:
        return False
    return int(node.attrs.get("axis", 0)) % (facts.rank(node.inputs[0]) or 1) == axis


def _through(tensor: gs.Tensor, keep: "Mask", axis: int, facts: "Facts") -> "tuple[gs.Tensor, Mask] | None":
    """Return what a Gather before picks from, in order, and what stays of that; None if there is no such Gather."""
    node = facts.view.producer(tensor)
    if node is None or not picks_along(node, axis, facts):
        return None
    places, size = facts.array(node.inputs[1]), facts.dim(node.inputs[0], axis)
    if places is None or size is None or not (np.diff(places, prepend=-1) > 0).all():
        return None
    whole = np.zeros(size, dtype=bool)
    whole[places[keep].astype(np.int64)] = True
    return node.inputs[0], whole


def _add(
    node: gs.Node, source: gs.Tensor, picked: gs.Tensor, axis: int, keep: "Mask", opset: int, edit: "Edit"
) -> None:
    """Add the node that picks: a Slice where what stays lies together, else a Gather."""
    places, stem = np.flatnonzero(keep), str(picked.name)
    first, last = int(places[0]), int(places[-1]) + 1
    if last - first > len(places):
        indices = edit.constant(f"{stem}_indices", places.astype(np.int64))
        edit.add_node(node, "Gather", [source, indices], [picked], {"axis": axis})
    elif opset < 10:
        edit.add_node(node, "Slice", [source], [picked], {"starts": [first], "ends": [last], "axes": [axis]})
    else:
        bounds = (("start", first), ("end", last), ("axis", axis))
        constants = [edit.constant(f"{stem}_{name}", np.array([number])) for name, number in bounds]
        edit.add_node(node, "Slice", [source, *constants], [picked])
