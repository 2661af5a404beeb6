"""What a command writes: the places are tried before any work is done, by one rule for all commands."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graphopt.errors import OptionError
from graphopt.model import Model
from graphopt.model.save import holds_weights, is_null
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


def require_writable(target: str, others: Mapping[str, str | None] | None = None) -> None:
    """Refuse, before any work is done, a place that cannot be written, or that is another file's.

    Of what is no regular file only the null device is taken: a pipe or a device is not replaced by a file.

    Args:
        target: The place.
        others: The files that must not be overwritten, by what they are; None for one that is not used.

    Raises:
        OptionError: It is a folder, a device or a pipe; its folder does not exist; it or its folder cannot be written;
            or it is one of the others, or where the command's own text goes.
    """
    path = Path(target)
    folder = path.parent
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        raise OptionError(f"{target}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    if mode is not None and stat.S_ISDIR(mode):
        raise OptionError(f"{target}: is a directory")
    if mode is not None and is_null(path):
        return
    if mode is not None and not stat.S_ISREG(mode):
        raise OptionError(f"{target}: is not a regular file")
    if not folder.is_dir():
        raise OptionError(f"{target}: the folder {str(folder)!r} does not exist")
    if mode is not None and not os.access(path, os.W_OK):
        raise OptionError(f"{target}: cannot be written")
    if mode is not None and _is_standard_output(path):
        raise OptionError(f"{target}: is the standard output, which the report is printed to")
    for kind, other in (others or {}).items():
        if other is not None and _is_same_file(target, other):
            raise OptionError(f"{target}: is the {kind}")
    try:
        with tempfile.NamedTemporaryFile(dir=Path(os.path.realpath(path)).parent, prefix=".graphopt-"):
            pass
    except OSError as error:
        raise OptionError(f"{target}: cannot be written: {error.strerror or error}") from error


def require_report(report: str | None, forms: tuple[str, ...], others: Mapping[str, str | None]) -> None:
    """Refuse a report whose form its name does not tell, whose place cannot be written or is another file's.

    Args:
        report: Its path; None if none is asked for.
        forms: The endings that a name may have.
        others: The files that must not be overwritten, by what they are; None for one that is not used.

    Raises:
        OptionError: The path is unusable.
    """
    if report is None:
        return
    if Path(report).suffix not in forms:
        raise OptionError(f"--report {report}: the name must end in {' or '.join(forms)}")
    try:
        require_writable(report, others)
    except OptionError as error:
        raise OptionError(f"--report {error}") from error


def require_no_weights(places: Iterable[str | None], *models: Model) -> None:
    """Refuse, before any work is done, places where models that were loaded have their external data.

    Raises:
        OptionError: One of them is such a file.
    """
    for place in places:
        for model in models:
            if place is not None and holds_weights(Path(place), model):
                raise OptionError(f"{place}: holds weights of {model.path}")


def _is_standard_output(path: Path) -> bool:
    """Whether a file is what standard output goes to."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # it is closed, or no file
        return False


def _is_same_file(one: str, other: str) -> bool:
    """Whether two paths lead to one file, which need not exist."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
