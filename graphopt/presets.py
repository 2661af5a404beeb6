"""Presets: named lists of passes, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt.base import Pass
from graphopt.errors import OptionError
from graphopt.registry import create


@dataclass(frozen=True)
class Preset:
    """Names of passes, how many of them are repeated until nothing changes, and options that differ from the defaults.

    Attributes:
        passes: The names, in order.
        repeated: How many, from the first on, are repeated; those behind them run once.
        options: For a name, values for options.
    """

    passes: tuple[str, ...]
    repeated: int
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_CLEAN = (
    "inline-functions",
    "fold-constants",
    "fuse-operators",
    "eliminate-noops",
    "fold-batchnorm",
    "fold-affine",
    "merge-duplicates",
    "fuse-pads",
    "eliminate-dead",
    "drop-records",
)
_CLEAN_OPTIONS: Mapping[str, Mapping[str, Any]] = {"fold-affine": {"norms": False}}

PRESETS = {
    "default": Preset((*_CLEAN, "prune-channels", "quantize-weights"), len(_CLEAN), _CLEAN_OPTIONS),
    "clean": Preset(_CLEAN, len(_CLEAN), _CLEAN_OPTIONS),
}


def preset_passes(name: str) -> tuple[list[Pass], int]:
    """Return the passes of a preset, and how many of them are repeated until nothing changes.

    Raises:
        OptionError: There is no such preset.
    """
    if name not in PRESETS:
        raise OptionError(f"unknown preset {name!r} (there are: {', '.join(PRESETS)})")
    preset = PRESETS[name]
    return [create(each, **preset.options.get(each, {})) for each in preset.passes], preset.repeated
