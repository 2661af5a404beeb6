"""Copies parameters from one model into another: by name, by place in the graph, or by a given mapping."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.errors import OptionError
from graphopt.graph.constants import constant_values
from graphopt.graph.edit import cast
from graphopt.graph.view import GraphView
from graphopt.model import Model
from graphopt.result import Rewritten, Skip, Skipped

Method = Literal["name", "structure", "mapping"]

OPERANDS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
    "Gather": (0,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""The input slots in which a node reads parameters; those of Add and Mul count from rank 1 on."""


@dataclass(frozen=True)
class Transferred:
    """What a transfer did: each parameter of the target is in one of the two."""

    copied: tuple[Rewritten, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Parameter:
    """A stored tensor that a node reads as a parameter."""

    node: gs.Node
    slot: int
    values: NDArray[np.generic]

    @property
    def name(self) -> str:
        return str(self.node.inputs[self.slot].name)


def transfer(
    source: Model,
    target: Model,
    *,
    method: Method = "name",
    mapping: Mapping[str, str] | None = None,
    only: tuple[str, ...] = (),
    slices: bool = True,
) -> tuple[Model, Transferred]:
    """Return a copy of ``target`` with parameters of ``source``.

    Three ways to tell which parameter goes where:

    - ``name``: the same name of the stored tensor;
    - ``structure``: the same place, that is the same operator in the same position among all nodes with parameters, as
      long as the two sequences agree; they are aligned at their longest common subsequence of operators and kernels;
    - ``mapping``: target names (or patterns with one ``*``) to source names.

    Where the target is narrower along an axis it gets the first entries, if ``slices`` is on: that is what a narrower
    network of the same family starts from. Where it is wider, nothing is copied.

    Args:
        source: Where parameters come from.
        target: Where they go; it is not changed.
        method: How they are matched.
        mapping: For ``mapping``.
        only: Patterns of target names to copy, such as ``backbone.*``; all if empty.
        slices: Whether a narrower target gets a slice.

    Raises:
        OptionError: The mapping is missing, or names what is not there.
    """
    result = target.copy()
    view, origin = GraphView(result), GraphView(source)
    theirs, ours = list(_parameters(origin)), list(_parameters(view))
    if method == "mapping":
        pairs = _by_mapping(theirs, ours, mapping)
    else:
        pairs = _by_name(theirs, ours) if method == "name" else _by_structure(origin, view)
    copied, skipped = [], []
    for parameter in ours:
        try:
            if only and not any(fnmatchcase(parameter.name, pattern) for pattern in only):
                raise Skip("is not among those asked for")
            found = pairs.get(id(parameter.node), {}).get(parameter.slot)
            if found is None:
                raise Skip(f"the source has nothing that matches by {method}")
            copied.append(Rewritten(parameter.name, _copy(view, parameter, found, slices)))
        except Skip as reason:
            skipped.append(Skipped(parameter.name, str(reason)))
    view.edit.settle()
    return result, Transferred(tuple(copied), tuple(skipped))


def read_mapping(path: str | Path) -> dict[str, str]:
    """Read a mapping from a JSON object: target names to source names.

    Raises:
        OptionError: The file is missing or no such object.
    """
    try:
        read = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise OptionError(f"{path}: is not JSON ({' '.join(str(error).split())})") from error
    if not isinstance(read, dict) or not all(isinstance(value, str) for value in read.values()):
        raise OptionError(f"{path}: must be an object of target names to source names")
    return read


# -- matching ----------------------------------------------------------------------------------------------------------

_Pairs = dict[int, dict[int, _Parameter]]


def _parameters(view: GraphView) -> Iterator[_Parameter]:
    """Yield each stored parameter once, at its first use."""
    seen: set[int] = set()
    for node in view.nodes(*OPERANDS):
        for slot in OPERANDS[node.op]:
            if slot >= len(node.inputs) or node.inputs[slot].is_empty() or id(node.inputs[slot]) in seen:
                continue
            values = constant_values(node.inputs[slot])
            if values is None or (node.op in ("Add", "Mul") and (not values.ndim or values.size < 2)):
                continue
            seen.add(id(node.inputs[slot]))
            yield _Parameter(node, slot, values)


def _pair(pairs: _Pairs, ours: _Parameter, theirs: _Parameter) -> None:
    pairs.setdefault(id(ours.node), {})[ours.slot] = theirs


def _by_name(theirs: list[_Parameter], ours: list[_Parameter]) -> _Pairs:
    """Match parameters of the same name."""
    named = {parameter.name: parameter for parameter in theirs}
    pairs: _Pairs = {}
    for parameter in ours:
        if parameter.name in named:
            _pair(pairs, parameter, named[parameter.name])
    return pairs


def _by_mapping(theirs: list[_Parameter], ours: list[_Parameter], mapping: Mapping[str, str] | None) -> _Pairs:
    """Match by a mapping of target names or patterns.

    Raises:
        OptionError: There is none, or an entry names what is not there.
    """
    if not mapping:
        raise OptionError("a mapping of target names to source names is needed")
    named = {parameter.name: parameter for parameter in theirs}
    pairs: _Pairs = {}
    for key, value in mapping.items():
        head, star, tail = key.partition("*")
        hits = 0
        for parameter in ours:
            name = parameter.name
            if star and len(name) >= len(head) + len(tail) and name.startswith(head) and name.endswith(tail):
                wanted = value.replace("*", name[len(head) : len(name) - len(tail)], 1)
            elif not star and name == key:
                wanted = value
            else:
                continue
            hits += 1
            if wanted in named:
                _pair(pairs, parameter, named[wanted])
            elif not star:
                raise OptionError(f"the source has no parameter {wanted!r}")
        if not hits:
            raise OptionError(f"the target has no parameter {key!r}")
    return pairs


def _by_structure(source: GraphView, target: GraphView) -> _Pairs:
    """Match nodes with parameters in order, aligned at the longest common subsequence of what they are."""
    theirs, ours = (_grouped(view) for view in (source, target))
    left, right = ([_kind(parts) for parts in side] for side in (theirs, ours))
    lengths = np.zeros((len(left) + 1, len(right) + 1), np.int32)
    for i in range(len(left) - 1, -1, -1):
        for j in range(len(right) - 1, -1, -1):
            same = left[i] == right[j]
            lengths[i, j] = lengths[i + 1, j + 1] + 1 if same else max(lengths[i + 1, j], lengths[i, j + 1])
    pairs: _Pairs = {}
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] == right[j]:
            slots = {parameter.slot: parameter for parameter in theirs[i]}
            for parameter in ours[j]:
                if parameter.slot in slots:
                    _pair(pairs, parameter, slots[parameter.slot])
            i, j = i + 1, j + 1
        elif lengths[i + 1, j] >= lengths[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _grouped(view: GraphView) -> list[list[_Parameter]]:
    """Return the parameters node by node."""
    groups: dict[int, list[_Parameter]] = {}
    for parameter in _parameters(view):
        groups.setdefault(id(parameter.node), []).append(parameter)
    return list(groups.values())


def _kind(parameters: list[_Parameter]) -> tuple[Any, ...]:
    """Return what two nodes must have in common to be the same place: operator, kernel, rank, depthwise or not."""
    node, first = parameters[0].node, parameters[0].values
    depthwise = node.op == "Conv" and int(node.attrs.get("group", 1)) > 1
    return node.op, parameters[0].slot, first.ndim, first.shape[2:], depthwise, node.attrs.get("transB", 0)


# -- copying -----------------------------------------------------------------------------------------------------------


def _copy(view: GraphView, parameter: _Parameter, found: _Parameter, slices: bool) -> str:
    """Copy one parameter, sliced if the target is narrower; say what was taken.

    Raises:
        Skip: Type or shape do not allow it.
    """
    tensor, values, wanted = parameter.node.inputs[parameter.slot], found.values, parameter.values.shape
    if view.is_input(tensor):
        raise Skip("can be overridden by the caller")
    if (values.dtype.kind == "f") != (parameter.values.dtype.kind == "f"):
        raise Skip(f"{found.name!r} holds {values.dtype} values, not {parameter.values.dtype}")
    if values.ndim != len(wanted):
        raise Skip(f"{found.name!r} has shape {list(values.shape)}, not {list(wanted)}")
    wider = [axis for axis, (size, has) in enumerate(zip(wanted, values.shape, strict=True)) if size > has]
    if wider or (values.shape != wanted and not slices):
        raise Skip(f"{found.name!r} has shape {list(values.shape)}, not {list(wanted)}")
    if values.ndim > 2 and values.shape[2:] != wanted[2:]:
        raise Skip(f"{found.name!r} has a kernel of {list(values.shape[2:])}, not {list(wanted[2:])}")
    part = values[tuple(slice(size) for size in wanted)]
    if isinstance(tensor, gs.Constant):
        tensor._values = cast(part, parameter.values.dtype, parameter.name)
    else:
        for node in list(view.readers(tensor)):
            for slot in [index for index, read in enumerate(node.inputs) if read is tensor]:
                view.edit.set_values(node, slot, part, dtype=parameter.values.dtype)
    taken = "" if values.shape == wanted else f", {list(wanted)} of {list(values.shape)}"
    return f"from {found.name!r}{taken}"
