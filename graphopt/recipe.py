"""Recipes: a list of passes with their options as a TOML file; reading and writing give back the same passes."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from graphopt.base import Pass
from graphopt.errors import OptionError
from graphopt.options import option_values
from graphopt.registry import create


def read_recipe(path: str | PathLike[str]) -> list[Pass]:
    """Read a recipe file: one ``[[pass]]`` table per pass, with its ``name`` and, in any order, its options.

    A ``[[pass.override]]`` table below it gives other values of options for the ``sites`` that match its patterns.

    Raises:
        OptionError: The file is not a recipe, or a pass or an option in it is unusable.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"recipe {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, label: str = "recipe") -> list[Pass]:
    """Read a recipe from text; ``label`` names it in errors.

    Raises:
        OptionError: The text is not a recipe, or a pass or an option in it is unusable.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{label}: not TOML: {error}") from error
    if unknown := sorted(set(content) - {"pass"}):
        raise OptionError(f"{label}: unknown key {unknown[0]!r}, a recipe holds [[pass]] tables only")
    tables = content.get("pass", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise OptionError(f"{label}: 'pass' must be written as [[pass]] tables")
    if not tables:
        raise OptionError(f"{label}: holds no [[pass]] table")
    passes = []
    for number, table in enumerate(tables, 1):
        if not isinstance(table.get("name"), str):
            raise OptionError(f"{label}: [[pass]] number {number} has no name")
        values = {key.replace("-", "_"): value for key, value in table.items() if key != "name"}
        try:
            passes.append(create(table["name"], **values))
        except OptionError as error:
            raise OptionError(f"{label}: {error}") from error
    return passes


def write_recipe(passes: Sequence[Pass]) -> str:
    """Return the recipe text of these passes: every option that is set, defaults included."""
    tables = []
    for each in passes:
        values = option_values(each)
        overrides: Any = values.pop("override", ())
        tables.append(_table("[[pass]]", {"name": each.name, **values}))
        tables += [_table("[[pass.override]]", own) for own in overrides]
    return "\n".join(tables)


def _table(head: str, values: Mapping[str, Any]) -> str:
    """Write one table; an option that is None is left out, as TOML has no word for it."""
    lines = (f"{name.replace('_', '-')} = {_toml(value)}" for name, value in values.items() if value is not None)
    return "\n".join([head, *lines]) + "\n"


def _toml(value: Any) -> str:
    """Write one value; JSON's booleans, integers, strings and lists are TOML's too, and so are Python's floats."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
