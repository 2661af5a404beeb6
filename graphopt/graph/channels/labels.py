"""Coupling: which indices of which axes can only be cut together, as labels that operators unify."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.facts import Facts, Mask

Label = NDArray[np.int64]
Axes = list[Label | None]


@dataclass
class Use:
    """One input slot of one node that reads a constant: its labelled axes and what the constant does there.

    ``readers`` are the layers that it works in, which come after ``node`` where a weight is transposed first. A role
    is "feeds" (added to the channel, or multiplied into everything that makes it), "scales" (multiplies the
    channel), "reads" (multiplies it into other channels) or "aside" (none of these, such as a running mean). Axes that
    are ``held`` keep their size when the labels go, as channels are picked only behind the node.
    """

    node: gs.Node
    slot: int
    axes: dict[int, Label] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)
    readers: dict[int, gs.Node] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)

    def cuttable(self) -> dict[int, Label]:
        """Return the labels of the axes that go with them."""
        return {axis: label for axis, label in self.axes.items() if axis not in self.held}


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
    label: Label

    def indices(self, gone: Mask) -> int:
        """Return how many stored indices picking takes."""
        places = np.flatnonzero(~gone[self.label])
        return 0 if len(places) == len(self.label) else len(places) if places[-1] - places[0] >= len(places) else 3


class Labels:
    """Labels of every axis that can be cut; one label per index, equal labels are cut together.

    An axis without labels is pinned: its size cannot change. Labels are born in constants, since a network gets its
    channels from its weights, and travel along the operators.
    """

    def __init__(self, facts: Facts) -> None:
        """Label the program behind ``facts``."""
        self.facts = facts
        self.count = 0
        self.starts: list[int] = []
        self.owners: list[gs.Node] = []
        self.variables: dict[int, Axes] = {}
        self.tensors: dict[int, gs.Tensor] = {}
        self.uses: dict[tuple[int, int], Use] = {}
        self.born: dict[int, tuple[Use, int]] = {}
        self.edges: list[tuple[Label, Label]] = []
        self.blocks: list[tuple[Label, str]] = []
        self.picks: list[Pick] = []

    # -- asking --------------------------------------------------------------------------------------------------------

    def axis(self, node: gs.Node, slot: int, axis: int, role: str = "aside") -> Label | None:
        """Return the labels of one axis of an input; those of a constant are made at the first question."""
        if slot >= len(node.inputs) or not node.inputs[slot].name:
            return None
        tensor = node.inputs[slot]
        rank = self.facts.rank(tensor)
        if rank is None or not -rank <= axis < rank:
            return None
        axis %= rank
        if not self.facts.is_constant(tensor):
            axes = self.variables.get(id(tensor))
            label = axes[axis] if axes is not None else None
            if label is not None and label.size and role != "aside" and int(label[0]) in self.born:
                self._assign(*self.born[int(label[0])], role, node)
            return label
        if not self._carries_channels(node, slot):
            return None
        use = self.uses.setdefault((id(node), slot), Use(node, slot))
        if axis not in use.axes:
            size = self.facts.dim(tensor, axis)
            if size is None or size == 0:
                return None
            use.axes[axis] = self.fresh(size, node)
            use.roles[axis], use.readers[axis] = "aside", node
            self.born[int(use.axes[axis][0])] = use, axis
        self._assign(use, axis, role, node)
        return use.axes[axis]

    def pinned(self, size: int, node: gs.Node, reason: str) -> Label:
        """Return new labels that cannot be cut."""
        labels = self.fresh(size, node)
        self.block(labels, reason)
        return labels

    def attach(self, node: gs.Node, slot: int, axis: int, labels: Label, role: str) -> None:
        """Give an axis of a constant input labels that exist already."""
        use = self.uses.setdefault((id(node), slot), Use(node, slot))
        use.axes[axis], use.roles[axis], use.readers[axis] = labels, role, node

    def hold(self, node: gs.Node, slot: int, labels: Label, role: str) -> None:
        """Give the last axis of a constant input labels that exist already and are cut only behind the node."""
        tensor = node.inputs[slot]
        if self.facts.is_constant(tensor) and self.facts.dim(tensor, -1) == len(labels):
            axis = (self.facts.rank(tensor) or 1) - 1
            self.attach(node, slot, axis, labels, role)
            self.uses[id(node), slot].held.add(axis)

    def _carries_channels(self, node: gs.Node, slot: int) -> bool:
        """Whether a constant can hold weights: floats, or integers that are dequantized; not indices and sizes."""
        kind = self.facts.kind(node.inputs[slot])
        return kind in "fV" or (kind in "iu" and node.op == "DequantizeLinear")

    def _assign(self, use: Use, axis: int, role: str, node: gs.Node) -> None:
        """Give an axis of a constant its role, once."""
        if role != "aside" and use.roles[axis] == "aside":
            use.roles[axis], use.readers[axis] = role, node

    def axes(self, node: gs.Node, slot: int) -> Axes:
        """Return the labels of all axes of an input; size-1 axes of constants have none."""
        rank = self.facts.rank(node.inputs[slot])
        if rank is None:
            return []
        constant = self.facts.is_constant(node.inputs[slot])
        return [
            None if constant and self.facts.dim(node.inputs[slot], axis) == 1 else self.axis(node, slot, axis)
            for axis in range(rank)
        ]

    def is_layer(self, start: int) -> bool:
        """Whether labels that begin at ``start`` were born in a weight that feeds them, not in a bias or a scale."""
        use, axis = self.born.get(start, (None, 0))
        if use is None or use.roles[axis] != "feeds":
            return False
        return (self.facts.rank(use.node.inputs[use.slot]) or 0) > 1

    # -- telling -------------------------------------------------------------------------------------------------------

    def fresh(self, size: int, node: gs.Node) -> Label:
        """Return new labels for an axis of ``size``, born at ``node``."""
        if size:
            self.starts.append(self.count)
            self.owners.append(node)
        self.count += size
        return np.arange(self.count - size, self.count)

    def set(self, tensor: gs.Tensor, axes: Sequence[Label | None]) -> None:
        """Give the output of a node its labels, one array or None for each axis."""
        rank = self.facts.rank(tensor)
        if not tensor.name or rank != len(axes):
            for axis in axes:
                self.block(axis, f"the rank of {tensor.name!r} is unknown")
            return
        checked: Axes = []
        for index, axis in enumerate(axes):
            fits = axis is not None and self.facts.dim(tensor, index) == len(axis)
            if not fits:
                self.block(axis, f"the size of axis {index} of {tensor.name!r} is not known")
            checked.append(axis if fits else None)
        self.variables[id(tensor)] = checked
        self.tensors[id(tensor)] = tensor

    def unify(self, left: Label | None, right: Label | None, node: gs.Node) -> Label | None:
        """Say that two axes are cut together; if one is pinned, so is the other. Return the common labels."""
        if left is None or right is None or len(left) != len(right):
            for side in (left, right):
                self.block(side, f"coupled by {describe(node)} with an axis whose size is fixed")
            return None
        if left is not right:
            self.edges.append((left, right))
        return left

    def merge(self, rows: Label) -> None:
        """Say that the labels of each row of a matrix are cut together."""
        if rows.shape[1] > 1:
            self.edges.append((np.repeat(rows[:, 0], rows.shape[1] - 1), rows[:, 1:].ravel()))

    def block(self, axis: Label | None, reason: str) -> None:
        """Say that no index of an axis can be cut."""
        if axis is not None and axis.size:
            self.blocks.append((axis, reason))

    def block_input(self, node: gs.Node, slot: int, reason: str) -> None:
        """Say that nothing of one variable input can be cut."""
        axes = self.variables.get(id(node.inputs[slot]))
        for axis in axes or ():
            self.block(axis, reason)

    def block_input_axis(self, node: gs.Node, slot: int, axis: int) -> None:
        """Say that one axis of a variable input cannot be cut."""
        if not self.facts.is_constant(node.inputs[slot]):
            self.block(self.axis(node, slot, axis), f"{describe(node)} works along axis {axis}")

    def carry(self, node: gs.Node, moves: dict[int, int]) -> None:
        """Move axes of the first input to axes of the first output; an axis that does not move is pinned."""
        source, target = node.inputs[0], node.outputs[0]
        rank = self.facts.rank(target)
        axes: Axes = [None] * (rank or 0)
        for axis in range(self.facts.rank(source) or 0):
            if (
                axis in moves
                and rank is not None
                and self.facts.dim(target, moves[axis]) == self.facts.dim(source, axis)
            ):
                axes[moves[axis]] = self.axis(node, 0, axis)
            elif not self.facts.is_constant(source):
                self.block(self.axis(node, 0, axis), f"{describe(node)} works along axis {axis}")
        self.set(target, axes)


def describe(node: gs.Node) -> str:
    """Name a node in a reason: its operator and its first output."""
    return f"{node.op} {next((out.name for out in node.outputs if out.name), node.name)!r}"


def components(count: int, left: Label, right: Label) -> Label:
    """Return the smallest label of each label's connected component, by hooking and pointer jumping."""
    parent = np.arange(count)
    while True:
        a, b = parent[left], parent[right]
        apart = a != b
        if not apart.any():
            return parent
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while True:
            jumped = parent[parent]
            if np.array_equal(jumped, parent):
                break
            parent = jumped
