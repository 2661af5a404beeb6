"""Transfer functions of reductions."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.facts import Facts, Mask
from graphopt.graph.channels.labels import Labels
from graphopt.graph.channels.table import Transfer, register

_KEEP_VALUE = ("ReduceMean", "ReduceMax", "ReduceMin")
_ABSORB_ZERO = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")


@register(*_KEEP_VALUE, *_ABSORB_ZERO, "ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin")
class Reduction(Transfer):
    """A reduction over some axes; the others pass."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Uniform channels stay uniform along the axes that are not reduced."""
        moves = moved_axes(node, facts)
        for axis, known in facts.known_axes(node.inputs[0]).items():
            if moves is not None and axis in moves:
                if node.op in _KEEP_VALUE:
                    facts.learn(node.outputs[0], moves[axis], known)
                elif node.op in _ABSORB_ZERO:
                    facts.learn(node.outputs[0], moves[axis], np.where(known == 0, known, np.nan))
        if moves is not None and node.op in _ABSORB_ZERO and _all_zero(node.inputs[0], facts):
            for axis in moves.values():
                if size := facts.dim(node.outputs[0], axis):
                    facts.learn(node.outputs[0], axis, np.zeros(size))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """A sum does without the noughts along the reduced axes."""
        if not facts.is_needed(node.outputs[0]):
            return
        moves = moved_axes(node, facts)
        masks: dict[int, Mask] = {}
        if moves is not None:
            partial = facts.needed_axes(node.outputs[0])
            masks = {axis: partial[out] for axis, out in moves.items() if out in partial}
            if node.op in _ABSORB_ZERO:
                for axis, known in facts.known_axes(node.inputs[0]).items():
                    if axis not in moves:
                        masks[axis] = ~(known == 0)
        facts.need_inputs(node, masks)

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """The axes that stay pass; a summed axis can lose its noughts, any other reduced axis is pinned."""
        moves = moved_axes(node, facts)
        if moves is None:
            super().couple(node, facts, labels)
            return
        rank = facts.rank(node.outputs[0]) or 0
        source = [labels.axis(node, 0, axis) for axis in range(facts.rank(node.inputs[0]) or 0)]
        for axis, label in enumerate(source):
            if axis not in moves and node.op not in _ABSORB_ZERO:
                labels.block(label, f"{node.op} {node.outputs[0].name!r} reduces axis {axis}")
        back = {out: axis for axis, out in moves.items()}
        labels.set(node.outputs[0], [source[back[axis]] if axis in back else None for axis in range(rank)])


def moved_axes(node: gs.Node, facts: Facts) -> dict[int, int] | None:
    """Return where each axis that is not reduced goes; None if that is not known."""
    rank = facts.rank(node.inputs[0])
    if rank is None:
        return None
    if node.op in ("ArgMax", "ArgMin"):
        axes: list[int] | None = [int(node.attrs.get("axis", 0))]
    elif len(node.inputs) > 1 and node.inputs[1].name:
        axes = facts.integers(node.inputs[1])
        if axes is None:
            return None
    else:
        axes = node.attrs.get("axes")
    if not axes:
        axes = [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    reduced = {int(axis) % rank for axis in axes}
    if node.attrs.get("keepdims", 1):
        return {axis: axis for axis in range(rank) if axis not in reduced}
    return {axis: place for place, axis in enumerate(axis for axis in range(rank) if axis not in reduced)}


def _all_zero(tensor: gs.Tensor, facts: Facts) -> bool:
    """Whether a tensor is known to be nought all over."""
    return any((known == 0).all() for known in facts.known_axes(tensor).values())
