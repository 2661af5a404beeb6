"""File to Model, with the weights left on disk."""

from os import PathLike
from pathlib import Path

from graphopt.errors import ModelError
from graphopt.model.external import ExternalData
from graphopt.model.importer import read_model
from graphopt.model.mapping import map_file
from graphopt.model.model import Model
from graphopt.model.wire import Buffer, WireError, strip

_LFS_POINTER = b"version https://git-lfs"


def load(path: str | PathLike[str]) -> Model:
    """Load a model file of any size; its weights, inline or external, are mapped read-only and not read yet.

    Raises:
        ModelError: The file is missing or is not a usable model.
    """
    file = Path(path)
    try:
        buffer = _mapped(file)
        if buffer[: len(_LFS_POINTER)] == _LFS_POINTER:
            raise ModelError("it is a git-lfs pointer, not the model itself: fetch it with `git lfs pull`")
        external = ExternalData(file)
        model = read_model(*strip(buffer), external.find, file)
        model.stored_bytes = len(buffer) + external.size
        model.data_files = tuple(each for each in external.files if each != file.resolve())
        return model
    except WireError as error:
        raise ModelError(f"{file}: not an ONNX model: {error}") from error
    except ModelError as error:
        raise ModelError(f"{file}: {error}") from error


def _mapped(file: Path) -> Buffer:
    """Map a file.

    Raises:
        ModelError: It is missing, empty, unreadable or not a regular file.
    """
    try:
        if not file.is_file():
            raise ModelError("not a file" if file.exists() else "no such file")
        with file.open("rb") as handle:
            buffer = map_file(handle)
        if not buffer:
            raise ModelError("the file is empty")
        return buffer
    except OSError as error:
        raise ModelError(f"cannot read it: {error.strerror}") from error
