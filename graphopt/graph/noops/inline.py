"""If and Loop nodes whose course is known beforehand: the nodes of a body take the place of the node."""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.noops.place import Place
from graphopt.graph.symbolic.attributes import integers
from graphopt.model.model import subgraphs
from graphopt.model.names import declared
from graphopt.model.order import bodies


def inline_branch(place: Place) -> str | None:
    """Put the branch that an If always takes in its place."""
    node = place.node
    chosen = _truth(place, node.inputs[0])
    if chosen is None:
        return _drop_unread(place, 0, 0)
    branch = node.attrs.get("then_branch" if chosen else "else_branch")
    if not isinstance(branch, gs.Graph) or len(branch.outputs) != len(node.outputs):
        return None
    pairs = list(zip(node.outputs, branch.outputs, strict=True))
    if not _may_need_identities(place, pairs):
        return None
    _give_out(place, _move_out(place, branch), pairs)
    return f"its condition is always {'true' if chosen else 'false'}"


def inline_loop(place: Place) -> str | None:
    """Put the body of a Loop that runs just once in its place, and what it starts from in that of one that never runs.

    It runs once if it starts and the trip count is one, or the condition that the body gives out is always false.
    """
    node, body = place.node, place.node.attrs.get("body")
    if not isinstance(body, gs.Graph) or len(body.outputs) != len(node.outputs) + 1 or len(node.inputs) < 2:
        return None
    trips = integers(place.value(0)) if place.has(0) else [2]
    starts = _truth(place, node.inputs[1]) if place.has(1) else True
    initial = node.inputs[2:]
    if trips is None or len(trips) != 1 or not all(tensor.name for tensor in initial):
        return None
    if not _may_need_identities(place, [*zip(node.outputs, body.outputs[1:], strict=True)]):
        return None
    if starts is False or trips[0] <= 0:
        return _skip_loop(place, initial)
    once = trips[0] == 1 or _truth(place, body.outputs[0]) is False
    if not starts or not once or len(body.inputs) != len(node.inputs):
        return None
    if {id(tensor) for tensor in body.inputs} & given_out_below(body):
        return None
    first = [_scalar(place, np.int64(0), body.inputs[0]), _scalar(place, np.bool_(True), body.inputs[1])]
    actual = {id(f): tensor for f, tensor in zip(body.inputs, [*first, *initial], strict=True)}
    results = [actual.get(id(tensor), tensor) for tensor in body.outputs[1:]]
    for formal in body.inputs:
        place.view.edit.replace_uses(formal, actual[id(formal)])
    outputs = list(node.outputs)
    moved, carried = _move_out(place, body), len(initial)
    for out, source in zip(outputs[carried:], results[carried:], strict=True):
        if out.name:
            _stack(place, source, out)
    _give_out(place, moved, list(zip(outputs[:carried], results[:carried], strict=True)))
    return "runs just once"


def drop_unread_stacks(place: Place) -> str | None:
    """Let a Loop no longer collect what nothing reads."""
    return _drop_unread(place, max(0, len(place.node.inputs) - 2), 1)


def _drop_unread(place: Place, first: int, offset: int) -> str | None:
    """Drop those results, from the slot ``first`` on, that nothing reads; ``offset`` slots later in the bodies.

    One result stays at least.
    """
    node, view = place.node, place.view
    unread = [
        index
        for index, out in enumerate(node.outputs)
        if index >= first and not (out.name and (view.readers(out) or view.is_output(out)))
    ]
    aligned = all(len(body.outputs) == len(node.outputs) + offset for body in bodies(node))
    if len(unread) == len(node.outputs):
        unread = unread[1:]
    if not unread or not aligned:
        return None
    for index in reversed(unread):
        view.edit.drop_result(node, index, index + offset)
    return f"{len(unread)} unused outputs"


def _truth(place: Place, tensor: gs.Tensor) -> bool | None:
    """Return what a condition always is, None if that is not known."""
    held = integers(place.facts.value(tensor))
    return bool(held[0]) if held is not None and len(held) == 1 else None


def _may_need_identities(place: Place, pairs: Sequence[tuple[gs.Tensor, gs.Tensor]]) -> bool:
    """Whether Identity could hand the results to graph outputs: sequences and optionals not in older opsets."""
    given = [source for out, source in pairs if place.view.is_output(out)]
    return place.opset >= 16 or all(place.facts.type(source) for source in given)


def _skip_loop(place: Place, initial: Sequence[gs.Tensor]) -> str | None:
    """Put what a Loop starts from in the place of what it would carry; not if it also collects an empty tensor."""
    outputs, view = list(place.node.outputs), place.view
    if any(out.name and (view.readers(out) or view.is_output(out)) for out in outputs[len(initial) :]):
        return None
    view.edit.remove([place.node])
    for out, source in zip(outputs, initial, strict=False):
        _stand_for(place, out, source)
    return "never runs"


def _scalar(place: Place, value: np.generic, formal: gs.Tensor) -> gs.Constant:
    """Return a constant for the iteration number or condition of the first run, in the rank that the body declares."""
    shape = (1,) if formal.shape is not None and len(formal.shape) == 1 else ()
    return place.view.edit.constant(f"{place.view.site(place.node)}_{formal.name}", np.full(shape, value))


def _move_out(place: Place, body: gs.Graph) -> list[gs.Node]:
    """Move the nodes of a body to the graph that its node lives in, under names that nothing else has; return them.

    The node's other bodies go, and their names with them.
    """
    edit, names = place.view.edit, place.view.edit.names
    gone, waiting = [place.node], [other for other in bodies(place.node) if other is not body]
    while waiting:
        graph = waiting.pop()
        gone += declared(graph)
        waiting += subgraphs(graph)
    names.drop({id(thing): thing for thing in gone}.values())
    names.drop({id(tensor): tensor for tensor in body.inputs}.values())
    own = [out for inner in body.nodes for out in inner.outputs] + list(body.initializers) + list(body.nodes)
    for thing in own:
        if thing.name and names.bearers(thing) > 1:
            names.rename(thing)
    return edit.move_out(place.node, body)


def given_out_below(body: gs.Graph) -> set[int]:
    """Return the ids of what subgraphs of a body give out, where no reader tells of it."""
    found, waiting = set[int](), subgraphs(body)
    while waiting:
        graph = waiting.pop()
        found |= {id(tensor) for tensor in graph.outputs}
        waiting += subgraphs(graph)
    return found


def _give_out(place: Place, moved: Sequence[gs.Node], pairs: Sequence[tuple[gs.Tensor, gs.Tensor]]) -> None:
    """Let what a body gave out be what its node gave out, under the name of the latter where possible."""
    view = place.view
    renamed: dict[int, gs.Tensor] = {}
    own = {id(out) for node in moved for out in node.outputs}
    for inner in (body for node in moved for body in bodies(node)):
        own -= {id(tensor) for tensor in inner.outputs} | given_out_below(inner)
    for out, source in pairs:
        if not out.name:
            continue
        source = renamed.get(id(source), source)
        before = view.producer(source)
        if before is None or id(source) not in own:
            _stand_for(place, out, source)
            continue
        index = next(i for i, tensor in enumerate(before.outputs) if tensor is source)
        if out.shape is None and not view.is_output(out):
            out.dtype, out.shape = source.dtype, source.shape
        view.edit.set_output(before, index, out)
        view.edit.replace_uses(source, out)
        view.edit.names.drop([source])
        renamed[id(source)] = out


def _stand_for(place: Place, out: gs.Tensor, source: gs.Tensor) -> None:
    """Let ``source`` be read in the place of ``out``, by way of an Identity where a graph gives ``out`` out."""
    if not out.name:
        return
    if place.view.is_output(out):
        place.facts.adopt(place.view.edit.add_node(place.node, "Identity", [source], [out]), place.node)
    else:
        place.view.edit.replace_uses(out, source)


def _stack(place: Place, source: gs.Tensor, out: gs.Tensor) -> None:
    """Give ``source`` the leading axis that a Loop collects the results of its runs along."""
    edit = place.view.edit
    if place.opset >= 13:
        axes = edit.constant(f"{out.name}_axes", np.zeros(1, np.int64))
        made = edit.add_node(place.node, "Unsqueeze", [source, axes], [out])
    else:
        made = edit.add_node(place.node, "Unsqueeze", [source], [out], {"axes": [0]})
    place.facts.adopt(made, place.node)
