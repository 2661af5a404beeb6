"""graphopt: a verified post-training optimizer for ONNX models."""

from graphopt.base import Pass, SitePass, option
from graphopt.contract import BitExact, Contract, FloatExact, Lossy
from graphopt.errors import DataError, GraphoptError, ModelError, OptionError
from graphopt.graph import GraphView
from graphopt.model import Model, load, save
from graphopt.registry import create
from graphopt.result import PassResult, Rewritten, Skip, Skipped

__all__ = [
    "BitExact",
    "Contract",
    "DataError",
    "FloatExact",
    "GraphView",
    "GraphoptError",
    "Lossy",
    "Model",
    "ModelError",
    "OptionError",
    "Pass",
    "PassResult",
    "Rewritten",
    "SitePass",
    "Skip",
    "Skipped",
    "create",
    "load",
    "option",
    "save",
]
