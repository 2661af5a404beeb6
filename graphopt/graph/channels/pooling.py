"""Transfer functions of pooling and of everything else that works on space, channel by channel."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.facts import Facts, Vector
from graphopt.graph.channels.labels import Labels
from graphopt.graph.channels.table import Transfer, register


class Spatial(Transfer):
    """An operator that keeps axes 0 and 1 apart and mixes the others."""

    def value(self, node: gs.Node, known: Vector) -> Vector:
        """Return what uniform channels become; NaN where that is not uniform."""
        return known

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Uniform channels become what ``value`` says."""
        for axis, known in facts.known_axes(node.inputs[0]).items():
            if axis <= 1:
                facts.learn(node.outputs[0], axis, self.value(node, known))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """A channel is needed where the output's is."""
        if any(facts.is_needed(out) for out in node.outputs[1:]):
            super().backward(node, facts)
        elif facts.is_needed(node.outputs[0]):
            masks = facts.needed_axes(node.outputs[0])
            facts.need_inputs(node, {axis: mask for axis, mask in masks.items() if axis <= 1})

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Axes 0 and 1 pass, space is pinned."""
        if any(out.name for out in node.outputs[1:]):
            super().couple(node, facts, labels)
        else:
            labels.carry(node, {0: 0, 1: 1})


@register("MaxPool", "GlobalAveragePool", "GlobalMaxPool")
class SimplePool(Spatial):
    """Pooling of which a uniform channel comes out as it went in: a border does not count."""


@register("AveragePool")
class AveragePool(Spatial):
    """Average pooling: counted padding pulls values towards nought at the border."""

    def value(self, node: gs.Node, known: Vector) -> Vector:
        """Only nought stays uniform where padding counts."""
        padded = any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        counts = node.attrs.get("count_include_pad", 0) and (padded or node.attrs.get("ceil_mode", 0))
        return np.where(known == 0, known, np.nan) if counts else known


@register("LpPool", "GlobalLpPool", "LRN")
class NormPool(Spatial):
    """Pooling by a norm: nought stays nought, the rest depends on the window."""

    def value(self, node: gs.Node, known: Vector) -> Vector:
        """Only nought stays uniform."""
        return np.where(known == 0, known, np.nan)

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """LRN reads its neighbours too."""
        if node.op == "LRN":
            Transfer.backward(self, node, facts)
        else:
            super().backward(node, facts)

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """LRN works across channels."""
        if node.op == "LRN":
            Transfer.couple(self, node, facts, labels)
        else:
            super().couple(node, facts, labels)
