"""Transfer functions of operators that exchange channels with blocks of space."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.facts import Facts, Mask
from graphopt.graph.channels.labels import Label, Labels, describe
from graphopt.graph.channels.table import Transfer, register


@register("DepthToSpace", "SpaceToDepth")
class DepthToSpace(Transfer):
    """Channels and blocks of space change places: c output channels stand for c times block^2 input channels."""

    def _matrix(self, node: gs.Node, size: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
        """Return the deep channel numbers as [shallow channel, block position]."""
        area = int(node.attrs["blocksize"]) ** 2
        if node.attrs.get("mode", "DCR") == "CRD":
            return np.arange(size).reshape(-1, area)
        return np.arange(size).reshape(area, -1).T

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """A shallow channel is uniform if all its deep ones hold one value."""
        known = facts.uniform(node.inputs[0], 1)
        if known is None:
            return
        if node.op == "DepthToSpace":
            deep = known[self._matrix(node, len(known))]
            facts.learn(node.outputs[0], 1, np.where((deep == deep[:, :1]).all(axis=1), deep[:, 0], np.nan))
        else:
            matrix = self._matrix(node, len(known) * int(node.attrs["blocksize"]) ** 2)
            values = np.empty(matrix.size)
            values[matrix] = known[:, None]
            facts.learn(node.outputs[0], 1, values)

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """A shallow channel stands for all its deep ones."""
        out = node.outputs[0]
        if not facts.is_needed(out):
            return
        partial = facts.needed_axes(out)
        masks: dict[int, Mask] = {0: partial[0]} if 0 in partial else {}
        if 1 in partial:
            if node.op == "DepthToSpace":
                matrix = self._matrix(node, len(partial[1]) * int(node.attrs["blocksize"]) ** 2)
                masks[1] = np.empty(matrix.size, dtype=bool)
                masks[1][matrix] = partial[1][:, None]
            else:
                masks[1] = np.asarray(partial[1][self._matrix(node, len(partial[1]))].any(axis=1))
        facts.need(node.inputs[0], masks)

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """The deep channels of a shallow one go together."""
        ins, deep = labels.axis(node, 0, 1), facts.dim(node.outputs[0], 1)
        for axis in (2, 3):
            labels.block_input_axis(node, 0, axis)
        outs: Label | None = None
        if ins is not None and deep is not None:
            if node.op == "DepthToSpace":
                rows = ins[self._matrix(node, len(ins))]
                labels.merge(rows)
                outs = rows[:, 0].copy()
            else:
                matrix = self._matrix(node, deep)
                outs = np.empty(deep, dtype=np.int64)
                outs[matrix] = ins[:, None]
        else:
            labels.block(ins, f"{describe(node)} has a depth that is not known")
        labels.set(node.outputs[0], [labels.axis(node, 0, 0), outs, None, None])
