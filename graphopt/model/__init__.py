"""Bytes to graph and back, with nothing lost."""

from graphopt.model.exporter import to_proto
from graphopt.model.importer import from_proto
from graphopt.model.load import load
from graphopt.model.model import Model
from graphopt.model.save import save

__all__ = ["Model", "from_proto", "load", "save", "to_proto"]
