"""Picking: of an axis that a normalization needs whole, a Gather or Slice behind it hands on only what is read."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts, Mask
from graphopt.graph.channels.labels import Pick
from graphopt.graph.edit import Edit
from graphopt.graph.view import is_op

WORTH = 16
"""How many weights must go for each element that is copied on: a multiplication costs that much less than a copy."""

_PASSING = ("Cast", "Identity", "Dropout")
_STATISTICS = ("Sqrt", "Reciprocal", "Pow", "Add", "Max", "Clip", "Div", *_PASSING)


def plan_picks(node: gs.Node, cut: Cut) -> None:
    """Plan what picks channels at a node."""
    for place in cut.labels.picks:
        if place.node is node:
            _plan(place, cut)


def _plan(place: Pick, cut: Cut) -> None:
    """Plan the node that picks what stays, unless what comes next picks already."""
    keep = ~cut.gone[place.label]
    if keep.all():
        return
    node, slot, opset = place.node, place.slot, cut.facts.view.opset
    source = node.outputs[0] if slot is None else node.inputs[slot]
    axis = place.axis + (cut.facts.rank(source) or 0)
    if slot is None and (whole := _picked_from(source, axis, cut.facts)):
        for tensor in whole:
            cut.leave_whole(tensor)
        return
    if slot is not None and (through := _through(source, keep, axis, cut.facts)) is not None:
        source, keep = through

    def put(edit: Edit) -> None:
        picked = edit.variable(f"{source.name}_picked", like=source)
        if slot is None:
            edit.replace_uses(source, picked)
            cut.leave_whole(source)
        else:
            edit.set_input(node, slot, picked)
        _add(node, source, picked, (axis, cut.facts.rank(source) or 0), keep, opset, edit)

    cut.step(put)


def is_normalized(tensor: gs.Tensor, axis: int, facts: Facts) -> bool:
    """Whether a tensor is a quotient by a mean over an axis (counted from the end): a normalization written out."""
    before = _gather_before(tensor, axis + (facts.rank(tensor) or 0), facts)
    if before is not None:
        tensor = before[1]
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


def _behind(tensor: gs.Tensor, through: tuple[str, ...], facts: Facts) -> gs.Node | None:
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


def _picked_from(tensor: gs.Tensor, axis: int, facts: Facts) -> list[gs.Tensor]:
    """Return a tensor, also as transposed, if a Gather of known indices along an axis is all that reads it."""
    found = [tensor]
    reader = only_reader(tensor, facts)
    if reader is not None and is_op(reader, "Transpose") and "perm" in reader.attrs:
        axis = [int(old) for old in reader.attrs["perm"]].index(axis)
        found.append(reader.outputs[0])
        reader = only_reader(reader.outputs[0], facts)
    return found if reader is not None and picks_along(reader, axis, facts) else []


def only_reader(tensor: gs.Tensor, facts: Facts) -> gs.Node | None:
    """Return the one node that reads a tensor; None if there are several, or a graph gives it out."""
    readers = facts.view.readers(tensor)
    return readers[0] if len(readers) == 1 and not facts.view.is_output(tensor) else None


def _gather_before(tensor: gs.Tensor, axis: int, facts: Facts) -> tuple[gs.Node, gs.Tensor] | None:
    """Return the Gather along an axis that a tensor comes from, also between two transpositions, and its source."""
    node = facts.view.producer(tensor)
    if node is None or picks_along(node, axis, facts):
        return None if node is None else (node, node.inputs[0])
    if not is_op(node, "Transpose") or "perm" not in node.attrs:
        return None
    inner = int(node.attrs["perm"][axis])
    gather = facts.view.producer(node.inputs[0])
    first = None if gather is None else facts.view.producer(gather.inputs[0], "Transpose")
    if gather is None or first is None or "perm" not in first.attrs or not picks_along(gather, inner, facts):
        return None
    return (gather, first.inputs[0]) if int(first.attrs["perm"][inner]) == axis else None


def picks_along(node: gs.Node, axis: int, facts: Facts) -> bool:
    """Whether a node is a Gather of a row of stored indices along an axis."""
    if not is_op(node, "Gather") or not facts.is_constant(node.inputs[1]) or facts.rank(node.inputs[1]) != 1:
        return False
    return int(node.attrs.get("axis", 0)) % (facts.rank(node.inputs[0]) or 1) == axis


def _through(tensor: gs.Tensor, keep: Mask, axis: int, facts: Facts) -> tuple[gs.Tensor, Mask] | None:
    """Return what a Gather before picks from, in order, and what stays of that; None if there is no such Gather."""
    before = _gather_before(tensor, axis, facts)
    if before is None:
        return None
    node, source = before
    places, size = facts.array(node.inputs[1]), facts.dim(source, axis)
    if places is None or size is None or not (np.diff(places, prepend=-1) > 0).all():
        return None
    whole = np.zeros(size, dtype=bool)
    whole[places[keep].astype(np.int64)] = True
    return source, whole


def _add(
    node: gs.Node, source: gs.Tensor, picked: gs.Tensor, where: tuple[int, int], keep: Mask, opset: int, edit: Edit
) -> None:
    """Add what picks along an axis of a rank: a Slice where what stays lies together, else a Gather.

    Along the last axis a Gather moves single elements, at which runtimes are slow: it goes between two transpositions.
    """
    (axis, rank), places, stem = where, np.flatnonzero(keep), str(picked.name)
    first, last = int(places[0]), int(places[-1]) + 1
    if last - first > len(places):
        indices = edit.constant(f"{stem}_indices", places.astype(np.int64))
        if axis < rank - 1 or not axis:
            edit.add_node(node, "Gather", [source, indices], [picked], {"axis": axis})
            return
        turned, taken = (edit.variable(f"{stem}_{name}", like=source) for name in ("turned", "taken"))
        edit.add_node(node, "Transpose", [source], [turned], {"perm": [axis, *range(axis)]})
        edit.add_node(node, "Gather", [turned, indices], [taken], {"axis": 0})
        edit.add_node(node, "Transpose", [taken], [picked], {"perm": [*range(1, rank), 0]})
    elif opset < 10:
        edit.add_node(node, "Slice", [source], [picked], {"starts": [first], "ends": [last], "axes": [axis]})
    else:
        bounds = (("start", first), ("end", last), ("axis", axis))
        constants = [edit.constant(f"{stem}_{name}", np.array([number])) for name, number in bounds]
        edit.add_node(node, "Slice", [source, *constants], [picked])
