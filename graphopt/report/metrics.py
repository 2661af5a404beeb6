"""How large a model is: nodes, parameters, bytes, multiply-accumulates."""

import math
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt.graph import GraphView
from graphopt.graph.macs import is_free, node_macs
from graphopt.graph.shapes import Shape
from graphopt.graph.symbolic import Expression, Facts
from graphopt.graph.symbolic.values import SymbolicShape
from graphopt.graph.view import is_op, operator
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
        macs: Multiply-accumulates of one run at batch size 1; None if those of some node are not known.
        ops: Nodes by operator.
        uncounted: The nodes whose multiply-accumulates are not known: their operator is none that is counted, a size
            that they hang on is not static, or they lie in the body of a loop.
    """

    nodes: int
    parameters: int
    bytes: int
    macs: int | None
    ops: dict[str, int]
    uncounted: tuple[str, ...] = ()


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
    macs, uncounted = count_macs(view)
    return Metrics(sum(ops.values()), parameters, size, macs, dict(sorted(ops.items())), uncounted)


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


def count_macs(view: GraphView) -> tuple[int | None, tuple[str, ...]]:
    """Return the multiply-accumulates at batch size 1, None if unknown, and the nodes that make them so."""
    total, uncounted = 0, []
    bodies = functions(view.model)
    repeated = {id(inner) for node in view.nodes("Loop", "Scan") for body in _bodies(node) for inner in within(body)}
    for graph in view.graphs():
        for node in graph.nodes:
            if called(node) in bodies or is_free(node):
                continue
            count = _node_macs(view, node)
            if count is None or id(graph) in repeated:
                uncounted.append(f"{operator(node)} {view.site(node)!r}")
            else:
                total += count
    return None if uncounted else total, tuple(uncounted)


def _bodies(node: gs.Node) -> list[gs.Graph]:
    """Return the subgraphs of a node."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]


def _node_macs(view: GraphView, node: gs.Node) -> int | None:
    """Return the multiply-accumulates of one node; what the file declares may tell more than what follows."""
    batch = not is_op(node, "LSTM", "GRU", "RNN")  # their first axis is no batch
    count = node_macs(node, lambda tensor: _at_batch_one(view.facts.shape(tensor), batch))
    if count is None and any(view.facts.shape(end) is None for end in (*node.inputs, node.outputs[0]) if end.name):
        count = node_macs(node, view.shape)
    return count


def _at_batch_one(shape: SymbolicShape, batch: bool) -> Shape:
    """Return a shape with its leading dimension as it is where everything that is not a number is 1."""
    if shape is None:
        return None
    numbers = [dim if isinstance(dim, int) else None for dim in shape]
    if batch and shape and isinstance(shape[0], Expression):
        numbers[0] = shape[0].at_ones()
    return tuple(numbers)
