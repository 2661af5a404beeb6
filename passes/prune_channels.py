"""Remove channels that provably do nothing, everywhere they appear, exactly."""

from dataclasses import dataclass

import numpy as np

from graphopt import FloatExact, GraphView, Pass, PassResult, Rewritten, Skipped
from graphopt.graph.channels import Channels


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Cut out channels that are nought, constant or unread, with every weight, bias and shape that goes with them."""

    name = "prune-channels"
    contract = FloatExact(rtol=1e-4, atol=1e-5)

    def run(self, view: GraphView) -> PassResult:
        """Analyse, cut, and again until nothing more can go."""
        rewritten: dict[str, int] = {}
        while True:
            channels = Channels.analyze(view)
            gone = channels.removable(view.vetoes)
            if not gone.any():
                break
            channels.cut(gone).apply(view.edit)
            for group in np.unique(channels.root[gone]).tolist():
                site = channels.sites[int(channels.family[group])]
                rewritten[site] = rewritten.get(site, 0) + 1
            view.edit.settle()
            view.forget_shapes()
        skipped = channels.survivors(gone, view.vetoes)
        return PassResult(
            tuple(Rewritten(site, f"{count} channels removed") for site, count in rewritten.items()),
            tuple(Skipped(site, reason) for site, reason in skipped),
        )
