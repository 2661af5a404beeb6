"""Model to file: streamed, and whole or not at all."""

import contextlib
import mmap
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from onnx import TensorProto

from graphopt.errors import ModelError
from graphopt.model.exporter import LIMIT, place_inside, serialized_size, weight_bytes, write_model
from graphopt.model.mapping import MappedFile, copy_range
from graphopt.model.model import Model
from graphopt.model.weights import MappedValues
from graphopt.model.wire import BIG, expand, marker

ExternalPolicy = Literal["auto", "always", "never"]

T = TypeVar("T")

_PAGE = 4096
_CHUNK = 1 << 22


def save(
    model: Model, path: str | PathLike[str], external_data: ExternalPolicy = "auto", *, durable: bool = True
) -> int:
    """Write a model file, and a file ``<name>.data`` beside it if the weights go there.

    The target appears whole or not at all: what is there stays until the new file is complete and on disk, so saving
    over the file that the model was loaded from is safe. Weights are streamed, one at a time. Where a data file is
    there already, the new one gets another name (``<name>.1.data``), so that the old pair stays whole until the model
    file, which names its data file, is replaced; then the old data file goes, unless another model beside it names it
    too. Only files are replaced, and none that holds weights of the model: a pipe or device is refused, but for the
    null device, to which nothing is written.

    Args:
        model: The model, which is not changed.
        path: The target.
        external_data: Whether weights of 1 KB and more go into a file of their own: ``auto`` only where the model would
            be larger than 2 GB, which a protobuf file cannot be.
        durable: Whether to wait until the files are on disk; not for files that are soon removed.

    Returns:
        The bytes written, both files together.

    Raises:
        ModelError: The target cannot be written, or weights of over 2 GB may not be external.
    """
    try:
        target = Path(path).resolve()
        if is_null(target):
            return serialized_size(model)
        if target.exists() and not target.is_file():
            kind = "a directory" if target.is_dir() else "not a regular file"
            raise ModelError(f"{path}: cannot write it: is {kind}")
        if holds_weights(target, model):
            raise ModelError(f"{path}: cannot write it: holds weights of {model.path}")
        stale = _data_files(target)
        new = None
        if external_data == "always" or (weight_bytes(model) > LIMIT and external_data == "auto"):
            new = _save_external(model, target, durable)
        elif not _save_inline(model, target, durable):
            if external_data == "never":
                raise ModelError(f"{path}: the model is larger than 2 GB, which does not fit into one file")
            new = _save_external(model, target, durable)
        for file in stale - {new}:
            with contextlib.suppress(OSError):  # a system that cannot remove mapped files keeps it
                file.unlink()
        return target.stat().st_size + (new.stat().st_size if new is not None else 0)
    except (OSError, RuntimeError, ValueError) as error:  # loops of links and names that no system takes, too
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: cannot write it: {' '.join(str(why).split())}") from error


def holds_weights(path: Path, model: Model) -> bool:
    """Whether a path leads to a file of external data that a model was loaded from."""
    with contextlib.suppress(OSError):
        return path.exists() and any(os.path.samefile(path, each) for each in model.data_files if each.exists())
    return False


def is_null(path: Path) -> bool:
    """Whether a path leads to the null device, which takes everything and keeps nothing."""
    try:
        found, null = os.stat(path), os.stat(os.devnull)
    except (OSError, ValueError):
        return False
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == null.st_rdev


def _save_inline(model: Model, target: Path, durable: bool) -> bool:
    """Write one file, unless it would be larger than 2 GB."""
    weights: list[Any] = []

    def place(tensor: TensorProto, data: Any) -> None:
        tensor.raw_data = marker(len(weights))
        weights.append(data)

    skeleton = write_model(model, place).SerializeToString()
    lengths = [_length(data) for data in weights]
    pieces = list(expand(skeleton, lengths))
    if sum(len(piece) if isinstance(piece, bytes) else lengths[piece] for piece in pieces) > LIMIT:
        return False

    def write(file: IO[bytes]) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                file.write(piece)
            else:
                _write_weight(file, weights[piece])

    _write_whole(target, write, durable)
    return True


def _save_external(model: Model, target: Path, durable: bool) -> Path:
    """Write the weights into a fresh data file, then the model that names it; return the data file."""
    data = _fresh_data_file(target)
    places: dict[int, int] = {}

    def write(file: IO[bytes]) -> bytes:
        def place(tensor: TensorProto, weight: Any) -> None:
            length = _length(weight)
            if length < BIG:
                place_inside(tensor, weight)
                return
            start = places.get(id(weight)) if isinstance(weight, MappedValues) else None
            if start is None:
                start = _append(file, weight, length)
            if isinstance(weight, MappedValues):
                places[id(weight)] = start
            tensor.data_location = TensorProto.EXTERNAL
            tensor.ClearField("external_data")
            for name, value in (("location", data.name), ("offset", str(start)), ("length", str(length))):
                tensor.external_data.add(key=name, value=value)

        serialized: bytes = write_model(model, place).SerializeToString()
        return serialized

    skeleton: bytes = _write_whole(data, write, durable)
    try:
        _write_whole(target, lambda file: file.write(skeleton), durable)
    except BaseException:  # whatever it is, the weights of no model must not stay; it goes on its way
        data.unlink(missing_ok=True)
        raise
    return data


def _append(file: IO[bytes], weight: Any, length: int) -> int:
    """Append a weight, big ones at a page of their own, and return where it starts."""
    alignment = _PAGE if length >= 16 * _PAGE else 64
    start = -(-file.tell() // alignment) * alignment
    file.write(bytes(start - file.tell()))
    _write_weight(file, weight)
    return start


def _length(weight: Any) -> int:
    """Return the bytes of a weight."""
    return int(weight.nbytes if isinstance(weight, MappedValues) else len(weight))


def _write_weight(file: IO[bytes], weight: Any) -> None:
    """Append a weight's bytes, a few megabytes at a time; unchanged ones of files go by way of the system."""
    if isinstance(weight, MappedValues):
        buffer, start, length = weight.span
        if length < _CHUNK or not isinstance(buffer, MappedFile) or not copy_range(buffer, start, length, file):
            file.writelines(weight.chunks())
    else:
        file.writelines(weight[place : place + _CHUNK] for place in range(0, len(weight), _CHUNK))


def _data_files(target: Path) -> set[Path]:
    """Return the data files of earlier saves that the model file at ``target`` names, and no other model beside it."""
    pattern = re.compile(re.escape(target.name) + r"(\.\d+)?\.data")
    files = {file for file in target.parent.iterdir() if pattern.fullmatch(file.name)} if target.is_file() else set()
    files = _named(target, files)
    for other in sorted(target.parent.glob("*.onnx")) if files else []:
        if other.resolve() != target:  # a copy of the model, or a part of it, may have its weights there
            files -= _named(other, files)
    return files


def _named(model: Path, files: set[Path]) -> set[Path]:
    """Return those files that a model file names somewhere; all of them if it cannot be read."""
    try:
        if not files or not model.stat().st_size:
            return set()
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return {file for file in files if data.find(os.fsencode(file.name)) >= 0}
    except OSError:
        return files


def _fresh_data_file(target: Path) -> Path:
    """Return a name for the data file that is not taken, so that what is there stays whole."""
    data, count = target.with_name(f"{target.name}.data"), 0
    while data.exists() or data.is_symlink():
        count += 1
        data = target.with_name(f"{target.name}.{count}.data")
    return data


def _write_whole(target: Path, write: Callable[[IO[bytes]], T], durable: bool) -> T:
    """Have ``write`` fill a temporary file, bring it to disk, and put it in the target's place at once."""
    mark = zlib.crc32(os.fsencode(target.name))
    temporary = target.with_name(f".{target.name[:40]}.{mark:x}.{os.getpid()}.tmp")  # no name is longer than 255 bytes
    try:
        with temporary.open("wb") as file:
            result = write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if not durable:
        return result
    with contextlib.suppress(OSError):  # not every system can open a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return result
