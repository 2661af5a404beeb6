"""Decides which nodes can be replaced by values: what is computable, and whether the file can bear the result."""

from collections.abc import Callable, Mapping

import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.graph.growth import Constants, Plan, byte_size, is_foldable_type, settle_growth
from graphopt.graph.symbolic import Facts
from graphopt.graph.view import GraphView, is_op
from graphopt.model.ir import Graph
from graphopt.result import Skip

LARGEST = 1 << 28
"""Bytes beyond which not even an intermediate value is computed."""

RANDOM = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
)
LOW_BIT = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_BOUNDED = ("NonZero", "Compress", "Unique")


def may_fold(view: GraphView) -> bool:
    """Whether a closer look is worth while: a node asks for a shape or reads nothing but constants."""
    for node in view.nodes():
        if node.op in ("Shape", "Size"):
            return True
        reads = [tensor for tensor in node.inputs if tensor.name]
        if reads and all(isinstance(t, gs.Constant) or view.producer(t, "Constant") is not None for t in reads):
            return True
    return False


def plan_folds(
    view: GraphView, facts: Facts, max_growth: int, room: Callable[[], int], broken: Mapping[int, str]
) -> Plan:
    """Return what can be folded so that the file can bear it.

    Args:
        view: The model.
        facts: What is known of its tensors.
        max_growth: How many bytes a value may add to the file.
        room: Tells how many bytes all of them together may; asked only where they would add any.
        broken: Nodes, by ``id``, that turned out not to run, and why.
    """
    plan = Plan()
    constants = Constants(view)
    for graph in view.graphs():
        for node in graph.nodes:
            if id(node) in broken:
                plan.refused.append((node, broken[id(node)]))
            else:
                _consider(view, facts, constants, plan, node)
    settle_growth(view, facts, constants, plan, max_growth, room)
    return plan


def _consider(view: GraphView, facts: Facts, constants: Constants, plan: Plan, node: gs.Node) -> None:
    """Add a node to the plan if its outputs can be computed."""
    outputs = [out for out in node.outputs if out.name]
    if not is_op(node, node.op) or is_op(node, "Constant") or not outputs or view.edit.is_removed(node):
        return
    stated = len(outputs) == 1 and _is_complete(facts, outputs[0])
    inputs = [tensor for tensor in node.inputs if tensor.name]
    if not stated and not (inputs and all(constants.holds(t) or id(t) in plan.computable for t in inputs)):
        return
    try:
        view.require_permitted(view.site(node))
        if not stated:
            _require_computable(facts, node, outputs)
    except Skip as reason:
        plan.refused.append((node, str(reason)))
        return
    plan.nodes[id(node)] = node
    plan.computable |= {id(out) for out in outputs}
    if stated:
        plan.stated.add(id(outputs[0]))


def _require_computable(facts: Facts, node: gs.Node, outputs: list[gs.Tensor]) -> None:
    """Raise Skip if a node of constant inputs must not or cannot be computed ahead."""
    if node.op in RANDOM:
        raise Skip(f"{node.op} gives something else each time")
    if node.op in LOW_BIT and node.op != "QuantizeLinear":  # it makes a constant smaller
        raise Skip(f"{node.op} keeps low-bit values small")
    if any(isinstance(value, (gs.Graph, gs.Node.AttributeRef)) for value in node.attrs.values()):
        raise Skip(f"{node.op} has a body or takes an attribute from the function's caller")
    for tensor in [*node.inputs, *outputs]:
        if tensor.name and not is_foldable_type(kind := facts.type(tensor)):
            text = TensorProto.DataType.Name(kind).lower() if kind else "values of unknown type"
            raise Skip(f"{tensor.name!r} holds {text}")
    for out in outputs:
        size = byte_size(facts, out)
        if size is None and node.op not in _BOUNDED:
            raise Skip(f"the size of {out.name!r} is not known beforehand")
        if size is not None and size > LARGEST:
            raise Skip(f"{out.name!r} would take {size} bytes")


def _is_complete(facts: Facts, tensor: gs.Tensor) -> bool:
    """Whether every element of a tensor is known as a number."""
    value = facts.value(tensor)
    return value is not None and all(isinstance(entry, int) for entry in value.reshape(-1))


def in_function(view: GraphView, node: gs.Node) -> bool:
    """Whether a node stands directly in the body of a local function, which has no initializers."""
    graph = view.edit.graph_of(node)
    return isinstance(graph, Graph) and graph.is_function
