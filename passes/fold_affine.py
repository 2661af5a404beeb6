"""Fold Mul, Add, Sub and Div by constants, and the affine parts of normalizations, into the layers around them."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt import FloatExact, GraphView, PassResult, SitePass, Skip, option
from graphopt.graph import affine as algebra
from graphopt.graph.affine import Change
from graphopt.graph.spelled_out import keep_spelled_out


@dataclass(frozen=True, kw_only=True)
class FoldAffine(SitePass):
    """Fold what multiplies or adds a constant into the layers before it, or else into those that read it.

    An Add, Sub, Mul, Div by a constant (also several in a row) is the map y = s * x + t. A layer y = W x + b before it
    becomes (s W) x + (s b + t); a layer behind it, W (s x + t) + b, becomes (W s) x + (W t + b). Layers are Conv,
    ConvTranspose, Gemm, MatMul, and BatchNormalization, InstanceNormalization, GroupNormalization, LayerNormalization
    with their own scale and bias. It passes the operators that ``fold-batchnorm`` passes.

    The affine part of a LayerNormalization or InstanceNormalization itself goes into the layers that read it, if all of
    them can take it: its scale becomes one and its bias zero.

    Refused, with the reason: what would add as many nodes as it removes (the bias of a MatMul stays an Add); a constant
    that broadcasts its operand, divides by zero, is not finite, or would overflow a weight; a tensor on the way that
    something else reads or that a graph gives out; a shift in front of a padded Conv; a large weight that others read
    too, such as a tied embedding; what belongs to a normalization, a GELU, a HardSwish or a scale of attention scores
    that is spelled out in several nodes, which runtimes compute as one only as long as it is whole.
    """

    name = "fold-affine"
    contract = FloatExact(rtol=1e-4, atol=1e-5)
    keeps_facts = True
    repeats = True

    norms: bool = option(True, "Also move the scale and bias of normalizations into the layers that read them.")
    max_growth: int = option(1 << 20, "Leave alone what would store more bytes of shared weights again.", minimum=0)

    def run(self, view: GraphView) -> PassResult:
        """Fold what does not belong to an operator that is spelled out."""
        keep_spelled_out(view)
        return super().run(view)

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield the arithmetic with constants, and the normalizations that scale or shift."""
        for node in view.nodes("Add", "Sub", "Mul", "Div"):
            if algebra.has_constant_operand(view, node):
                yield node
        if self.norms:
            yield from view.nodes("LayerNormalization", "InstanceNormalization")

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Fold one node."""
        if node.op in ("LayerNormalization", "InstanceNormalization"):
            return self._move_norm(view, node)
        found = algebra.arithmetic(view, node)
        if found is None:
            raise Skip("a constant divided by a tensor is not affine")
        operand, affine = found
        try:
            way, changes = "into what is before it", self._require_gain(algebra.into_producers(view, operand, affine))
        except Skip as before:
            try:
                way, changes = (
                    "into what reads it",
                    self._require_gain(algebra.into_readers(view, node.outputs[0], affine)),
                )
            except Skip as behind:
                raise Skip(f"into what is before it: {before}; into what reads it: {behind}") from behind
        for change in [*changes, algebra.remove(view, node, operand)]:
            change.make()
        return way

    def _move_norm(self, view: GraphView, node: gs.Node) -> str:
        """Move a normalization's scale and bias into its readers."""
        affine = algebra.normalization(view, node)
        if not affine.scales and not affine.shifts:
            raise Skip("it neither scales nor shifts")
        changes = algebra.into_readers(view, node.outputs[0], affine)
        if sum(change.adds for change in changes) > 0:
            raise Skip("its readers would need an Add each")
        for change in [*self._require_small(changes), algebra.neutralize(view, node)]:
            change.make()
        return "scale and bias, into what reads it"

    def _require_gain(self, changes: list[Change]) -> list[Change]:
        """Return the changes if they add no node in place of the one that goes, and no large copies of weights."""
        if sum(change.adds for change in changes) >= 1:
            raise Skip("it would add as many nodes as it removes")
        return self._require_small(changes)

    def _require_small(self, changes: list[Change]) -> list[Change]:
        """Return the changes if they do not store much of shared weights again."""
        if (copies := sum(change.copies for change in changes)) > self.max_growth:
            raise Skip(f"weights are shared: it would store {copies} bytes of them again")
        return changes
