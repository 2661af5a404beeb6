"""Put one operator of the standard in place of the nodes that spell it out."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt import FloatExact, GraphView, Pass, PassResult, Rewritten, Skip, Skipped
from graphopt.graph.spelled_out import SpelledOut, find_spelled_out


@dataclass(frozen=True, kw_only=True)
class FuseOperators(Pass):
    """Put one operator of the standard in place of the nodes that spell it out, where the model's opset has it.

    1. LayerNormalization (opset 17): mean, difference, mean square, root, quotient, and gain and shift if they follow.
    2. RMSNormalization (opset 23): the same without the mean.
    3. Gelu (opset 20): ``x * 0.5 * (1 + erf(x / sqrt(2)))`` and the form with tanh, constants in any order.
    4. HardSwish (opset 14): ``x * clip(x + 3, 0, 6) / 6``.

    Runtimes have kernels for these, and join Gelu and normalizations with the bias or residual before them. What is
    spelled out in another way than theirs they would compute node by node.

    Refused: an opset that lacks the operator; other types than float32, as sums may be kept in another type; extents
    that are not known, where a gain of ones must be stored; anything that others read between the nodes.
    """

    name = "fuse-operators"
    contract = FloatExact(rtol=1e-4, atol=1e-5)
    keeps_facts = True

    def run(self, view: GraphView) -> PassResult:
        """Replace place by place."""
        rewritten: list[Rewritten] = []
        skipped: list[Skipped] = []
        for found in [each for each in find_spelled_out(view) if each.opset]:
            site = view.site(found.nodes[-1])
            try:
                view.require_permitted(site)
                _require_operator(view, found)
                inputs = [found.source, *_parameters(view, found)]
                view.edit.remove(found.nodes)
                last, attributes = found.nodes[-1], dict(found.attributes)
                made = view.edit.add_node(last, found.operator, inputs, [found.output], attributes)
                view.facts.adopt(made, last)
                rewritten.append(Rewritten(site, f"{found.operator} of {len(found.nodes)} nodes"))
            except Skip as reason:
                skipped.append(Skipped(site, str(reason)))
        return PassResult(tuple(rewritten), tuple(skipped))


def _require_operator(view: GraphView, found: SpelledOut) -> None:
    """Raise Skip unless the opset has the operator and it computes in the type that is there."""
    if view.opset < found.opset:
        raise Skip(f"opset {view.opset} has no {found.operator}, it comes with opset {found.opset}")
    if view.facts.type(found.source) != onnx.TensorProto.FLOAT:
        raise Skip(f"{found.source.name!r} is not float32")


def _parameters(view: GraphView, found: SpelledOut) -> list[gs.Tensor]:
    """Return the gain of a normalization over all axes that it normalizes, and its shift if it has one.

    Raises:
        Skip: The extents of these axes are not known.
    """
    if "axis" not in found.attributes:
        return []
    shape = view.shape(found.source)
    extents = tuple(extent for extent in (shape or ())[found.attributes["axis"] :] if isinstance(extent, int))
    if len(extents) != -found.attributes["axis"]:
        raise Skip(f"the extents of {found.source.name!r} along the normalized axes are not known")
    names = ["gain", "shift"] if "shift" in found.parameters else ["gain"]
    parameters: list[gs.Tensor] = []
    for name in names:
        values = np.broadcast_to(found.parameters.get(name, np.ones(1, np.float32)), extents)
        parameters.append(view.edit.constant(f"{found.output.name}_{name}", values.astype(np.float32)))
    return parameters
