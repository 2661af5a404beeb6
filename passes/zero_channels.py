"""Choose coupled groups of channels that matter least and set them to nought, for prune-channels to cut out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graphopt import GraphView, Lossy, OptionError, Pass, PassResult, Rewritten, Skip, Skipped, option
from graphopt.distill.saliency import gradient_saliency
from graphopt.errors import GraphoptError
from graphopt.graph.channels import ChannelGroup, Channels, channel_groups, zero
from graphopt.graph.channels.choosing import Counts, Plan, Ranking
from graphopt.graph.channels.cost import Cost
from graphopt.graph.channels.importance import (
    group_scores,
    read_tensors,
    saliency_scores,
    scale_scores,
    weight_scores,
)
from graphopt.graph.channels.pools import Pool, channel_pools
from graphopt.graph.channels.widths import MULTIPLE
from graphopt.runtime.activity import mean_activity

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ZeroChannels(Pass):
    """Zero the least important channels, whole coupled groups at a time, so that prune-channels cuts them exactly.

    A group is everything that can only go together: the filters of all layers that add into one residual stream, a
    filter with its later BatchNormalizations in a dense net, a channel of an expansion with its squeeze-and-excite. It
    is set to nought in every weight, bias, scale and shift that makes it; what reads it stays as it is. Groups that the
    same weights make are a pool, and alternatives to each other.

    Criteria, each aggregated over the members of a group:

    - ``l1``, ``l2``: magnitude (mean, or root mean square) of the weights that make the channel, scale it and read it,
      each relative to the mean slice of its tensor (arXiv 1608.08710, 2301.12900): 1 is average;
    - ``bn-gamma``: magnitude of the scales of its normalizations (network slimming, arXiv 1708.06519);
    - ``activation``: mean magnitude of what later layers read of it, on the calibration data (needs ``--data``);
    - ``gradient``, ``taylor``: mean over single samples of |dL/dw| or |w dL/dw| of the weights that make the channel, L
      the cross-entropy with the label or else the model's own class (arXiv 1611.06440; needs ``--data`` and the extra
      graphopt[distill]);
    - ``random``: a baseline.

    One of ``--ratio``, ``--threshold``, ``--keep-macs`` and ``--keep-parameters`` says how much. Channels that are dead
    already count as chosen, so that a second run does nothing.

    Never zeroed: channels of inputs and outputs, and those coupled with an axis that cannot be cut, such as one that a
    LayerNormalization normalizes. What it hands on to the layers behind it is a pool of its own: its scale and bias are
    set to nought, and prune-channels drops the inputs of those layers. How much accuracy goes is the user's choice, so
    the contract promises only that the model runs and gives finite values; the report shows the measured SQNR and, with
    labelled data, top-1.
    """

    name = "zero-channels"
    contract = Lossy(min_sqnr_db=float("-inf"))
    accounts = "operators"

    criterion: Literal["l1", "l2", "bn-gamma", "activation", "gradient", "taylor", "random"] = option(
        "l1", "What a channel is judged by."
    )
    aggregation: Literal["mean", "max", "sum"] = option("mean", "How the scores of a group's members become one.")
    scope: Literal["uniform", "global"] = option(
        "uniform", "Rank each pool by itself, or all together by scores relative to the mean of their pool."
    )
    ratio: float | None = option(None, "Zero this share of the groups.", minimum=0.0, maximum=1.0)
    threshold: float | None = option(None, "Zero the groups that score below this (global: relative to the mean).")
    keep_macs: float | None = option(None, "Keep at most this share of the MACs.", minimum=0.0, maximum=1.0)
    keep_parameters: float | None = option(None, "Keep at most this share of the parameters.", minimum=0.0, maximum=1.0)
    multiple: int | None = option(
        None, "Keep a multiple of this many channels in each layer; by default as prune-channels does.", minimum=1
    )
    min_channels: int = option(1, "Keep at least this many channels in each layer.", minimum=1)
    samples: int = option(512, "How many calibration samples a criterion uses at most.", minimum=1)
    seed: int = option(0, "Seed of the random criterion.", minimum=0)

    def __post_init__(self) -> None:
        """Check that exactly one option says how much.

        Raises:
            OptionError: None does, or several do.
        """
        super().__post_init__()
        amounts = (self.ratio, self.threshold, self.keep_macs, self.keep_parameters)
        if sum(amount is not None for amount in amounts) != 1:
            raise OptionError(f"{self.name}: give one of --ratio, --threshold, --keep-macs and --keep-parameters")

    def run(self, view: GraphView) -> PassResult:
        """Analyse, score, choose and zero."""
        channels = Channels.analyze(view)
        groups = channel_groups(channels)
        pools = channel_pools(channels, groups)
        told = _Story(skipped=[])
        scores = self._scores(view, channels, groups, told)
        rankings = list(self._rankings(view, channels, pools, scores, told))
        cost = Cost.of(channels, self.multiple or MULTIPLE)
        plan = Plan(rankings, self.scope)
        try:
            counts = self._counts(plan, cost)
        except Skip as reason:
            told.skipped += [(ranking.pool.site, str(reason)) for ranking in rankings]
            return told.result()
        wanted = plan.chosen(counts)
        goes = cost.gone([group.index for some in wanted for group in some])
        dear = dict(channels.dear)
        chosen = [[group for group in some if goes[group.index]] for some in wanted]
        fresh = [[group for group in some if not group.removable] for some in chosen]
        zero(channels, [group for some in fresh for group in some], view.edit)
        for ranking, asked, some, new in zip(rankings, wanted, chosen, fresh, strict=True):
            held = "blocks of convolutions would be left unfilled (--multiple 1 zeroes them)" if asked else ""
            told.pool(ranking, len(some), len(new), next((dear[g.index] for g in asked if dear.get(g.index)), held))
        return told.result(cost, [group.index for some in chosen for group in some])

    # -- choosing ------------------------------------------------------------------------------------------------------

    def _scores(
        self, view: GraphView, channels: Channels, groups: list[ChannelGroup], told: "_Story"
    ) -> dict[int, float]:
        """Return a score for each group, NaN where the criterion has nothing to go by."""
        numbers = np.array([group.index for group in groups], dtype=np.int64)
        try:
            found = self._judged(view, channels, numbers)
        except (Skip, GraphoptError) as reason:
            told.missing = str(reason)
            return {}
        return dict(zip(numbers.tolist(), found.tolist(), strict=True))

    def _judged(self, view: GraphView, channels: Channels, numbers: NDArray[np.int64]) -> Scores:
        """Return the scores of groups by the criterion.

        Raises:
            Skip: It takes data, and there are none.
            GraphoptError: The model cannot be run or differentiated.
        """
        if self.criterion == "random":
            return np.random.default_rng(self.seed).random(len(numbers))
        if self.criterion == "bn-gamma":
            return scale_scores(channels, numbers, self.aggregation)
        if self.criterion == "l1" or self.criterion == "l2":
            return weight_scores(channels, numbers, self.criterion, self.aggregation)
        if view.calibration is None or view.calibration.generated:
            raise Skip(f"the {self.criterion} criterion needs calibration data (--data)")
        if self.criterion == "activation":
            return self._activity(view, channels, numbers)
        saliency = gradient_saliency(view.model, view.calibration, self.criterion, limit=self.samples)
        return saliency_scores(channels, numbers, saliency, self.aggregation)

    def _activity(self, view: GraphView, channels: Channels, numbers: NDArray[np.int64]) -> Scores:
        """Score groups by the mean magnitude of what contractions read of them."""
        read = read_tensors(channels)
        axes: dict[str, list[int]] = {}
        sizes: dict[str, int] = {}
        for (name, axis), (tensor, _) in read.items():
            axes.setdefault(name, []).append(axis)
            sizes[name] = math.prod(size for size in channels.facts.shape(tensor) or () if isinstance(size, int))
        active = mean_activity(view.model, axes, sizes, view.calibration, self.samples)
        members = ((read[key][1], values) for key, values in active.items() if len(values) == len(read[key][1]))
        return group_scores(channels, numbers, members, self.aggregation)

    def _rankings(
        self, view: GraphView, channels: Channels, pools: list[Pool], scores: dict[int, float], told: "_Story"
    ) -> Iterator[Ranking]:
        """Yield the pools that can be chosen from, ranked."""
        for pool in pools:
            rated = np.array([scores.get(group.index, np.nan) for group in pool.groups])
            if pool.site in view.vetoes:
                told.skipped.append((pool.site, view.vetoes[pool.site]))
            elif not pool.groups:
                told.skipped += [(pool.site, f"{count} channels: {why}") for why, count in pool.blocked.items()]
            elif np.isnan(rated).any():
                told.skipped.append((pool.site, told.missing or f"nothing in it to judge by {self.criterion}"))
            else:
                yield Ranking.of(channels, pool, rated, self.multiple or 1, self.min_channels)

    def _counts(self, plan: Plan, cost: Cost) -> Counts:
        """Return how many groups of each pool go.

        Raises:
            Skip: The budget cannot be met, or not be computed.
        """
        if self.ratio is not None:
            return plan.by_ratio(self.ratio)
        if self.threshold is not None:
            return plan.by_threshold(self.threshold)
        none = cost.gone([])
        if self.keep_parameters is not None:
            return plan.by_budget(
                lambda counts: cost.parameters(_gone(cost, plan, counts)),
                self.keep_parameters * cost.parameters(none),
                "parameters",
            )
        if cost.unknown:
            raise Skip(f"the MACs of the model are not known: those of {cost.unknown!r} are not")
        assert self.keep_macs is not None
        budget = self.keep_macs * cost.macs(none)
        return plan.by_budget(lambda counts: cost.macs(_gone(cost, plan, counts)), budget, "MACs")


def _gone(cost: Cost, plan: Plan, counts: Counts) -> NDArray[np.bool_]:
    """Return the mask over labels of what a plan gives up."""
    return cost.gone([group.index for some in plan.chosen(counts) for group in some])


class _Story:
    """What is told of each site."""

    def __init__(self, skipped: list[tuple[str, str]]) -> None:
        self.skipped = skipped
        self.rewritten: dict[str, list[str]] = {}
        self.missing = ""

    def pool(self, ranking: Ranking, count: int, new: int, dear: str) -> None:
        """Tell what became of a pool."""
        site, of = ranking.pool.site, len(ranking.order)
        stay = "".join(f"; {n} more cannot go: {why}" for why, n in ranking.pool.blocked.items())
        if new:
            self.rewritten.setdefault(site, []).append(f"{count} of {of} channels zeroed{stay}")
        elif count:
            self.skipped.append((site, f"the {count} of {of} channels to zero are nought already{stay}"))
        elif dear:
            self.skipped.append((site, f"none of {of} channels is zeroed: {dear}{stay}"))
        else:
            self.skipped.append((site, f"none of {of} channels is to be zeroed{stay}"))

    def result(self, cost: Cost | None = None, chosen: list[int] | None = None) -> PassResult:
        """Return it as data; the first site tells of the whole too."""
        details = {site: "; ".join(lines) for site, lines in self.rewritten.items()}
        if cost is not None and details:
            first = next(iter(details))
            details[first] += f". In all {_saving(cost, chosen or [])}"
        skipped = dict.fromkeys((site, why) for site, why in self.skipped if site not in details)
        return PassResult(
            tuple(Rewritten(site, detail) for site, detail in details.items()),
            tuple(Skipped(site, why) for site, why in skipped),
        )


def _saving(cost: Cost, chosen: list[int]) -> str:
    """Say what prune-channels will save."""
    none, gone = cost.gone([]), cost.gone(chosen)
    parts = []
    figures = [("parameters", cost.parameters(none), cost.parameters(gone))]
    figures += [] if cost.unknown else [("MACs", cost.macs(none), cost.macs(gone))]
    for what, before, after in figures:
        share = 1 - after / before if before else 0.0
        parts.append(f"{before - after:,} of {before:,} {what} ({share:.1%})")
    return f"{len(chosen)} coupled groups of channels are nought; with prune-channels {' and '.join(parts)} go"
