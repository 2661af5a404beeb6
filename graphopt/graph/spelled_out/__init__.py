"""Finds what exporters spell out in several nodes and runtimes compute in one: normalizations, GELUs and their kind."""

from graphopt.graph.spelled_out.find import find_spelled_out, keep_spelled_out
from graphopt.graph.spelled_out.pattern import SpelledOut

__all__ = ["SpelledOut", "find_spelled_out", "keep_spelled_out"]
