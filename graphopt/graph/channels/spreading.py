"""Transfer functions of operators that spread, pad, resample or mix: Expand, Tile, Pad, Resize, Softmax, CumSum."""

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts, Vector
from graphopt.graph.channels.labels import Label, Labels, describe
from graphopt.graph.channels.table import Transfer, register


class Keeping(Transfer):
    """An operator of which each axis of the first input either passes as it is or is worked on."""

    def kept(self, node: gs.Node, facts: Facts) -> dict[int, int]:
        """Return where the axes go that pass as they are."""
        raise NotImplementedError

    def value(self, node: gs.Node, known: Vector, facts: Facts) -> Vector:
        """Return what uniform channels become; NaN where that is not uniform."""
        return known

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Uniform channels pass along the axes that do."""
        moves = self.kept(node, facts)
        for axis, known in facts.known_axes(node.inputs[0]).items():
            if axis in moves:
                facts.learn(node.outputs[0], moves[axis], self.value(node, known, facts))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """Needs pass along the axes that do."""
        if facts.is_needed(node.outputs[0]):
            partial = facts.needed_axes(node.outputs[0])
            moves = self.kept(node, facts).items()
            facts.need_inputs(node, {axis: partial[out] for axis, out in moves if out in partial})

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Labels pass along the axes that do; the others are pinned."""
        rank = facts.rank(node.outputs[0])
        if rank is None:
            super().couple(node, facts, labels)
            return
        moves = self.kept(node, facts)
        axes: list[Label | None] = [None] * rank
        for axis in range(facts.rank(node.inputs[0]) or 0):
            if axis in moves:
                axes[moves[axis]] = labels.axis(node, 0, axis)
            else:
                labels.block_input_axis(node, 0, axis)
        for slot in range(1, len(node.inputs)):
            labels.block_input(node, slot, f"tells {describe(node)} what to do")
        labels.set(node.outputs[0], axes)


@register("Expand")
class Expand(Keeping):
    """Axes of size 1 are repeated; the others pass. A repeated axis can be cut by asking for less of it."""

    def kept(self, node: gs.Node, facts: Facts) -> dict[int, int]:
        """An axis passes if the output has the same size there, counted from the end."""
        rank, out = facts.rank(node.inputs[0]), facts.rank(node.outputs[0])
        if rank is None or out is None:
            return {}
        pairs = ((axis, axis + out - rank) for axis in range(rank))
        return {
            axis: place
            for axis, place in pairs
            if (size := facts.dim(node.inputs[0], axis)) is not None
            and size == facts.dim(node.outputs[0], place)
            and size != 1
        }

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """What is repeated is uniform if it is one value; a constant's own channels may be uniform too."""
        super().forward(node, facts)
        value = facts.scalar(node.inputs[0])
        if not np.isnan(value):
            for axis in range(facts.rank(node.outputs[0]) or 0):
                if (size := facts.dim(node.outputs[0], axis)) is not None and size > 1:
                    facts.learn(node.outputs[0], axis, np.full(size, value))

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """A repeated axis has labels of its own."""
        rank = facts.rank(node.outputs[0])
        if rank is None:
            super().couple(node, facts, labels)
            return
        back = {out: axis for axis, out in self.kept(node, facts).items()}
        axes: list[Label | None] = []
        for out in range(rank):
            inner = out - rank + (facts.rank(node.inputs[0]) or 0)
            size = facts.dim(node.outputs[0], out)
            repeated = inner < 0 or facts.dim(node.inputs[0], inner) == 1
            if out in back:
                axes.append(labels.axis(node, 0, back[out], "feeds"))
            elif repeated and size is not None and size > 1 and _is_float(node.inputs[0], facts):
                axes.append(labels.fresh(size, node))
            else:
                if not repeated:
                    labels.block_input_axis(node, 0, inner)
                axes.append(None)
        labels.block_input(node, 1, f"tells {describe(node)} what to do")
        labels.set(node.outputs[0], axes)

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Write the new sizes into the target shape; a size of 1 there keeps the input's."""
        cut.resize(node, 1)


def _is_float(tensor: gs.Tensor, facts: Facts) -> bool:
    """Whether a tensor is known to hold floats: a constant or a computed value."""
    if facts.is_constant(tensor):
        return facts.kind(tensor) in "fV"
    values = facts.values(tensor)
    return values is not None and values.array.dtype.kind in "fV"


@register("ConstantOfShape")
class ConstantOfShape(Transfer):
    """One value all over; every axis of known size can be asked for smaller."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Everything is uniform."""
        value = node.attrs.get("value")
        array = facts.array(value) if isinstance(value, gs.Constant) else np.zeros(1)
        if array is not None and array.dtype.kind == "f":
            for axis in range(facts.rank(node.outputs[0]) or 0):
                if (size := facts.dim(node.outputs[0], axis)) is not None:
                    facts.learn(node.outputs[0], axis, np.full(size, float(array.ravel()[0])))

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Each axis of floats has labels of its own."""
        rank, known = facts.rank(node.outputs[0]), facts.known_axes(node.outputs[0])
        if rank is not None:
            sizes = [facts.dim(node.outputs[0], axis) or 0 for axis in range(rank)]
            labels.set(
                node.outputs[0],
                [labels.fresh(n, node) if a in known and n > 1 else None for a, n in enumerate(sizes)],
            )

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Write the new sizes into the target shape."""
        cut.resize(node, 0)


@register("Tile")
class Tile(Keeping):
    """An axis that is repeated once passes; a longer one repeats its labels."""

    def kept(self, node: gs.Node, facts: Facts) -> dict[int, int]:
        """An axis passes if it is repeated once."""
        repeats = facts.integers(node.inputs[1])
        return {} if repeats is None else {axis: axis for axis, times in enumerate(repeats) if times == 1}


@register("Pad")
class Pad(Keeping):
    """An axis without padding passes; what is padded keeps its value if it is padded with the same one."""

    def kept(self, node: gs.Node, facts: Facts) -> dict[int, int]:
        """An axis passes if nothing is added to it or taken from it."""
        rank = facts.rank(node.inputs[0])
        pads = node.attrs.get("pads") if len(node.inputs) < 2 else facts.integers(node.inputs[1])
        if rank is None or pads is None:
            return {}
        axes = list(range(rank))
        if len(node.inputs) > 3 and node.inputs[3].name:
            given = facts.integers(node.inputs[3])
            if given is None:
                return {}
            axes = [axis % rank for axis in given]
        if len(pads) != 2 * len(axes):
            return {}
        padded = {axis for index, axis in enumerate(axes) if pads[index] or pads[index + len(axes)]}
        return {axis: axis for axis in range(rank) if axis not in padded}

    def value(self, node: gs.Node, known: Vector, facts: Facts) -> Vector:
        """Only the padding value stays uniform, unless padding repeats what is there."""
        mode = node.attrs.get("mode", "constant")
        if mode != "constant" or len(self.kept(node, facts)) == facts.rank(node.inputs[0]):
            return known
        fill = float(node.attrs.get("value", 0.0))
        if len(node.inputs) > 2 and node.inputs[2].name:
            fill = facts.scalar(node.inputs[2])
        return np.where(known == fill, known, np.nan)


@register("Resize", "Upsample")
class Resize(Keeping):
    """An axis that keeps its size passes; interpolation between equal values gives that value."""

    def kept(self, node: gs.Node, facts: Facts) -> dict[int, int]:
        """An axis passes if its scale is 1 or its size stays, and no region of interest is cropped."""
        rank = facts.rank(node.inputs[0])
        if rank is None or node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            return {}
        scales = node.attrs.get("scales")
        slot = 1 if node.op == "Upsample" or facts.view.opset < 11 else 2
        if len(node.inputs) > slot and node.inputs[slot].name:
            array = facts.array(node.inputs[slot])
            scales = None if array is None else [float(scale) for scale in array]
        axes = [int(axis) % rank for axis in node.attrs.get("axes", range(rank))]
        others = {axis: axis for axis in range(rank) if axis not in axes}
        if scales:
            return others | {axis: axis for axis, scale in zip(axes, scales, strict=True) if scale == 1.0}
        same = (
            axis
            for axis in axes
            if (size := facts.dim(node.inputs[0], axis)) is not None and size == facts.dim(node.outputs[0], axis)
        )
        return others | {axis: axis for axis in same}

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Rounding of the interpolation aside, a uniform channel keeps its value."""
        if (
            node.attrs.get("extrapolation_value", 0.0) == 0.0
            or node.attrs.get("coordinate_transformation_mode") is None
        ):
            super().forward(node, facts)

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Write the new sizes into the target sizes, if it goes by sizes."""
        if len(node.inputs) <= 3 or not node.inputs[3].name:
            return
        if "axes" not in node.attrs:
            cut.resize(node, 3)
            return
        rank, changes = cut.facts.rank(node.inputs[0]) or 1, cut.changes(node.outputs[0])
        axes = [int(axis) % rank for axis in node.attrs["axes"]]
        if not changes.keys() & set(axes):
            return
        sizes = cut.facts.integers(node.inputs[3])
        if sizes is None or len(sizes) != len(axes):
            cut.refuse(node, f"Resize {node.outputs[0].name!r} computes the size of an axis that is cut")
        cut.integers(node, 3, [changes.get(axis, size) for axis, size in zip(axes, sizes, strict=True)])


@register("Softmax", "LogSoftmax", "Hardmax", "CumSum")
class AlongAxis(Keeping):
    """An operator that mixes along one axis (before opset 13: along all from that one on); the others pass."""

    def kept(self, node: gs.Node, facts: Facts) -> dict[int, int]:
        """All other axes pass."""
        rank = facts.rank(node.inputs[0])
        if rank is None:
            return {}
        if node.op == "CumSum":
            given = facts.integers(node.inputs[1])
            return {} if given is None else {axis: axis for axis in range(rank) if axis != given[0] % rank}
        if facts.view.opset < 13:
            return {axis: axis for axis in range(int(node.attrs.get("axis", 1)) % rank)}
        mixed = int(node.attrs.get("axis", -1)) % rank
        return {axis: axis for axis in range(rank) if axis != mixed}

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """A uniform row of a Softmax depends on its length; of a CumSum only nought stays."""
        if node.op == "CumSum":
            moves = self.kept(node, facts)
            for axis, known in facts.known_axes(node.inputs[0]).items():
                if axis in moves:
                    facts.learn(node.outputs[0], axis, np.where(known == 0, known, np.nan))
