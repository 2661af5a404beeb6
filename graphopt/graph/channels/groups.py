"""Coupled groups of channels as data: what a pass that chooses channels works on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.analysis import Channels
from graphopt.graph.channels.labels import Label
from graphopt.graph.edit import Edit
from graphopt.graph.view import is_op
from graphopt.numerics.grouping import aligned

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WeightSlice:
    """Indices along one axis of a constant, as one input slot of one node reads it.

    ``role`` says what these weights do to the group: "feeds" and "scales" make it (noughts there make the group
    nought), "reads" carries it on to other channels, "aside" does none of these (a running mean, a slope).
    """

    node: gs.Node
    slot: int
    axis: int
    indices: Indices
    role: str


@dataclass(frozen=True, eq=False)
class TensorSlice:
    """Indices along one axis of a computed tensor."""

    tensor: gs.Tensor
    axis: int
    indices: Indices


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can only be cut together.

    Attributes:
        site: The layer that first feeds the group; groups of one site are alternatives to each other.
        index: The number of the group, the same on every run on the same model.
        weights: The slices of constants along the group.
        tensors: The slices of computed tensors along the group.
        blocked: Why the group cannot be cut whatever its weights; None if it can.
        removable: Whether prune-channels would remove it as it is.
    """

    site: str
    index: int
    weights: tuple[WeightSlice, ...]
    tensors: tuple[TensorSlice, ...]
    blocked: str | None
    removable: bool

    def makers(self) -> Iterator[WeightSlice]:
        """Yield the slices that feed or scale the group."""
        return (part for part in self.weights if part.role in ("feeds", "scales"))


def channel_groups(channels: Channels) -> list[ChannelGroup]:
    """Return every group that some weight makes and goes with, and some tensor carries, in a fixed order."""
    gone = channels.removable()
    weights: dict[int, list[WeightSlice]] = {}
    stored: set[int] = set()
    tensors: dict[int, list[TensorSlice]] = {}
    for use in channels.labels.uses.values():
        for axis, own in use.axes.items():
            for group, indices in _parts(channels.root[own]):
                if axis not in use.held:
                    stored.add(group)
                weights.setdefault(group, []).append(WeightSlice(use.node, use.slot, axis, indices, use.roles[axis]))
    for key, axes in channels.labels.variables.items():
        for axis, label in enumerate(axes):
            if label is not None:
                for group, indices in _parts(channels.root[label]):
                    tensors.setdefault(group, []).append(TensorSlice(channels.labels.tensors[key], axis, indices))
    found = []
    for group in sorted(stored & tensors.keys()):
        if any(part.role in ("feeds", "scales") for part in weights[group]):
            site = channels.sites[int(channels.family[group])]
            parts = tuple(weights[group]), tuple(tensors[group])
            found.append(ChannelGroup(site, group, *parts, channels.blocked.get(group), bool(gone[group])))
    return found


def zero(channels: Channels, groups: Iterable[ChannelGroup], edit: Edit) -> None:
    """Set to nought every weight, bias, scale and shift that makes these groups; shared constants are copied first."""
    chosen: dict[tuple[int, int], list[WeightSlice]] = {}
    for group in groups:
        for part in group.makers():
            chosen.setdefault((id(part.node), part.slot), []).append(part)
    for parts in chosen.values():
        node, slot = parts[0].node, parts[0].slot
        values = channels.facts.array(node.inputs[slot])
        if values is None:
            continue
        array, nought = np.array(values), _nought(channels, node, slot, values)
        for part in parts:
            place = (slice(None),) * part.axis + (part.indices,)
            array[place] = nought[place]
        if np.array_equal(array, values):
            continue
        old = node.inputs[slot]
        edit.set_values(node, slot, array, dtype=array.dtype)
        for reader in list(old.outputs):
            if reader.op == "Shape" and old is not node.inputs[slot]:
                edit.set_input(reader, 0, node.inputs[slot])


def _nought(channels: Channels, node: gs.Node, slot: int, values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return what stands for nought in each element of a constant: the zero point in one that is quantized."""
    if slot == 0 and is_op(node, "DequantizeLinear") and len(node.inputs) > 2 and node.inputs[2].name:
        zero = channels.facts.array(node.inputs[2])
        if zero is not None:
            return np.broadcast_to(aligned(zero, values.shape, int(node.attrs.get("axis", 1))), values.shape)
    return np.broadcast_to(np.zeros((), dtype=values.dtype), values.shape)


def _parts(roots: Label) -> Iterator[tuple[int, Indices]]:
    """Yield each group with the positions at which it stands in a row of labels."""
    order = np.argsort(roots, kind="stable")
    values, starts = np.unique(roots[order], return_index=True)
    if values.size:
        yield from zip(values.tolist(), np.split(order, starts[1:]), strict=True)
