"""Transfer functions of recurrent layers: the width of the input, and the hidden units."""

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts, Mask
from graphopt.graph.channels.labels import Label, Labels, describe
from graphopt.graph.channels.table import Transfer, register
from graphopt.graph.slots import GATES

_CANDIDATE = {"RNN": 0, "GRU": 2, "LSTM": 3}
_DEFAULT = {"RNN": ["tanh"], "GRU": ["sigmoid", "tanh"], "LSTM": ["sigmoid", "tanh", "tanh"]}
_WEIGHT, _RECURRENT, _BIAS, _STATE, _CELL, _PEEPHOLE = 1, 2, 3, 5, 6, 7


@register("RNN", "GRU", "LSTM")
class Recurrent(Transfer):
    """A hidden unit is one index of the last axis of all outputs, in both directions at once.

    A unit is nought all along if the weights and biases of its candidate gate are nought (then its candidate is
    tanh(0)) and it starts from nought.
    """

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """A unit whose candidate is nought stays at nought."""
        zero = self._zero_units(node, facts)
        if zero is None or not zero.any():
            return
        for out in node.outputs:
            if out.name and (rank := facts.rank(out)) is not None:
                facts.learn(out, rank - 1, np.where(zero, 0.0, np.nan))

    def _zero_units(self, node: gs.Node, facts: Facts) -> Mask | None:
        """Return which units stay at nought; None if the weights are not known."""
        arrays = weights(node, facts)
        if arrays is None or not self._default(node):
            return None
        weight, recurrent, bias = arrays
        units, gates, place = recurrent.shape[2], GATES[str(node.op)], _CANDIDATE[str(node.op)]
        rows = slice(place * units, (place + 1) * units)
        zero = (weight[:, rows] == 0).all(axis=(0, 2))
        if bias is not None:
            parts = bias.reshape(len(bias), 2 * gates, units)
            zero &= (parts[:, [place, gates + place]] == 0).all(axis=(0, 1))
        for slot in (_STATE, _CELL):
            if _given(node, slot):
                start = facts.uniform(node.inputs[slot], -1)
                zero &= np.zeros(units, dtype=bool) if start is None or len(start) != units else start == 0
        while True:
            reads = (recurrent[:, rows][:, :, ~zero] != 0).any(axis=(0, 2))
            if not (reads & zero).any():
                return np.asarray(zero)
            zero = zero & ~reads

    def _default(self, node: gs.Node) -> bool:
        """Whether the activations are the usual ones, which make nought of nought where it matters."""
        given = node.attrs.get("activations")
        usual = _DEFAULT[str(node.op)]
        return given is None or [str(name).lower() for name in given] in (usual, usual * 2)

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """A unit is needed if a reader or another needed unit needs it; an input if a needed unit has weights on it."""
        named = [out for out in node.outputs if out.name]
        if not any(facts.is_needed(out) for out in named):
            return
        arrays, ranks = weights(node, facts), [facts.rank(out) for out in named]
        if arrays is None or None in ranks:
            super().backward(node, facts)
            return
        weight, recurrent, _ = arrays
        units, gates = recurrent.shape[2], GATES[str(node.op)]
        live: Mask = np.zeros(units, dtype=bool)
        for out, rank in zip(named, ranks, strict=True):
            if facts.is_needed(out):
                live |= facts.needed(out, (rank or 0) - 1) if facts.dim(out, (rank or 0) - 1) == units else True
        zero = self._zero_units(node, facts)
        silent = np.zeros(units, dtype=bool) if zero is None else zero
        links = (recurrent.reshape(-1, gates, units, units) != 0).any(axis=(0, 1))
        if node.op == "LSTM" and _given(node, _PEEPHOLE):
            links = links | np.eye(units, dtype=bool)
        while True:
            wider = live | (links[live].any(axis=0) & ~silent)
            if (wider == live).all():
                break
            live = wider
        facts.need(named[0], {(ranks[0] or 0) - 1: live})
        used = (weight.reshape(len(weight), gates, units, -1)[:, :, live] != 0).any(axis=(0, 1, 2))
        known = facts.uniform(node.inputs[0], -1)
        if known is not None:
            used &= known != 0
        facts.need(node.inputs[0], {(facts.rank(node.inputs[0]) or 1) - 1: used})
        for slot in range(1, len(node.inputs)):
            own = facts.rank(node.inputs[slot])
            state = slot in (_STATE, _CELL) and own is not None and facts.dim(node.inputs[slot], -1) == units
            facts.need(node.inputs[slot], {(own or 0) - 1: live} if state else {})

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """All gates of a unit, its recurrent weights, biases, peepholes and starting state go together."""
        arrays = weights(node, facts)
        if arrays is None or any(out.name and facts.rank(out) is None for out in node.outputs):
            super().couple(node, facts, labels)
            return
        units, gates = arrays[1].shape[2], GATES[str(node.op)]
        labels.unify(labels.axis(node, _WEIGHT, 2, "reads"), labels.axis(node, 0, -1), node)
        for axis in range((facts.rank(node.inputs[0]) or 1) - 1):
            labels.block_input_axis(node, 0, axis)
        hidden = labels.axis(node, _RECURRENT, 2, "reads")
        parts = [(_WEIGHT, 1, gates), (_RECURRENT, 1, gates), (_BIAS, 1, 2 * gates), (_PEEPHOLE, 1, 3)]
        for slot, axis, count in [*parts, (_STATE, -1, 1), (_CELL, -1, 1)]:
            if not _given(node, slot):
                continue
            role = "aside" if slot == _PEEPHOLE else "feeds"
            rows = labels.axis(node, slot, axis, role)
            for part in (
                [None] * count if rows is None else np.split(rows, count) if len(rows) == units * count else [None]
            ):
                hidden = labels.unify(hidden, part, node)
        if _given(node, 4):
            labels.block_input(node, 4, f"tells {describe(node)} the lengths")
        for out in node.outputs:
            rank = facts.rank(out) if out.name else None
            if rank:
                axes: list[Label | None] = [None] * (rank - 1)
                labels.set(out, [*axes, hidden])

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Write the new number of units."""
        out = next(out for out in node.outputs if out.name)
        rank = cut.facts.rank(out)
        changes = cut.changes(out)
        if rank is not None and rank - 1 in changes and "hidden_size" in node.attrs:
            cut.attribute(node, "hidden_size", changes[rank - 1])


Arrays = tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.generic] | None]


def weights(node: gs.Node, facts: Facts) -> Arrays | None:
    """Return W, R and B; None unless all that are given are known and of the usual shape."""
    weight, recurrent = facts.array(node.inputs[_WEIGHT]), facts.array(node.inputs[_RECURRENT])
    bias = facts.array(node.inputs[_BIAS]) if _given(node, _BIAS) else None
    if weight is None or recurrent is None or (bias is None and _given(node, _BIAS)):
        return None
    units, gates = recurrent.shape[-1], GATES[str(node.op)]
    fits = weight.ndim == recurrent.ndim == 3 and weight.shape[1] == recurrent.shape[1] == gates * units
    return (weight, recurrent, bias) if fits else None


def _given(node: gs.Node, slot: int) -> bool:
    """Whether an optional input is there."""
    return slot < len(node.inputs) and bool(node.inputs[slot].name)
