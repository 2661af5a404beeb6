"""Copies parameters from one model into another: by name, by place in the graph, or by a given mapping."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import OptionError
from graphopt.graph.layers import Layer, find_layers
from graphopt.graph.matching import Method, Pairs, Use, match, uses_by_tensor
from graphopt.graph.parameters import Array, DefaultsView, read, write, write_own
from graphopt.graph.view import GraphView
from graphopt.graph.weights import is_float, is_stored
from graphopt.model import Model
from graphopt.result import Rewritten, Skip, Skipped


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
      possible are of one kind and shape;
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
    tensors = uses_by_tensor(ours)
    _require_known(only, [uses[0].parameter.name for uses in tensors])
    pairs = match(theirs, ours, method, mapping)
    copying = _Copying(view, origin, method, slices, only)
    for uses in tensors:
        copying.fill(uses, pairs)
    view.edit.settle()
    left = [uses[0].parameter for uses in uses_by_tensor(theirs)]
    left = [parameter for parameter in left if is_stored(origin, parameter.chain[0])]
    unused = tuple(parameter.name for parameter in left if id(parameter.chain[0]) not in copying.used)
    return result, Transferred(tuple(copying.copied), tuple(copying.skipped), unused)


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


def _require_known(only: tuple[str, ...], names: list[str]) -> None:
    """Raise OptionError if a pattern matches nothing."""
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise OptionError(f"the target has no parameter {pattern!r}")


@dataclass
class _Copying:
    """One transfer at work."""

    view: GraphView
    origin: GraphView
    method: Method
    slices: bool
    only: tuple[str, ...]
    copied: list[Rewritten] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    used: set[int] = field(default_factory=set)

    def fill(self, uses: list[Use], pairs: Pairs) -> None:
        """Copy into one tensor of the target: once for all of its uses if one of the source serves them all."""
        none = Skip(f"the source has nothing that matches by {self.method}")
        found = [pairs.get(id(use.parameter), none) for use in uses]
        roots = {id(each.parameter.chain[0]) if isinstance(each, Use) else None for each in found}
        shared, name = len(roots) == 1, uses[0].parameter.name
        for use, each in list(zip(uses, found, strict=True))[: 1 if shared else None]:
            site = self.view.site(use.parameter.node)
            try:
                detail = self._copy(use, each, shared)
                self.copied.append(Rewritten(name, detail if shared else f"{detail}, for {site!r} alone"))
            except Skip as reason:
                self.skipped.append(Skipped(name, str(reason) if shared else f"{reason} (in {site!r})"))

    def _copy(self, use: Use, found: Use | Skip, shared: bool) -> str:
        """Copy one parameter; return where it came from.

        Raises:
            Skip: It keeps what it has.
        """
        name = use.parameter.name
        if self.only and not any(fnmatchcase(name, pattern) for pattern in self.only):
            raise Skip("is not among those asked for")
        if isinstance(found, Skip):
            raise found
        if self.method != "mapping":
            _require_alike(self.view, use.layer, self.origin, found.layer)
        part, detail = _part(use, self.origin, found, self.slices, strict=self.method == "mapping")
        (write if shared else write_own)(self.view, use.parameter, part)
        self.used.add(id(found.parameter.chain[0]))
        return detail


def _part(use: Use, origin: GraphView, found: Use, slices: bool, strict: bool) -> tuple[Array, str]:
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
