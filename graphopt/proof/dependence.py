"""Which outputs of a model depend on what it is fed."""

import onnx

from graphopt.proof.discrete import captured


def dependent_outputs(model: onnx.ModelProto) -> set[str]:
    """Return the outputs that depend on an input, an initializer that a caller can override included.

    All others are constants by nature, such as anchor boxes that are given out: one run shows all there is of them.
    """
    moved = {info.name for info in model.graph.input}
    for node in model.graph.node:  # in topological order
        if not moved.isdisjoint((*node.input, *captured(node))):
            moved.update(name for name in node.output if name)
    return moved & {info.name for info in model.graph.output}
