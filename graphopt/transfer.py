"""Copies parameters from one model into another: by name, by place in the graph, or by a given mapping."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np

from graphopt.errors import OptionError
from graphopt.graph.layers import Layer, find_layers
from graphopt.graph.parameters import Array, DefaultsView, Parameter, read, write, write_own
from graphopt.graph.view import GraphView
from graphopt.graph.weights import is_float, is_stored
from graphopt.model import Model
from graphopt.result import Rewritten, Skip, Skipped

Method = Literal["name", "structure", "mapping"]

_SAME, _SLICE, _OTHER = 6, 4, 3
"""What it is worth to align two layers: of equal shape, one wider than the other, or neither."""


@dataclass(frozen=True)
class Transferred:
    """What a transfer did: each parameter of the target is in one of the first two.

    Attributes:
        copied: Target parameters that got values, with where from.
        skipped: Those that kept theirs, with the reason.
        unused: Parameters of the source that went nowhere.
    """

    copied: tuple[Rewritten, ...]
    skipped: tuple[Skipped, ...]
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Use:
    """A parameter with the layer that it belongs to."""

    layer: Layer
    parameter: Parameter

    @property
    def what(self) -> str:
        """What it is, in words: two that are to match by name have this in common."""
        kind = str(self.layer.kind[0])
        return f"the {self.parameter.role} of a {'Gemm or MatMul' if kind == 'linear' else kind}"


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

    - ``name``: the same name of the stored tensor, and the same part of the same kind of layer;
    - ``structure``: the same place: the layers of both graphs, in the order of the data, are aligned so that as many as
      possible are of one kind and shape (Needleman and Wunsch 1970);
    - ``mapping``: target names (or patterns with one ``*``) to source names.

    It does not matter how an exporter has stored them: transposed, behind a Cast, in a Constant node, as the bias of a
    Gemm or in an Add behind a MatMul. A quantized source gives what its levels stand for; a quantized target keeps its
    own. Values are cast to the type of the target.

    Layers that share a tensor in the target go on sharing it if the source has one for all of them; otherwise each gets
    its own. Where the target is narrower along an axis it gets the first entries (of each gate), if ``slices`` is on:
    that is what a narrower network of the same family starts from. Where it is wider, nothing is copied.

    Args:
        source: Where parameters come from.
        target: Where they go; it is not changed.
        method: How they are matched.
        mapping: For ``mapping``.
        only: Patterns of target names to copy, such as ``backbone.*``; all if empty.
        slices: Whether a narrower target gets a slice.

    Raises:
        OptionError: The mapping is missing, or it or ``only`` names what is not there.
    """
    result = target.copy()
    view, origin = DefaultsView(result), DefaultsView(source)
    theirs, ours = find_layers(origin), find_layers(view)
    uses = _by_tensor(ours)
    _require_known(only, [tensor[0].parameter.name for tensor in uses])
    if method == "structure":
        pairs = _by_structure(theirs, ours)
    else:
        given = [use for tensor in uses for use in tensor], [use for tensor in _by_tensor(theirs) for use in tensor]
        pairs = _by_name(given[1], given[0]) if method == "name" else _by_mapping(given[1], given[0], mapping)
    copied, skipped, used = [], [], set()
    for tensor in uses:
        name = tensor[0].parameter.name
        found = [
            pairs.get(id(use.parameter), Skip(f"the source has nothing that matches by {method}")) for use in tensor
        ]
        roots = {id(each.parameter.chain[0]) if isinstance(each, _Use) else None for each in found}
        shared = len(roots) == 1
        for use, each in list(zip(tensor, found, strict=True))[: 1 if shared else None]:
            try:
                if only and not any(fnmatchcase(name, pattern) for pattern in only):
                    raise Skip("is not among those asked for")
                if isinstance(each, Skip):
                    raise each
                if method != "mapping":
                    _require_alike(view, use.layer, origin, each.layer)
                part, detail = _part(use, origin, each, slices, strict=method == "mapping")
                (write if shared else write_own)(view, use.parameter, part)
                where = "" if shared else f", for {view.site(use.parameter.node)!r} alone"
                copied.append(Rewritten(name, detail + where))
                used.add(id(each.parameter.chain[0]))
            except Skip as reason:
                where = "" if shared else f" (in {view.site(use.parameter.node)!r})"
                skipped.append(Skipped(name, f"{reason}{where}"))
    view.edit.settle()
    left = [tensor[0].parameter for tensor in _by_tensor(theirs) if is_stored(origin, tensor[0].parameter.chain[0])]
    unused = tuple(parameter.name for parameter in left if id(parameter.chain[0]) not in used)
    return result, Transferred(tuple(copied), tuple(skipped), unused)


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

_Pairs = dict[int, "_Use | Skip"]
"""What goes into a target's parameter, by its identity; or why nothing does."""


def _by_tensor(layers: Iterable[Layer]) -> list[list[_Use]]:
    """Return the uses of each stored tensor."""
    found: dict[int, list[_Use]] = {}
    for layer in layers:
        for parameter in layer.parameters:
            found.setdefault(id(parameter.chain[0]), []).append(_Use(layer, parameter))
    return list(found.values())


def _require_known(only: tuple[str, ...], names: list[str]) -> None:
    """Raise OptionError if a pattern matches nothing."""
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise OptionError(f"the target has no parameter {pattern!r}")


def _named(uses: list[_Use]) -> dict[str, list[_Use]]:
    """Return uses by each of their tensor's names, the stored one first."""
    found: dict[str, list[_Use]] = {}
    for depth in range(max((len(use.parameter.names) for use in uses), default=0)):
        for use in uses:
            for name in use.parameter.names[depth : depth + 1]:
                found.setdefault(name, []).append(use)
    return found


def _by_name(theirs: list[_Use], ours: list[_Use]) -> _Pairs:
    """Match parameters of the same name and part."""
    named = _named(theirs)
    pairs: _Pairs = {}
    for use in ours:
        found = [each for name in use.parameter.names for each in named.get(name, ())]
        alike = next((each for each in found if each.what == use.what), None)
        if alike is not None:
            pairs[id(use.parameter)] = alike
        elif found:
            pairs[id(use.parameter)] = Skip(
                f"{found[0].parameter.name!r} is {found[0].what} in the source, here {use.what}"
            )
    return pairs


def _by_mapping(theirs: list[_Use], ours: list[_Use], mapping: Mapping[str, str] | None) -> _Pairs:
    """Match by a mapping of target names or patterns; where several entries fit, the last one counts.

    Raises:
        OptionError: There is none, or an entry names what is not there.
    """
    if not mapping:
        raise OptionError("a mapping of target names to source names is needed")
    named = _named(theirs)
    pairs: _Pairs = {}
    for key, value in mapping.items():
        head, star, tail = key.partition("*")
        hits = 0
        for use in ours:
            name = use.parameter.name
            if star and len(name) >= len(head) + len(tail) and name.startswith(head) and name.endswith(tail):
                wanted = value.replace("*", name[len(head) : len(name) - len(tail)], 1)
            elif not star and name == key:
                wanted = value
            else:
                continue
            hits += 1
            found = named.get(wanted, ())
            if not found and not star:
                raise OptionError(f"the source has no parameter {wanted!r}")
            alike = next((each for each in found if each.what == use.what), next(iter(found), None))
            pairs[id(use.parameter)] = alike or Skip(f"the source has no parameter {wanted!r}")
        if not hits:
            raise OptionError(f"the target has no parameter {key!r}")
    return pairs


def _by_structure(theirs: list[Layer], ours: list[Layer]) -> _Pairs:
    """Match layers in order, aligned so that their likeness is largest in sum."""
    worth = [[_likeness(left, right) for right in ours] for left in theirs]
    best = [[0] * (len(ours) + 1) for _ in range(len(theirs) + 1)]
    for i in range(len(theirs) - 1, -1, -1):
        row, below, alike = best[i], best[i + 1], worth[i]
        for j in range(len(ours) - 1, -1, -1):
            best_without = max(below[j], row[j + 1])
            row[j] = max(best_without, alike[j] + below[j + 1]) if alike[j] else best_without
    pairs: _Pairs = {}
    i = j = 0
    while i < len(theirs) and j < len(ours):
        if worth[i][j] and best[i][j] == worth[i][j] + best[i + 1][j + 1]:
            roles = {parameter.role: parameter for parameter in theirs[i].parameters}
            for parameter in ours[j].parameters:
                if parameter.role in roles:
                    pairs[id(parameter)] = _Use(theirs[i], roles[parameter.role])
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs


def _likeness(theirs: Layer, ours: Layer) -> int:
    """Return what it is worth to align two layers, 0 if they are of different kinds."""
    if theirs.kind != ours.kind:
        return 0
    left, right = theirs.parameters[0].shape, ours.parameters[0].shape
    if left == right:
        return _SAME
    return _SLICE if all(has >= wanted for has, wanted in zip(left, right, strict=False)) else _OTHER


# -- copying -----------------------------------------------------------------------------------------------------------


def _part(use: _Use, origin: GraphView, found: _Use, slices: bool, strict: bool) -> tuple[Array, str]:
    """Return what one parameter gets, a slice if the target is narrower, and what to say of it.

    Raises:
        Skip: Type, shape or values do not allow it.
    """
    ours, theirs = use.parameter, found.parameter
    has, wanted = theirs.shape, ours.shape
    differ = f"{theirs.name!r} has shape {list(has)}, not {list(wanted)}"
    values = read(origin, theirs)
    if not is_float(values.dtype):
        raise Skip(f"{theirs.name!r} holds {values.dtype} values")
    if len(has) != len(wanted) or any(size > room for size, room in zip(wanted, has, strict=True)):
        raise Skip(differ)
    narrower = [axis for axis, size in enumerate(wanted) if size < has[axis]]
    if narrower and len(wanted) > 2 and has[2:] != wanted[2:] and use.layer.kind[0] in ("Conv", "ConvTranspose"):
        raise Skip(f"{theirs.name!r} has a kernel of {list(has[2:])}, not {list(wanted[2:])}")
    if narrower and (not slices or (strict and use.what != found.what)):
        raise Skip(differ)
    if not set(narrower) <= set(ours.free):
        raise Skip(f"{differ}, and cannot be sliced" + (" in groups" if "Conv" in str(use.layer.kind[0]) else ""))
    part = values[tuple(slice(size) for size in wanted)]
    if not np.isfinite(part.astype(np.float64)).all():
        raise Skip(f"{theirs.name!r} holds NaN or Inf")
    taken = f", {list(wanted)} of {list(has)}" if narrower else ""
    return part, f"from {theirs.name!r}{taken}" + (", transposed" if ours.turned != theirs.turned else "")


def _require_alike(view: GraphView, ours: Layer, origin: GraphView, theirs: Layer) -> None:
    """Raise Skip if only one of two layers is followed by a BatchNormalization: weights are of no use without it."""
    here, there = _normalization(view, ours), _normalization(origin, theirs)
    if there and not here:
        raise Skip(f"only in the source BatchNormalization {there!r} follows: fold-batchnorm the source first")
    if here and not there:
        raise Skip(f"only in the target BatchNormalization {here!r} follows: fold-batchnorm the target first")


def _normalization(view: GraphView, layer: Layer) -> str | None:
    """Return the site of the BatchNormalization that alone reads a layer's output."""
    readers: list[Any] = view.readers(layer.node.outputs[0])
    known = len(readers) == 1 and readers[0].op == "BatchNormalization"
    return view.site(readers[0]) if known else None
