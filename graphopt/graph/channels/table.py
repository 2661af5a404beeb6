"""The table of transfer functions: for each operator, what the analysis knows of it; unknown means live and fixed."""

from collections.abc import Callable
from typing import TypeVar

import onnx_graphsurgeon as gs

from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts
from graphopt.graph.channels.labels import Labels, describe
from graphopt.graph.symbolic.attributes import has_reference


class Transfer:
    """What the channel analysis knows of an operator. This base knows nothing, which is always sound.

    The four questions are asked in this order, each for every node: ``forward`` in the order of the program,
    ``backward`` in reverse, ``couple`` in the order of the program, and ``cut`` once it is known what goes.
    """

    def forward(self, node: gs.Node, facts: Facts) -> None:
        """Record with ``facts.learn`` which channels of the outputs hold one known value all over."""

    def backward(self, node: gs.Node, facts: Facts) -> None:
        """Record with ``facts.need`` which channels of the inputs it takes to make what is needed of the outputs."""
        if not node.outputs or any(facts.is_needed(out) for out in node.outputs):
            for tensor in node.inputs:
                facts.need(tensor)

    def couple(self, node: gs.Node, facts: Facts, labels: Labels) -> None:
        """Give the outputs their labels and say which labels go together; what is not given labels is pinned."""
        for slot in range(len(node.inputs)):
            labels.block_input(node, slot, f"read by {describe(node)}, of which the analysis knows nothing")

    def cut(self, node: gs.Node, cut: Cut) -> None:
        """Follow the cut with attributes, shape constants and biases; labelled constants follow by themselves."""


TABLE: dict[tuple[str, str], Transfer] = {}
UNKNOWN = Transfer()
Kind = TypeVar("Kind", bound=type[Transfer])


def register(*ops: str, domain: str = "") -> Callable[[Kind], Kind]:
    """Enter a transfer class in the table for these operators; a plugin may add or replace operators of any domain."""

    def enter(kind: Kind) -> Kind:
        for op in ops:
            TABLE[domain, op] = kind()
        return kind

    return enter


def transfer_of(node: gs.Node) -> Transfer:
    """Return the transfer functions of a node's operator; nothing is known of one whose caller sets its attributes."""
    if has_reference(node):
        return UNKNOWN
    domain = "" if node.domain in (None, "", "ai.onnx") else str(node.domain)
    return TABLE.get((domain, str(node.op)), UNKNOWN)
