"""Finds what a tensor is computed from, where that is nothing but constants."""

from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from graphopt.graph.folding import LOW_BIT, RANDOM
from graphopt.graph.view import GraphView, is_op

_MOST_NODES = 64


@dataclass
class Cone:
    """The nodes that a tensor is computed from, in an order that they can run in, and the constants that these read.

    Nothing else reads what is in between, so that the nodes can go if the tensor becomes a constant.
    """

    nodes: list[gs.Node] = field(default_factory=list)
    leaves: list[gs.Tensor] = field(default_factory=list)

    def freed(self, view: GraphView) -> int:
        """Return how many bytes of constants would go with the nodes."""
        own = {id(node) for node in self.nodes}
        gone = [t for t in self.leaves if all(id(reader) in own for reader in view.readers(t))]
        arrays = (None if view.is_output(tensor) else view.array(tensor) for tensor in gone)
        return sum(array.nbytes for array in arrays if array is not None)


def constant_cone(view: GraphView, tensor: gs.Tensor) -> Cone | None:
    """Return what ``tensor`` is computed from; None if that is not all constant, not repeatable, or far away."""
    last = view.producer(tensor)
    if last is None or any(out.name and out is not tensor for out in last.outputs):
        return None
    cone, found, waiting = Cone(), {id(tensor)}, [tensor]
    while waiting:
        tensor = waiting.pop()
        node = view.producer(tensor)
        if isinstance(tensor, gs.Constant) or (node is not None and is_op(node, "Constant")):
            if view.is_input(tensor):
                return None
            cone.leaves.append(tensor)
            continue
        if node is None or not _is_repeatable(node) or len(cone.nodes) == _MOST_NODES:
            return None
        cone.nodes.append(node)
        for source in (source for source in node.inputs if source.name and id(source) not in found):
            found.add(id(source))
            waiting.append(source)
    cone.nodes = _in_order(cone.nodes)
    return cone if cone.nodes and _is_private(view, cone) else None


def _is_repeatable(node: gs.Node) -> bool:
    """Whether a node gives the same each time and can run on its own."""
    if not is_op(node, node.op) or node.op in RANDOM or node.op in LOW_BIT:
        return False
    return not any(isinstance(value, (gs.Graph, gs.Node.AttributeRef)) for value in node.attrs.values())


def _in_order(nodes: list[gs.Node]) -> list[gs.Node]:
    """Return nodes after those that they read from."""
    done: list[gs.Node] = []
    pending = {id(out): node for node in nodes for out in node.outputs}
    while pending:
        ready = [
            n for n in {id(n): n for n in pending.values()}.values() if not any(id(t) in pending for t in n.inputs)
        ]
        if not ready:
            return []
        done += ready
        for node in ready:
            for out in node.outputs:
                pending.pop(id(out), None)
    return done


def _is_private(view: GraphView, cone: Cone) -> bool:
    """Whether nothing but the cone reads what its nodes give, the last one's excepted."""
    own = {id(node) for node in cone.nodes}
    between = [out for node in cone.nodes[:-1] for out in node.outputs if out.name]
    return all(id(reader) in own for out in between for reader in view.readers(out)) and not any(
        view.is_output(out) for out in between
    )
