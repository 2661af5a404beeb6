"""What the readers of a tensor lead to: a layer on integers, floats on the way to one, or no layer at all."""

from collections.abc import Iterator

import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.view import GraphView, is_op

from .kernels import AVERAGES, CLAMPS, is_misread, takes_integers

_JUMPS = (
    "ArgMax", "ArgMin", "Bernoulli", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN",
    "Less", "LessOrEqual", "Mod", "Multinomial", "NonMaxSuppression", "NonZero", "OneHot", "Round", "Sign", "TopK",
    "Unique",
)  # fmt: skip
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


class Reach:
    """Where the values of each tensor of the main graph go, given the layers that are computed on integers.

    Attributes:
        nodes: The nodes of the main graph, each behind what it reads.
    """

    def __init__(self, view: GraphView, layers: list[gs.Node]) -> None:
        """Follow all nodes from the last to the first."""
        self.nodes = [node for node in view.model.graph.nodes if not view.edit.is_removed(node)]
        self._view, self._layers = view, {id(node) for node in layers}
        self._outer = {id(inner): node for node in self.nodes for inner in _inner_nodes(node)}
        self._leading: set[int] = set()
        self._near: set[int] = set()
        for node in reversed(self.nodes):
            if id(node) in self._layers or self._leads(node):
                self._leading.add(id(node))
            if takes_integers(view, node) and any(self.is_near(out) for out in self._ends(node)):
                self._near.add(id(node))

    def is_free_to_bind(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor need not exist as floats: something reads it, and all readers lead to layers.

        A reader that jumps (a comparison, a choice, a cast to integers), that ONNX Runtime would misread on integers or
        that leads to outputs of the model alone, needs the floats. An average does not, it evens out roundings.
        """
        readers = [node for node in self._view.readers(tensor) if not is_shape_question(node)]
        return not self._view.is_output(tensor) and bool(readers) and all(map(self._gains, readers))

    def is_near(self, tensor: gs.Tensor, *, all_readers: bool = False) -> bool:
        """Whether a layer reads a tensor, directly or through operators on integers; or whether all readers do that."""
        readers = [node for node in self._view.readers(tensor) if not is_shape_question(node)]
        near = (id(node) in self._near or self._is_fed(node, tensor) for node in readers)
        return all(near) if all_readers else any(near)

    def _is_fed(self, node: gs.Node, tensor: gs.Tensor) -> bool:
        """Whether a node is a layer that reads the tensor as what it is fed with."""
        return id(node) in self._layers and node.inputs[0] is tensor

    def _gains(self, reader: gs.Node) -> bool:
        """Whether a reader can do with a quantized tensor, for the sake of layers that follow."""
        outer = self._outer.get(id(reader), reader)
        return not _jumps(reader) and not is_misread(reader) and id(outer) in self._leading

    def _leads(self, node: gs.Node) -> bool:
        """Whether what a node computes reaches a layer without a jump on the way."""
        if is_op(node, *AVERAGES):
            return True
        return any(self._gains(reader) for out in node.outputs for reader in self._view.readers(out))

    def _ends(self, node: gs.Node) -> list[gs.Tensor]:
        """Return what a node gives out, behind its Relu or Clip if it computes."""
        return [end(self._view, node)] if is_op(node, "Add", *AVERAGES) else list(node.outputs)


def end(view: GraphView, node: gs.Node) -> gs.Tensor:
    """Return what a node computes, behind the Relu or Clip that alone reads it."""
    out = node.outputs[0]
    readers = view.readers(out)
    if len(readers) == 1 and is_op(readers[0], *CLAMPS) and readers[0].inputs[0] is out and not view.is_output(out):
        return readers[0].outputs[0]
    return out


def is_shape_question(node: gs.Node) -> bool:
    """Whether a node asks for a shape, not for values."""
    return is_op(node, "Shape", "Size")


def _jumps(node: gs.Node) -> bool:
    """Whether a small difference in what a node reads can be a large one in what it gives out."""
    return is_op(node, *_JUMPS) or (is_op(node, "Cast", "CastLike") and node.attrs.get("to", 0) not in _FLOATS)


def _inner_nodes(node: gs.Node) -> Iterator[gs.Node]:
    """Yield the nodes of a node's subgraphs, at any depth."""
    for value in node.attrs.values():
        for graph in value if isinstance(value, list) else [value]:
            if isinstance(graph, gs.Graph):
                for inner in graph.nodes:
                    yield inner
                    yield from _inner_nodes(inner)
