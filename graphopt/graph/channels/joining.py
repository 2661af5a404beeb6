"""Transfer functions of operators that join and part along an axis: Concat, Split, Slice."""

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts, Mask
from graphopt.graph.channels.labels import Label, Labels, describe
from graphopt.graph.channels.table import Transfer, register
from graphopt.graph.slicing import slice_of


@register("Concat")
class Concat(Transfer):
    """Inputs one behind the other along one axis; the other axes are common."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Uniform channels of each part stay; along the other axes all parts have to agree."""
        rank, spans = facts.rank(node.outputs[0]), _spans(node, facts)
        if rank is None:
            return
        joined = int(node.attrs.get("axis", 1)) % rank
        if spans is not None and any(_known(tensor, joined, facts) for tensor in node.inputs):
            parts = [facts.uniform(tensor, joined) for tensor in node.inputs]
            sizes = [end - start for start, end in spans]
            filled = [np.full(n, np.nan) if part is None else part for part, n in zip(parts, sizes, strict=True)]
            facts.learn(node.outputs[0], joined, np.concatenate(filled))
        for axis in range(rank):
            if axis != joined and all(_known(tensor, axis, facts) for tensor in node.inputs):
                rows = [facts.uniform(tensor, axis) for tensor in node.inputs]
                stacked = np.stack([row for row in rows if row is not None])
                same = (stacked == stacked[0]).all(axis=0)
                facts.learn(node.outputs[0], axis, np.where(same, stacked[0], np.nan))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """Each part is needed where its stretch of the output is."""
        out, spans = node.outputs[0], _spans(node, facts)
        if not facts.is_needed(out):
            return
        joined = int(node.attrs.get("axis", 1)) % (facts.rank(out) or 1)
        partial = facts.needed_axes(out)
        for index, tensor in enumerate(node.inputs):
            masks = {axis: mask for axis, mask in partial.items() if axis != joined}
            if joined in partial and spans is not None:
                masks[joined] = partial[joined][slice(*spans[index])]
            if masks.get(joined) is None or masks[joined].size:
                facts.need(tensor, masks)

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Labels follow each other; a part without labels gets labels that are pinned."""
        rank, spans = facts.rank(node.outputs[0]), _spans(node, facts)
        if rank is None:
            super().couple(node, facts, labels)
            return
        joined = int(node.attrs.get("axis", 1)) % rank
        axes: list[Label | None] = []
        for axis in range(rank):
            found = [labels.axis(node, slot, axis, "feeds") for slot in range(len(node.inputs))]
            if axis != joined:
                common = found[0]
                for other in found[1:]:
                    common = labels.unify(common, other, node)
                axes.append(common)
                continue
            if spans is None or all(label is None for label in found):
                for label in found:
                    labels.block(label, f"{node.op} {node.outputs[0].name!r} joins parts of unknown size")
                axes.append(None)
                continue
            parts = [
                labels.pinned(end - start, node, f"belongs to {node.inputs[slot].name!r}, whose size is fixed")
                if label is None
                else label
                for slot, (label, (start, end)) in enumerate(zip(found, spans, strict=True))
            ]
            axes.append(np.concatenate(parts))
        labels.set(node.outputs[0], axes)


def _known(tensor: gs.Tensor, axis: int, facts: Facts) -> bool:
    """Whether any channel is uniform along an axis."""
    return facts.uniform(tensor, axis) is not None


def _spans(node: gs.Node, facts: Facts) -> list[tuple[int, int]] | None:
    """Return where each input of a Concat lies along the joined axis; None if a size is not known."""
    sizes = [facts.dim(tensor, int(node.attrs.get("axis", 1))) for tensor in node.inputs]
    ends = np.cumsum([size or 0 for size in sizes]).tolist()
    if None in sizes:
        return None
    return [(end - (size or 0), end) for end, size in zip(ends, sizes, strict=True)]


Picks = list[dict[int, NDArray[np.int64] | None]]


class Picking(Transfer):
    """An operator each output of which picks indices along some axes of the first input."""

    def picks(self, node: gs.Node, facts: Facts) -> Picks | None:
        """Return, for each output and axis that is not whole, the picked indices; None where they are not known."""
        raise NotImplementedError

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Uniform channels are picked along their axis and stay along the others."""
        picks = self.picks(node, facts)
        if facts.is_constant(node.inputs[0]):
            return
        for axis, known in facts.known_axes(node.inputs[0]).items():
            for out, chosen in zip(node.outputs, picks or (), strict=False):
                indices = chosen.get(axis, np.arange(len(known)))
                facts.learn(out, axis, None if indices is None else known[indices])

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """An index is needed if an output that picks it needs it."""
        picks = self.picks(node, facts)
        if picks is None:
            super().backward(node, facts)
            return
        for out, chosen in zip(node.outputs, picks, strict=True):
            if not facts.is_needed(out):
                continue
            masks = dict(facts.needed_axes(out))
            for axis, indices in chosen.items():
                size = facts.dim(node.inputs[0], axis)
                if size is None or indices is None:
                    masks.pop(axis, None)
                    continue
                mask: Mask = np.zeros(size, dtype=bool)
                mask[indices[masks[axis]] if axis in masks else indices] = True
                masks[axis] = mask
            facts.need_inputs(node, masks)

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Labels are picked."""
        picks = self.picks(node, facts)
        if picks is None:
            super().couple(node, facts, labels)
            return
        source = labels.axes(node, 0)
        for out, chosen in zip(node.outputs, picks, strict=True):
            axes: list[Label | None] = []
            for axis, label in enumerate(source):
                if axis not in chosen:
                    axes.append(label)
                    continue
                indices = chosen[axis]
                if indices is None:
                    labels.block(label, f"{describe(node)} picks along axis {axis}")
                axes.append(None if label is None or indices is None else label[indices])
            labels.set(out, axes)


@register("Split")
class Split(Picking):
    """Parts one behind the other along one axis."""

    def picks(self, node: gs.Node, facts: Facts) -> Picks | None:
        """Each output picks its stretch."""
        rank = facts.rank(node.inputs[0])
        if rank is None:
            return None
        axis = int(node.attrs.get("axis", 0)) % rank
        sizes = [facts.dim(out, axis) for out in node.outputs]
        total = facts.dim(node.inputs[0], axis)
        if total is None or None in sizes or sum(size or 0 for size in sizes) != total:
            return None
        ends = np.cumsum([size or 0 for size in sizes])
        return [{axis: np.arange(end - (size or 0), end)} for end, size in zip(ends, sizes, strict=True)]

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Write the new sizes of the parts."""
        axis = int(node.attrs.get("axis", 0)) % (cut.facts.rank(node.inputs[0]) or 1)
        if all(axis not in cut.changes(out) for out in node.outputs):
            return
        sizes = [cut.changes(out).get(axis, cut.facts.dim(out, axis) or 0) for out in node.outputs]
        if cut.facts.view.opset >= 13:
            cut.integers(node, 1, sizes)
            if "num_outputs" in node.attrs:
                cut.attribute(node, "num_outputs", None)
        else:
            cut.attribute(node, "split", sizes)


@register("Slice")
class Slice(Picking):
    """Stretches, with steps, along some axes."""

    def picks(self, node: gs.Node, facts: Facts) -> Picks | None:
        """Each sliced axis picks the indices that ``slice_of`` gives."""
        plan = _slices(node, facts)
        if plan is None:
            return None
        found: dict[int, NDArray[np.int64] | None] = {}
        for axis, (start, end, step) in plan.items():
            size = facts.dim(node.inputs[0], axis)
            if size is None or start is None or end is None:
                found[axis] = None
                continue
            found[axis] = np.arange(size)[slice_of(size, start, end, step)]
        return [found]

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Move the bounds of each sliced axis to where the kept indices lie now."""
        plan, changed = _slices(node, cut.facts), False
        axes = cut.labels.variables.get(id(node.inputs[0]), [])
        if plan is None:
            return
        for axis, (_, _, step) in list(plan.items()):
            label = axes[axis] if axis < len(axes) else None
            if label is None or not cut.gone[label].any():
                continue
            picked = (self.picks(node, cut.facts) or [{}])[0].get(axis)
            if picked is None:
                cut.refuse(node, f"the bounds of {describe(node)} along axis {axis} are not known")
            keep = ~cut.gone[label]
            places = (np.cumsum(keep) - 1)[picked[keep[picked]]]
            steps = np.unique(np.diff(places))
            if len(places) == 0 or len(steps) > 1:
                cut.refuse(node, f"what stays along axis {axis} of Slice {node.outputs[0].name!r} is not evenly spaced")
            step = int(steps[0]) if len(steps) else (1 if step > 0 else -1)
            end = int(places[-1]) + (1 if step > 0 else -1)
            plan[axis] = (int(places[0]), end if end >= 0 else -(2**31), step)
            changed = True
        if changed:
            self._write(node, cut, plan)

    def _write(self, node: gs.Node, cut: Cut, plan: "Plan") -> None:
        """Write bounds as attributes or as constants, as the opset has it."""
        if any(start is None or end is None for start, end, _ in plan.values()):
            cut.refuse(node, f"the bounds of {describe(node)} are computed, and one of its axes is cut")
        columns = [list(plan), *(list(column) for column in zip(*plan.values(), strict=True))]
        if cut.facts.view.opset < 10:
            for name, column in zip(("axes", "starts", "ends"), columns, strict=False):
                cut.attribute(node, name, column)
            return
        for slot, column in zip((3, 1, 2, 4), columns, strict=True):
            if slot < 4 or any(step != 1 for step in column) or len(node.inputs) > 4:
                cut.integers(node, slot, column, like=node.inputs[1])


Plan = dict[int, tuple[int | None, int | None, int]]


def _slices(node: gs.Node, facts: Facts) -> Plan | None:
    """Return (start, end, step) for each sliced axis; None for a bound that is computed, or if the axes are unknown."""
    rank = facts.rank(node.inputs[0])
    if rank is None:
        return None
    starts: list[int | None]
    axes: list[int | None] | None
    steps: list[int | None] | None
    if len(node.inputs) < 3:
        starts, ends = list(node.attrs.get("starts", ())), list(node.attrs.get("ends", ()))
        axes, steps = list(node.attrs.get("axes", range(len(starts)))), [1] * len(starts)
    else:
        columns = [_elements(node, slot, facts) for slot in range(1, 5)]
        if columns[0] is None or columns[1] is None:
            return None
        starts, ends = columns[0], columns[1]
        axes = columns[2] if _given(node, 3) else list(range(len(starts)))
        steps = columns[3] if _given(node, 4) else [1] * len(starts)
    if axes is None or steps is None or None in axes or None in steps or len(starts) != len(axes):
        return None
    rows = zip(axes, starts, ends, steps, strict=True)
    return {(axis or 0) % rank: (start, end, step or 1) for axis, start, end, step in rows}


def _given(node: gs.Node, slot: int) -> bool:
    """Whether an optional input is there."""
    return slot < len(node.inputs) and bool(node.inputs[slot].name)


def _elements(node: gs.Node, slot: int, facts: Facts) -> list[int | None] | None:
    """Return the elements of a small integer input, None for those that are not known; None if its size is not."""
    if not _given(node, slot):
        return None
    tensor = node.inputs[slot]
    values = facts.values(tensor)
    if values is not None and values.array.dtype.kind in "iu":
        pairs = zip(values.array.ravel().tolist(), values.known.ravel().tolist(), strict=True)
        return [int(value) if known else None for value, known in pairs]
    size = facts.dim(tensor, 0) if facts.rank(tensor) == 1 else None
    return None if size is None else [None] * size
