"""Finds passes, ours and third parties' alike, through the entry point group ``graphopt.passes``."""

import difflib
import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from graphopt.base import Pass
from graphopt.errors import OptionError
from graphopt.options import check_declaration, options

GROUP = "graphopt.passes"


@functools.cache  # it looks through every installed package
def discover() -> Mapping[str, EntryPoint]:
    """Return the entry point of every installed pass by its name, without importing any of them."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return MappingProxyType({point.name: point for point in points})


def load(name: str) -> type[Pass]:
    """Import the class of one pass.

    Raises:
        OptionError: No such pass is installed, or its package cannot be imported.
    """
    points = discover()
    if not isinstance(name, str):
        raise OptionError(f"{name!r} is not the name of a pass")
    if name not in points:
        near = difflib.get_close_matches(name, points, 1)
        hint = f", did you mean {near[0]!r}?" if near else f" (installed: {', '.join(points)})"
        raise OptionError(f"unknown pass {name!r}{hint}; a newly added pass needs its package installed again")
    try:
        kind = points[name].load()
    except Exception as error:  # a third party's module may fail in any way
        raise OptionError(f"pass {name!r} cannot be imported from {points[name].value}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Pass)):
        raise OptionError(f"pass {name!r}: {points[name].value} is not a subclass of graphopt.Pass")
    try:
        check_declaration(kind)
    except Exception as error:  # its type hints may name what cannot be imported
        raise OptionError(f"pass {name!r}: {points[name].value} cannot be used: {error}") from error
    if kind.name != name:
        raise OptionError(f"pass {name!r}: {points[name].value} has another name, {kind.name!r}; both must be the same")
    return kind


def create(name: str, **values: Any) -> Pass:
    """Create a pass by name with its options as keywords.

    Raises:
        OptionError: The name or an option is unknown, or an option's value is unusable.
    """
    kind = load(name)
    known = [field.name for field, _ in options(kind)]
    for key in values:
        if key not in known:
            raise OptionError(f"{name}: unknown option {key!r} (options: {', '.join(known) or 'none'})")
    try:
        return kind(**values)
    except OptionError:
        raise
    except Exception as error:  # a third party's check may fail in any way
        raise OptionError(f"{name}: cannot be created: {type(error).__name__}: {error}") from error
