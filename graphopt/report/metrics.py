"""How large a model is: nodes, parameters, bytes, multiply-accumulates."""

import math
from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.graph import GraphView
from graphopt.graph.shapes import Shape
from graphopt.graph.symbolic import Expression, Facts
from graphopt.graph.symbolic.values import SymbolicShape
from graphopt.graph.view import is_op
from graphopt.model import Model
from graphopt.model.exporter import serialized_size
from graphopt.model.functions import Identity, called, functions, within


@dataclass(frozen=True)
class Metrics:
    """The size of a model.

    Attributes:
        nodes: Nodes of all graphs, those of a local function once for each call, Constant nodes left out.
        parameters: Elements of all stored tensors.
        bytes: Size of the file, external data included.
        macs: Multiply-accumulates of one run at batch size 1; None if a shape that they hang on is not static.
        ops: Nodes by operator.
    """

    nodes: int
    parameters: int
    bytes: int
    macs: int | None
    ops: dict[str, int]


def measure(model: Model, facts: Facts | None = None) -> Metrics:
    """Measure a model; its bytes are the files' where it was loaded from files and the serialized ones otherwise.

    Args:
        model: The model.
        facts: What is known of its tensors already; it saves asking.
    """
    view = GraphView(model, facts=facts)
    ops = _operators(model)
    parameters = sum(math.prod(constant.shape) for constant in model.constants())
    size = serialized_size(model) if model.stored_bytes is None else model.stored_bytes
    return Metrics(sum(ops.values()), parameters, size, count_macs(view), dict(sorted(ops.items())))


def _operators(model: Model) -> Counter[str]:
    """Count the nodes that runs go through by operator, calls of local functions by what stands in these."""
    bodies = functions(model)
    split = {key: _split(body, bodies) for key, body in bodies.items()}
    ops, calls = _split(model.graph, bodies)
    while calls:  # level by level: functions do not call themselves
        below: Counter[Identity] = Counter()
        for key, times in calls.items():
            own, inner = split[key]
            ops.update({op: count * times for op, count in own.items()})
            below.update({each: count * times for each, count in inner.items()})
        calls = below
    return ops


def _split(graph: gs.Graph, bodies: Container[Identity]) -> tuple[Counter[str], Counter[Identity]]:
    """Count what a graph and those below it compute themselves, and what they call."""
    nodes = [node for each in within(graph) for node in each.nodes if not is_op(node, "Constant")]
    calls = Counter(key for node in nodes if (key := called(node)) in bodies)
    return Counter(str(node.op) for node in nodes if called(node) not in bodies), calls


def count_macs(view: GraphView) -> int | None:
    """Return the multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul at batch size 1, None if unknown."""
    total = 0
    for node in view.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
        count = _node_macs(node, lambda tensor: _at_batch_one(view.facts.shape(tensor)))
        if count is None and any(view.facts.shape(end) is None for end in (*node.inputs[:2], node.outputs[0])):
            count = _node_macs(node, view.shape)  # what the file declares may tell more
        if count is None:
            return None
        total += count
    return total


def _at_batch_one(shape: SymbolicShape) -> Shape:
    """Return a shape with its leading dimension as it is where everything that is not a number is 1."""
    if shape is None:
        return None
    numbers = [dim if isinstance(dim, int) else None for dim in shape]
    if shape and isinstance(shape[0], Expression):
        numbers[0] = shape[0].at_ones()
    return tuple(numbers)


def _node_macs(node: gs.Node, shape: Callable[[gs.Tensor], Shape]) -> int | None:
    """Return the multiply-accumulates of one node; an unknown leading dimension counts as 1."""
    left, right, out = (shape(tensor) for tensor in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if left is None or right is None or out is None:
        return None
    if is_op(node, "Conv"):
        factors = [*out, *right[1:]]
    elif is_op(node, "ConvTranspose"):
        factors = [*left, *right[1:]]
    elif is_op(node, "Gemm"):
        factors = [*out, left[0 if node.attrs.get("transA", 0) else 1]]
    else:
        factors = [*out, left[-1]]
    if factors and not isinstance(factors[0], int):
        factors[0] = 1
    numbers = [factor for factor in factors if isinstance(factor, int)]
    return math.prod(numbers) if len(numbers) == len(factors) else None
