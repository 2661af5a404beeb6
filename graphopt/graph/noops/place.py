"""One node with all that is known around it, as the rules of what does nothing ask for it."""

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.noops.zero_sign import ZeroSigns
from graphopt.graph.symbolic import Facts
from graphopt.graph.symbolic.attributes import Value, attribute
from graphopt.graph.symbolic.values import SymbolicShape
from graphopt.graph.view import GraphView


@dataclass(frozen=True)
class Place:
    """A node of a graph."""

    view: GraphView
    facts: Facts
    node: gs.Node
    zero_signs: ZeroSigns

    @property
    def opset(self) -> int:
        """The version of the default domain that the node is read by."""
        return self.facts.opset(self.node)

    def has(self, slot: int) -> bool:
        """Whether the node has an input in this slot."""
        return slot < len(self.node.inputs) and bool(self.node.inputs[slot].name)

    def shape(self, slot: int) -> SymbolicShape:
        """Return the shape of an input."""
        return self.facts.shape(self.node.inputs[slot]) if self.has(slot) else None

    def out_shape(self) -> SymbolicShape:
        """Return the shape of the first output."""
        return self.facts.shape(self.node.outputs[0])

    def value(self, slot: int) -> Value | None:
        """Return what is known of a small integer input."""
        return self.facts.value(self.node.inputs[slot]) if self.has(slot) else None

    def array(self, slot: int) -> NDArray[np.generic] | None:
        """Return a constant input."""
        return self.view.array(self.node.inputs[slot]) if self.has(slot) else None

    def keeps_shape(self, slot: int = 0) -> bool:
        """Whether the first output certainly has the shape of an input."""
        shape = self.shape(slot)
        return shape is not None and shape == self.out_shape()

    def before(self, *ops: str) -> gs.Node | None:
        """Return the node that computes the first input, if it is one of ``ops``."""
        return self.view.producer(self.node.inputs[0], *ops) if self.has(0) else None

    def is_private(self, tensor: gs.Tensor) -> bool:
        """Whether only this node reads ``tensor``."""
        return len(self.view.readers(tensor)) == 1 and not self.view.is_output(tensor)

    def permutation(self, node: gs.Node | None = None) -> list[int] | None:
        """Return the permutation of this Transpose (or another), its default written out; None if unknown."""
        node = self.node if node is None else node
        if isinstance(node.attrs.get("perm"), gs.Node.AttributeRef):
            return None
        given = attribute(node, "perm", None)
        if given is not None:
            return list(given)
        shape = self.facts.shape(node.inputs[0])
        return None if shape is None else list(range(len(shape)))[::-1]
