"""Take out nodes that do nothing, and make one of two that one can do."""

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt import FloatExact, GraphView, Pass, PassResult, Rewritten, Skip, Skipped
from graphopt.graph.noops.bypass import BYPASSES
from graphopt.graph.noops.merge import rule_of
from graphopt.graph.noops.place import Place
from graphopt.graph.noops.zero_sign import ZeroSigns
from graphopt.graph.spelled_out import keep_spelled_out
from graphopt.graph.view import is_op


@dataclass(frozen=True, kw_only=True)
class EliminateNoops(Pass):
    """Take out nodes that do nothing, and make one of two that one can do.

    1. Gone: Identity; Dropout outside training; Cast to the type that is there already, or back from one that held
       every value; Transpose that keeps or restores the order; Reshape, Flatten, Squeeze, Unsqueeze, Expand and Tile to
       the shape that is there already; Slice of everything; Pad by nothing; Concat, Sum, Max, Min, Mean of one input;
       Split into one; 1x1 pooling; x + 0, x - 0, x * 1, x / 1, x ** 1 without broadcasting; Where of one choice; Relu
       of Relu and its kind; Not of Not, Neg of Neg.
    2. Joined: Transposes in a row; Reshape, Flatten, Squeeze and Unsqueeze in a row; Concats along one axis; Slices,
       where nothing else reads what is between; multiplications by a number; MatMul of matrices with the Add of a
       constant, which are a Gemm; a reduction with the node that puts the reduced axes back, or drops them.
    3. Simpler: CastLike becomes Cast; SplitToSequence with SequenceAt becomes Split; a Split of which one part is used
       becomes a Slice; optional outputs, results of If and what a Loop collects go if nothing
       reads them; an LSTM, GRU or RNN whose initial state is zero goes without it, quantized by ONNX Runtime or not.
    4. Inlined: the branch of an If that is always taken; the body of a Loop that runs just once. A Loop that never runs
       gives out what it starts from, and any other carries only what changes.

    Shapes are those that follow from what the graph inputs declare, symbolic dimensions included. Graph outputs keep
    their names. What remains computes from the same numbers, only that x + 0.0 turns -0.0 into 0.0, that a * b is
    rounded before x * (a * b), and that a Gemm may sum in another order. So may any layer that meets its weight
    directly, as a runtime packs it then: outputs are equal up to rounding.

    Refused: x + 0.0 where a division further on would make Inf of one and -Inf of the other; Dropout in training, or
    whose mask is used; casts that lose something on the way; an Identity that hands a graph input, an initializer or
    another output to a graph output; a gain of ones, a shift of zeros or a factor that belongs to an operator spelled
    out in several nodes, which runtimes compute as one only as long as it is whole.
    """

    name = "eliminate-noops"
    contract = FloatExact(rtol=1e-5, atol=1e-6)
    keeps_facts = True

    def run(self, view: GraphView) -> PassResult:
        """Sweep over the graph until nothing more is found."""
        keep_spelled_out(view)
        rewritten: list[Rewritten] = []
        facts = view.facts  # what holds of a tensor holds as long as the tensor is there
        while True:
            zero_signs = ZeroSigns(view)
            found: list[Rewritten] = []
            skipped: list[Skipped] = []
            inlined = False
            for node in view.nodes():
                if (node.op not in BYPASSES and rule_of(node) is None) or id(node) not in facts:
                    continue
                site = view.site(node)
                try:
                    detail = _rewrite(Place(view, facts, node, zero_signs), site)
                except Skip as reason:
                    skipped.append(Skipped(site, str(reason)))
                    continue
                if detail:
                    found.append(Rewritten(site, detail))
                    inlined |= node.op in ("If", "Loop")
            rewritten += found
            if not found:
                return PassResult(tuple(rewritten), tuple(skipped))
            view.edit.settle()
            if inlined:  # more is known of what the one branch or run gives out than of what any would
                facts.refresh()


def _rewrite(place: Place, site: str) -> str:
    """Rewrite one node if a rule applies; return what was done, or nothing.

    Raises:
        Skip: A rule nearly applies, or the site is vetoed.
    """
    view, node = place.view, place.node
    if not node.outputs:
        return ""
    bypass = BYPASSES.get(node.op) if is_op(node, node.op) else None
    source = bypass(place) if bypass else None
    if source is not None and source.name:
        if node.op == "Identity" and _must_stay(view, node):
            raise Skip(f"joins {source.name!r} to a graph output")
        view.require_permitted(site)
        operator = node.op
        if source is not node.inputs[0]:
            view.edit.set_input(node, 0, source)
        view.edit.bypass(node)
        return f"{operator} does nothing"
    merge = rule_of(node)
    if merge is None:
        return ""
    view.require_permitted(site)
    return merge(place) or ""


def _must_stay(view: GraphView, node: gs.Node) -> bool:
    """Whether an Identity gives a graph output its name that no other node can take over."""
    source = node.inputs[0]
    before = view.producer(source)
    if not view.is_output(node.outputs[0]):
        return False
    if before is None or view.is_output(source) or view.is_input(source):
        return True
    return view.edit.graph_of(before) is not view.edit.graph_of(node)
