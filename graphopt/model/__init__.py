"""Bytes to graph and back, with nothing lost."""

from graphopt.model.exporter import to_proto
from graphopt.model.fingerprint import fingerprint
from graphopt.model.importer import from_proto
from graphopt.model.load import load
from graphopt.model.model import Model
from graphopt.model.opset import raise_opset
from graphopt.model.save import ExternalPolicy, save

__all__ = ["ExternalPolicy", "Model", "fingerprint", "from_proto", "load", "raise_opset", "save", "to_proto"]
