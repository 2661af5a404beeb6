"""Transfer functions of convolutions: ungrouped, grouped, depthwise, transposed."""

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.contraction import absorbed, fold_bias, sums
from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts, Mask, Vector
from graphopt.graph.channels.labels import Label, Labels, describe
from graphopt.graph.channels.quantization import is_readable, readable
from graphopt.graph.channels.table import Transfer, register


@register("Conv", "ConvTranspose")
class Convolution(Transfer):
    """Conv has its weight as [out, in / group, ...], ConvTranspose as [in, out / group, ...]."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """An output channel is uniform if its filters see only noughts, or uniform channels without a border."""
        layout = Layout.of(node, facts)
        if layout is None:
            return
        bias = _bias(node, facts, layout.outs)
        known = facts.uniform(node.inputs[0], 1)
        values = layout.inputs(known)
        reads = layout.nonzero(node, facts) & (values != 0)[:, None, :]
        result = np.where(reads.any(axis=2), np.nan, 0.0)
        if known is not None and layout.borderless and (rows := reads.any(axis=2) & ~_unknown(reads, values)).any():
            weight = sums(layout.arranged(node, facts))
            if weight is not None:
                total = np.einsum("goi,gi->go", np.where(reads, weight, 0.0), np.nan_to_num(values))
                result = np.where(rows, total, result)
        facts.learn(node.outputs[0], 1, result.ravel() + bias)

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """An input channel is needed if a needed output has weights on it, unless its value can be folded away."""
        out = node.outputs[0]
        layout = Layout.of(node, facts)
        if layout is None:
            super().backward(node, facts)
            return
        if not facts.is_needed(out):
            return
        live = facts.needed(out, 1)
        reads = layout.nonzero(node, facts) & live.reshape(layout.group, -1, 1)
        known = facts.uniform(node.inputs[0], 1)
        bias = not _has_bias(node) or facts.is_constant(node.inputs[2])
        weight = node.inputs[1]
        if layout.borderless:
            foldable = bias and is_readable(weight, facts)
        else:
            foldable = layout.group == 1 and facts.is_constant(weight)
        read = reads.any(axis=1).ravel()
        mask = read & ~absorbed(known, read, foldable)
        if known is not None and not layout.borderless and (constant := read & ~mask & (known != 0)).any():
            chosen = int(np.flatnonzero(constant)[0])
            mask[chosen], facts.memory[id(node), "chosen"] = True, chosen
        facts.need(node.inputs[0], {1: mask})
        weight_axes = {layout.out_axis: live} if layout.group == 1 or layout.out_axis == 0 else {}
        if layout.group == 1:
            weight_axes[layout.in_axis] = mask
        facts.need(node.inputs[1], weight_axes)
        if _has_bias(node):
            facts.need(node.inputs[2], {0: live})

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Outputs go with the weight's output axis, inputs with its input axis; groups stay equally large."""
        layout = Layout.of(node, facts)
        rank = facts.rank(node.outputs[0])
        if layout is None or rank is None:
            super().couple(node, facts, labels)
            return
        for axis in range(facts.rank(node.inputs[0]) or 0):
            if axis != 1:
                labels.block(labels.axis(node, 0, axis), f"{node.op} {node.outputs[0].name!r} slides along axis {axis}")
        for axis in range(2 if layout.group == 1 else 1, facts.rank(node.inputs[1]) or 0):
            labels.block_input_axis(node, 1, axis)
        ins = labels.axis(node, 0, 1)
        if layout.group == 1:
            outs = labels.axis(node, 1, layout.out_axis, "feeds")
            labels.unify(labels.axis(node, 1, layout.in_axis, "reads"), ins, node)
        else:
            outs = self._couple_groups(node, facts, labels, layout, ins)
        if _has_bias(node):
            outs = labels.unify(outs, labels.axis(node, 2, 0, "feeds"), node)
        labels.set(node.outputs[0], [outs if axis == 1 else None for axis in range(rank)])

    def _couple_groups(
        self, node: gs.Node, facts: Facts, labels: Labels, layout: "Layout", ins: Label | None
    ) -> Label | None:
        """Couple the channels of a grouped convolution so that each group loses the same number, or goes whole."""
        stored = facts.is_constant(node.inputs[1])
        if ins is None or (not stored and layout.transposed):
            return self._blocked_groups(node, labels, layout, ins)
        dead_in = ~facts.needed(node.inputs[0], 1).reshape(layout.group, -1)
        dead_out = ~facts.needed(node.outputs[0], 1).reshape(layout.group, -1)
        whole = (dead_in.all(axis=1) & dead_out.all(axis=1)).sum() * dead_in.shape[1]
        even = dead_in.sum(axis=1).min() * layout.group
        together = dead_in.shape[1] == 1 or dead_out.shape[1] == 1 or whole > even or not stored
        if layout.out_axis == 0:
            outs = labels.axis(node, 1, 0, "feeds")
        else:
            outs = labels.fresh(layout.outs, node)
            labels.attach(node, 1, 0, ins, "feeds" if together else "reads")
        if outs is None:
            return self._blocked_groups(node, labels, layout, ins)
        matrix_in, matrix_out = ins.reshape(layout.group, -1), outs.reshape(layout.group, -1)
        if together:
            labels.merge(np.concatenate([matrix_in, matrix_out], axis=1))
            return outs
        for matrix, dead in ((matrix_in, dead_in), (matrix_out, dead_out)):
            order = np.argsort(~dead, axis=1, kind="stable")
            labels.merge(np.take_along_axis(matrix, order, axis=1).T)
        return outs

    def _blocked_groups(self, node: gs.Node, labels: Labels, layout: "Layout", ins: Label | None) -> Label | None:
        """Say that neither inputs nor outputs of a grouped convolution can be cut."""
        why = "its input is fixed" if ins is None else "its weight is computed"
        outs = labels.axis(node, 1, 0, "feeds") if layout.out_axis == 0 else None
        for label in (ins, outs):
            labels.block(label, f"the groups of {describe(node)} cannot be cut: {why}")
        labels.block_input(node, 1, f"the groups of {describe(node)} cannot be cut: {why}")
        return outs

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Fold what uniform inputs contributed into the bias; slice a grouped weight group by group."""
        layout = Layout.of(node, cut.facts)
        if layout is None:
            return
        known = cut.facts.uniform(node.inputs[0], 1)
        gone = ~cut.kept(node.inputs[0], 1)
        values = np.zeros(layout.ins) if known is None else np.where(gone, np.nan_to_num(known), 0.0)
        weight: NDArray[np.generic] | None = None
        if values.any():
            arranged = layout.arranged(node, cut.facts)
            total = sums(arranged)
            if arranged is None or total is None:
                return
            if layout.borderless:
                delta = np.einsum("goi,gi->go", total, layout.inputs(values)).ravel()
                fold_bias(node, cut, delta, layout.outs)
            elif known is not None and (chosen := cut.facts.memory.get((id(node), "chosen"))) is not None:
                weight = layout.merged(arranged, known, gone, chosen)
        if layout.group > 1:
            if gone.any() or not cut.kept(node.outputs[0], 1).all():
                self._cut_groups(node, cut, layout, ~gone)
        elif weight is not None:
            cut.give(node, 1, weight)

    def _cut_groups(self, node: gs.Node, cut: Cut, layout: "Layout", keep_in: Mask) -> None:
        """Slice a weight of groups by what each group keeps; groups that keep nothing go."""
        keep_out = cut.kept(node.outputs[0], 1).reshape(layout.group, -1)
        rows = keep_in.reshape(layout.group, -1)
        groups = np.flatnonzero(rows.any(axis=1) | keep_out.any(axis=1))
        cut.attribute(node, "group", len(groups))
        if cut.facts.is_constant(node.inputs[1]):
            arranged = layout.arranged(node, cut.facts)
            assert arranged is not None
            blocks = [arranged[index][keep_out[index]][:, rows[index]] for index in groups]
            cut.replace(node, 1, layout.restored(np.stack(blocks)))


class Layout:
    """How the weight of a convolution is laid out."""

    def __init__(self, node: gs.Node, group: int, ins: int, outs: int, kernel: tuple[int, ...] | None) -> None:
        """Describe a convolution of ``ins`` to ``outs`` channels in ``group`` groups."""
        self.group, self.ins, self.outs, self.kernel = group, ins, outs, kernel
        self.transposed = node.op == "ConvTranspose"
        self.out_axis, self.in_axis = (1, 0) if self.transposed else (0, 1)
        padded = any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        self.borderless = not padded and not self.transposed
        self.depthwise = group > 1 and ins == outs == group
        self.pointwise = kernel is not None and all(k == 1 for k in kernel)
        if self.transposed:
            steps, gaps = node.attrs.get("strides", [1]), node.attrs.get("dilations", [1])
            self.borderless = kernel is not None and all(k == 1 for k in kernel) and not padded
            self.borderless &= (
                all(s == 1 for s in steps) and not any(node.attrs.get("output_padding", ())) and bool(gaps)
            )
            self.borderless &= "output_shape" not in node.attrs

    @classmethod
    def of(cls, node: gs.Node, facts: Facts) -> "Layout | None":
        """Return the layout, or None if the sizes are not known or do not fit."""
        if len(node.inputs) < 2:
            return None
        ins, shape = facts.dim(node.inputs[0], 1), facts.shape(node.inputs[1])
        group = int(node.attrs.get("group", 1))
        if ins is None or shape is None or len(shape) < 3 or not all(isinstance(size, int) for size in shape[:2]):
            return None
        first, second = int(shape[0] or 0), int(shape[1] or 0)
        kernel = tuple(int(size) for size in shape[2:] if isinstance(size, int))
        kernel_or_none = kernel if len(kernel) == len(shape) - 2 else None
        if node.op == "ConvTranspose":
            layout = cls(node, group, ins, second * group, kernel_or_none) if first == ins else None
        else:
            layout = cls(node, group, ins, first, kernel_or_none) if second * group == ins else None
        if layout is None or not ins or not layout.outs or layout.outs % group or ins % group:
            return None
        if facts.dim(node.outputs[0], 1) != layout.outs:
            return None
        return layout

    def inputs(self, known: Vector | None) -> Vector:
        """Return uniform input values as [group, in / group]; NaN where unknown."""
        values = np.full(self.ins, np.nan) if known is None else known
        return values.reshape(self.group, -1)

    def arranged(self, node: gs.Node, facts: Facts) -> NDArray[np.generic] | None:
        """Return the weight as [group, out / group, in / group, ...], or None if it is not constant."""
        weight = readable(node.inputs[1], facts)
        if weight is None:
            return None
        shape = (self.group, -1, *weight.shape[1:])
        return weight.reshape(shape).swapaxes(1, 2) if self.transposed else weight.reshape(shape)

    def restored(self, arranged: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return an arranged weight in the operator's own order."""
        plain = arranged.swapaxes(1, 2) if self.transposed else arranged
        return plain.reshape(plain.shape[0] * plain.shape[1], *plain.shape[2:])

    def nonzero(self, node: gs.Node, facts: Facts) -> Mask:
        """Return where the weight is not nought, as [group, out / group, in / group]."""
        memory = facts.memory.setdefault((id(node), "nonzero"), None)
        if memory is None:
            weight = self.arranged(node, facts)
            if weight is None:
                memory = np.ones((self.group, self.outs // self.group, self.ins // self.group), dtype=bool)
            else:
                memory = (weight != 0).any(axis=tuple(range(3, weight.ndim)))
            facts.memory[id(node), "nonzero"] = memory
        return memory

    def merged(self, arranged: NDArray[np.generic], known: Vector, gone: Mask, chosen: int) -> NDArray[np.generic]:
        """Return the weight of an ungrouped padded convolution with uniform channels merged into a chosen one."""
        weight = arranged.astype(np.float64)
        ratio = np.where(gone, np.nan_to_num(known), 0.0) / known[chosen]
        weight[0, :, chosen] += np.tensordot(weight[0], ratio, axes=(1, 0))
        return self.restored(weight)


def _has_bias(node: gs.Node) -> bool:
    return len(node.inputs) > 2 and bool(node.inputs[2].name)


def _bias(node: gs.Node, facts: Facts, outs: int) -> Vector:
    """Return the bias as far as it is known."""
    if not _has_bias(node):
        return np.zeros(outs)
    found = facts.uniform(node.inputs[2], 0)
    return np.full(outs, np.nan) if found is None or len(found) != outs else found


def _unknown(reads: Mask, values: Vector) -> Mask:
    """Return which outputs read an input that is not uniform, as [group, out / group]."""
    return np.asarray((reads & np.isnan(values)[:, None, :]).any(axis=2))
