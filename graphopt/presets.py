"""Presets: named lists of passes, as data."""

from dataclasses import dataclass

from graphopt.base import Pass
from graphopt.errors import OptionError
from graphopt.registry import create


@dataclass(frozen=True)
class Preset:
    """Names of passes, and whether they are repeated until nothing changes."""

    passes: tuple[str, ...]
    fixed_point: bool


PRESETS = {
    "default": Preset(("fold-batchnorm", "prune-channels", "quantize-weights"), fixed_point=False),
    "clean": Preset(
        (
            "fold-constants",
            "eliminate-noops",
            "fold-batchnorm",
            "merge-duplicates",
            "fuse-pads",
            "eliminate-dead",
        ),
        fixed_point=True,
    ),
}


def preset_passes(name: str) -> tuple[list[Pass], bool]:
    """Return the passes of a preset and whether they are repeated until nothing changes.

    Raises:
        OptionError: There is no such preset.
    """
    if name not in PRESETS:
        raise OptionError(f"unknown preset {name!r} (there are: {', '.join(PRESETS)})")
    return [create(each) for each in PRESETS[name].passes], PRESETS[name].fixed_point
