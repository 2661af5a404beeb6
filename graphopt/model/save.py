"""Model to file."""

import os
from os import PathLike
from pathlib import Path

from graphopt.model.exporter import to_proto
from graphopt.model.model import Model


def save(model: Model, path: str | PathLike[str]) -> None:
    """Write a model file, whole or not at all."""
    target = Path(path)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_bytes(to_proto(model).SerializeToString())
    os.replace(temporary, target)
