"""Raising a model's opset, so that a pass can use operators of a newer one.

Unlike onnx's version converter this works on the graph itself: weights stay on disk, metadata, subgraphs and local
functions stay, and what cannot be raised without changing its meaning is refused by name.
"""

import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from graphopt.errors import ModelError
from graphopt.model.adapters import ADAPTERS
from graphopt.model.ir import Graph
from graphopt.model.model import Model, subgraphs
from graphopt.model.raising import Raise

OLDEST, NEWEST = 7, 26
"""The opsets between which every change of an operator is known here."""


def raise_opset(model: Model, version: int) -> Model:
    """Return a copy of ``model`` at a newer version of the default operator domain, with the IR version it needs.

    A model that is at that version already, or at a newer one, is copied as it is.

    Raises:
        ModelError: The model cannot be raised, with the node that stands in the way and why.
    """
    raised = model.copy()
    if version <= model.opset:
        return raised
    if version > NEWEST:
        raise ModelError(f"opset {version} is newer than {NEWEST}, the newest that models can be raised to")
    context = Raise(model)
    try:
        _raise_graph(context, raised.graph, model.opset, version)
        context.in_function = True
        for function in raised.functions:
            _raise_graph(context, function, _default_version(function.rest.opset_import) or model.opset, version)
            function.rest = _copied(function.rest)
            _set_version(function.rest.opset_import, version)
            function.import_domains = list(function.rest.opset_import)
    except ModelError as error:
        raise ModelError(f"opset {model.opset} cannot be raised to {version}: {error}") from error
    _set_version(raised.header.opset_import, version)
    for graph in raised.graphs():
        graph.opset = version
    raised.graph.import_domains = list(raised.header.opset_import)
    _raise_ir_version(raised)
    return raised


def _raise_graph(context: Raise, graph: Graph, old: int, new: int) -> None:
    """Adapt every node of a graph and of its subgraphs.

    Raises:
        ModelError: A node cannot be adapted.
    """
    if old < OLDEST:
        raise ModelError(f"its operators of opset {old}, older than {OLDEST}, broadcast by other rules")
    waiting: list[gs.Graph] = [graph]
    while waiting:
        inner = waiting.pop()
        waiting += subgraphs(inner)
        nodes: list[gs.Node] = []
        for node in inner.nodes:
            nodes += _raise_node(context, node, old, new) if node.domain in (None, "", "ai.onnx") else [node]
        inner.nodes[:] = nodes


def _raise_node(context: Raise, node: gs.Node, old: int, new: int) -> list[gs.Node]:
    """Adapt one node, version by version; return it with the nodes that it needs around it, in order."""
    before: list[gs.Node] = []
    after: list[gs.Node] = []
    label = f"the {node.op} node {node.name or next((t.name for t in node.outputs if t.name), '')!r}"
    try:
        for version in range(old + 1, new + 1):
            adapter = ADAPTERS.get((node.op, version))
            if adapter is not None:
                around = adapter(context, node)
                before += around.before
                after = around.after + after
        if onnx.defs.has(node.op) and onnx.defs.get_schema(node.op, new, "").deprecated:
            raise ModelError("the operator is no longer part of ONNX then")
    except ModelError as error:
        raise ModelError(f"{label}: {error}") from error
    return [*before, node, *after]


def _raise_ir_version(model: Model) -> None:
    """Raise the IR version to what the operator sets need."""
    known = [entry for entry in model.header.opset_import if entry.domain in ("", "ai.onnx", "ai.onnx.ml")]
    before = model.header.ir_version
    model.header.ir_version = max(before, helper.find_min_ir_version_for(known))
    if before < 4 <= model.header.ir_version:  # from here on an initializer that is an input too could be overridden
        for graph in model.graphs():
            owned = {id(constant) for constant in graph.initializers}
            graph.input_infos = [(info, tensor) for info, tensor in graph.input_infos if id(tensor) not in owned]


def _default_version(imports: "list[onnx.OperatorSetIdProto]") -> int:
    """Return the version of the default domain among ``imports``; 0 if there is none."""
    return next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), 0)


def _set_version(imports: "list[onnx.OperatorSetIdProto]", version: int) -> None:
    """Set the version of the default domain where it is imported."""
    for entry in imports:
        if entry.domain in ("", "ai.onnx"):
            entry.version = version


def _copied(proto: onnx.FunctionProto) -> onnx.FunctionProto:
    copied = onnx.FunctionProto()
    copied.CopyFrom(proto)
    return copied
