"""The graph as passes see it: a view to ask questions of, and the only surgery that changes it."""

from graphopt.graph.edit import Edit
from graphopt.graph.view import GraphView

__all__ = ["Edit", "GraphView"]
