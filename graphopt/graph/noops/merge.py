"""Pairs of nodes that one node can stand for, and nodes that a simpler one can."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.constants import read_values
from graphopt.graph.noops.bypass import RESHAPES
from graphopt.graph.noops.chains import gemm_of_matmul, merge_concats, merge_scalings, merge_slices, slice_of_split
from graphopt.graph.noops.inline import inline_branch
from graphopt.graph.noops.invariants import simplify_loop
from graphopt.graph.noops.place import Place
from graphopt.graph.noops.reductions import reduction_in_shape
from graphopt.graph.symbolic.attributes import attribute, integers
from graphopt.graph.symbolic.targets import reshape_numbers
from graphopt.model.links import trim

Rule = Callable[[Place], str | None]


def merge_transposes(place: Place) -> str | None:
    """Make one Transpose of two."""
    before, order = place.before("Transpose"), place.permutation()
    first = None if before is None else place.permutation(before)
    if before is None or first is None or order is None or not place.is_private(place.node.inputs[0]):
        return _transpose_as_reshape(place, order)
    place.view.edit.set_input(place.node, 0, before.inputs[0])
    place.node.attrs["perm"] = [first[axis] for axis in order]
    return "joined with the Transpose before it"


def _transpose_as_reshape(place: Place, order: list[int] | None) -> str | None:
    """Make a Reshape of a Transpose that moves only axes of extent one, beside a node that the Reshape can join."""
    data, shape, node = place.shape(0), place.out_shape(), place.node
    if order is None or data is None or shape is None or 0 in shape or place.opset < 5:
        return None
    wide = [axis for axis in order if data[axis] != 1]
    readers = place.view.readers(node.outputs[0])
    joins = len(readers) == 1 and readers[0].op in RESHAPES and not place.view.is_output(node.outputs[0])
    joins = joins or (place.before(*RESHAPES) is not None and place.is_private(node.inputs[0]))
    numbers = reshape_numbers(shape, data) if joins and wide == sorted(wide) else None
    if numbers is None:
        return None
    _become_reshape(place, node.inputs[0], numbers)
    return "only moves axes of extent one: a Reshape"


def _become_reshape(place: Place, source: gs.Tensor, numbers: list[int]) -> None:
    """Put a Reshape of ``source`` in the node's place."""
    edit, node, out = place.view.edit, place.node, place.node.outputs[0]
    target = edit.constant(f"{out.name}_shape", np.asarray(numbers, dtype=np.int64))
    edit.remove([node])
    place.facts.adopt(edit.add_node(node, "Reshape", [source, target], [out]), node)


def merge_reshapes(place: Place) -> str | None:
    """Make one Reshape of two reshaping nodes, where the final shape can be said in numbers."""
    before, shape = place.before(*RESHAPES), place.out_shape()
    if (told := reduction_in_shape(place)) is not None:
        return told
    if before is None or shape is None or 0 in shape or place.opset < 5 or not place.is_private(place.node.inputs[0]):
        return None
    numbers = reshape_numbers(shape, place.facts.shape(before.inputs[0]))
    if numbers is None:
        return None
    _become_reshape(place, before.inputs[0], numbers)
    return f"joined with the {before.op} before it"


def plain_cast(place: Place) -> str | None:
    """Make a Cast of a CastLike whose target type is known."""
    target = place.facts.type(place.node.inputs[1])
    if not target or place.node.attrs.get("saturate", 1) != 1:
        return None
    node, out = place.node, place.node.outputs[0]
    place.view.edit.remove([node])
    place.facts.adopt(place.view.edit.add_node(node, "Cast", [node.inputs[0]], [out], {"to": target}), node)
    return "a plain Cast"


def split_at_once(place: Place) -> str | None:
    """Make one Split of a SplitToSequence whose elements are all taken out at known places."""
    node, view = place.node, place.view
    sizes = _split_sizes(place)
    readers = view.readers(node.outputs[0])
    if sizes is None or view.is_output(node.outputs[0]) or not readers or place.opset < 13:
        return None
    graph = view.edit.graph_of(node)
    taken: dict[int, list[gs.Node]] = {}
    for reader in readers:
        position = integers(place.facts.value(reader.inputs[1])) if reader.op == "SequenceAt" else None
        if position is None or len(position) != 1 or not -len(sizes) <= position[0] < len(sizes):
            return None
        if view.edit.graph_of(reader) is not graph:
            return None
        taken.setdefault(position[0] % len(sizes), []).append(reader)
    outputs = []
    for index in range(len(sizes)):
        takers = taken.get(index, [])
        given = [taker.outputs[0] for taker in takers if view.is_output(taker.outputs[0])]
        if len(given) > 1:
            return None
        first = (
            given or [taker.outputs[0] for taker in takers] or [view.edit.variable(f"{node.outputs[0].name}_{index}")]
        )[0]
        for taker in takers:
            if taker.outputs[0] is not first:
                view.edit.replace_uses(taker.outputs[0], first)
        outputs.append(first)
    view.edit.remove([node, *readers])
    split = view.edit.constant(f"{node.outputs[0].name}_split", np.asarray(sizes, dtype=np.int64))
    made = view.edit.add_node(node, "Split", [node.inputs[0], split], outputs, {"axis": attribute(node, "axis", 0)})
    place.facts.adopt(made, node)
    return "a plain Split"


def _split_sizes(place: Place) -> list[int] | None:
    """Return the extents of a SplitToSequence's elements along its axis, or None if unknown or if it drops the axis."""
    shape, axis = place.shape(0), attribute(place.node, "axis", 0)
    extent = None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]
    if not place.has(1):
        keeps = attribute(place.node, "keepdims", 1)
        return [1] * extent if keeps and isinstance(extent, int) else None
    value = place.value(1)
    sizes = integers(value)
    if sizes is None or value is None:
        return None
    if value.ndim:
        return sizes
    if not isinstance(extent, int) or sizes[0] <= 0:
        return None
    whole, rest = divmod(extent, sizes[0])
    return [sizes[0]] * whole + ([rest] if rest else [])


def drop_unused_outputs(place: Place) -> str | None:
    """Take the names of optional outputs away that nothing reads."""
    node, view = place.node, place.view
    if node.op in ("BatchNormalization", "Dropout") or len(node.outputs) < 2:
        return None  # there, the number of outputs says whether it trains, or the mask goes with the node
    declared = onnx.defs.get_schema(node.op, place.opset, "").outputs
    unused = [
        index
        for index, out in enumerate(node.outputs)
        if out.name
        and index < len(declared)
        and declared[index].option == onnx.defs.OpSchema.FormalParameterOption.Optional
        and not view.readers(out)
        and not view.is_output(out)
    ]
    named = [index for index, out in enumerate(node.outputs) if out.name]
    if not unused or len(unused) == len(named):
        return None
    for index in unused:
        view.edit.set_output(node, index, gs.Variable.empty())
    trim(node.outputs)
    return f"{len(unused)} unused outputs"


def tidy_recurrent(place: Place) -> str | None:
    """Leave out initial states of zeros and unused outputs of LSTM, GRU and RNN."""
    told = drop_zero_states(place)
    dropped = drop_unused_outputs(place)
    return dropped if told is None else told


def drop_zero_states(place: Place) -> str | None:
    """Leave out initial states of zeros, from which recurrent operators start by default."""
    node, view = place.node, place.view
    zeros = [slot for slot in (5, 6) if place.has(slot) and _is_zeros(place, node.inputs[slot])]
    for slot in zeros:
        view.edit.set_input(node, slot, gs.Variable.empty())
    if not zeros:
        return None
    trim(node.inputs)
    return "starts from zeros by itself"


def _is_zeros(place: Place, tensor: gs.Tensor) -> bool:
    """Whether every element of ``tensor`` is 0.0, also where its extents are not known."""
    while (node := place.view.producer(tensor, *_SPREADS)) is not None:
        tensor = node.inputs[0]
    filler = place.view.producer(tensor, "ConstantOfShape")
    if filler is None:
        values = place.view.array(tensor)
    else:
        stored = filler.attrs.get("value")
        values = read_values(stored) if isinstance(stored, gs.Constant) else np.zeros(1) if stored is None else None
    return values is not None and bool((values == 0).all())


_SPREADS = ("Slice", "Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Tile", "Identity")

MERGES: dict[str, Rule] = {
    "Transpose": merge_transposes,
    **dict.fromkeys(RESHAPES, merge_reshapes),
    "CastLike": plain_cast,
    "SplitToSequence": split_at_once,
    "If": inline_branch,
    "Loop": simplify_loop,
    "Concat": merge_concats,
    "Slice": merge_slices,
    "Split": slice_of_split,
    "Mul": merge_scalings,
    "Add": gemm_of_matmul,
    **dict.fromkeys(("MaxPool", "LayerNormalization", "Unique"), drop_unused_outputs),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), tidy_recurrent),
}
"""For each operator, what can be made of it; a rule returns what it has done, or None if it has done nothing."""

FOREIGN: dict[tuple[str, str], Rule] = {("com.microsoft", "DynamicQuantizeLSTM"): drop_zero_states}
"""The same for operators of other domains."""


def rule_of(node: gs.Node) -> Rule | None:
    """Return what can be made of a node, whatever domain it is of."""
    if node.domain in (None, "", "ai.onnx"):
        return MERGES.get(node.op)
    return FOREIGN.get((str(node.domain), str(node.op)))
