"""Which tensor of the original model a tensor of the rewritten one stands for."""

import onnx_graphsurgeon as gs

from graphopt.graph.view import GraphView, is_op

ACTIVATIONS = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Mish", "Erf"),
    *("Softplus", "Clip"),
)
"""Operators that work on each element alone."""

PARAMETER_FREE = (
    *ACTIVATIONS,
    *("Add", "Sum", "Softmax", "LogSoftmax", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    *("ReduceMean", "Flatten", "Reshape", "Transpose", "Identity", "Concat"),
)
"""Operators without weights: no pass changes what they compute, only what they are given."""


class Correspondence:
    """Finds tensors of ``original`` by the names and the readers of those in ``view``; main graphs only.

    A name alone is not proof: folding a BatchNormalization leaves a tensor its name but not its values. A reader
    without parameters is better evidence: the node of the same name and operator in the original reads the same thing
    in the same slot. Where both are found and differ, the caller has to measure which is nearer.
    """

    def __init__(self, view: GraphView, original: GraphView) -> None:
        """Match ``view`` with ``original``."""
        self._view = view
        graph = original.model.graph
        self._nodes = {str(node.outputs[0].name): node for node in graph.nodes if node.outputs and node.outputs[0].name}
        self._names = {str(tensor.name) for node in graph.nodes for tensor in node.outputs if tensor.name}

    def candidates(self, tensor: gs.Tensor) -> list[str]:
        """Return the names of the original's tensors that ``tensor`` may stand for, the likelier first."""
        found: dict[str, None] = {}
        for reader in self._view.readers(tensor):
            twin = self._nodes.get(str(reader.outputs[0].name)) if reader.outputs else None
            if twin is None or not is_op(reader, *PARAMETER_FREE) or twin.op != reader.op:
                continue
            slot = next(index for index, read in enumerate(reader.inputs) if read is tensor)
            if len(twin.inputs) == len(reader.inputs) and str(twin.inputs[slot].name) in self._names:
                found[str(twin.inputs[slot].name)] = None
        if str(tensor.name) in self._names:
            found[str(tensor.name)] = None
        return list(found)
