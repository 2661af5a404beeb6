"""Fold BatchNormalization into the layers around it."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt import FloatExact, GraphView, SitePass, Skip
from graphopt.graph.affine import Affine, Change, batchnorm, into_producers, into_readers


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(SitePass):
    """Fold an inference-mode BatchNormalization into the layer before it.

    With s = gamma / sqrt(var + eps) and t = beta - mean * s, W becomes W * s and b becomes b * s + t.
    """

    name = "fold-batchnorm"
    contract = FloatExact(rtol=1e-4, atol=1e-5)

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield every BatchNormalization."""
        yield from view.nodes("BatchNormalization")

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Move one BatchNormalization into the layers before it."""
        affine = batchnorm(view, node)
        for change in self._plan(view, node, affine):
            change.make()
        view.edit.bypass(node)
        return ""

    def _plan(self, view: GraphView, node: gs.Node, affine: Affine) -> list[Change]:
        try:
            return into_producers(view, node.inputs[0], affine)
        except Skip as before:
            try:
                return into_readers(view, node.outputs[0], affine)
            except Skip as behind:
                raise Skip(f"not into what is before it: {before}; nor behind it: {behind}") from behind
