"""Which nodes do nothing, and which two in a row are one."""

from graphopt.graph.noops.bypass import BYPASSES
from graphopt.graph.noops.place import Place

__all__ = ["BYPASSES", "Place"]
