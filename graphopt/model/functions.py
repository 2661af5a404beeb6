"""Local functions of a model: what names them, and what calls them."""

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from graphopt.model.ir import Graph
from graphopt.model.model import Model, subgraphs

Identity = tuple[str, str, str]
"""Domain, name and overload, which calls name a function by."""


def identity(function: Graph) -> Identity:
    """Return what calls name a local function by."""
    return function.rest.domain, function.rest.name, function.rest.overload


def called(node: gs.Node) -> Identity:
    """Return what a node would call, if that is a local function."""
    source = getattr(node, "source", None)
    return node.domain or "", str(node.op), "" if source is None else str(source.overload)


def functions(model: Model) -> dict[Identity, Graph]:
    """Return the bodies of a model's local functions by what calls name them by."""
    return {identity(function): function for function in model.functions}


def within(graph: gs.Graph) -> Iterator[gs.Graph]:
    """Yield a graph and all below it, outer before inner."""
    waiting = [graph]
    while waiting:
        found = waiting.pop()
        yield found
        waiting += reversed(subgraphs(found))


def full_name(function: Graph) -> str:
    """Return domain, name and overload of a function in one word."""
    return ".".join(part for part in identity(function) if part)
