"""Values that a Loop carries around unchanged: the body reads them from outside, where passes see what they are."""

import onnx_graphsurgeon as gs

from graphopt.graph.noops.inline import drop_unread_stacks, given_out_below, inline_loop
from graphopt.graph.noops.place import Place
from graphopt.graph.view import is_op
from graphopt.model.order import bodies


def simplify_loop(place: Place) -> str | None:
    """Put the body in the Loop's place if its course is known; else carry what changes and collect what is read."""
    return inline_loop(place) or _carry_less(place) or drop_unread_stacks(place)


def _carry_less(place: Place) -> str | None:
    """Let the body of a Loop capture what it carries around unchanged, such as weights.

    Left alone are values that a graph gives out, and those whose name means something else in the body.
    """
    node, body, edit = place.node, place.node.attrs.get("body"), place.view.edit
    count = len(node.inputs) - 2
    if not isinstance(body, gs.Graph) or len(body.inputs) != count + 2 or len(body.outputs) <= count:
        return None
    if count > len(node.outputs):
        return None
    below = given_out_below(body)
    same = [index for index in range(count) if _is_unchanged(place, body, index, below)]
    if len(same) == len(node.outputs) or (place.opset < 11 and len(same) == count):
        del same[:1]  # a Loop has to give something out, and before opset 11 to carry something
    names = _names_in(body, {id(body.inputs[index + 2]) for index in same}) if same else set()
    same = [index for index in same if node.inputs[index + 2].name not in names]
    for index in reversed(same):
        initial = node.inputs[index + 2]
        edit.replace_uses(body.inputs[index + 2], initial)
        if node.outputs[index].name:
            edit.replace_uses(node.outputs[index], initial)
        edit.set_input(node, index + 2, gs.Variable.empty())
        edit.set_output(node, index, gs.Variable.empty())
        for row, place_in_row in ((node.inputs, index + 2), (node.outputs, index)):
            list.__delitem__(row, place_in_row)
        del body.inputs[index + 2], body.outputs[index + 1]
    return f"{len(same)} carried value{'s' * (len(same) > 1)} never change{'s' * (len(same) == 1)}" if same else None


def _is_unchanged(place: Place, body: gs.Graph, index: int, below: set[int]) -> bool:
    """Whether a Loop gives a carried value on as it came, and nobody else gives it out."""
    formal, tensor = body.inputs[index + 2], body.outputs[index + 1]
    while (producer := place.view.producer(tensor)) is not None and is_op(producer, "Identity"):
        tensor = producer.inputs[0]
    others = [out for slot, out in enumerate(body.outputs) if slot != index + 1]
    given = id(formal) in below or any(out is formal for out in others)
    given = given or place.view.is_output(place.node.outputs[index])
    return tensor is formal and bool(place.node.inputs[index + 2].name) and not given


def _names_in(body: gs.Graph, without: set[int]) -> set[str]:
    """Return the names that mean something of its own in a body and below it."""
    found: set[str] = set()
    waiting = [body]
    while waiting:
        graph = waiting.pop()
        own = [*graph.inputs, *getattr(graph, "initializers", [])]
        own += [out for node in graph.nodes for out in node.outputs]
        found |= {str(tensor.name) for tensor in own if id(tensor) not in without}
        waiting += [inner for node in graph.nodes for inner in bodies(node)]
    return found
