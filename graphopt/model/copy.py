"""A structural copy of graphs, so that a pass can be taken back."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.model import ir
from graphopt.model.ir import Constant, Graph, Info, Node, Variable


def copy_graphs(graphs: Sequence[Graph]) -> list[Graph]:
    """Return graphs with nodes and tensors of their own; weights and source protos are shared."""
    with ir.no_garbage_collection():
        copier = Copier()
        return [copier.graph(graph) for graph in graphs]


class Copier:
    """Copies graphs that share tensors; captured tensors are copied once."""

    def __init__(self, given: Mapping[int, gs.Tensor] | None = None) -> None:
        """Copy all tensors but those that others stand for: ``given``, by the id of what they stand for."""
        self._tensors: dict[int, gs.Tensor] = dict(given or {})

    def graph(self, graph: Graph) -> Graph:
        """Copy a graph and its subgraphs."""
        nodes = self.nodes(graph)
        inputs, outputs = [self.tensor(t) for t in graph.inputs], [self.tensor(t) for t in graph.outputs]
        copy = Graph(nodes, inputs, outputs, graph.rest, graph.import_domains)
        copy.name, copy.doc_string = graph.name, graph.doc_string
        copy.initializers = [self.tensor(t) for t in graph.initializers]
        copy.unused = {id(self.tensor(t)) for t in graph.initializers if id(t) in graph.unused}
        copy.input_infos = self._infos(graph.input_infos)
        copy.output_infos = self._infos(graph.output_infos)
        copy.value_infos = self._infos(graph.value_infos)
        return copy

    def nodes(self, graph: Graph) -> list[gs.Node]:
        """Copy the nodes of a graph."""
        return [self.node(node) for node in graph.nodes]

    def node(self, node: gs.Node) -> Node:
        """Copy a node and its subgraphs."""
        attributes = self.attributes(node)
        inputs, outputs = map(self.tensor, node.inputs), map(self.tensor, node.outputs)
        source = node.source if isinstance(node, Node) else None
        return ir.make_node(node.op, node.name, attributes, inputs, outputs, node.domain, source)

    def attributes(self, node: gs.Node) -> dict[str, Any]:
        """Copy the attributes of a node."""
        return {name: self.value(value) for name, value in node.attrs.items()}

    def value(self, value: object) -> object:
        """Copy the value of an attribute."""
        if isinstance(value, gs.Graph):
            return self.graph(value)
        if isinstance(value, gs.Constant):
            return copy_constant(value)
        return list(value) if isinstance(value, list) else value

    def tensor(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return the copy of a tensor, or what stands for it."""
        copy = self._tensors.get(id(tensor))
        if copy is None:
            copy = self._tensors[id(tensor)] = self.new_tensor(tensor)
        return copy

    def new_tensor(self, tensor: gs.Tensor) -> gs.Tensor:
        """Copy a tensor that is met for the first time."""
        return copy_constant(tensor) if isinstance(tensor, gs.Constant) else _variable(tensor)

    def _infos(self, infos: Iterable[Info]) -> list[Info]:
        return [(info, None if tensor is None else self.tensor(tensor)) for info, tensor in infos]


def copy_constant(constant: gs.Constant) -> Constant:
    """Copy a constant, sharing its values."""
    copy = ir.make_constant(constant.name, constant._values)
    known = isinstance(constant, Constant)
    copy.original, copy.declared = (constant.original, constant.declared) if known else (None, None)
    return copy


def _variable(variable: gs.Variable) -> Variable:
    """Copy a variable."""
    shape = None if variable.shape is None else list(variable.shape)
    copy = ir.make_variable(variable.name, variable.dtype, shape, variable.type)
    copy.declared = variable.declared if isinstance(variable, Variable) else None
    return copy
