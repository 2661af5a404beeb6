"""A structural copy of graphs, so that a pass can be taken back."""

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from graphopt.model import ir
from graphopt.model.ir import Constant, Graph, Info, Node, Variable


def copy_graphs(graphs: Sequence[Graph]) -> list[Graph]:
    """Return graphs with nodes and tensors of their own; weights and source protos are shared."""
    with ir.no_garbage_collection():
        copier = _Copier()
        return [copier.graph(graph) for graph in graphs]


class _Copier:
    """Copies graphs that share tensors; captured tensors are copied once."""

    def __init__(self) -> None:
        self._tensors: dict[int, gs.Tensor] = {}

    def graph(self, graph: Graph) -> Graph:
        """Copy a graph and its subgraphs."""
        nodes = [self._node(node) for node in graph.nodes]
        inputs, outputs = [self._tensor(t) for t in graph.inputs], [self._tensor(t) for t in graph.outputs]
        copy = Graph(nodes, inputs, outputs, graph.rest, graph.import_domains)
        copy.name, copy.doc_string = graph.name, graph.doc_string
        copy.initializers = [self._tensor(t) for t in graph.initializers]
        copy.unused = {id(self._tensor(t)) for t in graph.initializers if id(t) in graph.unused}
        copy.input_infos = self._infos(graph.input_infos)
        copy.output_infos = self._infos(graph.output_infos)
        copy.value_infos = self._infos(graph.value_infos)
        return copy

    def _infos(self, infos: list[Info]) -> list[Info]:
        return [(info, None if tensor is None else self._tensor(tensor)) for info, tensor in infos]

    def _node(self, node: gs.Node) -> Node:
        attributes = {name: self._value(value) for name, value in node.attrs.items()}
        inputs, outputs = map(self._tensor, node.inputs), map(self._tensor, node.outputs)
        source = node.source if isinstance(node, Node) else None
        return ir.make_node(node.op, node.name, attributes, inputs, outputs, node.domain, source)

    def _value(self, value: object) -> object:
        if isinstance(value, gs.Graph):
            return self.graph(value)
        if isinstance(value, gs.Constant):
            return _constant(value)
        return list(value) if isinstance(value, list) else value

    def _tensor(self, tensor: gs.Tensor) -> gs.Tensor:
        copy = self._tensors.get(id(tensor))
        if copy is None:
            copy = _constant(tensor) if isinstance(tensor, gs.Constant) else _variable(tensor)
            self._tensors[id(tensor)] = copy
        return copy


def _constant(constant: gs.Constant) -> Constant:
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
