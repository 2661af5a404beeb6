"""Remove channels that provably do nothing, everywhere they appear, exactly."""

from dataclasses import dataclass

import numpy as np

from graphopt import FloatExact, GraphView, Pass, PassResult, Rewritten, Skipped
from graphopt.graph.channels import Channels
from graphopt.graph.channels.cutting import Refusal
from graphopt.graph.channels.facts import Mask
from graphopt.graph.channels.replacing import replace_constant_branches


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

    A site is a stream of layers, named after the first layer that feeds it.
    """

    name = "prune-channels"
    contract = FloatExact(rtol=1e-4, atol=1e-5)

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
            named = channels.sites
            gone = self._cut(view, channels)
            if not gone.any():
                break
            for group in np.unique(channels.root[gone]).tolist():
                site = named[int(channels.family[group])]
                rewritten[site] = rewritten.get(site, 0) + 1
            self._settle(view)
        skipped = channels.survivors(gone, view.vetoes)
        return PassResult(
            (
                *(Rewritten(site, f"{count} channel{'s' * (count > 1)} removed") for site, count in rewritten.items()),
                *(Rewritten(site, "replaced by the constant that it computes") for site in replaced),
            ),
            tuple(Skipped(site, reason) for site, reason in skipped),
        )

    def _settle(self, view: GraphView) -> None:
        """Settle the edits so far, so that the next analysis sees their result."""
        view.edit.settle()
        view.forget_shapes()

    def _cut(self, view: GraphView, channels: Channels) -> Mask:
        """Cut what can go now; where a node cannot follow, leave alone what it touches and plan again."""
        while True:
            gone = channels.removable(view.vetoes)
            try:
                channels.cut(gone).apply(view.edit)
            except Refusal as refusal:
                channels.leave(refusal, gone)
                continue
            return gone
