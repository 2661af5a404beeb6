"""Which channels of the original a pruned model has kept, read off the weights themselves."""

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.correspondence import ACTIVATIONS, Correspondence
from graphopt.graph.slicing import slice_of
from graphopt.graph.view import GraphView, is_op

Indices = NDArray[np.int64]

CHANNELWISE = (
    *ACTIVATIONS,
    *(
        "Add",
        "Mul",
        "Div",
        "Transpose",
        "Identity",
        "BatchNormalization",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
    ),
    *("ReduceMean", "Flatten", "Reshape", "Dropout"),
)
"""Operators that keep channels in place, at least where their number stays the same."""

CLOSE, APART = 1e-5, 1e-3
"""How near to one the cosine of a row with its own must be, and how far that with any other."""


class KeptChannels:
    """Finds, by the graph's order, which rows of the original's weights are left.

    A row of a pruned weight, less the columns of the inputs that are gone, points in the same direction as the row that
    it was, whatever a fold has scaled it by. Only rows that match one of the original's clearly, in ascending order,
    count: anything else, such as a weight that has been fitted since, leaves its channels unknown.
    """

    def __init__(self, view: GraphView, original: GraphView, match: Correspondence) -> None:
        """Match the layers of ``view`` with those of ``original``."""
        self._view, self._original, self._match = view, original, match
        self._tensors = {str(t.name): t for node in original.model.graph.nodes for t in node.outputs if t.name}
        self._kept: dict[int, Indices] = {}
        for node in view.model.graph.nodes:
            if is_op(node, "Gather", "Slice"):
                found = self._picked(node)
            else:
                found = self._layer(node) if is_op(node, "Conv", "Gemm", "MatMul") else self._passed_on(node)
            if found is not None:
                self._kept[id(node.outputs[0])] = found

    def of(self, tensor: gs.Tensor) -> Indices | None:
        """Return the original's channels that are left in ``tensor``, or None if that is unknown."""
        return self._kept.get(id(tensor))

    def _picked(self, node: gs.Node) -> Indices | None:
        """Return the channels that a Gather or Slice along the last axis, or the second of images, picks of its input.

        Whether the input had all channels of the original is for the rows of the layers behind to show.
        """
        bounds = [self._view.array(tensor) for tensor in node.inputs[1:]]
        shape = self._view.shape(node.inputs[0]) or ()
        rank = len(shape)
        if any(values is None for values in bounds) or not bounds or not rank:
            return None
        if node.op == "Gather":
            axis, places = int(node.attrs.get("axis", 0)), np.asarray(bounds[0], dtype=np.int64)
        elif len(bounds) == 3 and all(values is not None and values.size == 1 for values in bounds):
            start, end, axis = (int(np.ravel(values)[0]) for values in bounds if values is not None)
            size = shape[axis] if -rank <= axis < rank else None
            if not isinstance(size, int):
                return None
            places = np.arange(size)[slice_of(size, start, end)]
        else:
            return None
        turned = self._view.producer(node.inputs[0], "Transpose")
        last = turned is not None and list(turned.attrs.get("perm", ()))[:1] == [rank - 1] and axis == 0
        if places.ndim != 1 or not places.size or places.min() < 0:
            return None
        if not last and axis % rank not in (rank - 1, 1 if rank > 2 else 0):
            return None
        before = self._kept.get(id(node.inputs[0]))
        if before is None:
            return places
        return before[places] if places.max() < len(before) else None

    def _passed_on(self, node: gs.Node) -> Indices | None:
        """Return the channels of the inputs, if the operator keeps them and they agree."""
        if not is_op(node, *CHANNELWISE):
            return None
        known = [self._kept[id(tensor)] for tensor in node.inputs if id(tensor) in self._kept]
        agree = known and all(np.array_equal(known[0], each) for each in known)
        return known[0] if agree else None

    def _layer(self, node: gs.Node) -> Indices | None:
        """Return which rows of the original's weight a layer has."""
        weight = self._rows(self._view, node)
        twin = self._twin(node)
        theirs = None if twin is None else self._rows(self._original, twin)
        if weight is None or theirs is None or weight.ndim != theirs.ndim:
            return None
        if weight.shape[1] != theirs.shape[1]:
            inputs = self._kept.get(id(node.inputs[0]))
            if inputs is None or len(inputs) != weight.shape[1] or inputs.max() >= theirs.shape[1]:
                return None
            theirs = theirs[:, inputs]
        return matching_rows(weight.reshape(len(weight), -1), theirs.reshape(len(theirs), -1))

    def _twin(self, node: gs.Node) -> gs.Node | None:
        """Return the original's layer that gives out what ``node`` does, behind a BatchNormalization if need be."""
        for name in self._match.candidates(node.outputs[0]):
            before = self._original.producer(self._tensors[name])
            while before is not None and is_op(before, "BatchNormalization", "Identity"):
                before = self._original.producer(before.inputs[0])
            if before is not None and is_op(before, node.op):
                return before
        return None

    def _rows(self, view: GraphView, node: gs.Node) -> NDArray[np.float64] | None:
        """Return a layer's weight with its outputs first and its inputs second."""
        values = view.array(node.inputs[1])
        if values is None or values.ndim < 2 or values.dtype.kind != "f":
            return None
        wide = np.asarray(values, np.float64)
        inputs_first = node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transB", 0))
        return np.swapaxes(wide, 0, 1) if inputs_first else wide


def matching_rows(rows: NDArray[np.float64], among: NDArray[np.float64]) -> Indices | None:
    """Return the place of each row ``among`` others, by direction; None unless all are clear and in ascending order."""
    if rows.shape[1] != among.shape[1] or rows.shape[1] < 2:
        return None
    norms, others = np.linalg.norm(rows, axis=1), np.linalg.norm(among, axis=1)
    if not norms.all():
        return None
    cosines = np.abs((rows / norms[:, None]) @ (among / np.where(others > 0, others, 1.0)[:, None]).T)
    best = np.argmax(cosines, axis=1)
    near = cosines[np.arange(len(rows)), best]
    cosines[np.arange(len(rows)), best] = 0
    clear = (near > 1 - CLOSE).all() and (cosines < 1 - APART).all() and (np.diff(best) > 0).all()
    return best if clear else None
