"""File to Model."""

from os import PathLike
from pathlib import Path

import onnx

from graphopt.errors import ModelError
from graphopt.model.importer import from_proto
from graphopt.model.model import Model


def load(path: str | PathLike[str]) -> Model:
    """Load a model file.

    Raises:
        ModelError: The file is missing or is not a usable model.
    """
    try:
        proto = onnx.load(str(path))
    except Exception as error:
        raise ModelError(f"{path}: {error}") from error
    return from_proto(proto, Path(path))
