"""Reports that a command writes beside its result."""

import json
from pathlib import Path
from typing import Any

from graphopt.errors import OptionError


def write_text(path: str, text: str) -> None:
    """Write a text file.

    Raises:
        OptionError: It cannot be written.
    """
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_json(path: str, figures: dict[str, Any]) -> None:
    """Write figures as JSON.

    Raises:
        OptionError: The file cannot be written.
    """
    write_text(path, json.dumps(figures, indent=1) + "\n")
