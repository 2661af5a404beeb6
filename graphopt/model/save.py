"""Model to file: streamed, and whole or not at all."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from onnx import TensorProto

from graphopt.errors import ModelError
from graphopt.model.exporter import LIMIT, weight_bytes, write_model
from graphopt.model.model import Model
from graphopt.model.weights import MappedValues
from graphopt.model.wire import expand, marker

ExternalPolicy = Literal["auto", "always", "never"]

T = TypeVar("T")

_ALIGNMENT = 4096
_CHUNK = 1 << 22


def save(model: Model, path: str | PathLike[str], external_data: ExternalPolicy = "auto") -> None:
    """Write a model file, and a file ``<name>.data`` beside it if the weights go there.

    The target appears whole or not at all: what is there stays until the new file is complete and on disk, so saving
    over the file that the model was loaded from is safe. Weights are streamed, one at a time.

    Args:
        model: The model, which is not changed.
        path: The target.
        external_data: Whether weights of 1 KB and more go into a file of their own: ``auto`` only where the model would
            be larger than 2 GB, which a protobuf file cannot be.

    Raises:
        ModelError: The target cannot be written, or weights of over 2 GB may not be external.
    """
    target = Path(path)
    size = weight_bytes(model)
    if external_data == "never" and size > LIMIT:
        raise ModelError(f"{target}: {size / 1e9:.1f} GB of weights do not fit into one file of at most 2 GB")
    try:
        if external_data == "always" or (external_data == "auto" and size > LIMIT):
            _save_external(model, target)
        else:
            _save_inline(model, target)
    except OSError as error:
        raise ModelError(f"{target}: cannot write it: {error.strerror or error}") from error


def _save_inline(model: Model, target: Path) -> None:
    """Write one file."""
    weights: list[Any] = []

    def place(tensor: TensorProto, data: Any) -> None:
        tensor.raw_data = marker(len(weights))
        weights.append(data)

    skeleton = write_model(model, place).SerializeToString()
    lengths = [data.nbytes if isinstance(data, MappedValues) else len(data) for data in weights]

    def pieces() -> Iterator[bytes | memoryview]:
        for piece in expand(skeleton, lengths):
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from _chunks(weights[piece])

    _write_whole(target, lambda file: file.writelines(pieces()))


def _save_external(model: Model, target: Path) -> None:
    """Write the weights into a fresh data file, then the model that names it; only then drop the old data file."""
    data = _fresh_data_file(target)
    places: dict[int, tuple[int, int]] = {}

    def write(file: IO[bytes]) -> bytes:
        def place(tensor: TensorProto, weight: Any) -> None:
            start = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            key = id(weight)
            if not isinstance(weight, MappedValues) or key not in places:
                file.write(bytes(start - file.tell()))
                file.writelines(_chunks(weight))
                places[key] = start, file.tell() - start
            start, length = places[key]
            tensor.data_location = TensorProto.EXTERNAL
            for name, value in (("location", data.name), ("offset", str(start)), ("length", str(length))):
                tensor.external_data.add(key=name, value=value)

        serialized: bytes = write_model(model, place).SerializeToString()
        return serialized

    skeleton: bytes = _write_whole(data, write)
    try:
        _write_whole(target, lambda file: file.write(skeleton))
    except BaseException:
        data.unlink(missing_ok=True)
        raise
    for old in _data_files(target):
        if old != data:
            old.unlink(missing_ok=True)


def _chunks(weight: Any) -> Iterable[bytes | memoryview]:
    """Return a weight's bytes, a few megabytes at a time."""
    if isinstance(weight, MappedValues):
        return weight.chunks()
    return (weight[place : place + _CHUNK] for place in range(0, len(weight), _CHUNK))


def _data_files(target: Path) -> list[Path]:
    """Return the data files that earlier saves to ``target`` have left beside it."""
    pattern = re.compile(re.escape(target.name) + r"(\.\d+)?\.data")
    return [file for file in target.parent.iterdir() if pattern.fullmatch(file.name)]


def _fresh_data_file(target: Path) -> Path:
    """Return a name for the data file that is not taken, so that what is there stays whole."""
    taken = {file.name for file in _data_files(target)}
    name, count = f"{target.name}.data", 0
    while name in taken:
        count += 1
        name = f"{target.name}.{count}.data"
    return target.with_name(name)


def _write_whole(target: Path, write: Callable[[IO[bytes]], T]) -> T:
    """Have ``write`` fill a temporary file, bring it to disk, and put it in the target's place at once."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            result = write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return result
