"""The cut itself: planned first, node by node and constant by constant, then applied in one go."""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike, NDArray

from graphopt.graph.channels.facts import Facts, Mask
from graphopt.graph.channels.labels import Labels, Use
from graphopt.graph.channels.storage import is_plain
from graphopt.graph.constants import cast, constant_of
from graphopt.graph.edit import Edit
from graphopt.graph.view import is_op
from graphopt.model.links import trim
from graphopt.result import Skip


class Refusal(Skip):
    """A node cannot follow the cut."""

    def __init__(self, node: gs.Node, reason: str) -> None:
        """Name the node and the reason."""
        super().__init__(reason)
        self.node = node


class Cut:
    """What is to be removed, as the transfer functions see it, and the changes that they plan.

    Nothing is changed before ``apply``; planning may raise Refusal.
    """

    def __init__(self, facts: Facts, labels: Labels, gone: Mask) -> None:
        """Plan the removal of every label for which ``gone`` is True."""
        self.facts, self.labels, self.gone = facts, labels, gone
        self._given: dict[tuple[int, int], tuple[gs.Node, int, NDArray[Any], Any]] = {}
        self._final: set[tuple[int, int]] = set()
        self._steps: list[Callable[[Edit], None]] = []
        self._stored: dict[int, set[int]] | None = None
        self._whole: set[int] = set()

    # -- questions -----------------------------------------------------------------------------------------------------

    def kept(self, tensor: gs.Tensor, axis: int) -> Mask:
        """Return which indices of an axis of a variable stay; the size of the axis must be known."""
        axes, rank = self.labels.variables.get(id(tensor)), self.facts.rank(tensor) or 0
        label = axes[axis % rank] if axes is not None and rank else None
        if label is None or id(tensor) in self._whole:
            return np.ones(self.facts.dim(tensor, axis) or 0, dtype=bool)
        return ~self.gone[label]

    def changes(self, tensor: gs.Tensor) -> dict[int, int]:
        """Return the new size of each axis of a variable that is cut."""
        axes = self.labels.variables.get(id(tensor)) or []
        return {
            axis: int((~self.gone[label]).sum())
            for axis, label in enumerate(axes)
            if label is not None and self.gone[label].any() and id(tensor) not in self._whole
        }

    def stored_changes(self, tensor: gs.Tensor) -> set[int]:
        """Return the axes along which some use of a constant is cut."""
        if self._stored is None:
            self._stored = {}
            for use in self.labels.uses.values():
                axes = {axis for axis, label in use.cuttable().items() if self.gone[label].any()}
                if axes:
                    root = constant_of(use.node.inputs[use.slot])
                    self._stored.setdefault(id(root), set()).update(axes)
        return self._stored.get(id(constant_of(tensor)), set())

    # -- plans ---------------------------------------------------------------------------------------------------------

    def give(self, node: gs.Node, slot: int, values: NDArray[Any], dtype: Any = None, keep: Mask | None = None) -> None:
        """Plan new values, still uncut, for a constant slot; labelled axes are cut after that.

        Args:
            node: The node that reads them.
            slot: The input slot, which may be absent so far.
            values: The values before the cut.
            dtype: The element type; that of what is there if not given.
            keep: What stays along the last axis if the slot has no labels.
        """
        if (id(node), slot) not in self.labels.uses and keep is not None and values.shape[-1] == len(keep):
            values = values[..., keep]
        if dtype is None:
            old = self.facts.array(node.inputs[slot])
            dtype = values.dtype if old is None else old.dtype
        self._given[id(node), slot] = (node, slot, values, dtype)

    def replace(self, node: gs.Node, slot: int, values: NDArray[Any]) -> None:
        """Plan new values for a constant slot, cut already."""
        self._given[id(node), slot] = (node, slot, values, values.dtype)
        self._final.add((id(node), slot))

    def attribute(self, node: gs.Node, name: str, value: Any) -> None:
        """Plan an attribute's new value; None removes it."""
        if value is None:
            self._steps.append(lambda edit: node.attrs.pop(name))
        else:
            self._steps.append(lambda edit: node.attrs.__setitem__(name, value))

    def leave_whole(self, tensor: gs.Tensor) -> None:
        """Say that a tensor keeps its size: what reads it picks from it."""
        self._whole.add(id(tensor))

    def step(self, action: Callable[[Edit], None]) -> None:
        """Plan any other edit."""
        self._steps.append(action)

    def integers(self, node: gs.Node, slot: int, values: ArrayLike, like: gs.Tensor | None = None) -> None:
        """Plan a new integer constant for a slot, of the type of ``like`` (int64 if that is not known)."""
        known = None if like is None else self.facts.values(like)
        array = np.asarray(values, dtype=np.int64 if known is None else known.array.dtype)
        stem = f"{node.outputs[0].name}_sizes"
        self._steps.append(lambda edit: edit.set_input(node, slot, edit.constant(stem, array)))

    def refuse(self, node: gs.Node, reason: str) -> NoReturn:
        """Give the plan up: nothing that touches ``node`` can be cut."""
        raise Refusal(node, reason)

    def resize(self, node: gs.Node, slot: int, copies: bool = False, infers: bool = False) -> None:
        """Plan new sizes in a target shape for the first output.

        Args:
            node: The node that takes the target shape.
            slot: The input slot that it takes it in.
            copies: Whether 0 copies the first input's size.
            infers: Whether one -1 stands for what remains.
        """
        changes = self.changes(node.outputs[0])
        if not changes:
            return
        target = node.inputs[slot]
        values = self.facts.values(target)
        rank = self.facts.rank(node.outputs[0]) or 0
        known = np.zeros(rank, dtype=bool) if values is None else values.known
        sizes = [0] * rank if values is None else [int(size) for size in values.array]
        if len(known) != rank:
            self.refuse(node, f"the target shape {target.name!r} does not fit its output")
        source = self.changes(node.inputs[0]) if copies else {}
        for axis, size in changes.items():
            if not known[axis] or sizes[axis] > 0 or (sizes[axis] == 0 and source.get(axis) != size):
                sizes[axis], known = size, known | (np.arange(rank) == axis)
        if copies and values is not None:
            before, names = self.facts.shape(node.inputs[0]) or (), values.names(self.facts.symbols)
            for axis in np.flatnonzero(~known).tolist():
                if axis < len(before) and names[axis] is not None and before[axis] == names[axis]:
                    sizes[axis], known = 0, known | (np.arange(rank) == axis)
        open_axes = np.flatnonzero(~known)
        if len(open_axes) == 0 or (len(open_axes) == 1 and -1 not in np.array(sizes)[known] and infers):
            self.integers(node, slot, [size if known[axis] else -1 for axis, size in enumerate(sizes)])
            return
        mask = np.isin(np.arange(rank), list(changes))
        self.overwrite(node, slot, mask, np.where(mask, sizes, 0))

    def overwrite(self, node: gs.Node, slot: int, mask: Mask, values: NDArray[Any]) -> None:
        """Plan a Where that overwrites some elements of a computed shape."""
        if self.facts.view.opset < 9:
            self.refuse(node, f"{node.inputs[slot].name!r} is computed, and opset {self.facts.view.opset} has no Where")
        target = node.inputs[slot]
        array = np.asarray(values, dtype=np.int64)

        def put(edit: Edit) -> None:
            constants = [edit.constant(f"{target.name}_{stem}", a) for stem, a in (("mask", mask), ("sizes", array))]
            edit.set_input(node, slot, edit.add_node(node, "Where", [*constants, target]).outputs[0])

        self._steps.append(put)

    # -- applying ------------------------------------------------------------------------------------------------------

    def apply(self, edit: Edit) -> None:
        """Plan the constants, then change the graph.

        Raises:
            Refusal: A folded value overflows its type; nothing has been changed then.
        """
        constants = self._constants()
        made: dict[tuple[Any, ...], gs.Constant] = {}
        for node, slot, array, key in constants:
            if slot == 2 and is_op(node, "Conv", "ConvTranspose") and _is_idle(node, array):
                edit.set_input(node, 2, gs.Variable.empty())
                trim(node.inputs)
            elif key in made:
                edit.set_input(node, slot, made[key])
            elif (stored := self._cast_from(node, slot, array, edit)) is not None:
                edit.set_input(node, slot, stored.outputs[0])
                edit.set_values(stored, 0, array, dtype=array.dtype)
                made[key] = node.inputs[slot]
            else:
                edit.set_values(node, slot, array, dtype=array.dtype)
                made[key] = node.inputs[slot]
        for action in self._steps:
            action(edit)
        for tensor in self.labels.tensors.values():
            changes = self.changes(tensor)
            if changes and tensor.shape is not None and len(tensor.shape) == len(self.labels.variables[id(tensor)]):
                tensor.shape = [changes.get(axis, size) for axis, size in enumerate(tensor.shape)]

    def _read(self, node: gs.Node, slot: int) -> NDArray[Any] | None:
        """Return what a slot takes, before a Cast from integers."""
        narrow = self._narrow(node, slot)
        return self.facts.array(node.inputs[slot] if narrow is None else narrow)

    def _cast_from(self, node: gs.Node, slot: int, array: NDArray[Any], edit: Edit) -> gs.Node | None:
        """Return a Cast of its own for a slot that takes what is cast from integers, which is what ``array`` holds."""
        stored = self._narrow(node, slot)
        if stored is None or array.dtype != stored.dtype:
            return None
        cast = self.facts.view.producer(node.inputs[slot])
        assert cast is not None
        if len(self.facts.view.readers(cast.outputs[0])) == 1:
            return cast
        return edit.add_node(cast, "Cast", [stored], attrs=dict(cast.attrs))

    def _narrow(self, node: gs.Node, slot: int) -> gs.Tensor | None:
        """Return the integers that a slot takes cast to floats: they are cut, not what they are cast to."""
        cast = self.facts.view.producer(node.inputs[slot], "Cast") if slot < len(node.inputs) else None
        if cast is None or not self.facts.is_constant(cast.inputs[0]) or constant_of(cast.inputs[0]) is None:
            return None
        return cast.inputs[0] if self.facts.kind(cast.inputs[0]) in "iuV" else None

    def _constants(self) -> list[tuple[gs.Node, int, NDArray[Any], tuple[Any, ...]]]:
        """Return every slot that gets a new constant, with a key that equal constants have in common."""
        found = []
        slots: dict[tuple[int, int], tuple[gs.Node, int, Use | None]] = {
            key: (given[0], given[1], self.labels.uses.get(key)) for key, given in self._given.items()
        }
        slots |= {key: (use.node, use.slot, use) for key, use in self.labels.uses.items()}
        for place, (node, slot, use) in slots.items():
            key: tuple[Any, ...] = place
            masks = {axis: ~self.gone[label] for axis, label in use.cuttable().items()} if use is not None else {}
            masks = {axis: mask for axis, mask in masks.items() if not mask.all()}
            given = self._given.get(place)
            if given is None and not masks:
                continue
            array = self._read(node, slot) if given is None else given[2]
            if array is None:
                self.refuse(node, f"{node.inputs[slot].name!r} cannot be read")
            dtype = array.dtype if given is None else given[3]
            if place not in self._final:
                for axis, mask in masks.items():
                    array = np.compress(mask, array, axis=axis)
            if given is None:
                root = constant_of(node.inputs[slot]) or node.inputs[slot]
                key = (id(root), *((axis, mask.tobytes()) for axis, mask in sorted(masks.items())))
                if is_plain(node.inputs[slot], self.facts):  # such as biases of nought that many layers share
                    key = (id(root), array.shape)
            else:
                try:
                    array = cast(array, dtype, str(node.outputs[0].name))
                except Skip as overflow:
                    self.refuse(node, str(overflow))
            found.append((node, slot, array, key))
        return found


def _is_idle(node: gs.Node, bias: NDArray[Any]) -> bool:
    """Whether a bias is of noughts that the model computes, as some exporters have it, so that none need be stored."""
    return not bias.any() and len(node.inputs) > 2 and bool(node.inputs[2].name) and constant_of(node.inputs[2]) is None
