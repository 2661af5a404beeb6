"""Reports that a command writes beside its result."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphopt.errors import OptionError
from graphopt.report.report import json_text


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
    """Write figures as JSON; those that are not finite become null.

    Raises:
        OptionError: The file cannot be written.
    """
    write_text(path, json_text(figures))


def require_writable(target: str) -> None:
    """Refuse, before any work is done, a place that cannot be written.

    Raises:
        OptionError: It is a folder, its folder does not exist, or it cannot be written.
    """
    path = Path(target)
    folder = path.parent
    if path.is_dir():
        raise OptionError(f"{target}: is a directory")
    if not folder.is_dir():
        raise OptionError(f"{target}: the folder {str(folder)!r} does not exist")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OptionError(f"{target}: cannot be written")


def require_report(report: str, forms: tuple[str, ...], others: Mapping[str, str | None]) -> None:
    """Refuse a report whose form its name does not tell, whose place cannot be written or is another file's.

    Args:
        report: Its path.
        forms: The endings that a name may have.
        others: The files that must not be overwritten, by what they are; None for one that is not used.

    Raises:
        OptionError: The path is unusable.
    """
    if Path(report).suffix not in forms:
        raise OptionError(f"--report {report}: the name must end in {' or '.join(forms)}")
    for kind, other in others.items():
        if other is not None and _is_same_file(report, other):
            raise OptionError(f"--report {report}: is the {kind}")
    require_writable(report)


def _is_same_file(one: str, other: str) -> bool:
    """Whether two paths lead to one file, which need not exist."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
