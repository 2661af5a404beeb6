"""Reductions that can give out at once the shape that the node behind them makes of their result."""

import onnx_graphsurgeon as gs

from graphopt.graph.noops.place import Place
from graphopt.graph.symbolic.attributes import attribute, axes_of, has_reference

_ARGS = ("ArgMax", "ArgMin")
REDUCTIONS = (
    *_ARGS,
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)


def reduction_in_shape(place: Place) -> str | None:
    """Let the reduction before a reshaping node keep the reduced axes, or drop them, where that is all the node does.

    Elements stay in their order either way, so that equal shapes make equal tensors.
    """
    node, before, shape = place.node, place.before(*REDUCTIONS), place.out_shape()
    data = None if before is None else place.facts.shape(before.inputs[0])
    if before is None or data is None or shape is None or not place.is_private(node.inputs[0]):
        return None
    reduced = None if has_reference(before) else _reduced(place, before, len(data))
    keeps = bool(attribute(before, "keepdims", 1))
    if reduced is None:
        return None
    kept = tuple(1 if axis in reduced else entry for axis, entry in enumerate(data))
    dropped = tuple(entry for axis, entry in enumerate(data) if axis not in reduced)
    if tuple(shape) != (dropped if keeps else kept):
        return None
    edit, attributes = place.view.edit, {**before.attrs, "keepdims": int(not keeps)}
    edit.remove([node])
    made = edit.add_node(before, str(before.op), list(before.inputs), [node.outputs[0]], attributes)
    place.facts.adopt(made, before)
    return f"the {before.op} before it {'drops' if keeps else 'keeps'} the axes that it reduces"


def _reduced(place: Place, node: gs.Node, rank: int) -> set[int] | None:
    """Return the axes that a reduction reduces, or None if they are not known."""
    if node.op in _ARGS:
        axes: list[int] | None = [attribute(node, "axis", 0)]
    else:
        axes = axes_of(node, [place.facts.value(tensor) if tensor.name else None for tensor in node.inputs], 1)
        if axes == []:
            axes = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return None if axes is None or any(not -rank <= axis < rank for axis in axes) else {axis % rank for axis in axes}
