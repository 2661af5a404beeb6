"""Put the bodies of local functions in the place of their calls."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt import BitExact, GraphView, Pass, PassResult, Rewritten, Skip, Skipped, option
from graphopt.graph.calls import require_no_kernel
from graphopt.graph.inlining import Inliner
from graphopt.model.functions import called, full_name, functions, identity, within
from graphopt.model.ir import Graph


@dataclass(frozen=True, kw_only=True)
class InlineFunctions(Pass):
    """Put the bodies of local functions in the place of their calls.

    Then every pass sees the weights that a function is handed, and each call by itself: a body that several calls share
    can only be rewritten for all of them. Runtimes do the same when they load a model, if they know functions at all.

    1. A call in the main graph, or in a body of If, Loop or Scan, becomes the nodes of the function, with the call's
       attributes, or their defaults, in the place of references to them; calls in there are calls like any other then.
    2. The constants of a function are stored once, as initializers that all its calls read.
    3. A function that nothing calls any more goes.

    Refused: functions that ONNX Runtime may have a kernel for (its own domains, or an operator of ONNX itself), and
    those that ``keep`` names; a function whose operators are of another opset than the model's and mean something else
    there; one whose calls together would add more than ``max_growth`` bytes to the file; calls that do not fit the
    function, or that hand it a graph.
    """

    name = "inline-functions"
    contract = BitExact()
    keeps_facts = True

    keep: tuple[str, ...] = option((), "Leave these functions in place, each given as domain or as domain.name.")
    max_growth: int = option(1 << 20, "Leave a function whose calls would add more than so many bytes.", minimum=0)

    def run(self, view: GraphView) -> PassResult:
        """Inline what the main graph calls, then what these bodies call, and so on."""
        inliner = Inliner(view)
        rewritten: list[Rewritten] = []
        skipped: list[Skipped] = []
        inlined: dict[int, Graph] = {}
        waiting = inliner.calls(view.model.graph.nodes)
        while waiting:
            kept, opened = self._kept(inliner, waiting), list[gs.Node]()
            for node, function in waiting:
                site = view.site(node)
                try:
                    view.require_permitted(site)
                    if id(function) in kept:
                        raise Skip(kept[id(function)])
                    inliner.require_inlinable(node, function)
                except Skip as reason:
                    skipped.append(Skipped(site, str(reason)))
                    continue
                nodes = inliner.inline(node, function)
                opened += nodes
                inlined[id(function)] = function
                rewritten.append(Rewritten(site, f"{full_name(function)}: {len(nodes)} node{'s' * (len(nodes) != 1)}"))
            waiting = inliner.calls(opened)
        if inlined:
            view.edit.settle()
            inliner.drop_unused(inlined.values())
        return PassResult(tuple(rewritten), (*skipped, *_left_inside(view)))

    def _kept(self, inliner: Inliner, calls: list[tuple[gs.Node, Graph]]) -> dict[int, str]:
        """Return for each function, by ``id``, that is to stay whatever calls it: why."""
        nodes_of: dict[int, list[gs.Node]] = {}
        for node, function in calls:
            nodes_of.setdefault(id(function), []).append(node)
        kept: dict[int, str] = {}
        for key, function in {id(function): function for _, function in calls}.items():
            try:
                require_no_kernel(function)
                if {identity(function)[0], full_name(function)} & set(self.keep):
                    raise Skip(f"{full_name(function)} is to be kept")
                growth = inliner.growth(function, nodes_of[key])
                if growth > self.max_growth:
                    raise Skip(
                        f"the {len(nodes_of[key])} calls of {full_name(function)} would add {growth} bytes to the file"
                    )
            except Skip as reason:
                kept[key] = str(reason)
        return kept


def _left_inside(view: GraphView) -> Iterator[Skipped]:
    """Tell of the calls in functions that stay."""
    known = functions(view.model)
    for function in view.model.functions:
        for node in (node for graph in within(function) for node in graph.nodes if called(node) in known):
            yield Skipped(view.site(node), f"is in {full_name(function)}, which stays")
