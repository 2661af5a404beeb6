"""Drop what nothing that the model gives out depends on."""

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt import BitExact, GraphView, Pass, PassResult, Rewritten, Skip, Skipped
from graphopt.graph.view import is_op
from graphopt.model.functions import Identity, called, functions


@dataclass(frozen=True, kw_only=True)
class EliminateDead(Pass):
    """Drop what nothing that the model gives out depends on: nodes, initializers and local functions.

    Graph inputs stay, as callers feed them, and so do initializers that a caller can override.

    Refused: nodes of another domain than ONNX's that are no call of a local function, which may do more than compute.
    """

    name = "eliminate-dead"
    contract = BitExact()
    keeps_facts = True

    def run(self, view: GraphView) -> PassResult:
        """Drop nodes from the ends upwards, then the initializers and functions that nothing uses any more."""
        rewritten: list[Rewritten] = []
        skipped: list[Skipped] = []
        known = functions(view.model)
        waiting = [node for graph in view.graphs() for node in graph.nodes]
        asked: set[int] = set()
        while waiting:
            node = waiting.pop()
            if id(node) in asked or view.edit.is_removed(node) or _is_used(view, node):
                continue
            asked.add(id(node))
            try:
                if not is_op(node, node.op) and called(node) not in known:
                    raise Skip(f"{node.domain}.{node.op} may do more than compute")
                view.require_permitted(view.site(node))
            except Skip as reason:
                skipped.append(Skipped(view.site(node), str(reason)))
                continue
            rewritten.append(Rewritten(view.site(node), f"nothing reads this {node.op}"))
            before = {id(tensor): tensor for tensor in _reads(node)}
            view.edit.remove([node])
            waiting += [source for tensor in before.values() for source in tensor.inputs]
        for dropped, kept in (_drop_functions(view), _drop_initializers(view)):
            rewritten += dropped
            skipped += kept
        return PassResult(tuple(rewritten), tuple(skipped))


def _is_used(view: GraphView, node: gs.Node) -> bool:
    """Whether anything reads an output of ``node``, or a graph gives one out."""
    return any(out.name and (view.is_output(out) or view.readers(out)) for out in node.outputs)


def _reads(node: gs.Node) -> list[gs.Tensor]:
    """Return what a node reads, its subgraphs included."""
    found = list(node.inputs)
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            found += [tensor for inner in value.nodes for tensor in _reads(inner)]
    return found


def _drop_initializers(view: GraphView) -> tuple[list[Rewritten], list[Skipped]]:
    """Drop initializers without readers, those of the file included."""
    rewritten, skipped = [], []
    for graph in view.graphs():
        declared = {id(tensor) for _, tensor in graph.input_infos}
        kept = []
        for constant in graph.initializers:
            used = view.readers(constant) or view.is_output(constant) or view.is_input(constant)
            if used or id(constant) in declared:
                kept.append(constant)
            elif constant.name in view.vetoes:
                kept.append(constant)
                skipped.append(Skipped(constant.name, view.vetoes[constant.name]))
            else:
                rewritten.append(Rewritten(constant.name, "nothing reads this initializer"))
        graph.initializers[:] = kept
    return rewritten, skipped


def _drop_functions(view: GraphView) -> tuple[list[Rewritten], list[Skipped]]:
    """Drop local functions that are never called, directly or by another that is."""
    bodies = functions(view.model)
    needed: set[Identity] = set()
    waiting = [view.model.graph]
    while waiting:
        graph = waiting.pop()
        for node in (node for node in graph.nodes if not view.edit.is_removed(node)):
            waiting += [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
            key = called(node)
            if key in bodies and key not in needed:
                needed.add(key)
                waiting.append(bodies[key])
    unused = [key for key in bodies if key not in needed]
    dropped = [key for key in unused if key[1] not in view.vetoes]
    view.model.functions[:] = [bodies[key] for key in bodies if key not in dropped]
    rewritten = [Rewritten(name, "nothing calls this function") for _, name, _ in dropped]
    return rewritten, [Skipped(name, view.vetoes[name]) for _, name, _ in unused if name in view.vetoes]
