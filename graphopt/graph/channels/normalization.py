"""Transfer functions of normalizations."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts
from graphopt.graph.channels.labels import Label, Labels, Pick
from graphopt.graph.channels.picking import plan_picks
from graphopt.graph.channels.table import Transfer, register


@register("BatchNormalization")
class BatchNormalization(Transfer):
    """Inference mode: y = (x - mean) * scale / sqrt(var + epsilon) + bias, channel by channel."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """A uniform channel stays one; a channel of scale nought holds the bias."""
        if _trains(node) or (size := facts.dim(node.inputs[0], 1)) is None:
            return
        scale, bias, mean, var = (facts.uniform(tensor, 0) for tensor in node.inputs[1:5])
        if scale is None or bias is None:
            return
        known = facts.uniform(node.inputs[0], 1)
        if known is None or mean is None or var is None:
            known = np.full(size, np.nan)
            values = known
        else:
            with np.errstate(all="ignore"):
                values = (known - mean) * scale / np.sqrt(var + node.attrs.get("epsilon", 1e-5)) + bias
        facts.learn(node.outputs[0], 1, np.where(scale == 0, bias, values))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """A channel is needed where the output's is; its input is not if the scale is nought."""
        if _trains(node):
            super().backward(node, facts)
        elif facts.is_needed(node.outputs[0]):
            masks = facts.needed_axes(node.outputs[0])
            facts.need(node.inputs[0], masks)
            for tensor in node.inputs[1:]:
                facts.need(tensor, {0: masks[1]} if 1 in masks else {})

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """All four parameters go with the channel."""
        if _trains(node):
            super().couple(node, facts, labels)
            return
        axes: list[Label | None] = [labels.axis(node, 0, axis) for axis in range(facts.rank(node.inputs[0]) or 0)]
        if len(axes) > 1:
            for slot, role in ((1, "scales"), (2, "feeds"), (3, "aside"), (4, "aside")):
                axes[1] = labels.unify(axes[1], labels.axis(node, slot, 0, role), node)
        labels.set(node.outputs[0], axes)


def _trains(node: gs.Node) -> bool:
    """Whether a BatchNormalization takes its statistics from the batch."""
    return bool(node.attrs.get("training_mode", 0)) or any(out.name for out in node.outputs[1:])


@register("InstanceNormalization")
class InstanceNormalization(Transfer):
    """Each channel of each instance is normalized over space: a uniform one becomes the bias."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """What is uniform has no spread, so it becomes the bias, and so does what has scale nought."""
        scale, bias = facts.uniform(node.inputs[1], 0), facts.uniform(node.inputs[2], 0)
        if scale is None or bias is None:
            return
        known = facts.uniform(node.inputs[0], 1)
        flat = scale == 0 if known is None else (scale == 0) | ~np.isnan(known)
        facts.learn(node.outputs[0], 1, np.where(flat, bias, np.nan))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """A channel is needed where the output's is."""
        if facts.is_needed(node.outputs[0]):
            masks = {axis: mask for axis, mask in facts.needed_axes(node.outputs[0]).items() if axis <= 1}
            facts.need(node.inputs[0], masks)
            for tensor in node.inputs[1:]:
                facts.need(tensor, {0: masks[1]} if 1 in masks else {})

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Scale and bias go with the channel; space is pinned."""
        labels.carry(node, {0: 0, 1: 1})
        for slot, role in ((1, "scales"), (2, "feeds")):
            labels.unify(labels.axis(node, 0, 1), labels.axis(node, slot, 0, role), node)


@register("LayerNormalization", "RMSNormalization")
class LayerNormalization(Transfer):
    """Normalization over the last axes, which cannot be cut: a removed element would change the mean.

    Behind it the last axis can be: scale and bias stay as they are, and what is read is picked from the output.
    """

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """An element of scale nought holds the bias."""
        rank = facts.rank(node.inputs[0])
        if rank is None or node.attrs.get("axis", -1) % rank != rank - 1:
            return
        scale = facts.uniform(node.inputs[1], -1)
        present = len(node.inputs) > 2 and bool(node.inputs[2].name)
        bias = facts.uniform(node.inputs[2], -1) if present else None if scale is None else np.zeros(len(scale))
        if scale is not None and bias is not None and len(scale) == len(bias):
            facts.learn(node.outputs[0], rank - 1, np.where(scale == 0, bias, np.nan))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """Everything along a normalized axis is needed; the other axes pass."""
        rank = facts.rank(node.inputs[0])
        if rank is None or any(facts.is_needed(out) for out in node.outputs[1:]):
            super().backward(node, facts)
        elif facts.is_needed(node.outputs[0]):
            first = node.attrs.get("axis", -1) % rank
            masks = facts.needed_axes(node.outputs[0])
            facts.need_inputs(node, {axis: mask for axis, mask in masks.items() if axis < first})

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Only the axes before the normalized ones can be cut; the last of the output has labels of its own."""
        rank = facts.rank(node.inputs[0])
        if rank is None or any(out.name for out in node.outputs[1:]):
            super().couple(node, facts, labels)
            return
        labels.carry(node, {axis: axis for axis in range(node.attrs.get("axis", -1) % rank)})
        for slot in range(1, len(node.inputs)):
            labels.block_input(node, slot, f"scales the axis that {node.op} normalizes")
        size = facts.dim(node.outputs[0], -1)
        if size is None or size < 2 or id(node.outputs[0]) not in labels.variables:
            return
        own = labels.fresh(size, node)
        if node.attrs.get("axis", -1) % rank == rank - 1:
            for slot, role in list(enumerate(("", "scales", "feeds")))[1 : len(node.inputs)]:
                if node.inputs[slot].name:
                    labels.hold(node, slot, own, role)
        labels.variables[id(node.outputs[0])][-1] = own
        labels.picks.append(Pick(node, None, -1, own))

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Pick what is read behind it."""
        plan_picks(node, cut)


@register("GroupNormalization")
class GroupNormalization(Transfer):
    """Channels of a group are normalized together, so only whole groups go (opset 18 scales groups, 21 channels)."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """A channel of scale nought holds the bias, and so does every channel of a group of one value."""
        size, groups = facts.dim(node.inputs[0], 1), int(node.attrs["num_groups"])
        scale, bias = facts.uniform(node.inputs[1], 0), facts.uniform(node.inputs[2], 0)
        if not size or size % groups or scale is None or bias is None:
            return
        spread = size // len(scale)
        scale, bias = np.repeat(scale, spread), np.repeat(bias, spread)
        flat = scale == 0
        known = facts.uniform(node.inputs[0], 1)
        if known is not None:
            rows = known.reshape(groups, -1)
            flat |= np.repeat((rows == rows[:, :1]).all(axis=1), size // groups)
        facts.learn(node.outputs[0], 1, np.where(flat, bias, np.nan))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """Every channel of a group is needed if one is."""
        if not facts.is_needed(node.outputs[0]):
            return
        masks = {axis: mask for axis, mask in facts.needed_axes(node.outputs[0]).items() if axis <= 1}
        groups = int(node.attrs["num_groups"])
        for tensor in node.inputs[1:]:
            facts.need(tensor)
        if 1 in masks:
            rows = masks[1].reshape(groups, -1)
            masks[1] = np.repeat(rows.any(axis=1), rows.shape[1])
        facts.need(node.inputs[0], masks)

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """The channels of a group go together, with their scales and biases."""
        size, groups = facts.dim(node.inputs[0], 1), int(node.attrs["num_groups"])
        if not size or size % groups:
            super().couple(node, facts, labels)
            return
        labels.carry(node, {0: 0, 1: 1})
        channels = labels.axis(node, 0, 1)
        rows = None if channels is None else channels.reshape(groups, -1)
        if rows is not None:
            labels.merge(rows)
        for slot, role in ((1, "scales"), (2, "feeds")):
            whole = facts.dim(node.inputs[slot], 0) == size
            own = labels.axis(node, slot, 0, role if whole else "aside")
            labels.unify(channels if whole or rows is None else rows[:, 0].copy(), own, node)

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Write the new number of groups."""
        kept = cut.kept(node.inputs[0], 1)
        if not kept.all():
            cut.attribute(node, "num_groups", int(kept.reshape(int(node.attrs["num_groups"]), -1).any(axis=1).sum()))
