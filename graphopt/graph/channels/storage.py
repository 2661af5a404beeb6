"""How many elements the model stores after a cut: constants that several layers read count once for each form."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.facts import SMALL, Facts, Mask
from graphopt.graph.channels.labels import Label, Labels
from graphopt.graph.constants import read_values
from graphopt.graph.view import is_op

_SAME_SIZE = ("Identity", "Transpose", "Reshape", "Cast", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, eq=False)
class Term:
    """A product of sizes, of which some shrink with labels."""

    size: int
    labels: tuple[Label, ...]

    def after(self, gone: Mask) -> float:
        """Return the product after a cut."""
        return self.size * math.prod(1 - float(gone[label].mean()) for label in self.labels)

    def form(self, gone: Mask, plain: bool) -> object:
        """Return what forms of one constant have in common that hold the same; ``plain``: of one value all over."""
        if not any(gone[label].any() for label in self.labels):
            return ()
        return self.after(gone) if plain else tuple(gone[label].tobytes() for label in self.labels)


@dataclass(eq=False)
class _Stored:
    """One stored constant: its size, what reads it, and whether something reads it that cannot be cut."""

    size: int
    plain: bool
    terms: list[Term] = field(default_factory=list)
    whole: bool = False

    def after(self, gone: Mask) -> float:
        """Return how many elements are stored after a cut."""
        sizes = {term.form(gone, self.plain): term.after(gone) for term in self.terms}
        if self.whole or not self.terms:
            sizes[()] = self.size
        return sum(sizes.values())


class Storage:
    """The stored constants of an analysed model."""

    def __init__(self, facts: Facts, labels: Labels, root: Label) -> None:
        """Take stock."""
        self._facts, self._root = facts, root
        self._stored: dict[int, _Stored] = {}
        self._touched: dict[int, set[int]] = {}
        told = _constant_nodes(facts)
        for constant in facts.view.model.constants():
            kept = _Stored(math.prod(constant.shape), is_plain(constant, facts))
            self._stored[id(constant)] = kept
            source = told.get(id(constant), constant)
            kept.whole = facts.view.is_output(source)
            for node, slot in _slots(source, facts):
                use = labels.uses.get((id(node), slot))
                if use is None or not use.cuttable():
                    kept.whole = True
                    continue
                cut = tuple(use.cuttable().values())
                if is_op(node, "Conv", "ConvTranspose") and slot == 1:
                    cut = convolved(node, labels, root)
                kept.terms.append(Term(kept.size, cut))
                for label in cut:
                    for group in np.unique(root[label]).tolist():
                        self._touched.setdefault(group, set()).add(id(constant))

    def elements(self, gone: Mask) -> int:
        """Return how many elements are stored after a cut."""
        return round(sum(stored.after(gone) for stored in self._stored.values()))

    def saved(self, groups: Iterable[int], gone: Mask) -> int:
        """Return how many fewer elements are stored because some groups go among those that go."""
        chosen = list(groups)
        without = gone & ~np.isin(self._root, chosen)
        touched = {constant for group in chosen for constant in self._touched.get(group, ())}
        stored = [self._stored[constant] for constant in touched]
        return round(sum(each.after(without) - each.after(gone) for each in stored))

    def shared(self, gone: Mask) -> list[list[int]]:
        """Return the groups that go with weights which several slots read, those of one weight together."""
        sets: list[set[int]] = []
        chosen = np.unique(self._root[gone]).tolist()
        for constant, stored in self._stored.items():
            if len(stored.terms) + stored.whole < 2 or stored.plain:
                continue
            found = {group for group in chosen if constant in self._touched.get(group, ())}
            if found:
                apart = [other for other in sets if not other & found]
                sets = [*apart, found.union(*(other for other in sets if other & found))]
        return [sorted(each) for each in sets]

    def is_stored(self, group: int) -> bool:
        """Whether any stored element goes with a group."""
        return group in self._touched


def convolved(node: gs.Node, labels: Labels, root: Label) -> tuple[Label, ...]:
    """Return the labels that shrink the weight of a convolution; whole groups go without their inner axis."""
    outs = (labels.variables.get(id(node.outputs[0])) or [None, None])[1]
    ins = label_of(node, 0, 1, labels)
    group = int(node.attrs.get("group", 1))
    if group > 1 and ins is not None and outs is not None and root[ins[0]] == root[outs[0]]:
        return (outs,)
    return tuple(label for label in (ins, outs) if label is not None)


def label_of(node: gs.Node, slot: int, axis: int, labels: Labels) -> Label | None:
    """Return the labels of an input's axis, if it has any."""
    axes = labels.variables.get(id(node.inputs[slot]))
    if axes is not None:
        return axes[axis]
    use = labels.uses.get((id(node), slot))
    return None if use is None else use.axes.get(axis)


def _slots(constant: gs.Tensor, facts: Facts) -> list[tuple[gs.Node, int]]:
    """Return the input slots in which a constant is read, also moved or cast."""
    found: list[tuple[gs.Node, int]] = []
    waiting = [constant]
    while waiting:
        tensor = waiting.pop()
        for node in {id(node): node for node in facts.view.readers(tensor)}.values():
            for slot, read in enumerate(node.inputs):
                if read is tensor and slot == 0 and is_op(node, *_SAME_SIZE) and facts.is_constant(node.outputs[0]):
                    waiting.append(node.outputs[0])
                elif read is tensor and not is_op(node, "Shape"):
                    found.append((node, slot))
    return found


def _constant_nodes(facts: Facts) -> dict[int, gs.Tensor]:
    """Return the outputs of Constant nodes by the constants that they give out."""
    nodes = facts.view.nodes("Constant")
    return {id(value): node.outputs[0] for node in nodes for value in node.attrs.values()}


def is_plain(constant: gs.Tensor, facts: Facts) -> bool:
    """Whether a small constant holds one value all over, so that all forms of one size are the same."""
    shape = facts.shape(constant)
    return shape is not None and math.prod(n for n in shape if isinstance(n, int)) <= SMALL and _is_one(constant, facts)


def _is_one(constant: gs.Tensor, facts: Facts) -> bool:
    values = read_values(constant) if isinstance(constant, gs.Constant) else facts.array(constant)
    if values is None or not values.size or values.dtype.kind not in "fiub":
        return False
    return bool((values == values.flat[0]).all())
