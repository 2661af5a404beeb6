"""Which groups of each pool to give up: ranked by score, as many as a ratio, a threshold or a budget asks for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graphopt.graph.channels.analysis import Channels
from graphopt.graph.channels.groups import ChannelGroup
from graphopt.graph.channels.pools import Pool
from graphopt.result import Skip

Scope = Literal["uniform", "global"]
Counts = list[int]

STEPS = 24
"""How often the search for the ratio that meets a budget halves its interval."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """A pool with its groups in the order in which they go: what is dead already first, then by rising score.

    Attributes:
        pool: The pool.
        order: Its groups.
        scores: Their scores in that order; what is dead already has minus infinity.
        permitted: For each number of groups, the largest number not above it that may go.
    """

    pool: Pool
    order: tuple[ChannelGroup, ...]
    scores: NDArray[np.float64]
    permitted: NDArray[np.int64]

    @classmethod
    def of(cls, channels: Channels, pool: Pool, scores: NDArray[np.float64], multiple: int, least: int) -> "Ranking":
        """Rank the groups of a pool, ties by their number.

        Args:
            channels: The analysis that the pool is from.
            pool: The pool.
            scores: A score for each of its groups.
            multiple: What the number of channels that stay in each layer must be divisible by.
            least: How many channels must stay in each layer.
        """
        final = np.where([group.removable for group in pool.groups], -np.inf, scores)
        places = np.argsort(final, kind="stable")
        order = tuple(pool.groups[place] for place in places)
        return cls(pool, order, final[places], _permitted(channels, order, multiple, least))

    @cached_property
    def relative(self) -> NDArray[np.float64]:
        """The scores as shares of the mean of those that are finite."""
        finite = self.scores[np.isfinite(self.scores)]
        mean = float(finite.mean()) if finite.size else 0.0
        return self.scores / mean if mean > 0 else self.scores


def _permitted(channels: Channels, order: Sequence[ChannelGroup], multiple: int, least: int) -> NDArray[np.int64]:
    """Return, for each number of groups that go first, the largest number not above it that may go.

    What stays on an axis of a weight must be divisible by ``multiple``. Where other pools lie on the axis too, what
    goes must be: the pools then keep it divisible together.
    """
    fits = np.arange(len(order) + 1) < len(order)
    axes: dict[tuple[int, int, int], tuple[int | None, list[int]]] = {}
    for group in order:
        for part in group.makers():
            width = channels.facts.dim(part.node.inputs[part.slot], part.axis)
            axes.setdefault((id(part.node), part.slot, part.axis), (width, []))[1].append(len(part.indices))
    for width, sizes in axes.values():
        lost = np.concatenate([[0], np.cumsum(sizes)])
        stay = lost[-1] - lost
        fits &= ((stay if lost[-1] == width else lost) % multiple == 0) & (stay >= least)
    fits[0] = True
    return np.asarray(np.maximum.accumulate(np.where(fits, np.arange(len(order) + 1), 0)))


@dataclass(frozen=True)
class Plan:
    """Chooses from rankings."""

    rankings: Sequence[Ranking]
    scope: Scope

    def by_ratio(self, ratio: float) -> Counts:
        """Give up a share of the groups of each pool, or of all groups together."""
        if self.scope == "uniform":
            wanted = [int(ratio * len(ranking.order) + 1e-9) for ranking in self.rankings]
        else:
            every = np.concatenate([ranking.relative for ranking in self.rankings] or [np.zeros(0)])
            owner = np.repeat(np.arange(len(self.rankings)), [len(ranking.order) for ranking in self.rankings])
            first = np.argsort(every, kind="stable")[: int(ratio * len(every) + 1e-9)]
            wanted = np.bincount(owner[first], minlength=len(self.rankings)).tolist()
        return self._permitted(wanted)

    def by_threshold(self, threshold: float) -> Counts:
        """Give up every group whose score is below a threshold (in the global scope: a share of its pool's mean)."""
        rows = [ranking.scores if self.scope == "uniform" else ranking.relative for ranking in self.rankings]
        return self._permitted([int(np.searchsorted(row, threshold, side="left")) for row in rows])

    def by_budget(self, cost: Callable[[Counts], float], budget: float, what: str) -> Counts:
        """Give up the smallest share of groups with which the cost is within the budget.

        Raises:
            Skip: It is not, however much goes.
        """
        low, high = 0.0, 1.0
        if (least := cost(self.by_ratio(high))) > budget:
            raise Skip(f"the model cannot come down to {budget:,.0f} {what}: at least {least:,.0f} stay")
        if cost(self.by_ratio(low)) <= budget:
            return self.by_ratio(low)
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if cost(self.by_ratio(middle)) <= budget else (middle, high)
        return self.by_ratio(high)

    def chosen(self, counts: Counts) -> list[list[ChannelGroup]]:
        """Return the groups that go, pool by pool."""
        return [list(ranking.order[:count]) for ranking, count in zip(self.rankings, counts, strict=True)]

    def _permitted(self, wanted: Counts) -> Counts:
        return [int(ranking.permitted[count]) for ranking, count in zip(self.rankings, wanted, strict=True)]
