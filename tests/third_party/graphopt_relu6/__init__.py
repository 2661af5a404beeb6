"""A third party's pass: bound the output of a Relu from above with one Clip where a Min follows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import BitExact, GraphView, SitePass, Skip, option


@dataclass(frozen=True, kw_only=True)
class NameRelu6(SitePass):
    """Replace Relu and then Min with a constant by one Clip: min(max(x, 0), c) is clip(x, 0, c) for c >= 0."""

    name = "name-relu6"
    contract = BitExact()

    only: float | None = option(None, "Take only this upper bound.", minimum=0)

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield every Min of two inputs that reads a Relu."""
        for node in view.nodes("Min"):
            if len(node.inputs) == 2 and view.producer(node.inputs[0], "Relu"):
                yield node

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Put one Clip in the place of Relu and Min."""
        if view.opset < 13:
            raise Skip(f"opset {view.opset}: Clip takes its bounds as inputs from opset 11, all types from 13")
        relu = view.producer(node.inputs[0], "Relu")
        view.require_private(node.inputs[0])
        bound = view.array(node.inputs[1])
        if bound is None or bound.size != 1 or bound.ndim:
            raise Skip(f"{node.inputs[1].name!r} is not a scalar constant")
        if not bound >= 0:
            raise Skip(f"the bound {bound} is negative")
        if self.only is not None and float(bound) != self.only:
            raise Skip(f"the bound {bound} is not {self.only}")
        source, out = relu.inputs[0], node.outputs[0]
        low = view.edit.constant(f"{out.name}_low", np.zeros((), bound.dtype))
        high = node.inputs[1]
        clip = view.edit.add_node(node, "Clip", [source, low, high])
        view.edit.remove([relu, node])
        view.edit.set_output(clip, 0, out)
        return f"bound {float(bound):g}"
