"""The algebra of y = scale * x + shift: what it is in a graph, and which layers can take it in."""

from graphopt.graph.affine.algebra import Affine, arithmetic, batchnorm, has_constant_operand, normalization
from graphopt.graph.affine.backward import into_producers
from graphopt.graph.affine.branches import into_parallel_conv, into_some_branches
from graphopt.graph.affine.change import Change, assign, carry, remove
from graphopt.graph.affine.extent import element_type, require_rank
from graphopt.graph.affine.forward import into_readers
from graphopt.graph.affine.outputs import neutralize

__all__ = [
    "Affine",
    "Change",
    "arithmetic",
    "assign",
    "batchnorm",
    "carry",
    "element_type",
    "has_constant_operand",
    "into_parallel_conv",
    "into_producers",
    "into_readers",
    "into_some_branches",
    "neutralize",
    "normalization",
    "remove",
    "require_rank",
]
