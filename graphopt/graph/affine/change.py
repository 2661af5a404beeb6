"""Changes that are agreed on before any is made, so that a refusal leaves the graph as it was."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.affine.algebra import Array
from graphopt.graph.affine.extent import element_type
from graphopt.graph.constants import cast
from graphopt.graph.view import GraphView
from graphopt.result import Skip

_BLOCK = 1 << 15

_INVISIBLE = float(np.finfo(np.float32).tiny)
_FRACTION_BITS = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}


@dataclass(frozen=True)
class Change:
    """One change that was agreed on.

    Attributes:
        make: Makes it.
        adds: How many nodes it adds.
        copies: Bytes of weights that it stores again, as others read them too.
    """

    make: Callable[[], None]
    adds: int = 0
    copies: int = 0


def assign(view: GraphView, node: gs.Node, values: Mapping[int, Array], like: int = 1) -> Change:
    """Agree on new constants for some slots of ``node``, cast once to the type of what is in slot ``like``.

    Raises:
        Skip: The type cannot carry the values, or the user leaves the node out.
    """
    view.require_chosen(node)
    kind = element_type(view, node.inputs[like])
    narrow = {slot: carry(array, kind, _slot_name(node, slot)) for slot, array in values.items()}

    def make() -> None:
        for slot, array in narrow.items():
            old = node.inputs[slot] if slot < len(node.inputs) else None
            if isinstance(old, gs.Constant):
                view.edit.set_values(node, slot, array, dtype=array.dtype)
            else:
                stem = str(old.name) if old is not None and old.name else f"{node.outputs[0].name}_bias"
                view.edit.set_input(
                    node, slot, _shared_bias(view, node, slot, array) or view.edit.constant(stem, array)
                )

    shared = (array.nbytes for slot, array in narrow.items() if _is_shared(view, node, slot))
    return Change(make, copies=sum(shared))


def _is_shared(view: GraphView, node: gs.Node, slot: int) -> bool:
    """Whether something else reads the constant in a slot too, or what it is computed from."""
    tensor = node.inputs[slot] if slot < len(node.inputs) else None
    while tensor is not None and tensor.name:
        if len(view.readers(tensor)) > 1 or view.is_output(tensor):
            return True
        before = view.producer(tensor)
        tensor = before.inputs[0] if before is not None and before.inputs else None
    return False


def together(*changes: Change) -> Change:
    """Join changes into one."""

    def make() -> None:
        for change in changes:
            change.make()

    return Change(make, sum(change.adds for change in changes), sum(change.copies for change in changes))


def _shared_bias(view: GraphView, node: gs.Node, slot: int, array: NDArray[Any]) -> gs.Tensor | None:
    """Return the equal constant that a layer with the same weight has in this slot."""
    for other in view.readers(node.inputs[1]) if slot > 1 else []:
        if other is not node and len(other.inputs) > slot and view.edit.graph_of(other) is view.edit.graph_of(node):
            values = view.array(other.inputs[slot])
            if values is not None and values.dtype == array.dtype and np.array_equal(values, array):
                return other.inputs[slot]
    return None


def remove(view: GraphView, node: gs.Node, operand: gs.Tensor) -> Change:
    """Agree on removing a node whose map goes elsewhere; what read its output then reads ``operand``'s slot.

    Raises:
        Skip: The user leaves the node out.
    """
    view.require_chosen(node)
    swapped = node.inputs[0] is not operand

    def make() -> None:
        if swapped:
            first, second = node.inputs
            view.edit.set_input(node, 0, second)
            view.edit.set_input(node, 1, first)
        view.edit.bypass(node)

    return Change(make, -1)


def carry(values: Array, kind: "np.dtype[Any]", name: str) -> NDArray[Any]:
    """Cast to a tensor's own type.

    Raises:
        Skip: A value overflows, or the largest are so small that the type loses their digits.
    """
    narrow = np.empty(values.shape, kind)
    wide, cut = values.reshape(-1), narrow.reshape(-1)
    peak = lost = 0.0
    for start in range(0, wide.size, _BLOCK):  # so long a piece stays in the cache
        piece, block = wide[start : start + _BLOCK], cut[start : start + _BLOCK]
        largest = _peak(piece)
        if not np.isfinite(largest):
            raise Skip(f"{name!r} would overflow")
        block[:] = cast(piece, kind, name)
        block += kind.type(0)  # makes a negative zero positive
        peak, lost = max(peak, largest), max(lost, _peak(piece - block.astype(np.float64)))
    if lost > max(peak * 2.0 ** -_FRACTION_BITS.get(kind.name, 7), _INVISIBLE):
        raise Skip(f"{name!r} would underflow {kind.name}")
    return narrow


def _peak(values: Array) -> float:
    """Return the largest magnitude, NaN if there is one; of at least one value."""
    return float(np.maximum(values.max(), -values.min()))


def _slot_name(node: gs.Node, slot: int) -> str:
    name = node.inputs[slot].name if slot < len(node.inputs) else ""
    return str(name or f"bias of {node.outputs[0].name}")
