"""Which parameter of one model answers to which of another: by name, by place in the graph, or by a given mapping."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from graphopt.errors import OptionError
from graphopt.graph.layers import Layer
from graphopt.graph.parameters import Parameter
from graphopt.result import Skip

Method = Literal["name", "structure", "mapping"]

_SAME, _SLICE, _OTHER = 6, 4, 3
"""What it is worth to align two layers: of equal shape, one wider than the other, or neither."""


@dataclass(frozen=True, eq=False)
class Use:
    """A parameter with the layer that it belongs to."""

    layer: Layer
    parameter: Parameter

    @property
    def what(self) -> str:
        """What it is, in words: two that are to match by name have this in common."""
        kind = str(self.layer.kind[0])
        return f"the {self.parameter.role} of a {'Gemm or MatMul' if kind == 'linear' else kind}"


Pairs = dict[int, Use | Skip]
"""What answers to a parameter, by its identity; or why nothing does."""


def match(theirs: list[Layer], ours: list[Layer], method: Method, mapping: Mapping[str, str] | None) -> Pairs:
    """Return what answers to each of our parameters; those that are not in it have no answer.

    Args:
        theirs: The layers of the one model, in the order of its data.
        ours: Those of the other.
        method: ``name``: the same name of the stored tensor, and the same part of the same kind of layer;
            ``structure``: the same place, both orders being aligned so that as many layers as possible are of one kind
            and shape (Needleman and Wunsch 1970); ``mapping``: as ``mapping`` says.
        mapping: Our names, or patterns with one ``*``, to theirs.

    Raises:
        OptionError: The mapping is missing, or names what is not there.
    """
    if method == "structure":
        return _by_structure(theirs, ours)
    source, target = ([use for uses in uses_by_tensor(layers) for use in uses] for layers in (theirs, ours))
    return _by_name(source, target) if method == "name" else _by_mapping(source, target, mapping)


def uses_by_tensor(layers: Iterable[Layer]) -> list[list[Use]]:
    """Return the uses of each stored tensor, tensors in order of first use."""
    found: dict[int, list[Use]] = {}
    for layer in layers:
        for parameter in layer.parameters:
            found.setdefault(id(parameter.chain[0]), []).append(Use(layer, parameter))
    return list(found.values())


def _named(uses: list[Use]) -> dict[str, list[Use]]:
    """Return uses by each of their tensor's names, the stored one first."""
    found: dict[str, list[Use]] = {}
    for depth in range(max((len(use.parameter.names) for use in uses), default=0)):
        for use in uses:
            for name in use.parameter.names[depth : depth + 1]:
                found.setdefault(name, []).append(use)
    return found


def _by_name(theirs: list[Use], ours: list[Use]) -> Pairs:
    """Match parameters of the same name and part."""
    named = _named(theirs)
    pairs: Pairs = {}
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


def _by_mapping(theirs: list[Use], ours: list[Use], mapping: Mapping[str, str] | None) -> Pairs:
    """Match by a mapping of target names or patterns; where several entries fit, the last one counts.

    Raises:
        OptionError: There is none, or an entry names what is not there.
    """
    if not mapping:
        raise OptionError("a mapping of target names to source names is needed")
    named = _named(theirs)
    pairs: Pairs = {}
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


def _by_structure(theirs: list[Layer], ours: list[Layer]) -> Pairs:
    """Match layers in order, aligned so that their likeness is largest in sum."""
    worth = [[_likeness(left, right) for right in ours] for left in theirs]
    best = [[0] * (len(ours) + 1) for _ in range(len(theirs) + 1)]
    for i in range(len(theirs) - 1, -1, -1):
        row, below, alike = best[i], best[i + 1], worth[i]
        for j in range(len(ours) - 1, -1, -1):
            best_without = max(below[j], row[j + 1])
            row[j] = max(best_without, alike[j] + below[j + 1]) if alike[j] else best_without
    pairs: Pairs = {}
    i = j = 0
    while i < len(theirs) and j < len(ours):
        if worth[i][j] and best[i][j] == worth[i][j] + best[i + 1][j + 1]:
            roles = {parameter.role: parameter for parameter in theirs[i].parameters}
            for parameter in ours[j].parameters:
                if parameter.role in roles:
                    pairs[id(parameter)] = Use(theirs[i], roles[parameter.role])
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
