"""The layers of a model in the order of its data, each with its parameters.

A Gemm with a bias and a MatMul with an Add behind it are the same layer, and a LayerNormalization is a Mul and an Add.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.parameters import Arrange, Array, Parameter, values_of
from graphopt.graph.slots import GATES, weight_slots
from graphopt.graph.view import GraphView, is_op
from graphopt.graph.weights import is_float
from graphopt.model.order import bodies

Kind = tuple[Hashable, ...]

ROLES: dict[str, dict[int, str]] = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "DeformConv": {1: "weight", 3: "bias"},
    "BatchNormalization": {1: "scale", 2: "shift", 3: "mean", 4: "variance"},
    "InstanceNormalization": {1: "scale", 2: "shift"},
    "GroupNormalization": {1: "scale", 2: "shift"},
    "PRelu": {1: "slope"},
    "Gather": {0: "table"},
    "LSTM": {1: "weight", 2: "recurrence", 3: "bias", 7: "peephole"},
    "GRU": {1: "weight", 2: "recurrence", 3: "bias"},
    "RNN": {1: "weight", 2: "recurrence", 3: "bias"},
    "Einsum": {0: "left", 1: "right"},
    "Expand": {0: "values"},
    "Concat": {slot: f"part {slot}" for slot in range(8)},
    "Where": {1: "values", 2: "others"},
    "QLinearConv": {3: "weight", 8: "bias"},
    "QLinearMatMul": {3: "weight"},
    "ConvInteger": {1: "weight"},
    "MatMulInteger": {1: "weight"},
}
"""The input slots in which a node reads parameters, and what they are."""

LINEAR = ("Gemm", "MatMul")
ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
_PASSING = ("Concat", "Expand", "Where", "Gather")
_COMMUTATIVE = ("Add", "Mul", "Sum", "Max", "Min")


@dataclass(frozen=True, eq=False)
class Layer:
    """A node with parameters, those of an Add behind it included; ``kind`` is what layers alike have in common."""

    node: gs.Node
    kind: Kind
    parameters: tuple[Parameter, ...]


def find_layers(view: GraphView) -> list[Layer]:
    """Return the layers, each behind those that its inputs come from.

    The order is that of a walk back from the outputs, so that it does not depend on the order in which a file lists
    nodes; where an operator does not mind the order of its inputs, the one with the longer way comes first.
    """
    found: list[Layer] = []
    owned: set[int] = set()
    for node in ordered(view):
        for layer in _layers(view, node):
            if id(node) not in owned:
                found.append(layer)
                owned |= {id(each.node) for each in layer.parameters}
    return found


def ordered(view: GraphView) -> list[gs.Node]:
    """Return all nodes, each behind those that it depends on, in an order that the graph alone decides."""
    graphs = list(view.graphs())
    depth: dict[int, int] = {}
    for graph in graphs:
        for node in graph.nodes:
            depth[id(node)] = 1 + max((depth.get(id(p), 0) for t in node.inputs for p in t.inputs), default=0)
    found: dict[int, gs.Node] = {}
    for graph in graphs:
        starts = [node for tensor in graph.outputs for node in tensor.inputs]
        waiting = [(node, False) for node in [*starts, *graph.nodes][::-1]]
        while waiting:
            node, entered = waiting.pop()
            if id(node) in found:
                continue
            if entered:
                found[id(node)] = node
                continue
            before = [producer for tensor in node.inputs for producer in tensor.inputs]
            if is_op(node, *_COMMUTATIVE):
                before.sort(key=lambda producer: -depth.get(id(producer), 0))
            before += [inner for body in bodies(node) for tensor in body.outputs for inner in tensor.inputs]
            waiting += [
                (node, True),
                *((producer, False) for producer in reversed(before) if id(producer) not in found),
            ]
    return list(found.values())


# -- layer by layer ----------------------------------------------------------------------------------------------------


def _layers(view: GraphView, node: gs.Node) -> Iterator[Layer]:
    """Yield what a node is: a layer, or two for a LayerNormalization, which other exporters write as Mul and Add."""
    if is_op(node, *LINEAR):
        yield from _linear(view, node)
    elif is_op(node, "LayerNormalization", "RMSNormalization"):
        for slot, op in ((1, "Mul"), (2, "Add")):
            if (found := _parameter(view, node, slot, "operand", _stripped)) is not None:
                yield Layer(node, (op, len(found.shape)), (found,))
    elif is_op(node, *ELEMENTWISE):
        for slot in (0, 1):
            other = node.inputs[1 - slot] if len(node.inputs) == 2 else None
            found = _parameter(view, node, slot, "operand", _stripped)
            if found is not None and np.prod(found.shape) > 1 and other is not None and values_of(view, other) is None:
                yield Layer(node, (node.op, len(found.shape)), (found,))
    elif is_op(node, *ROLES) and (node.op not in _PASSING or values_of(view, node.outputs[0]) is None):
        yield from _plain(view, node)


def _plain(view: GraphView, node: gs.Node) -> Iterator[Layer]:
    """A layer whose slots say it all."""
    parameters = []
    for slot, role in ROLES[node.op].items():
        if (found := _parameter(view, node, slot, role, _form(node, role))) is not None:
            parameters.append(found)
    if not parameters:
        return
    first = parameters[0]
    kind: Kind = (node.op, first.role, len(first.shape))
    if node.op in ("Conv", "ConvTranspose", "DeformConv"):
        if first.role != "weight":
            return
        groups = node.attrs.get("group", 1)
        depthwise = groups > 1 and first.shape[1] == 1
        free = (0,) if depthwise else (0, 1) if groups == 1 else ()
        parameters[0] = Parameter(node, first.slot, first.role, first.shape, first.arrange, free)
        kind = (node.op, first.shape[2:], "depthwise" if depthwise else groups)
        if len(parameters) == 1 and (bias := _bias_behind(view, node, len(first.shape) - 2)) is not None:
            parameters.append(bias)
    elif node.op in GATES:
        kind = (node.op, node.attrs.get("direction", "forward"))
    elif node.op == "Einsum":
        kind = (node.op, node.attrs.get("equation"))
    yield Layer(node, kind, tuple(parameters))


def _linear(view: GraphView, node: gs.Node) -> Iterator[Layer]:
    """Gemm and MatMul: the weight as [outputs, inputs], whichever way it is stored."""
    slots = weight_slots(view, node)
    found = [
        (slot, each) for slot in slots if (each := _parameter(view, node, slot.index, "weight", _same)) is not None
    ]
    if len(found) != 1:
        return
    slot, weight = found[0]
    scaled = tuple(node.attrs.get(name, 1.0) for name in ("alpha", "beta")) if node.op == "Gemm" else (1.0, 1.0)
    side = "left" if slot.index == 0 else "right"
    if len(weight.shape) == 2 and slot.channel is not None:
        turned = slot.channel == 1
        shape = weight.shape[::-1] if turned else weight.shape
        weight = Parameter(
            node, slot.index, "weight", shape, _transposed if turned else _same, (0, 1), turned and node.op == "MatMul"
        )
    parameters = [weight]
    bias = _parameter(view, node, 2, "bias", _vector) if node.op == "Gemm" else None
    if bias is None and side == "right":
        bias = _bias_behind(view, node, 0)
    parameters += [] if bias is None else [bias]
    yield Layer(node, ("linear", side, len(weight.shape), *scaled), tuple(parameters))


def _bias_behind(view: GraphView, node: gs.Node, spatial: int) -> Parameter | None:
    """Return the constant of an Add that alone reads a layer's output, one value for each channel."""
    readers = view.readers(node.outputs[0])
    if len(readers) != 1 or not is_op(readers[0], "Add") or view.is_output(node.outputs[0]):
        return None
    add = readers[0]
    slot = 1 if add.inputs[0] is node.outputs[0] else 0
    found = _parameter(view, add, slot, "bias", _same)
    if found is None or len(found.shape) <= spatial or np.prod(found.shape) != found.shape[-1 - spatial]:
        return None
    return _parameter(view, add, slot, "bias", _vector)


def _parameter(
    view: GraphView, node: gs.Node, slot: int, role: str, form: "Arrange | tuple[Arrange, tuple[int, ...]]"
) -> Parameter | None:
    """Return what a node reads in a slot as a parameter; None if it is no constant or not of floats."""
    if slot >= len(node.inputs) or node.inputs[slot].is_empty():
        return None
    values = values_of(view, node.inputs[slot])
    integers = node.op in ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
    if values is None or not values.ndim or not (integers or is_float(values.dtype)):
        return None
    arrange, free = form if isinstance(form, tuple) else (form, None)
    shape = arrange(values).shape
    return Parameter(node, slot, role, shape, arrange, tuple(range(len(shape))) if free is None else free)


# -- common forms ------------------------------------------------------------------------------------------------------


def _same(values: Array) -> Array:
    return values


def _transposed(values: Array) -> Array:
    return values.T


def _vector(values: Array) -> Array:
    """[1, C, 1] and its kind as [C]."""
    return values.reshape(-1) if values.size == max(values.shape, default=0) else values


def _stripped(values: Array) -> Array:
    """Without leading axes of size one, which broadcasting adds by itself."""
    lead = next((axis for axis, size in enumerate(values.shape) if size != 1), values.ndim - 1)
    return values.reshape(values.shape[lead:])


def _form(node: gs.Node, role: str) -> "Arrange | tuple[Arrange, tuple[int, ...]]":
    """Return how a role's values are brought into the common form, and its free axes if these are not all."""
    if node.op in GATES:
        gates, width = GATES[node.op], {"weight": 1, "recurrence": 1, "bias": 2, "peephole": 0}[role]
        count = gates * width or 3

        def by_gate(values: Array) -> Array:
            return values.reshape(values.shape[0], count, -1, *values.shape[2:])

        return by_gate, (2, 3) if width == 1 else (2,)
    return _vector if role in ("bias", "slope", "scale", "shift", "mean", "variance") else _same
