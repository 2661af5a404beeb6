"""Symbolic shapes and the integer arithmetic that models do with them."""

from graphopt.graph.symbolic.expression import Expression
from graphopt.graph.symbolic.facts import Facts

__all__ = ["Expression", "Facts"]
