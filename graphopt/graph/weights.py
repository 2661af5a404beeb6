"""Where the weights of layers lie: where they are stored, and which axes there are output channels.

A weight is a stored constant that layers read directly, through operators that only move values (Transpose, Reshape,
Slice, Concat and their kind), or as what a loop or a local function hands to its body, and that nothing else reads.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.cone import Cone, constant_cone
from graphopt.graph.constants import why_unknown
from graphopt.graph.dequantize import is_dequantized
from graphopt.graph.shapes import Shape
from graphopt.graph.slots import CONVENTIONS, rank_of, weight_slots
from graphopt.graph.view import GraphView, is_op
from graphopt.result import Skip

MOVES = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Cast")
LOOKUPS = ("Gather", "Slice")
_FLOATS = ("float32", "float16", "float64", "bfloat16")


@dataclass(frozen=True)
class WeightUse:
    """One layer's use of a stored tensor, with the slot's axes as axes of the stored tensor."""

    layer: gs.Node
    slot: int
    channel: int | None
    summed: int | None


@dataclass
class Weight:
    """A tensor, the layers that use it as a weight, and the graph that stores or computes it."""

    source: gs.Tensor
    home: gs.Graph
    uses: list[WeightUse] = field(default_factory=list)

    @property
    def channel_axis(self) -> int | None:
        """The axis that every use has its channels on; None if they disagree.

        OpenVINO 2026.4 misreads scales along any other axis of a MatMul's weight, and along any axis but the first of a
        table that a Gather reads which does not pick from the integers.
        """
        axis = self.common_axis
        return None if axis and any(use.layer.op in LOOKUPS for use in self.uses) else axis

    @property
    def common_axis(self) -> int | None:
        """The axis that every use has its channels on, look-ups among them; None if they disagree."""
        axes = {use.channel for use in self.uses}
        return axes.pop() if len(axes) == 1 else None

    @property
    def summed_axis(self) -> int | None:
        """The axis that every use sums over; None if they disagree."""
        axes = {use.summed for use in self.uses}
        return axes.pop() if len(axes) == 1 else None


def find_weights(view: GraphView) -> list[Weight]:
    """Return every tensor, stored or computed, that layers read in the place of a weight, in order of first use.

    Where a weight is put together from several, all stored, each of them is one; otherwise what is put together is.
    """
    view.model.adopt_constants()
    homes = {id(tensor): graph for graph in view.graphs() for tensor in graph.initializers}
    homes |= {id(node.outputs[0]): view.edit.graph_of(node) for node in view.nodes("Constant")}
    found: dict[int, Weight] = {}
    for node in view.nodes(*CONVENTIONS):
        for slot in weight_slots(view, node):
            origins = list(trace(view, node.inputs[slot.index], slot.channel, slot.summed))
            if not all(is_stored(view, source) for source, _, _ in origins):
                origins = [(node.inputs[slot.index], slot.channel, slot.summed)] if len(origins) > 1 else origins
            for source, channel, summed in origins:
                weight = found.setdefault(
                    id(source), Weight(source, homes.get(id(source)) or _birthplace(view, source))
                )
                weight.uses.append(WeightUse(node, slot.index, channel, summed))
    return list(found.values())


def _birthplace(view: GraphView, tensor: gs.Tensor) -> gs.Graph:
    """Return the graph that computes a tensor; the main graph if none does."""
    node = view.producer(tensor)
    return view.model.graph if node is None else view.edit.graph_of(node)


def trace(
    view: GraphView, tensor: gs.Tensor, channel: int | None, summed: int | None
) -> Iterator[tuple[gs.Tensor, int | None, int | None]]:
    """Follow a tensor back through operators that only move values, and out of bodies that it is handed to.

    Yields:
        Each origin with the two axes there.
    """
    waiting = [(tensor, channel, summed)]
    while waiting:
        tensor, channel, summed = waiting.pop()
        node = view.producer(tensor)
        if node is None and (handed := view.borders.outside(tensor)):
            waiting += [(outer, channel, summed) for outer in reversed(handed)]
            continue
        if node is None or not is_op(node, *MOVES) or not _moves_floats(node):
            yield tensor, channel, summed
            continue
        sources = node.inputs if node.op == "Concat" else node.inputs[:1]
        waiting += [(s, _axis_before(view, node, channel), _axis_before(view, node, summed)) for s in reversed(sources)]


def foreign_reader(view: GraphView, weight: Weight) -> str | None:
    """Return what, other than its layers and questions of shape, depends on a weight's values; None if nothing does."""
    known = {(id(use.layer), use.slot) for use in weight.uses}
    waiting, seen = [weight.source], {id(weight.source)}
    while waiting:
        tensor = waiting.pop()
        if view.is_output(tensor) and not view.borders.is_given_back(tensor):
            return f"{tensor.name!r} is a graph output"
        for node in {id(node): node for node in view.readers(tensor)}.values():
            slots = [index for index, read in enumerate(node.inputs) if read is tensor]
            if all((id(node), slot) in known for slot in slots) or is_op(node, "Shape", "Size"):
                continue
            handed = [view.borders.inside(node, slot) for slot in slots]
            if all(handed):
                same = [inner for each in handed for inner in each]
            elif is_op(node, *MOVES) and (node.op == "Concat" or slots == [0]):
                same = list(node.outputs)
            else:
                return f"{tensor.name!r} is also read by {node.op} {view.site(node)!r}"
            outputs = [out for out in same if not out.is_empty() and id(out) not in seen]
            seen |= {id(out) for out in outputs}
            waiting += outputs
    return None


def require_weight(view: GraphView, weight: Weight, computed: NDArray[np.generic] | None = None) -> NDArray[np.generic]:
    """Return the values of a weight that may be replaced by an approximation.

    Args:
        view: The model.
        weight: The weight.
        computed: What it holds if it is not stored but computed from constants, where the caller can replace that.

    Raises:
        Skip: It is not a stored, finite, non-empty float tensor, or more than permitted layers depend on it.
    """
    name = weight.source.name
    values = view.array(weight.source) if computed is None else computed
    if values is None and is_dequantized(view, weight.source):
        raise Skip(f"{name!r} is quantized already")
    if values is None:
        raise Skip(f"{name!r} {why_unknown(weight.source, view) or 'is computed'}")
    if not is_float(values.dtype):
        raise Skip(f"{name!r} holds {values.dtype} values")
    if (culprit := foreign_reader(view, weight)) is not None:
        raise Skip(culprit)
    sites = {view.site(use.layer): None for use in weight.uses}
    for site in sites:
        try:
            view.require_permitted(site)
        except Skip as reason:
            raise Skip(str(reason) if len(sites) == 1 else f"{name!r} is shared with {site!r}: {reason}") from None
    if not values.size:
        raise Skip(f"{name!r} is empty")
    if not np.isfinite(values.astype(np.float32) if values.dtype.name == "bfloat16" else values).all():
        raise Skip(f"{name!r} holds NaN or Inf")
    return values


def is_candidate(view: GraphView, weight: Weight) -> bool:
    """Whether a weight could be quantized at some opset, whatever its values; not where the user leaves a layer out."""
    if any(view.why_left_out(use.layer) for use in weight.uses):
        return False
    values = view.array(weight.source)
    constant = is_float(values.dtype) if values is not None else computed_from(view, weight) is not None
    return constant and foreign_reader(view, weight) is None


def computed_from(view: GraphView, weight: Weight) -> Cone | None:
    """Return what a float weight is computed from, if that is constants only; None too if it is stored or quantized."""
    if is_stored(view, weight.source) or is_dequantized(view, weight.source):
        return None
    return constant_cone(view, weight.source)


def is_stored(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether a tensor is an initializer or the output of a Constant node."""
    return isinstance(tensor, gs.Constant) or view.producer(tensor, "Constant") is not None


def is_float(dtype: "np.dtype[np.generic]") -> bool:
    """Whether a weight of this element type can be quantized."""
    return dtype.name in _FLOATS


# -- axes through operators that move values ---------------------------------------------------------------------------


def _moves_floats(node: gs.Node) -> bool:
    """Whether a Cast goes to a float type; true of the other moving operators."""
    return node.op != "Cast" or node.attrs.get("to") in (1, 10, 11, 16)


def _axis_before(view: GraphView, node: gs.Node, axis: int | None) -> int | None:
    """Return which axis of a moving node's input becomes ``axis`` of its output; None if none does or it is unknown."""
    if axis is None or node.op in ("Identity", "Cast", "Slice", "Split", "Concat"):
        return axis
    if node.op == "Transpose":
        rank = rank_of(view, node.outputs[0])
        order = node.attrs.get("perm", None if rank is None else list(range(rank))[::-1])
        return order[axis] if isinstance(order, list) and axis < len(order) else None
    before, after = view.shape(node.inputs[0]), view.shape(node.outputs[0])
    return None if before is None or after is None else matching_axis(after, before, axis)


def matching_axis(shape: Shape, other: Shape, axis: int) -> int | None:
    """Return the axis of ``other`` that holds the same index as ``axis`` of ``shape``, of which it is a reshape.

    It is the one of equal size with equally many elements before it. An axis of size one has no index to hold.
    """
    sizes = [size for size in shape or () if isinstance(size, int)]
    others = [size for size in other or () if isinstance(size, int)]
    known = len(sizes) == len(shape or ()) and len(others) == len(other or ())
    if not known or axis >= len(sizes) or sizes[axis] == 1:
        return None
    before = math.prod(sizes[:axis])
    same = (i for i, size in enumerate(others) if size == sizes[axis] and math.prod(others[:i]) == before)
    return next(same, None)
