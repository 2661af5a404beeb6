"""Whether the sign of a zero can ever become a difference of numbers."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.view import GraphView, is_op
from graphopt.model.order import bodies

_ABSORB = (
    *("Softmax", "LogSoftmax", "Hardmax", "Exp", "Sigmoid", "HardSigmoid", "Softplus", "Cos", "Cosh", "Abs", "Log"),
    *("Shape", "Size", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf", "NonZero"),
    *("ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"),
)
"""Operators whose result is the same for 0.0 and -0.0."""


class ZeroSigns:
    """Follows the sign of zero through a graph; every tensor is looked at once."""

    def __init__(self, view: GraphView) -> None:
        """Look at the graphs behind ``view``."""
        self._view = view
        self._known: dict[int, bool] = {}

    def matters(self, tensor: gs.Tensor) -> bool:
        """Whether -0.0 for 0.0 in ``tensor`` could lead to another number: by a division, or out of our sight.

        That a graph output itself is -0.0 for 0.0 does not count: the two are equal.
        """
        waiting = [tensor]
        while waiting:
            current = waiting[-1]
            if id(current) in self._known:
                waiting.pop()
                continue
            readers = self._view.readers(current)
            if any(self._reveals(node, current) for node in readers):
                self._known[id(current)] = True
                continue
            carried = [out for node in readers if not self._absorbs(node, current) for out in node.outputs if out.name]
            unknown = [out for out in carried if id(out) not in self._known]
            if unknown:
                waiting += unknown
            else:
                self._known[id(current)] = any(self._known[id(out)] for out in carried)
        return self._known[id(tensor)]

    def _reveals(self, node: gs.Node, tensor: gs.Tensor) -> bool:
        """Whether a node that reads ``tensor`` makes another number of -0.0 than of 0.0, or could do anything."""
        if not is_op(node, node.op) or bodies(node) or is_op(node, "Reciprocal", "BitCast"):
            return True
        slots = [index for index, read in enumerate(node.inputs) if read is tensor]
        if not slots:
            return True  # read from within a subgraph's output, say
        if is_op(node, "Div"):
            return 1 in slots
        return is_op(node, "Pow") and (0 in slots and not self._has_positive_exponent(node))

    def _has_positive_exponent(self, node: gs.Node) -> bool:
        exponent = self._view.array(node.inputs[1])
        return exponent is not None and bool((exponent.astype(np.float64) > 0).all())

    def _absorbs(self, node: gs.Node, tensor: gs.Tensor) -> bool:
        """Whether what a node computes from ``tensor`` is the same for both zeros."""
        if is_op(node, *_ABSORB):
            return True
        if is_op(node, "Add", "Sub"):
            constants = [self._view.array(other) for other in node.inputs if other is not tensor]
            return bool(constants) and all(c is not None and bool((c != 0).all()) for c in constants)
        return False
