"""Channel analysis: what is dead, what must be cut together, and the cut itself."""

from graphopt.graph.channels import convolution, contraction, elementwise, normalization, pooling, reduction, reshaping
from graphopt.graph.channels.analysis import Channels
from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts
from graphopt.graph.channels.labels import Labels, Use
from graphopt.graph.channels.table import TABLE, Transfer, register, transfer_of

__all__ = ["TABLE", "Channels", "Cut", "Facts", "Labels", "Transfer", "Use", "register", "transfer_of"]
