"""Scores of coupled groups: by their weights, by the scales of their normalizations, or by any other members."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.analysis import Channels
from graphopt.graph.channels.cost import CONTRACTIONS
from graphopt.graph.channels.labels import Label
from graphopt.graph.channels.quantization import readable
from graphopt.graph.constants import constant_of
from graphopt.graph.view import is_op
from graphopt.numerics.importance import Aggregation, Norm, Scores, aggregate, slice_norms

Numbers = NDArray[np.int64]

NORMALIZATIONS = (
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"),
)


def weight_scores(channels: Channels, groups: Numbers, norm: Norm, how: Aggregation) -> Scores:
    """Score groups by the weights that make them and read them; NaN for groups that no layer or LayerNorm makes.

    Each slice counts relative to the mean slice of its weight, so that filters, normalization scales and what later
    layers make of a channel add up whatever their units (the group norm of DepGraph, arXiv 2301.12900, made relative).
    """
    made = np.zeros(len(groups), dtype=bool)
    place = _places(channels, groups)
    picked = {id(pick.node) for pick in channels.labels.picks}
    parts: list[tuple[Label, Scores]] = []
    for use in channels.labels.uses.values():
        for axis, label in use.axes.items():
            role, rank = use.roles[axis], channels.facts.rank(use.node.inputs[use.slot]) or 0
            if role == "aside" or (rank < 2 and role != "scales"):
                continue
            quantized = use.slot == 0 and is_op(use.node, "DequantizeLinear")
            read = use.node.outputs[0] if quantized else use.node.inputs[use.slot]
            values = readable(read, channels.facts)
            if values is not None and values.size:
                norms = slice_norms(values, axis, norm)
                finite = norms[np.isfinite(norms)]
                mean = float(finite.mean()) if finite.size else 0.0
                parts.append((label, norms / mean if mean > 0 else norms))
                if role == "feeds" or id(use.node) in picked:
                    own = place[channels.root[label]]
                    made[own[own >= 0]] = True
    return np.where(made, group_scores(channels, groups, parts, how), np.nan)


def saliency_scores(
    channels: Channels, groups: Numbers, saliency: Mapping[str, NDArray[np.float64]], how: Aggregation
) -> Scores:
    """Score groups by a measure given for each element of stored weights, by their names: its mean over a slice.

    Counted are weights of at least two axes that feed a group, and scales behind which a group is picked; it is NaN for
    groups that have none of those given.
    """
    picked = {id(pick.node) for pick in channels.labels.picks}

    def members() -> Iterator[tuple[Label, Scores]]:
        for use in channels.labels.uses.values():
            tensor = use.node.inputs[use.slot]
            source = constant_of(tensor)
            values = None if source is None else saliency.get(str(source.name))
            if values is not None and values.shape == channels.facts.shape(tensor):
                for axis, label in use.axes.items():
                    weight = use.roles[axis] == "feeds" and values.ndim > 1
                    if weight or (use.roles[axis] == "scales" and id(use.node) in picked):
                        yield label, slice_norms(values, axis, "l1")

    return group_scores(channels, groups, members(), how)


def scale_scores(channels: Channels, groups: Numbers, how: Aggregation) -> Scores:
    """Score groups by the magnitude of the scales of their normalizations; NaN for groups that have none."""

    def members() -> Iterator[tuple[Label, Scores]]:
        for use in channels.labels.uses.values():
            for axis, label in use.axes.items():
                if use.roles[axis] == "scales" and is_op(use.node, *NORMALIZATIONS):
                    values = channels.facts.array(use.node.inputs[use.slot])
                    if values is not None:
                        yield label, slice_norms(values, axis, "l1")

    return group_scores(channels, groups, members(), how)


def read_tensors(channels: Channels) -> dict[tuple[str, int], tuple[gs.Tensor, Label]]:
    """Return the tensors of the main graph that contractions read: by name and labelled axis, with its labels."""
    labels, view = channels.labels, channels.facts.view
    main = {id(node) for node in view.model.graph.nodes}
    found: dict[tuple[str, int], tuple[gs.Tensor, Label]] = {}
    for node in channels.facts.program:
        if id(node) in main and is_op(node, *CONTRACTIONS):
            for tensor in node.inputs[:2]:
                for axis, label in enumerate(labels.variables.get(id(tensor), ())):
                    if label is not None and any(id(before) in main for before in tensor.inputs):
                        found.setdefault((str(tensor.name), axis), (tensor, label))
    return found


def group_scores(
    channels: Channels, groups: Numbers, members: Iterable[tuple[Label, Scores]], how: Aggregation
) -> Scores:
    """Add up scores of labels to scores of groups, given by their numbers; NaN for groups without any."""
    place = _places(channels, groups)
    return aggregate(((place[channels.root[label]], scores) for label, scores in members), len(groups), how)


def _places(channels: Channels, groups: Numbers) -> Numbers:
    """Return the place in ``groups`` of each group by its number, -1 for the others."""
    place = np.full(len(channels.root), -1, dtype=np.int64)
    place[groups] = np.arange(len(groups))
    return place
