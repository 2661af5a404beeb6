"""Transfer functions of operators that move axes: Transpose, Reshape, Flatten, Squeeze, Unsqueeze."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts, Mask
from graphopt.graph.channels.labels import Label, Labels
from graphopt.graph.channels.table import Transfer, register
from graphopt.graph.view import is_op


class Moving(Transfer):
    """An operator that gives every axis of its first input, whole, to an axis of its output."""

    def moves(self, node: gs.Node, facts: Facts) -> dict[int, int] | None:
        """Return the output axis of each input axis; None if that is not known."""
        raise NotImplementedError

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Uniform channels move with their axis."""
        moves = self.moves(node, facts) or {}
        for axis, known in facts.known_axes(node.inputs[0]).items():
            if axis in moves:
                facts.learn(node.outputs[0], moves[axis], known)

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """Needs move back with their axis."""
        if facts.is_needed(node.outputs[0]):
            partial, moves = facts.needed_axes(node.outputs[0]), self.moves(node, facts) or {}
            facts.need_inputs(node, {axis: partial[out] for axis, out in moves.items() if out in partial})

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Labels move with their axis."""
        moves, rank = self.moves(node, facts), facts.rank(node.outputs[0])
        if moves is None or rank is None:
            super().couple(node, facts, labels)
            return
        axes: list[Label | None] = [None] * rank
        for axis, out in moves.items():
            if facts.dim(node.inputs[0], axis) != 1 or not facts.is_constant(node.inputs[0]):
                axes[out] = labels.axis(node, 0, axis)
        labels.set(node.outputs[0], axes)


@register("Transpose")
class Transpose(Moving):
    """Axes change places."""

    def moves(self, node: gs.Node, facts: Facts) -> dict[int, int] | None:
        """Output axis i is input axis perm[i]."""
        rank = facts.rank(node.inputs[0])
        if rank is None:
            return None
        return {int(axis): out for out, axis in enumerate(node.attrs.get("perm", range(rank)[::-1]))}


@register("Squeeze", "Unsqueeze")
class Squeeze(Moving):
    """Axes of size 1 go or come."""

    def moves(self, node: gs.Node, facts: Facts) -> dict[int, int] | None:
        """The other axes keep their order."""
        rank, out_rank = facts.rank(node.inputs[0]), facts.rank(node.outputs[0])
        if rank is None or out_rank is None:
            return None
        axes = node.attrs.get("axes")
        if len(node.inputs) > 1 and node.inputs[1].name:
            axes = facts.integers(node.inputs[1])
            if axes is None:
                return None
        if axes is None:  # an axis that is cut to one index would go too
            return None
        long = max(rank, out_rank)
        rest = [axis for axis in range(long) if axis not in {int(axis) % long for axis in axes}]
        if len(rest) != min(rank, out_rank):
            return None
        if node.op == "Squeeze":
            return dict(zip(rest, range(out_rank), strict=True))
        return dict(zip(range(rank), rest, strict=True))


Group = tuple[tuple[int, ...], tuple[int, ...]]
Side = tuple[int, int | str | None]
Kind = TypeVar("Kind", bound=np.generic)


@register("Reshape", "Flatten")
class Reshape(Transfer):
    """Axes merge and split; within a group of axes of equal product, elements keep their flat order."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """An output index is uniform if all its elements are, with one value."""
        known = facts.known_axes(node.inputs[0])
        if not known:
            return
        for ins, outs in groups(node, facts):
            sizes, targets = _sizes(node.inputs[0], ins, facts), _sizes(node.outputs[0], outs, facts)
            if len(ins) == len(outs) == 1:
                if ins[0] in known:
                    facts.learn(node.outputs[0], outs[0], known[ins[0]])
                continue
            flat = np.full(sizes, np.nan)
            for place, axis in enumerate(ins):
                if axis in known:
                    spread = np.broadcast_to(_along(known[axis], place, len(ins)), sizes)
                    flat = np.where(np.isnan(flat), spread, flat)
            folded = flat.reshape(targets)
            for place, axis in enumerate(outs):
                rows = np.moveaxis(folded, place, 0).reshape(targets[place], -1)
                facts.learn(node.outputs[0], axis, np.where((rows == rows[:, :1]).all(axis=1), rows[:, 0], np.nan))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """An input index is needed if any of its elements is."""
        if not facts.is_needed(node.outputs[0]):
            return
        partial, masks = facts.needed_axes(node.outputs[0]), dict[int, Mask]()
        for ins, outs in groups(node, facts):
            if len(ins) == len(outs) == 1:
                if outs[0] in partial:
                    masks[ins[0]] = partial[outs[0]]
                continue
            if not any(axis in partial for axis in outs):
                continue
            sizes, targets = _sizes(node.inputs[0], ins, facts), _sizes(node.outputs[0], outs, facts)
            flat = np.ones(targets, dtype=bool)
            for place, axis in enumerate(outs):
                if axis in partial:
                    flat &= _along(partial[axis], place, len(outs))
            folded = flat.reshape(sizes)
            for place, axis in enumerate(ins):
                masks[axis] = np.asarray(np.moveaxis(folded, place, 0).reshape(sizes[place], -1).any(axis=1))
        facts.need_inputs(node, masks)

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Merged axes repeat their labels; a split axis goes whole rows or whole columns at a time."""
        rank, found = facts.rank(node.outputs[0]), groups(node, facts)
        if rank is None:
            super().couple(node, facts, labels)
            return
        axes: list[Label | None] = [None] * rank
        reached = {axis for ins, _ in found for axis in ins}
        for axis in range(facts.rank(node.inputs[0]) or 0):
            if axis not in reached:
                labels.block_input_axis(node, 0, axis)
        for ins, outs in found:
            source = [labels.axis(node, 0, axis) for axis in ins]
            if len(ins) == len(outs) == 1:
                axes[outs[0]] = source[0]
            elif any(label is not None for label in source):
                flat = _merge(node, source, _sizes(node.inputs[0], ins, facts), labels)
                place, label = _split(node, flat, outs, facts, labels)
                axes[outs[place]] = label
        labels.set(node.outputs[0], axes)

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Write the new sizes into the target shape."""
        if node.op == "Reshape":
            cut.resize(node, 1, copies=not node.attrs.get("allowzero", 0), infers=True)


def _merge(node: gs.Node, source: Sequence[Label | None], sizes: tuple[int, ...], labels: Labels) -> Label:
    """Return the labels of merged axes in flat order, those of the first labelled axis; other axes are pinned."""
    place = next(index for index, label in enumerate(source) if label is not None)
    for other, label in enumerate(source):
        if other != place:
            labels.block(label, f"{node.op} {node.outputs[0].name!r} merges it with another axis that can be cut")
    chosen = source[place]
    assert chosen is not None
    return np.broadcast_to(_along(chosen, place, len(sizes)), sizes).ravel()


def _split(node: gs.Node, flat: Label, outs: tuple[int, ...], facts: Facts, labels: Labels) -> tuple[int, Label]:
    """Choose the axis of a split along which to cut, and couple what then goes together.

    An axis along which alone the labels differ costs nothing. Otherwise the axis is taken along which most is not
    needed; and if nothing tells, the first one (heads, channels before space), but for one that is taken apart next
    (queries, keys and values), or the last one of a short first one (the groups of a channel shuffle).
    """
    if len(outs) == 1:
        return 0, flat
    sizes = _sizes(node.outputs[0], outs, facts)
    block = flat.reshape(sizes)
    views = [np.moveaxis(block, place, 0).reshape(sizes[place], -1) for place in range(len(outs))]
    for place, rows in enumerate(views):
        if (rows == rows[:, :1]).all():
            return place, rows[:, 0].copy()
    saved = [(~facts.needed(node.outputs[0], axis)).mean() for axis in outs]
    first = 0 if sizes[0] > 2 or len(outs) > 2 else 1
    if first + 1 < len(outs) and _is_taken_apart(node.outputs[0], outs[first], facts):
        first += 1
    place = int(np.argmax(saved)) if max(saved) > 0 else first
    labels.merge(views[place])
    return place, views[place][:, 0].copy()


def _is_taken_apart(tensor: gs.Tensor, axis: int, facts: Facts) -> bool:
    """Whether the indices of an axis part company, by a Gather of single ones or a Split, be it transposed before."""
    for _ in range(4):
        readers = facts.view.readers(tensor)
        node = readers[0] if readers else None
        if node is None or not is_op(node, "Transpose", "Identity", "Cast", "Gather", "Split", "Slice"):
            return False
        if node.op in ("Gather", "Split"):
            along = int(node.attrs.get("axis", 0)) % (facts.rank(tensor) or 1) == axis
            return along and (node.op == "Split" or facts.rank(node.inputs[1]) == 0)
        if node.op == "Slice":
            return facts.dim(node.outputs[0], axis) == 1
        if node.op == "Transpose":
            axis = [int(old) for old in node.attrs.get("perm", range(facts.rank(tensor) or 0)[::-1])].index(axis)
        tensor = node.outputs[0]
    return False


def groups(node: gs.Node, facts: Facts) -> list[Group]:
    """Match groups of input axes with groups of output axes of the same product, size-1 axes left out."""
    before, after = facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    if before is None or after is None or 0 in before or 0 in after:
        return []
    ins = [(axis, size) for axis, size in enumerate(before) if size != 1]
    outs = [(axis, size) for axis, size in enumerate(after) if size != 1]
    target = facts.values(node.inputs[1]) if node.op == "Reshape" and len(node.inputs) > 1 else None
    copied: set[int] = set()
    if target is not None and target.array.ndim == 1 and not node.attrs.get("allowzero", 0):
        copied = {axis for axis, size in enumerate(target.array) if target.known[axis] and size == 0}

    def same(left: Side, right: Side) -> bool:
        if isinstance(left[1], int) or isinstance(right[1], int):
            return left[1] == right[1]
        return (left[0] == right[0] and left[0] in copied) or (left[1] is not None and left[1] == right[1])

    found: list[Group] = []
    for reverse in (False, True):
        while ins and outs:
            match = _front(ins[::-1] if reverse else ins, outs[::-1] if reverse else outs, same)
            if match is None:
                break
            left, right = match
            if reverse:
                found.append((tuple(a for a, _ in ins[-left:]), tuple(a for a, _ in outs[-right:])))
                del ins[-left:], outs[-right:]
            else:
                found.append((tuple(a for a, _ in ins[:left]), tuple(a for a, _ in outs[:right])))
                del ins[:left], outs[:right]
    whole = [isinstance(size, int) for size in before], [isinstance(size, int) for size in after]
    return [g for g in found if all(whole[0][axis] for axis in g[0]) and all(whole[1][axis] for axis in g[1])]


def _front(ins: list[Side], outs: list[Side], same: Callable[[Side, Side], bool]) -> tuple[int, int] | None:
    """Return how many leading axes of either side make the first group; None if that is not known."""
    if same(ins[0], outs[0]):
        return 1, 1
    left = right = 1
    a, b = ins[0][1], outs[0][1]
    while isinstance(a, int) and isinstance(b, int) and a != b:
        rest, place = (ins, left) if a < b else (outs, right)
        more = rest[place][1] if place < len(rest) else None
        if not isinstance(more, int):
            return None
        if a < b:
            a, left = a * more, left + 1
        else:
            b, right = b * more, right + 1
    return (left, right) if isinstance(a, int) and a == b else None


def _sizes(tensor: gs.Tensor, axes: tuple[int, ...], facts: Facts) -> tuple[int, ...]:
    """Return the sizes of some axes, all of them known."""
    return tuple(facts.dim(tensor, axis) or 0 for axis in axes)


def _along(values: NDArray[Kind], place: int, rank: int) -> NDArray[Kind]:
    """Return a vector as the axis ``place`` of an otherwise flat array of ``rank`` axes."""
    return values.reshape([-1 if axis == place else 1 for axis in range(rank)])
