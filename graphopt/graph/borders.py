"""Follows tensors across the borders of loops and local functions, where a body only hands on what it was given."""

from collections import Counter

import onnx_graphsurgeon as gs

from graphopt.model import Model
from graphopt.model.functions import called, functions

_HANDED_ON = 2
"""Inputs of a Loop before its state: the number of iterations and the condition."""


class Borders:
    """Which inputs of bodies always hold the same value as a tensor outside.

    That is so for the state of a Loop that its body gives back as it came (tf2onnx lets the weights of a recurrent
    layer travel like that), and for the arguments of local functions.
    """

    def __init__(self, model: Model) -> None:
        """Look at all loops and function calls of a model; their inputs are read when asked, so edits are seen."""
        self._places: dict[int, list[tuple[gs.Node, int]]] = {}
        self._inside: dict[tuple[int, int], gs.Tensor] = {}
        self._given_back: Counter[int] = Counter()
        self._given: Counter[int] = Counter()
        bodies = functions(model)
        for graph in model.graphs():
            self._given.update(id(tensor) for tensor in graph.outputs)
            for node in graph.nodes:
                if node.op == "Loop" and node.domain in (None, "", "ai.onnx"):
                    self._add_loop(node)
                elif bodies and (body := bodies.get(called(node))) is not None:
                    for index, tensor in enumerate(body.inputs[: len(node.inputs)]):
                        self._add(node, index, tensor)

    def outside(self, tensor: gs.Tensor) -> list[gs.Tensor]:
        """Return what a body's input always stands for: a tensor for each call; empty if it is none of these inputs."""
        return [node.inputs[index] for node, index in self._places.get(id(tensor), [])]

    def inside(self, node: gs.Node, index: int) -> list[gs.Tensor]:
        """Return the tensors that hold the same as input ``index`` of a loop or call, in the body and behind it."""
        inner = self._inside.get((id(node), index))
        if inner is None:
            return []
        state = index - _HANDED_ON
        return [inner, *node.outputs[state : state + 1]] if node.op == "Loop" else [inner]

    def is_given_back(self, tensor: gs.Tensor) -> bool:
        """Whether a body gives a tensor out in no other place than where it came in."""
        return self._given_back[id(tensor)] == self._given[id(tensor)] > 0

    def _add(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        self._places.setdefault(id(tensor), []).append((node, index))
        self._inside[id(node), index] = tensor

    def _add_loop(self, node: gs.Node) -> None:
        body = node.attrs.get("body")
        if not isinstance(body, gs.Graph) or len(body.inputs) != len(node.inputs):
            return
        for index in range(_HANDED_ON, len(node.inputs)):
            tensor, out = body.inputs[index], body.outputs[index - _HANDED_ON + 1]
            if _before_identities(out) is tensor:
                self._add(node, index, tensor)
                self._given_back[id(out)] += 1


def _before_identities(tensor: gs.Tensor) -> gs.Tensor:
    while tensor.inputs and tensor.inputs[0].op == "Identity" and tensor.inputs[0].domain in (None, "", "ai.onnx"):
        tensor = tensor.inputs[0].inputs[0]
    return tensor
