"""What a model would still cost after a cut, foretold from the analysis without making it."""

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.channels.analysis import Channels
from graphopt.graph.channels.facts import Mask
from graphopt.graph.channels.labels import Label
from graphopt.graph.channels.storage import Storage, Term, convolved, label_of
from graphopt.graph.channels.widths import cuttable
from graphopt.graph.macs import is_free, node_macs
from graphopt.graph.view import is_op
from graphopt.model.functions import called, functions

CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass
class Cost:
    """Parameters and multiply-accumulates of an analysed model, as functions of what is cut.

    Attributes:
        multiple: What the cut keeps channel counts of convolutions divisible by, as prune-channels does.
        unknown: The node whose multiply-accumulates are not known; "" if those of all are.
    """

    channels: Channels
    storage: Storage
    multiple: int
    unknown: str = ""
    _products: list[Term] = field(default_factory=list)

    @classmethod
    def of(cls, channels: Channels, multiple: int = 1) -> "Cost":
        """Take stock of an analysed model."""
        cost = cls(channels, channels.storage, multiple)
        bodies = functions(channels.facts.view.model)
        for node in channels.facts.program:
            if is_op(node, *CONTRACTIONS):
                cost._add(node)
            elif not is_free(node) and called(node) not in bodies:
                cost._add_whole(node)
        return cost

    def gone(self, groups: list[int]) -> Mask:
        """Return the mask over labels of what is cut of these groups, given by their numbers in the order of going."""
        chosen = np.zeros(len(self.channels.root), dtype=bool)
        chosen[groups] = True
        gone = self.channels.worth(np.asarray(chosen[self.channels.root]))
        return cuttable(self.channels, gone, self.multiple, groups)

    def parameters(self, gone: Mask) -> int:
        """Return how many elements stay stored after a cut; a shared constant counts once for each form it takes."""
        picked = sum(pick.indices(gone) for pick in self.channels.labels.picks)
        return self.storage.elements(gone) + picked

    def macs(self, gone: Mask) -> int:
        """Return the multiply-accumulates after a cut, at batch size 1, those of unknown layers left out."""
        return round(sum(term.after(gone) for term in self._products))

    def _add_whole(self, node: gs.Node) -> None:
        """Take down a node of which it is not known how its multiply-accumulates shrink: they count in full."""
        count = node_macs(node, self.channels.facts.shape)
        if count is None:
            self.unknown = self.unknown or self.channels.facts.view.site(node)
        else:
            self._products.append(Term(count, ()))

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
            sizes = [*moved[:1], *moved[2:], *right]
            labels = convolved(node, self.channels.labels, self.channels.root)
        else:
            inner = (0 if node.attrs.get("transA", 0) else 1) if node.op == "Gemm" else len(left) - 1
            sizes = [*out, left[inner]]
            axes = self.channels.labels.variables.get(id(node.outputs[0]), [])
            labels = (*axes, label_of(node, 0, inner, self.channels.labels))
        if sizes and not isinstance(sizes[0], int):
            sizes[0] = 1
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) < len(sizes):
            self.unknown = self.unknown or facts.view.site(node)
            return
        self._products.append(Term(math.prod(numbers), tuple(label for label in labels if label is not None)))
