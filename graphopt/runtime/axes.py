"""Sizes for the axes of a model's inputs: what is fixed, what a name binds, and what can be told apart."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphopt.model.dimensions import is_placeholder
from graphopt.runtime.plans import Plan, is_image
from graphopt.runtime.roles import Role
from graphopt.runtime.signature import Dim, TensorInfo
from graphopt.runtime.sizes import evaluate_size, is_expression

UNNAMED = "?"
UNNAMED_BATCH = "? batch"
NAMES = "*"
"""Classes of axes that are no names: unnamed axes, unnamed batch axes, and axes with names that differ."""


@dataclass(frozen=True)
class Axis:
    """One dynamic axis.

    Attributes:
        tensor: The input.
        place: Which of its axes.
        rank: The input's rank.
        dim: Its name, an expression in names, or None.
        kind: "batch", "past" (steps in a cache), "total" (the past's and the new), "length" or "expression".
    """

    tensor: str
    place: int
    rank: int
    dim: str | None
    kind: str


class Axes:
    """The dynamic axes of all inputs.

    Axes of one class (equally named ones; unnamed ones) are equally long unless a plan sets them apart. A plan can do
    so for each axis of a class, or, where the class is marked ``@``, for each place in a tensor of each rank.

    Attributes:
        classes: The classes of at least two axes.
    """

    def __init__(self, inputs: Mapping[str, TensorInfo], roles: Mapping[str, Role]) -> None:
        """Read off what kind of axis each is."""
        self._inputs, self._roles = inputs, roles
        self._demanded = self._named_demands()
        self._leading = {info.shape[0] for info in inputs.values() if info.shape and isinstance(info.shape[0], str)}
        caches = any("past" in name.lower() for name in inputs)
        self._axes: dict[tuple[str, int], Axis] = {}
        for name, info in inputs.items():
            for place in range(len(info.shape or ())):
                axis = self._axis(info, place, caches)
                if axis is not None:
                    self._axes[name, place] = axis
        self.has_past = any(axis.kind == "past" or "past" in (axis.dim or "") for axis in self._axes.values())
        members: dict[str, list[Axis]] = defaultdict(list)
        for axis in self._axes.values():
            members[_class(axis)].append(axis)
        members.pop("", None)
        members[NAMES] = list({axis.dim: axis for axis in self._axes.values() if axis.dim and _class(axis)}.values())
        members[NAMES] = [axis for axis in members[NAMES] if axis.kind == "length"]
        self._members = {key: each for key, each in members.items() if len(each) > 1}
        self.classes = tuple(self._members)

    def is_batch(self, key: str) -> bool:
        """Whether the axes of a class are batch axes."""
        return self._members[key][0].kind == "batch"

    def has_ranks(self, key: str) -> bool:
        """Whether axes of a class stand in different places."""
        return key != NAMES and len({(axis.rank, axis.place) for axis in self._members[key]}) > 1

    def sizes(self, info: TensorInfo, plan: Plan) -> list[int]:
        """Return the size of each axis of an input."""
        if info.shape is None:
            return [plan.batch, plan.length]
        sizes = []
        for place, dim in enumerate(info.shape):
            axis = self._axes.get((info.name, place)) or self._axis(info, place, False)
            sizes.append(self._demand(info, place) if axis is None else self._size(axis, plan))
            if axis is not None and len(info.shape) >= 4 and place == len(info.shape) - 1 and axis.kind == "length":
                sizes[-1] += plan.widen
            if isinstance(dim, int):
                sizes[-1] = dim
        return sizes

    def _named_demands(self) -> dict[str, int]:
        """Return the length that weights demand of a named axis, wherever the name stands."""
        demands: dict[str, int] = {}
        for name, info in self._inputs.items():
            for place, length in self._roles[name].axes.items():
                if info.shape is not None and isinstance(dim := info.shape[place], str) and not is_placeholder(dim):
                    demands.setdefault(dim, length)
        return demands

    def _demand(self, info: TensorInfo, place: int) -> int:
        """Return the length that weights demand of an axis; 0 if none."""
        demands = self._roles[info.name].axes if info.name in self._roles else {}
        dim = None if info.shape is None else info.shape[place]
        return demands.get(place, self._demanded.get(dim, 0) if isinstance(dim, str) else 0)

    def _axis(self, info: TensorInfo, place: int, caches: bool) -> Axis | None:
        """Return an axis if its size is free."""
        shape = info.shape or ()
        dim = shape[place]
        if isinstance(dim, int) or self._demand(info, place):
            return None
        if dim is not None and is_placeholder(dim):
            dim = None
        return Axis(info.name, place, len(shape), dim, self._kind(info.name, shape, place, dim, caches))

    def _kind(self, tensor: str, shape: tuple[Dim, ...], place: int, dim: str | None, caches: bool) -> str:
        """Return what an axis counts."""
        name, tensor = (dim or "").lower(), tensor.lower()
        if dim is not None and not dim.isidentifier() and is_expression(dim):
            return "expression"
        if "past" in name:
            return "past"
        if "batch" in name or (dim in self._leading and "seq" not in name and "len" not in name):
            return "batch"
        if dim is None and (place == 0 or (place == 1 and len(shape) == 3 and isinstance(shape[0], int))):
            return "batch"  # place 1: the state of a recurrent layer: directions, batch, hidden
        if place and "past" in tensor:
            return "past"
        alone = dim is None or sum(dim in (each.shape or ()) for each in self._inputs.values()) == 1
        if caches and alone and "mask" in tensor and 0 < place == len(shape) - 1:
            return "total"
        return "length"

    def _size(self, axis: Axis, plan: Plan) -> int:
        """Return the size of a dynamic axis."""
        if axis.kind == "expression":
            text = axis.dim or ""
            return max(
                0, evaluate_size(text, lambda name: plan.length if name == text else self._size_of_name(name, plan))
            )
        key = _class(axis)
        base = _base(axis.kind, plan)
        step = 1 if axis.kind == "batch" else _step(self._inputs.get(axis.tensor), plan)
        members = self._members.get(key, [])
        if plan.apart & {key, f"{key}@"} and members and axis.kind == "batch":
            base = max(base, 2)  # one of size 1 would be broadcast
        if key in plan.apart and axis in members:
            base += step * _index(axis, members, plan)
        elif f"{key}@" in plan.apart and axis in members:
            base += step * _index((axis.rank, axis.place), [(each.rank, each.place) for each in members], plan)
        if NAMES in plan.apart and axis.kind == "length" and axis.dim is not None:
            base += _other_step(step) * _index(axis.dim, [each.dim for each in self._members[NAMES]], plan)
        return base

    def _size_of_name(self, name: str, plan: Plan) -> int:
        """Return the size that a name stands for in an expression."""
        if name in self._demanded:
            return self._demanded[name]
        axis = next((axis for axis in self._axes.values() if axis.dim == name), None)
        if axis is not None:
            return self._size(axis, plan)
        return _base(self._kind("", (), 0, name, False), plan)


def _base(kind: str, plan: Plan) -> int:
    """Return the size of a kind of axes."""
    past = 0 if plan.no_past else plan.length
    return {"batch": plan.batch, "past": past, "total": past + plan.length}.get(kind, plan.length)


def _index(one: object, all_: Iterable[object], plan: Plan) -> int:
    """Return the index of one among all that are different, from the end if the plan says so."""
    different = list(dict.fromkeys(all_))
    index = different.index(one) if one in different else 0
    return len(different) - 1 - index if plan.descending else index


def _class(axis: Axis) -> str:
    """Return what is equally long by default; nothing for sizes that others give."""
    if axis.kind in ("expression", "total"):
        return ""
    if axis.dim is None:
        return UNNAMED_BATCH if axis.kind == "batch" else UNNAMED
    return axis.dim


def _step(info: TensorInfo | None, plan: Plan) -> int:
    """Return by how much the sizes of two axes are to differ."""
    return 32 if info is not None and is_image(info) else max(1, plan.length // 2)


def _other_step(step: int) -> int:
    """Return by how much sizes of different names are to differ, so that few of them meet sizes of one name."""
    return step if step == 32 else step + 1
