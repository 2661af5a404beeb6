"""Remove channels that provably do nothing, everywhere they appear, exactly."""

from dataclasses import dataclass

import numpy as np

from graphopt import FloatExact, GraphView, Pass, PassResult, Rewritten, Skipped, option
from graphopt.graph.channels import Channels
from graphopt.graph.channels.cutting import Refusal
from graphopt.graph.channels.facts import Mask
from graphopt.graph.channels.replacing import replace_constant_branches
from graphopt.graph.channels.widths import MULTIPLE, cuttable


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Cut out the channels that do nothing, with every weight, bias and shape constant that goes with them.

    A group of coupled channels goes if nothing needs any of them:

    1. they hold nought, and what reads them only sums over them (a convolution, a matrix product, a sum);
    2. they hold another constant, which then goes into the next bias; where padding sees the difference, all constant
       channels of a layer are merged into one;
    3. nothing reads them, or only weights that are nought do.

    It goes through residual additions, concatenations, splits, grouped and depthwise convolutions, channel shuffles,
    squeeze-and-excite, flattening, attention heads and recurrent units. A layer normalization needs its whole input;
    behind it a Gather or Slice hands on what is read, where the weights saved outweigh the copy.

    A group stays, with the reason, if it is coupled with a channel that is needed, with an input or output of the model
    or of a body, or with an operator that the analysis does not know; if it is a constant other than nought that a
    padded depthwise or grouped convolution reads; or if layers share its weights, and copies would take more room.
    Nought times anything is taken to be nought: inputs that make Inf or NaN are outside the promise.

    Runtimes compute 2-D convolutions in blocks of channels, and other counts are slow. So dead channels stay where the
    count that a convolution reads would lose its divisibility by ``--multiple`` (or by 4, if it has only that), and
    where 16 or more that a 1x1 or depthwise convolution reads would become fewer. ``--multiple 1`` cuts them too.

    A site is a stream of layers, named after the first layer that feeds it.
    """

    name = "prune-channels"
    contract = FloatExact(rtol=1e-4, atol=1e-5)
    accounts = "operators"

    multiple: int = option(
        MULTIPLE, "What counts of channels that 2-D convolutions read stay divisible by; 1 cuts all.", minimum=1
    )

    def run(self, view: GraphView) -> PassResult:
        """Analyse, cut, and again until nothing more can go."""
        rewritten: dict[str, int] = {}
        replaced: list[str] = []
        while True:
            channels = Channels.analyze(view)
            sites = replace_constant_branches(channels.facts, view.edit, view.vetoes)
            if sites:
                replaced += sites
                self._settle(view)
                continue
            gone, held = self._cut(view, channels)
            if not gone.any():
                break
            for site, count in _by_site(channels, gone).items():
                rewritten[site] = rewritten.get(site, 0) + count
            self._settle(view)
        details = {site: f"{count} channel{'s' * (count > 1)} removed" for site, count in rewritten.items()}
        skipped = channels.survivors(held, view.vetoes)
        for site, count in _by_site(channels, held).items():
            what = f"{count} dead channel{'s' * (count > 1)} kept"
            if site in details:
                details[site] += f"; {what} to fill blocks of convolutions"
            else:
                skipped.append((site, f"{what} to fill blocks: convolutions would be slower (--multiple 1 cuts them)"))
        return PassResult(
            (
                *(Rewritten(site, detail) for site, detail in details.items()),
                *(Rewritten(site, "replaced by the constant that it computes") for site in replaced),
            ),
            tuple(Skipped(site, reason) for site, reason in skipped),
        )

    def _settle(self, view: GraphView) -> None:
        """Settle the edits so far, so that the next analysis sees their result."""
        view.edit.settle()
        view.forget_shapes()

    def _cut(self, view: GraphView, channels: Channels) -> tuple[Mask, Mask]:
        """Cut what can go now; where a node cannot follow, leave alone what it touches and plan again.

        Returns:
            What is gone, and what is dead but kept for the sake of a multiple.
        """
        while True:
            dead = channels.removable(view.vetoes)
            gone = cuttable(channels, dead, self.multiple)
            try:
                channels.cut(gone).apply(view.edit)
            except Refusal as refusal:
                channels.leave(refusal, gone)
                continue
            return gone, dead & ~gone


def _by_site(channels: Channels, chosen: Mask) -> dict[str, int]:
    """Count channels by their site: those of the layer that leads each coupled group, which may be a block of them."""
    counts: dict[str, int] = {}
    axes = np.searchsorted(np.array(channels.labels.starts), np.arange(len(channels.root)), side="right")
    groups, first = np.unique(channels.root[chosen], return_index=True)
    leads = dict(zip(groups.tolist(), np.flatnonzero(chosen)[first].tolist(), strict=True))
    for group, lead in leads.items():
        site = channels.sites[int(channels.family[group])]
        size = int(((channels.root == group) & (axes == axes[lead])).sum())
        counts[site] = counts.get(site, 0) + size
    return counts
