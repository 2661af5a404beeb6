"""The algebra of y = scale * x + shift: what it is in a graph, and which layers can take it in."""

from graphopt.graph.affine.algebra import Affine, arithmetic, batchnorm
from graphopt.graph.affine.backward import drop, into_producers
from graphopt.graph.affine.change import Change

__all__ = ["Affine", "Change", "arithmetic", "batchnorm", "drop", "into_producers"]
