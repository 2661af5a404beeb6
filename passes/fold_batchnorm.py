"""Fold BatchNormalization into the layers around it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt import FloatExact, GraphView, SitePass, Skip
from graphopt.graph import affine as algebra
from graphopt.graph.affine import Affine, Change


@dataclass(frozen=True, kw_only=True)
class FoldBatchNorm(SitePass):
    """Fold inference-mode BatchNormalization into the layers before it, or else behind it.

    A BatchNormalization is the map y = s * x + t per channel, with s = gamma / sqrt(var + epsilon) and
    t = beta - mean * s. The first of these that holds is done:

    1. *Into what is before it.* A layer y = W x + b becomes (s W) x + (s b + t): Conv, grouped ConvTranspose, Gemm,
       MatMul (t becomes an Add), another normalization. On the way there the map passes Identity, Dropout, Transpose,
       Reshape, Flatten, Squeeze, Unsqueeze, pooling, and swallows Add, Sub, Mul, Div by a constant; a Concat shares it
       out to its branches, an Add or Sub hands it to both of its terms.
    2. *Into what reads it.* W (s x + t) + b becomes (W s) x + (W t + b), if every reader can. A padded Conv can if t
       is zero, or if one border value -t / s serves all channels: then a Pad with that border replaces the padding.
    3. *Into all branches of a Concat but one*, which keeps a narrower BatchNormalization.
    4. *Into a parallel Conv*, where y = affine(x) + Conv(x): s goes onto the kernel's centre, and the Add goes too.
    5. *Alone:* nothing if s is 1 and t is 0, a Mul if only t is 0, an Add if only s is 1.

    Refused, with the reason: training mode; per-element statistics; parameters that are not constant or not finite;
    negative variance; weights that would overflow or underflow their type; a tensor on the way that something else
    reads or that a graph gives out; and whatever in 1 to 4 cannot take the map. A weight that other layers read is
    copied. Method: Jacob et al. 2018, section 3.2; the rest is algebra.
    """

    name = "fold-batchnorm"
    contract = FloatExact(rtol=1e-4, atol=1e-5)
    keeps_facts = True
    repeats = True

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield every BatchNormalization."""
        yield from view.nodes("BatchNormalization")

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Fold one BatchNormalization in the first way that holds."""
        affine = algebra.batchnorm(view, node)
        refusals = []
        for way, plan in _WAYS.items():
            try:
                changes = plan(view, node, affine)
            except Skip as reason:
                refusals.append(f"{way}: {reason}")
                continue
            if changes is None:
                continue
            for change in changes:
                change.make()
            if not view.edit.is_removed(node) and node.op == "BatchNormalization":
                view.edit.bypass(node)
            return way
        raise Skip("; ".join(refusals))


def _before(view: GraphView, node: gs.Node, affine: Affine) -> list[Change]:
    return algebra.into_producers(view, node.inputs[0], affine)


def _behind(view: GraphView, node: gs.Node, affine: Affine) -> list[Change]:
    return algebra.into_readers(view, node.outputs[0], affine)


def _alone(view: GraphView, node: gs.Node, affine: Affine) -> list[Change]:
    """Agree on a single Mul or Add; both together would be no gain over the BatchNormalization."""
    if affine.scales and affine.shifts:
        raise Skip("a Mul and an Add would be no gain")
    if not affine.scales and not affine.shifts:
        return []
    scale, shift = affine.aligned(algebra.require_rank(view, node.inputs[0]))
    op, values = ("Mul", scale) if affine.scales else ("Add", shift)
    kind = algebra.element_type(view, node.inputs[0])
    narrow = algebra.carry(values, kind, f"{op} for {node.outputs[0].name}")

    def make() -> None:
        source, out = node.inputs[0], node.outputs[0]
        view.edit.remove([node])
        view.edit.add_node(node, op, [source, view.edit.constant(f"{out.name}_{op}", narrow)], [out])

    return [Change(make)]


_WAYS: dict[str, Callable[[GraphView, gs.Node, Affine], list[Change] | None]] = {
    "into what is before it": _before,
    "into what reads it": _behind,
    "into some branches": algebra.into_some_branches,
    "into a parallel Conv": algebra.into_parallel_conv,
    "alone": _alone,
}
