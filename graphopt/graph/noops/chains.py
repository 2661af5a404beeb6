"""Concats, Slices and scalings in a row that one node can do, and Splits of which one part is used."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.graph.noops.place import Place
from graphopt.graph.symbolic.attributes import attribute
from graphopt.graph.symbolic.shapes import slice_arguments
from graphopt.graph.symbolic.values import SymbolicShape

MODERATE = 2.0**20
"""Scalars between its inverse and this multiply without overflow or underflow that would matter."""


@dataclass(frozen=True)
class _Cut:
    """What a Slice takes of one axis."""

    axis: int
    start: int
    end: int
    step: int


def merge_concats(place: Place) -> str | None:
    """Join Concats along the same axis: what only this one reads gives its own inputs instead."""
    node, view = place.node, place.view
    axis = _axis(place, node)
    inputs: list[gs.Tensor] = []
    for tensor in node.inputs:
        before = view.producer(tensor, "Concat") if place.is_private(tensor) else None
        same = before is not None and axis is not None and _axis(place, before) == axis
        inputs += before.inputs if before is not None and same else [tensor]
    if axis is None or len(inputs) == len(node.inputs):
        return None
    view.edit.remove([node])
    place.facts.adopt(view.edit.add_node(node, "Concat", inputs, [node.outputs[0]], {"axis": axis}), node)
    return "joined with the Concats before it"


def _axis(place: Place, node: gs.Node) -> int | None:
    """Return the axis of a Concat, counted from the front."""
    axis, shape = attribute(node, "axis", 1 if place.opset < 4 else None), place.facts.shape(node.outputs[0])
    if not isinstance(axis, int) or (axis < 0 and shape is None):
        return None
    return axis + len(shape) if axis < 0 and shape is not None else axis


def merge_slices(place: Place) -> str | None:
    """Make one Slice of two, where nothing but Slices reads what is between them."""
    node, view = place.node, place.view
    before = place.before("Slice")
    if before is None or view.is_output(node.inputs[0]):
        return None
    if not all(reader.op == "Slice" and reader.inputs[0] is node.inputs[0] for reader in view.readers(node.inputs[0])):
        return None
    shape = place.facts.shape(before.inputs[0])
    first, second = _cuts(place, before), _cuts(place, node)
    if shape is None or first is None or second is None:
        return None
    cuts = _composed(shape, first, second)
    if cuts is None:
        return None
    _become_slice(place, node.outputs[0], cuts, before.inputs[0])
    return "joined with the Slice before it"


def _cuts(place: Place, node: gs.Node) -> list[_Cut] | None:
    """Return what a Slice takes of each axis that it names; None if that is not constant."""
    known = [place.facts.value(tensor) if tensor.name else None for tensor in node.inputs]
    starts, ends, axes, steps = slice_arguments(node, known, place.opset)
    shape = place.facts.shape(node.inputs[0])
    if starts is None or ends is None or axes is None or steps is None or shape is None:
        return None
    cuts = []
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = axes[index] if axes else index, steps[index] if steps else 1
        if not isinstance(start, int) or not isinstance(end, int) or not -len(shape) <= axis < len(shape):
            return None
        cuts.append(_Cut(axis % len(shape), start, end, step))
    return cuts


def _composed(shape: tuple[object, ...], first: Sequence[_Cut], second: Sequence[_Cut]) -> list[_Cut] | None:
    """Return cuts that do what two rows of them do one after the other; None if that cannot be told."""
    cuts = {cut.axis: cut for cut in first}
    for cut in second:
        before, extent = cuts.get(cut.axis), shape[cut.axis]
        if before is None:
            cuts[cut.axis] = cut
            continue
        if not isinstance(extent, int) or before.step < 1 or cut.step < 1:
            return None
        left = range(extent)[before.start : before.end : before.step][cut.start : cut.end : cut.step]
        if not left:
            return None
        cuts[cut.axis] = _Cut(cut.axis, left[0], left[-1] + 1, left.step)
    return [cuts[axis] for axis in sorted(cuts)] if len(cuts) else None


def _become_slice(place: Place, out: gs.Tensor, cuts: Sequence[_Cut], source: gs.Tensor) -> None:
    """Put a Slice of ``source`` that gives ``out`` in the node's place."""
    edit, node = place.view.edit, place.node
    columns = {
        "starts": [cut.start for cut in cuts],
        "ends": [cut.end for cut in cuts],
        "axes": [cut.axis for cut in cuts],
        "steps": [cut.step for cut in cuts],
    }
    edit.remove([node])
    if place.opset < 10:
        del columns["steps"]
        made = edit.add_node(node, "Slice", [source], [out], columns)
    else:
        constants = [edit.constant(f"{out.name}_{name}", np.asarray(n, np.int64)) for name, n in columns.items()]
        made = edit.add_node(node, "Slice", [source, *constants], [out])
    place.facts.adopt(made, node)


def slice_of_split(place: Place) -> str | None:
    """Make a Slice of a Split of which only one part is used."""
    node, view = place.node, place.view
    used = [i for i, out in enumerate(node.outputs) if out.name and (view.readers(out) or view.is_output(out))]
    data = place.shape(0)
    axis = attribute(node, "axis", 0)
    if len(used) != 1 or len(node.outputs) < 2 or data is None or not -len(data) <= axis < len(data):
        return None
    extents = [_extent(place.facts.shape(out), axis) for out in node.outputs[: used[0] + 1]]
    known = [extent for extent in extents if extent is not None]
    if len(known) != len(extents):
        return None
    start = sum(known[:-1])
    cut = _Cut(axis % len(data), start, start + known[-1], 1)
    _become_slice(place, node.outputs[used[0]], [cut], node.inputs[0])
    return "only one part is used: a Slice"


def _extent(shape: SymbolicShape, axis: int) -> int | None:
    """Return one extent of a shape, if it is known."""
    extent = None if shape is None else shape[axis]
    return extent if isinstance(extent, int) else None


def merge_scalings(place: Place) -> str | None:
    """Make one Mul by a number of two in a row."""
    own, before = _scalar_slot(place, place.node), None
    if own is not None:
        before = place.view.producer(place.node.inputs[1 - own], "Mul")
    if own is None or before is None or not place.is_private(place.node.inputs[1 - own]):
        return None
    if place.view.site(before) in place.view.vetoes:
        return None
    other = _scalar_slot(place, before)
    if other is None:
        return None
    one, two = place.view.array(place.node.inputs[own]), place.view.array(before.inputs[other])
    if one is None or two is None or one.dtype != two.dtype:
        return None
    product = np.multiply(one.astype(np.float64), two.astype(np.float64)).astype(one.dtype)
    source = before.inputs[1 - other]
    place.view.edit.set_input(place.node, 1 - own, source)
    place.view.edit.set_values(place.node, own, product)
    return "joined with the Mul before it"


def _scalar_slot(place: Place, node: gs.Node) -> int | None:
    """Return which input of a Mul is one float of moderate size, None if none or both are."""
    slots = []
    for slot, tensor in enumerate(node.inputs):
        values = place.view.array(tensor)
        if values is None or values.size != 1 or values.dtype not in (np.float32, np.float64):
            continue
        if 1 / MODERATE < abs(float(values.reshape(-1)[0])) < MODERATE:
            slots.append(slot)
    return slots[0] if len(slots) == 1 and len(node.inputs) == 2 else None


def gemm_of_matmul(place: Place) -> str | None:
    """Make one Gemm of a MatMul of two matrices and the Add of a constant behind it."""
    node, view = place.node, place.view
    slot = 0 if view.producer(node.inputs[0], "MatMul") else 1
    product, bias = node.inputs[slot], node.inputs[1 - slot]
    matmul, shape, added = view.producer(product, "MatMul"), place.facts.shape(product), place.facts.shape(bias)
    if matmul is None or shape is None or not added or view.array(bias) is None or not place.is_private(product):
        return None
    if place.opset < 7 or place.facts.type(product) not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return None
    if any(len(place.facts.shape(tensor) or ()) != 2 for tensor in matmul.inputs) or len(added) > 2:
        return None
    if any(n not in (1, extent) for n, extent in zip(added, shape[2 - len(added) :], strict=True)):
        return None
    inputs = [*matmul.inputs, bias]
    view.edit.remove([node])
    place.facts.adopt(view.edit.add_node(node, "Gemm", inputs, [node.outputs[0]]), node)
    return "joined with the MatMul before it: a Gemm"
