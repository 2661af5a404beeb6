"""graphopt: a verified post-training optimizer for ONNX models.

The names below are imported when they are first used, so that ``graphopt --help`` answers without loading ONNX.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.api import Result, optimize, validate
    from graphopt.api import save_model as save
    from graphopt.base import Pass, SitePass
    from graphopt.contract import BitExact, FloatExact, Lossy
    from graphopt.errors import DataError, GraphoptError, ModelError, OptionError
    from graphopt.graph.view import GraphView
    from graphopt.model import Model, load
    from graphopt.options import option
    from graphopt.registry import create
    from graphopt.result import PassResult, Rewritten, Skip, Skipped

_ROOT = os.path.dirname(__path__[0])
if os.path.isfile(os.path.join(_ROOT, "pyproject.toml")) and os.path.isfile(
    os.path.join(_ROOT, "passes", "__init__.py")
):
    __path__.append(_ROOT)  # a checkout that Python stands in: there the passes lie beside the package, not in it

_HOMES = {
    "BitExact": "graphopt.contract",
    "DataError": "graphopt.errors",
    "FloatExact": "graphopt.contract",
    "GraphView": "graphopt.graph.view",
    "GraphoptError": "graphopt.errors",
    "Lossy": "graphopt.contract",
    "Model": "graphopt.model",
    "ModelError": "graphopt.errors",
    "OptionError": "graphopt.errors",
    "Pass": "graphopt.base",
    "PassResult": "graphopt.result",
    "Result": "graphopt.api",
    "Rewritten": "graphopt.result",
    "SitePass": "graphopt.base",
    "Skip": "graphopt.result",
    "Skipped": "graphopt.result",
    "create": "graphopt.registry",
    "load": "graphopt.model",
    "optimize": "graphopt.api",
    "option": "graphopt.options",
    "save": "graphopt.api:save_model",
    "validate": "graphopt.api",
}

__all__ = [
    "BitExact",
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
    "Result",
    "Rewritten",
    "SitePass",
    "Skip",
    "Skipped",
    "create",
    "load",
    "optimize",
    "option",
    "save",
    "validate",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(home), attribute or name)


def __dir__() -> list[str]:
    return __all__
