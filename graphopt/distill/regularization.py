"""Penalties on weights, as the step that follows the gradient's: decay, soft threshold, and whole channels at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.distill.parameters import Parameter
from graphopt.graph.channels import Channels, channel_groups
from graphopt.graph.view import GraphView
from graphopt.model import Model

Index = tuple[Any, ...]


@dataclass(frozen=True)
class Slice:
    """A part of one parameter."""

    name: str
    where: Index


def channel_slices(model: Model, parameters: Sequence[Parameter]) -> list[list[Slice]]:
    """Return, per group of channels that can be cut, the slices of parameters that make it: weights, biases, scales."""
    names = {each.name for each in parameters if each.grid is None}
    groups = []
    for group in channel_groups(Channels.analyze(GraphView(model.copy()))):
        if group.blocked is not None:
            continue
        parts = []
        for part in group.makers():
            name = str(part.node.inputs[part.slot].name)
            if name not in names:
                break
            parts.append(Slice(name, (slice(None),) * part.axis + (part.indices,)))
        else:
            groups.append(parts)
    return groups


def soft_threshold(values: NDArray[np.float32], amount: float) -> None:
    """Move values towards zero by ``amount``, in place: the proximal step of an l1 penalty."""
    np.copyto(values, np.sign(values) * np.maximum(np.abs(values) - np.float32(amount), 0))


def shrink_groups(views: dict[str, NDArray[np.float32]], groups: Sequence[Sequence[Slice]], amount: float) -> int:
    """Shorten each group's vector by ``amount`` times the root of its size, in place; return how many are zero.

    The proximal step of the group lasso (Yuan and Lin 2006): a group whose norm falls below that becomes exactly zero.
    """
    zeros = 0
    for group in groups:
        size = sum(views[part.name][part.where].size for part in group)
        norm = float(
            np.sqrt(sum(float(np.square(views[part.name][part.where]).sum(dtype=np.float64)) for part in group))
        )
        factor = np.float32(max(0.0, 1 - amount * size**0.5 / norm) if norm else 0.0)
        zeros += factor == 0
        for part in group:
            views[part.name][part.where] *= factor
    return zeros
