"""Finds all places where operators are spelled out, and keeps passes from taking them apart."""

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from graphopt.graph.spelled_out.activation import activation
from graphopt.graph.spelled_out.normalization import normalization
from graphopt.graph.spelled_out.pattern import SpelledOut, scalar
from graphopt.graph.view import GraphView, is_op

_MASKS = 2


def find_spelled_out(view: GraphView) -> Iterator[SpelledOut]:
    """Yield what several nodes spell out and runtimes compute in one."""
    for node in view.nodes("Sqrt", "Erf", "Tanh", "Clip", "Softmax"):
        if is_op(node, "Softmax"):
            found = _attention_scale(view, node)
        else:
            found = normalization(view, node) if is_op(node, "Sqrt") else activation(view, node)
        if found is not None:
            yield found


def keep_spelled_out(view: GraphView) -> None:
    """Let this run leave alone the nodes that spell an operator out: one of them less is many more at run time."""
    for found in find_spelled_out(view):
        reason = f"part of {found.operator} spelled out, which runtimes compute as one"
        for node in found.nodes:
            view.vetoes.setdefault(view.site(node), reason)


def _attention_scale(view: GraphView, softmax: gs.Node) -> SpelledOut | None:
    """Recognize the scale of attention scores: a product of two computed tensors, times a number, then a Softmax."""
    tensor = softmax.inputs[0]
    for _ in range(_MASKS + 1):
        node = view.producer(tensor, "Mul", "Div", "Add", "Where")
        if node is None:
            return None
        if is_op(node, "Mul", "Div"):
            for slot, operand in enumerate(node.inputs):
                product = view.producer(operand, "MatMul")
                scale = scalar(view, node.inputs[1 - slot])
                if product is None or scale is None or (is_op(node, "Div") and slot):
                    continue
                if all(view.array(factor) is None for factor in product.inputs):
                    return SpelledOut("a scaled product of attention", 0, (node,), operand)
            return None
        branches = list(node.inputs)[1:] if is_op(node, "Where") else list(node.inputs)
        computed = [branch for branch in branches if view.producer(branch, "Mul", "Div", "Add", "Where") is not None]
        scores = [branch for branch in computed if view.producer(branch, "Mul", "Div") is not None]
        if not computed:
            return None
        tensor = (scores or computed)[0]
    return None
