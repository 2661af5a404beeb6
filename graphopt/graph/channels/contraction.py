"""Transfer functions of matrix products, and what every contraction has in common."""

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.added_bias import added_bias
from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts, Mask, Vector
from graphopt.graph.channels.labels import Label, Labels
from graphopt.graph.channels.quantization import is_readable, readable
from graphopt.graph.channels.table import Transfer, register
from graphopt.graph.constants import cast
from graphopt.graph.edit import Edit
from graphopt.result import Skip


def absorbed(known: Vector | None, read: Mask, foldable: bool) -> Mask:
    """Return which inputs of a contraction it can do without: noughts, and known values if they can be folded."""
    if known is None:
        return np.zeros(len(read), dtype=bool)
    return np.asarray(~np.isnan(known) if foldable else known == 0)


def sums(arranged: NDArray[np.generic] | None) -> NDArray[np.float64] | None:
    """Sum a weight [group, out, in, ...] over its window, in float64."""
    if arranged is None:
        return None
    return np.asarray(arranged.sum(axis=tuple(range(3, arranged.ndim)), dtype=np.float64))


def fold_bias(node: gs.Node, cut: Cut, delta: Vector, outs: int) -> None:
    """Add ``delta`` to the bias in slot 2, which is made if there is none."""
    if not delta.any():
        return
    present = len(node.inputs) > 2 and bool(node.inputs[2].name)
    stored = cut.facts.array(node.inputs[2]) if present else None
    weight = readable(node.inputs[1], cut.facts)
    if weight is not None and (stored is not None or not present):
        bias = np.zeros(outs, weight.dtype) if stored is None else stored
        total = bias.astype(np.float64) + delta
        cut.give(node, 2, total, dtype=bias.dtype, keep=cut.kept(node.outputs[0], 1))


def add_bias(node: gs.Node, cut: Cut, delta: Vector) -> None:
    """Add ``delta`` to a MatMul's output: into the constant that is added next, or else in an Add of its own."""
    out, facts = node.outputs[0], cut.facts
    if (bias := added_bias(facts.view, node, len(delta))) is not None:
        cut.give(bias.node, bias.slot, bias.values.astype(np.float64) + delta)
        return
    weight = readable(node.inputs[1], facts)
    assert weight is not None
    kept = cut.kept(out, -1)
    if facts.dim(out, -1) == len(delta):
        delta = delta[kept]
    try:
        values = cast(delta, weight.dtype, str(out.name))
    except Skip as overflow:
        cut.refuse(node, str(overflow))

    def put(edit: Edit) -> None:
        raw = edit.variable(f"{out.name}_unshifted", like=out)
        edit.set_output(node, 0, raw)
        edit.add_node(node, "Add", [raw, edit.constant(f"{out.name}_bias", values)], [out])

    cut.step(put)


class Product:
    """One side each of a matrix product: where the rows, columns and the contracted axis lie."""

    def __init__(self, node: gs.Node, facts: Facts) -> None:
        """Describe a MatMul or Gemm; axes count from the end, None where a vector has no such axis."""
        left, right = (facts.rank(tensor) for tensor in node.inputs[:2])
        self.ready = left is not None and right is not None and left > 0 and right > 0
        self.ranks = (left or 0, right or 0)
        flip_left, flip_right = bool(node.attrs.get("transA", 0)), bool(node.attrs.get("transB", 0))
        self.row: int | None = (-1 if flip_left else -2) if self.ranks[0] > 1 else None
        self.inner = (-2 if flip_left else -1, -1 if flip_right else (-2 if self.ranks[1] > 1 else -1))
        self.column: int | None = (-2 if flip_right else -1) if self.ranks[1] > 1 else None
        self.out_row = None if self.row is None else (-1 if self.column is None else -2)
        self.out_column = None if self.column is None else -1


@register("MatMul", "Gemm")
class MatrixProduct(Transfer):
    """MatMul of any rank on either side, and Gemm."""

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """A row or column is uniform if it meets noughts only, or uniform channels only."""
        product = Product(node, facts)
        if not product.ready:
            return
        out = node.outputs[0]
        alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
        for side, (free, target) in enumerate(((product.row, product.out_row), (product.column, product.out_column))):
            if free is None or target is None:
                continue
            values = self._free(node, facts, product, side, free)
            if values is None or np.isnan(values).all():
                continue
            rank = facts.rank(out) or 0
            bias = _side(node, facts, 2, target, len(values))
            facts.learn(out, rank + target, values * alpha + (beta * bias if bias is not None else 0.0))
        if node.op == "MatMul":
            self._batches(node, facts)

    def _free(self, node: gs.Node, facts: Facts, product: Product, side: int, free: int) -> Vector | None:
        """Return the uniform values of the product along the free axis of one side."""
        own, other = node.inputs[side], node.inputs[1 - side]
        size = facts.dim(own, free)
        if size is None:
            return None
        known = facts.uniform(other, product.inner[1 - side])
        matrix = matrix_of(node, facts, side, product)
        if matrix is None:
            mine = None if facts.is_constant(own) else facts.uniform(own, free)
            if known is not None and (known == 0).all():
                return np.zeros(size)
            return None if mine is None else np.where(mine == 0, 0.0, np.nan)
        values = np.full(matrix.shape[0], np.nan) if known is None else known
        reads = (matrix != 0) & (values != 0)[:, None]
        unknown = (reads & np.isnan(values)[:, None]).any(axis=0)
        total = np.nan_to_num(values) @ matrix.astype(np.float64) if known is not None else np.zeros(size)
        return np.where(unknown, np.nan, np.where(reads.any(axis=0), total, 0.0))

    def _batches(self, node: gs.Node, facts: Facts) -> None:
        """A batch of noughts on either side makes a batch of noughts."""
        rank = facts.rank(node.outputs[0]) or 0
        for tensor in node.inputs[:2]:
            own = facts.rank(tensor) or 0
            for axis, values in facts.known_axes(tensor).items():
                if axis < own - 2 and own > 2:
                    facts.learn(node.outputs[0], axis - own + rank, np.where(values == 0, 0.0, np.nan))

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """A contracted index is needed unless one side is nought there or its value can be folded away."""
        out, product = node.outputs[0], Product(node, facts)
        if not product.ready:
            super().backward(node, facts)
            return
        if not facts.is_needed(out):
            return
        mask = self._contracted(node, facts, product)
        rank = facts.rank(out) or 0
        partial = facts.needed_axes(out)
        for side, (free, target) in enumerate(((product.row, product.out_row), (product.column, product.out_column))):
            own = product.ranks[side]
            masks: dict[int, Mask] = {}
            if mask is not None:
                masks[product.inner[side] % own] = mask
            if free is not None and target is not None and rank + target in partial:
                masks[free % own] = partial[rank + target]
            for axis, needed in partial.items():
                inner = axis - rank + own
                if axis < rank - 2 and 0 <= inner < own - 2 and facts.dim(node.inputs[side], inner) == len(needed):
                    masks[inner] = needed
            facts.need(node.inputs[side], masks)
        for tensor in node.inputs[2:]:
            facts.need(tensor, facts.broadcast_needs(tensor, out))

    def _contracted(self, node: gs.Node, facts: Facts, product: Product) -> Mask | None:
        """Return which contracted indices matter; None if their number is unknown."""
        size = facts.dim(node.inputs[0], product.inner[0]) or facts.dim(node.inputs[1], product.inner[1])
        if size is None:
            return None
        mask = np.ones(size, dtype=bool)
        out, rank = node.outputs[0], facts.rank(node.outputs[0]) or 0
        for side, target in enumerate((product.out_row, product.out_column)):
            matrix = matrix_of(node, facts, side, product)
            if matrix is None:
                continue
            if target is not None and rank + target in facts.needed_axes(out):
                matrix = matrix[:, facts.needed(out, target)]
            mask &= (matrix != 0).any(axis=1)
        for side in (0, 1):
            tensor, other = node.inputs[side], node.inputs[1 - side]
            known = None if facts.is_constant(tensor) else facts.uniform(tensor, product.inner[side])
            mask &= ~absorbed(known, mask, self._foldable(node, facts, side, other))
        return mask

    def _foldable(self, node: gs.Node, facts: Facts, side: int, other: gs.Tensor) -> bool:
        """Whether known values that come in on ``side`` can go into a bias, or into an Add that takes its place."""
        if side != 0 or not is_readable(other, facts) or facts.rank(other) != 2:
            return False
        if node.op == "MatMul":
            return True
        if node.attrs.get("beta", 1.0) != 1.0:
            return False
        if len(node.inputs) < 3 or not node.inputs[2].name:
            return True
        return facts.is_constant(node.inputs[2]) and (facts.rank(node.inputs[2]) or 0) <= 1

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Rows and columns pass to the output; the contracted axes of both sides are cut together."""
        out, product = node.outputs[0], Product(node, facts)
        rank = facts.rank(out)
        if not product.ready or rank is None:
            super().couple(node, facts, labels)
            return
        contracted = [labels.axis(node, side, product.inner[side], "reads") for side in (0, 1)]
        labels.unify(contracted[0], contracted[1], node)
        axes: list[Label | None] = [None] * rank
        if product.row is not None and product.out_row is not None:
            axes[product.out_row] = labels.axis(node, 0, product.row, "feeds")
        if product.column is not None and product.out_column is not None:
            axes[product.out_column] = labels.axis(node, 1, product.column, "feeds")
        for axis in range(rank - 2):
            found = []
            for side in (0, 1):
                inner = axis - rank + product.ranks[side]
                if 0 <= inner < product.ranks[side] - 2 and facts.dim(node.inputs[side], inner) != 1:
                    found.append(labels.axis(node, side, inner, "feeds"))
            axes[axis] = labels.unify(found[0], found[1], node) if len(found) == 2 else found[0] if found else None
        if len(node.inputs) > 2 and node.inputs[2].name:
            own = facts.rank(node.inputs[2]) or 0
            for axis in range(-own, 0):
                if facts.dim(node.inputs[2], axis) != 1:
                    axes[axis] = labels.unify(axes[axis], labels.axis(node, 2, axis, "feeds"), node)
        labels.set(out, axes)

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Fold what the uniform inputs contributed into the bias."""
        facts, product = cut.facts, Product(node, cut.facts)
        if not product.ready or facts.is_constant(node.inputs[0]):
            return
        known = facts.uniform(node.inputs[0], product.inner[0])
        if known is None or not self._foldable(node, facts, 0, node.inputs[1]):
            return
        values = np.where(cut.kept(node.inputs[0], product.inner[0]), 0.0, np.nan_to_num(known))
        matrix = matrix_of(node, facts, 1, product) if values.any() else None
        if matrix is None:
            return
        delta = values @ matrix.astype(np.float64) * float(node.attrs.get("alpha", 1.0))
        if node.op == "Gemm":
            fold_bias(node, cut, delta, matrix.shape[1])
        elif delta.any():
            add_bias(node, cut, delta)


def matrix_of(node: gs.Node, facts: Facts, side: int, product: Product) -> NDArray[np.generic] | None:
    """Return a constant side as [contracted, free]; None if it is not constant, has batches or no free axis."""
    tensor = node.inputs[side]
    if facts.rank(tensor) != 2:
        return None
    array = readable(tensor, facts)
    if array is None:
        return None
    return array if product.inner[side] == -2 else array.T


def _side(node: gs.Node, facts: Facts, slot: int, axis: int, size: int) -> Vector | None:
    """Return the uniform values of a broadcast side input along an axis counted from the end; None if absent."""
    if len(node.inputs) <= slot or not node.inputs[slot].name:
        return None
    tensor = node.inputs[slot]
    rank = facts.rank(tensor)
    if rank is not None and rank >= -axis and facts.dim(tensor, axis) == size:
        found = facts.uniform(tensor, axis)
        return np.full(size, np.nan) if found is None else found
    return np.full(size, facts.scalar(tensor))
