"""Presets: named lists of passes, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt.base import Pass
from graphopt.errors import OptionError
from graphopt.registry import create


@dataclass(frozen=True)
class Preset:
    """Names of passes, whether they are repeated until nothing changes, and options that differ from the defaults."""

    passes: tuple[str, ...]
    fixed_point: bool
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


PRESETS = {
    "default": Preset(("inline-functions", "fold-batchnorm", "prune-channels", "quantize-weights"), fixed_point=False),
    "clean": Preset(
        (
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
        ),
        fixed_point=True,
        options={"fold-affine": {"norms": False}},
    ),
}


def preset_passes(name: str) -> tuple[list[Pass], bool]:
    """Return the passes of a preset and whether they are repeated until nothing changes.

    Raises:
        OptionError: There is no such preset.
    """
    if name not in PRESETS:
        raise OptionError(f"unknown preset {name!r} (there are: {', '.join(PRESETS)})")
    preset = PRESETS[name]
    return [create(each, **preset.options.get(each, {})) for each in preset.passes], preset.fixed_point
