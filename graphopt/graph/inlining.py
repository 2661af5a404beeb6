"""Puts the body of a local function in the place of a call."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.calls import require_opsets
from graphopt.graph.view import GraphView, is_op
from graphopt.model import ir
from graphopt.model.attributes import read_attribute
from graphopt.model.copy import Copier, copy_constant
from graphopt.model.functions import called, full_name, functions, identity, within
from graphopt.model.ir import Constant, Graph, Node
from graphopt.model.order import bodies
from graphopt.model.weights import TensorValues
from graphopt.result import Skip


@dataclass(frozen=True)
class _Body:
    """What all calls of a function have in common.

    Attributes:
        function: The body.
        defaults: The attributes that a call may leave out and that have a value then.
        opsets: Operator sets that the body needs and the main graph does not import.
        stored: The constants of the body, by the id of the tensor that holds them there: stored once for all calls.
        given_out: Ids of the tensors that the body, or a graph in it, gives out.
        declared: Ids of the tensors that graphs in the body declare as inputs or outputs.
        size: Bytes that the nodes take which each call needs for itself.
    """

    function: Graph
    defaults: Mapping[str, Any]
    opsets: Mapping[str, int]
    stored: Mapping[int, gs.Constant]
    given_out: frozenset[int]
    declared: frozenset[int]
    size: int


class Inliner:
    """Inlines calls in the main graph and the graphs below it; bodies of functions are read, never changed."""

    def __init__(self, view: GraphView) -> None:
        """Look at the local functions of a model."""
        self._view = view
        self._functions = functions(view.model)
        self._bodies: dict[int, _Body] = {}
        self._taken: set[str] | None = None

    def calls(self, nodes: Sequence[gs.Node]) -> list[tuple[gs.Node, Graph]]:
        """Return every call among nodes and those below them, with the function."""
        inner = (each for node in nodes for body in bodies(node) for graph in within(body) for each in graph.nodes)
        found = itertools.chain(nodes, inner)
        return [(node, body) for node in found if (body := self._functions.get(called(node))) is not None]

    def growth(self, function: Graph, nodes: Iterable[gs.Node]) -> int:
        """Return how many bytes the file would gain if these calls, all that there are, were inlined.

        Raises:
            Skip: The function cannot be inlined anywhere.
        """
        body = self._body(function)
        return sum(body.size - ir.node_bytes(node) for node in nodes) - body.size

    def require_inlinable(self, node: gs.Node, function: Graph) -> None:
        """Raise Skip if a call cannot be replaced by the body that it names."""
        body = self._body(function)
        for what, given, known in (
            ("inputs", node.inputs, function.inputs),
            ("outputs", node.outputs, function.outputs),
        ):
            if len(given) > len(known):
                raise Skip(f"the call has {len(given)} {what}, {full_name(function)} only {len(known)}")
        for index, formal in enumerate(function.inputs):
            if (index >= len(node.inputs) or not node.inputs[index].name) and id(formal) in body.given_out:
                raise Skip(f"{full_name(function)} gives out its input {formal.name!r}, which the call leaves out")
        for name, value in node.attrs.items():
            if isinstance(value, (gs.Graph, gs.Node.AttributeRef)):
                raise Skip(f"{full_name(function)} is handed {name!r}, which is no plain attribute")
        attributes = {**body.defaults, **node.attrs}
        for inner in (inner for graph in within(function) for inner in graph.nodes if is_op(inner, "Constant")):
            for value in inner.attrs.values():
                if isinstance(value, gs.Node.AttributeRef) and value.name not in attributes:
                    raise Skip(f"{full_name(function)} needs the attribute {value.name!r}, which the call leaves out")

    def inline(self, node: gs.Node, function: Graph) -> list[gs.Node]:
        """Put the body in the place of a call that ``require_inlinable`` lets through; return its nodes."""
        body, edit = self._body(function), self._view.edit
        given = dict(body.stored)
        for index, formal in enumerate(function.inputs):
            given[id(formal)] = node.inputs[index] if index < len(node.inputs) else ir.make_variable("")
        repeated: list[tuple[gs.Tensor, gs.Tensor]] = []
        for out, source in zip(node.outputs, function.outputs, strict=False):
            if not out.name:
                continue
            if id(source) in given:  # an input or an earlier output, given out under one more name
                repeated.append((out, given[id(source)]))
            else:
                given[id(source)] = out
        attributes = {**body.defaults, **node.attrs}
        with ir.no_garbage_collection():
            nodes = _Instance(given, attributes, self._name, body.declared, self._view.model.graph).nodes(function)
        edit.replace_node(node, nodes)
        for out, source in repeated:
            edit.add_node(node, "Identity", [source], [out])
        self._import(body.opsets)
        return nodes

    def drop_unused(self, inlined: Iterable[Graph]) -> None:
        """Drop those of these functions that nothing calls any more, and imports of domains that are of no use then."""
        model = self._view.model
        dropped = {id(function): function for function in inlined}
        while True:
            kept = [function for function in model.functions if id(function) not in dropped]
            calls = {called(node) for graph in [model.graph, *kept] for each in within(graph) for node in each.nodes}
            needed = [key for key, function in dropped.items() if identity(function) in calls]
            if not needed:
                break
            for key in needed:
                del dropped[key]
        model.functions[:] = kept
        used = {node.domain or "" for graph in model.graphs() for node in graph.nodes}
        used |= {identity(function)[0] for function in kept}
        spare = {identity(function)[0] for function in dropped.values()} - used
        imports = [entry for entry in model.header.opset_import if entry.domain not in spare]
        model.header.ClearField("opset_import")
        model.header.opset_import.extend(imports)
        model.graph.import_domains = imports

    def _body(self, function: Graph) -> _Body:
        """Return what is known of a function.

        Raises:
            Skip: It cannot be inlined anywhere.
        """
        if id(function) not in self._bodies:
            self._bodies[id(function)] = self._examined(function)
        return self._bodies[id(function)]

    def _examined(self, function: Graph) -> _Body:
        opsets = require_opsets(self._view, function)
        graphs = list(within(function))
        given_out = frozenset(id(tensor) for graph in graphs for tensor in graph.outputs)
        infos = [info for graph in graphs[1:] for info in [*graph.input_infos, *graph.output_infos]]
        stored: dict[int, gs.Constant] = {}
        size = sum(ir.node_bytes(node) for node in function.nodes)
        for graph in graphs:
            held = [(tensor, tensor) for tensor in graph.initializers]
            for node in (node for node in graph.nodes if is_op(node, "Constant")):
                value = node.attrs.get("value")
                if isinstance(value, gs.Constant):
                    held.append((node.outputs[0], value))
                    size -= ir.node_bytes(node) if graph is function else 0
            for tensor, value in held:
                if id(tensor) not in given_out or (graph is function and not tensor.inputs):
                    stored[id(tensor)] = copy_constant(value)
                    stored[id(tensor)].name = self._name(tensor.name)
        defaults = {each.name: read_attribute(each, _no_graph, _constant) for each in function.rest.attribute_proto}
        declared = frozenset(id(tensor) for _, tensor in infos)
        return _Body(function, defaults, opsets, stored, given_out, declared, max(0, size))

    def _name(self, name: str) -> str:
        """Return a name of a function's body, changed if the main graph or one below it has it already."""
        if self._taken is None:
            self._taken = set()
            for graph in within(self._view.model.graph):
                self._taken |= {tensor.name for tensor in [*graph.inputs, *graph.initializers]}
                for node in graph.nodes:
                    self._taken |= {node.name, *(tensor.name for tensor in node.outputs)}
        if name:
            name = self._view.edit.fresh_name(name) if name in self._taken else name
            self._taken.add(name)
        return name

    def _import(self, opsets: Mapping[str, int]) -> None:
        """Let the model import operator sets that only bodies have needed so far."""
        model = self._view.model
        known = {entry.domain for entry in model.header.opset_import}
        for domain, version in opsets.items():
            if domain not in known:
                model.header.opset_import.append(onnx.helper.make_opsetid(domain, version))
        model.graph.import_domains = list(model.header.opset_import)


class _Instance(Copier):
    """A copy of a function's body for one call, under names of its own."""

    def __init__(
        self,
        given: Mapping[int, gs.Tensor],
        attributes: Mapping[str, Any],
        name: Callable[[str], str],
        declared: frozenset[int],
        main: Graph,
    ) -> None:
        super().__init__(given)
        self._given, self._attributes, self._name, self._declared, self._main = given, attributes, name, declared, main

    def graph(self, graph: Graph) -> Graph:
        """Copy a graph without what it declares of tensors in its middle, which holds under other names."""
        copy = super().graph(graph)
        copy.opset, copy.import_domains = self._main.opset, self._main.import_domains
        copy.initializers = [
            new for old, new in zip(graph.initializers, copy.initializers, strict=True) if id(old) not in self._given
        ]
        copy.value_infos = []
        return copy

    def nodes(self, graph: Graph) -> list[gs.Node]:
        """Copy the nodes of a graph without the Constant nodes that other constants stand for."""
        return [
            self.node(node)
            for node in graph.nodes
            if not (is_op(node, "Constant") and isinstance(self._given.get(id(node.outputs[0])), gs.Constant))
        ]

    def node(self, node: gs.Node) -> Node:
        """Copy a node under a name of its own."""
        copy = super().node(node)
        copy.name = self._name(copy.name)
        return copy

    def attributes(self, node: gs.Node) -> dict[str, Any]:
        """Return a node's attributes with the call's in the place of references, without those that it leaves out."""
        found: dict[str, Any] = {}
        for name, value in node.attrs.items():
            if not isinstance(value, gs.Node.AttributeRef):
                found[name] = self.value(value)
            elif value.name in self._attributes:
                found[name] = self.value(self._attributes[value.name])
        return found

    def tensor(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the copy of a tensor, or what stands for it; a new empty one each time where that is absent."""
        copy = super().tensor(tensor)
        return copy if copy.name else ir.make_variable("")

    def new_tensor(self, tensor: gs.Tensor) -> gs.Tensor:
        """Copy a tensor under a name of its own; dimensions that the body has names for may go by others here."""
        copy = super().new_tensor(tensor)
        copy.name = self._name(copy.name)
        if isinstance(copy, gs.Variable) and id(tensor) not in self._declared:
            copy.dtype = copy.shape = copy.declared = None
        return copy


def _no_graph(proto: onnx.GraphProto) -> gs.Graph:
    raise Skip(f"the default of an attribute is the graph {proto.name!r}")


def _constant(proto: onnx.TensorProto) -> Constant:
    return ir.make_constant(proto.name, TensorValues(proto))
