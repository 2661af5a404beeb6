"""What a model would still cost after a cut, foretold from the analysis without making it."""

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.analysis import Channels
from graphopt.graph.channels.facts import Mask
from graphopt.graph.channels.labels import Label
from graphopt.graph.channels.values import constant_of
from graphopt.graph.view import is_op

CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class _Term:
    """A product of sizes, of which some shrink with labels."""

    size: int
    labels: tuple[Label, ...]

    def after(self, gone: Mask) -> float:
        """Return the product after a cut."""
        return self.size * math.prod(1 - float(gone[label].mean()) for label in self.labels)


@dataclass
class Cost:
    """Parameters and multiply-accumulates of an analysed model, as functions of what is cut.

    Attributes:
        unknown: The layer whose multiply-accumulates depend on a size that is not known; "" if all are known.
    """

    channels: Channels
    unknown: str = ""
    _constants: dict[int, tuple[int, list[_Term]]] = field(default_factory=dict)
    _products: list[_Term] = field(default_factory=list)
    _stored: int = 0

    @classmethod
    def of(cls, channels: Channels) -> "Cost":
        """Take stock of an analysed model."""
        cost = cls(channels)
        view = channels.facts.view
        cost._stored = sum(math.prod(constant.shape) for constant in view.model.constants())
        for use in channels.labels.uses.values():
            read = use.node.inputs[use.slot]
            shape = channels.facts.shape(read)
            if shape is not None and all(isinstance(size, int) for size in shape):
                labels = tuple(use.axes.values())
                if is_op(use.node, "Conv", "ConvTranspose") and use.slot == 1:
                    labels = cost._convolved(use.node)
                size = math.prod(int(size or 0) for size in shape)
                cost._constants.setdefault(id(constant_of(read) or read), (size, []))[1].append(_Term(size, labels))
        for node in channels.facts.program:
            if is_op(node, *CONTRACTIONS):
                cost._add(node)
        return cost

    def gone(self, groups: list[int]) -> Mask:
        """Return the mask over labels of these groups, by their numbers."""
        chosen = np.zeros(len(self.channels.root), dtype=bool)
        chosen[groups] = True
        return np.asarray(chosen[self.channels.root])

    def parameters(self, gone: Mask) -> int:
        """Return how many elements stay stored after a cut; a shared constant counts once for each form it takes."""
        total = float(self._stored)
        for size, terms in self._constants.values():
            total += sum({term.after(gone) for term in terms}) - size
        return round(total)

    def macs(self, gone: Mask) -> int:
        """Return the multiply-accumulates after a cut, at batch size 1, those of unknown layers left out."""
        return round(sum(term.after(gone) for term in self._products))

    def _add(self, node: gs.Node) -> None:
        """Take down the multiply-accumulates of a node."""
        facts = self.channels.facts
        shapes = [facts.shape(tensor) for tensor in (*node.inputs[:2], *node.outputs[:1])]
        if len(shapes) < 3 or any(shape is None for shape in shapes):
            self.unknown = self.unknown or facts.view.site(node)
            return
        left, right, out = (shape or () for shape in shapes)
        labels: tuple[Label | None, ...]
        if is_op(node, "Conv", "ConvTranspose"):
            moved = out if node.op == "Conv" else left
            sizes, labels = [*moved[:1], *moved[2:], *right], self._convolved(node)
        else:
            inner = (0 if node.attrs.get("transA", 0) else 1) if node.op == "Gemm" else len(left) - 1
            sizes = [*out, left[inner]]
            axes = self.channels.labels.variables.get(id(node.outputs[0]), [])
            labels = (*axes, self._label(node, 0, inner))
        if sizes and not isinstance(sizes[0], int):
            sizes[0] = 1
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) < len(sizes):
            self.unknown = self.unknown or facts.view.site(node)
            return
        self._products.append(_Term(math.prod(numbers), tuple(label for label in labels if label is not None)))

    def _convolved(self, node: gs.Node) -> tuple[Label, ...]:
        """Return the labels that shrink the weight of a convolution; whole groups go without their inner axis."""
        outs = (self.channels.labels.variables.get(id(node.outputs[0])) or [None, None])[1]
        ins = self._label(node, 0, 1)
        group = int(node.attrs.get("group", 1))
        if group > 1 and ins is not None and outs is not None:
            root = self.channels.root
            if root[ins[0]] == root[outs[0]]:
                return (outs,)
        return tuple(label for label in (ins, outs) if label is not None)

    def _label(self, node: gs.Node, slot: int, axis: int) -> Label | None:
        """Return the labels of an input's axis, if it has any."""
        axes = self.channels.labels.variables.get(id(node.inputs[slot]))
        if axes is not None:
            return axes[axis]
        use = self.channels.labels.uses.get((id(node), slot))
        return None if use is None else use.axes.get(axis)
