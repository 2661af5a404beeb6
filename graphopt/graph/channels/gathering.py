"""Transfer function of Gather: picking channels, and whole rows of an embedding."""

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts
from graphopt.graph.channels.labels import Label, Labels
from graphopt.graph.channels.table import Transfer, register


@register("Gather")
class Gather(Transfer):
    """Indices of one axis; constant indices pick channels, others pick whole rows of the other axes (an embedding)."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Uniform channels stay along the axes that are not gathered."""
        for axis, out in _others(node, facts).items():
            known = facts.uniform(node.inputs[0], axis) if _worth(node.inputs[0], facts) else None
            facts.learn(node.outputs[0], out, known)
        picked = _picked(node, facts)
        if picked is not None and picked.ndim == 1 and not facts.is_constant(node.inputs[0]):
            axis = _axis(node, facts)
            known = facts.uniform(node.inputs[0], axis)
            facts.learn(node.outputs[0], axis, None if known is None else known[picked])

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """Of the gathered axis only what is picked is needed."""
        if not facts.is_needed(node.outputs[0]):
            return
        partial = facts.needed_axes(node.outputs[0])
        masks = {axis: partial[out] for axis, out in _others(node, facts).items() if out in partial}
        picked, axis = _picked(node, facts), _axis(node, facts)
        size = facts.dim(node.inputs[0], axis)
        if picked is not None and size is not None:
            mask = np.zeros(size, dtype=bool)
            mask[picked[partial[axis]] if picked.ndim == 1 and axis in partial else picked] = True
            masks[axis] = mask
        facts.need(node.inputs[0], masks)
        facts.need(node.inputs[1])

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """The other axes pass; picked labels too, of a variable whose picked indices are known."""
        rank = facts.rank(node.outputs[0])
        if rank is None or facts.rank(node.inputs[0]) is None:
            super().couple(node, facts, labels)
            return
        axes: list[Label | None] = [None] * rank
        for axis, out in _others(node, facts).items():
            if facts.dim(node.inputs[0], axis) != 1 or not facts.is_constant(node.inputs[0]):
                axes[out] = labels.axis(node, 0, axis, "feeds")
        gathered, picked = _axis(node, facts), _picked(node, facts)
        if not facts.is_constant(node.inputs[0]):
            label = labels.axis(node, 0, gathered)
            if picked is None or picked.ndim > 1:
                labels.block(label, f"Gather {node.outputs[0].name!r} picks along axis {gathered}")
            elif label is not None and picked.ndim == 1:
                axes[gathered] = label[picked]
            elif label is not None:
                labels.block(label[picked], f"Gather {node.outputs[0].name!r} picks it alone")
        for slot_axis in range(facts.rank(node.inputs[1]) or 0):
            labels.block_input_axis(node, 1, slot_axis)
        labels.set(node.outputs[0], axes)

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Point the indices at where the picked channels lie now."""
        axis, picked = _axis(node, cut.facts), _picked(node, cut.facts)
        axes = cut.labels.variables.get(id(node.inputs[0]), [])
        label = axes[axis] if axis < len(axes) else None
        if label is None or picked is None or not cut.gone[label].any():
            return
        keep = ~cut.gone[label]
        places = np.cumsum(cut.kept(node.inputs[0], axis)) - 1
        cut.integers(node, 1, places[picked[keep[picked]] if picked.ndim else picked], like=node.inputs[1])


def _axis(node: gs.Node, facts: Facts) -> int:
    """Return the gathered axis."""
    return int(node.attrs.get("axis", 0)) % (facts.rank(node.inputs[0]) or 1)


def _others(node: gs.Node, facts: Facts) -> dict[int, int]:
    """Return where the axes that are not gathered go."""
    rank, ranks = facts.rank(node.inputs[0]), facts.rank(node.inputs[1])
    if rank is None or ranks is None:
        return {}
    gathered = _axis(node, facts)
    return {axis: axis if axis < gathered else axis + ranks - 1 for axis in range(rank) if axis != gathered}


def _picked(node: gs.Node, facts: Facts) -> NDArray[np.int64] | None:
    """Return the picked indices, none negative; None if they are not known."""
    values, size = facts.values(node.inputs[1]), facts.dim(node.inputs[0], int(node.attrs.get("axis", 0)))
    known = facts.array(node.inputs[1]) if values is None else values.array if values.known.all() else None
    if known is None or known.dtype.kind not in "iu" or size is None:
        return None
    array = known.astype(np.int64)
    return np.where(array < 0, array + size, array)


def _worth(tensor: gs.Tensor, facts: Facts) -> bool:
    """Whether it is worth looking for uniform channels: of a large constant it may be an embedding's."""
    return facts.is_constant(tensor) or bool(facts.known_axes(tensor))
