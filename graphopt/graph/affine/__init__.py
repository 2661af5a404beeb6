"""The algebra of y = scale * x + shift: what it is in a graph, and which layers can take it in."""

from graphopt.graph.affine.algebra import Affine, arithmetic, batchnorm
from graphopt.graph.affine.backward import into_producers, split
from graphopt.graph.affine.change import Change, remove
from graphopt.graph.affine.forward import into_readers

__all__ = ["Affine", "Change", "arithmetic", "batchnorm", "into_producers", "into_readers", "remove", "split"]
