"""Pools: coupled groups that the same weights make, so that a pass can choose among them."""

from collections.abc import Iterable
from dataclasses import dataclass

from graphopt.graph.channels.analysis import Channels
from graphopt.graph.channels.groups import ChannelGroup, WeightSlice


@dataclass(frozen=True, eq=False)
class Pool:
    """Groups of channels that are alternatives to each other, such as the filters of one convolution.

    Groups are of one pool if the same slots of the same nodes feed and scale them: the filters of a convolution, the
    channels of a whole residual stream, or, where a dense net goes on reading a layer, that layer's own.

    Attributes:
        site: The first layer that feeds the pool.
        layers: Every layer that feeds it, in the order of the program.
        groups: The groups that can be cut, in a fixed order.
        blocked: How many more groups there are that cannot be, by reason.
    """

    site: str
    layers: tuple[str, ...]
    groups: tuple[ChannelGroup, ...]
    blocked: dict[str, int]


def channel_pools(channels: Channels, groups: Iterable[ChannelGroup]) -> list[Pool]:
    """Sort groups into pools, in the order of the first group of each."""
    members: dict[frozenset[tuple[int, int, int]], list[ChannelGroup]] = {}
    for group in groups:
        key = frozenset((id(part.node), part.slot, part.axis) for part in group.makers())
        members.setdefault(key, []).append(group)
    found = []
    for alike in members.values():
        layers = dict.fromkeys(channels.facts.view.site(part.node) for part in _feeders(alike[0]))
        blocked: dict[str, int] = {}
        for group in alike:
            if group.blocked is not None:
                blocked[group.blocked] = blocked.get(group.blocked, 0) + 1
        free = tuple(group for group in alike if group.blocked is None)
        found.append(Pool(next(iter(layers)), tuple(layers), free, blocked))
    return found


def _feeders(group: ChannelGroup) -> list[WeightSlice]:
    """Return the slices that feed a group, or else those that scale it."""
    feeding = [part for part in group.makers() if part.role == "feeds"]
    return feeding or list(group.makers())
