"""Completes what a pass tells: layers and large constants that it has no word for, each with what is true of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.constants import why_unknown
from graphopt.graph.slots import CONVENTIONS
from graphopt.graph.view import GraphView, is_op, operator
from graphopt.graph.weights import MOVES
from graphopt.model.attributes import attribute_bytes
from graphopt.model.exporter import serialized_size
from graphopt.model.functions import called, functions
from graphopt.model.ir import value_bytes
from graphopt.model.weights import TensorValues
from graphopt.result import PassResult, Skipped

LARGE = 0.01
"""A constant is large from this share of the file on."""

_SMALLEST_LAYER = 256
"""Bytes of the smallest weight that makes a node of an unknown operator a layer; scales and biases have fewer."""

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
_FORMS = ("Mul", "Sub")
_OPTIMIZED = ("Fused", "Attention", "SkipLayerNorm", "EmbedLayerNorm", "BiasGelu", "MultiHead", "Packed")


@dataclass(frozen=True)
class _Use:
    """A node that computes with a stored constant, and whether that lies there as integers that are scaled."""

    node: gs.Node
    scaled: bool


@dataclass
class _Fate:
    """What becomes of a stored tensor.

    Attributes:
        uses: The nodes that compute with it.
        given_out: Whether a graph gives it out, as it is or only moved and cast.
        measured: Whether something asks for its shape.
    """

    uses: list[_Use] = field(default_factory=list)
    given_out: bool = False
    measured: bool = False


def complete(view: GraphView, result: PassResult, scope: str) -> PassResult:
    """Return what a pass told, and besides each place that it has no word for, as skipped.

    A place is a node of an operator that graphopt does not know and that has a stored matrix, and with the scope
    "weights" also each node that computes with a constant of over 1% of the file, or has as much in its attributes, as
    trees and vocabularies have.

    Args:
        view: The model as the pass has found it.
        result: What the pass told.
        scope: "weights" or "operators", see ``Pass.accounts``.
    """
    told = {each.site for each in result.rewritten} | {each.site for each in result.skipped}
    texts = [each.detail for each in result.rewritten] + [each.reason for each in result.skipped]
    quoted = {name for text in texts for name in re.findall(r"'([^']*)'", text)}
    least = LARGE * (view.model.stored_bytes or serialized_size(view.model))
    found: dict[str, str] = {}
    bodies = functions(view.model)
    for tensor, constant in _stored(view):
        fate = _follow(view, tensor)
        uses = fate.uses
        names = {view.site(use.node) for use in uses}
        if constant.name in told or tensor.name in quoted or names & told:
            continue
        size = value_bytes(constant._values)
        foreign = [use for use in uses if not is_op(use.node, use.node.op) and called(use.node) not in bodies]
        if size >= _SMALLEST_LAYER and len(constant.shape) > 1 and foreign:
            found.setdefault(view.site(foreign[0].node), _why_foreign(foreign[0].node))
        elif scope == "weights" and size >= least:
            site = view.site(uses[0].node) if uses else str(tensor.name)
            found.setdefault(site, f"{tensor.name!r}, {size:,} bytes, {_why(view, tensor, constant, fate)}")
    for node in view.nodes() if scope == "weights" else ():
        size, site = attribute_bytes(node), view.site(node)
        if size >= max(least, _SMALLEST_LAYER) and not is_op(node, "Constant") and site not in told:
            found.setdefault(site, f"{operator(node)} has {size:,} bytes in its attributes, which are no weights")
    return PassResult(result.rewritten, (*result.skipped, *(Skipped(site, why) for site, why in found.items())))


def _stored(view: GraphView) -> Iterator[tuple[gs.Tensor, gs.Constant]]:
    """Yield every stored tensor with its constant: initializers, and what Constant nodes give out."""
    view.model.adopt_constants()
    for graph in view.graphs():
        yield from ((constant, constant) for constant in graph.initializers)
        for node in graph.nodes:
            if is_op(node, "Constant") and isinstance(value := node.attrs.get("value"), gs.Constant):
                yield node.outputs[0], value


def _follow(view: GraphView, tensor: gs.Tensor) -> _Fate:
    """Return what becomes of a stored tensor, behind what moves, casts or scales it, and in bodies too.

    Only what is moved goes on: where a constant says how to move (the target of a Reshape, the bounds of a Slice), that
    node computes with it. Scales and zero points go with what they scale.
    """
    fate = _Fate()
    waiting, seen = [(tensor, False)], {id(tensor)}
    while waiting:
        tensor, scaled = waiting.pop()
        fate.given_out |= view.is_output(tensor) and not view.borders.is_given_back(tensor)
        for node in {id(node): node for node in view.readers(tensor)}.values():
            slots = [slot for slot, read in enumerate(node.inputs) if read is tensor]
            inner = [each for slot in slots for each in view.borders.inside(node, slot)]
            if inner:
                behind = inner
            elif _passes_on(view, node, slots):
                behind = list(node.outputs)
            elif is_op(node, "Shape", "Size"):
                fate.measured = True
                continue
            else:
                fate.uses.append(_Use(node, scaled))
                continue
            fresh = [each for each in behind if id(each) not in seen]
            seen |= {id(each) for each in fresh}
            scales = scaled or is_op(node, "DequantizeLinear", *_FORMS)
            waiting += [(each, scales) for each in fresh]
    return fate


def _passes_on(view: GraphView, node: gs.Node, slots: list[int]) -> bool:
    """Whether a node gives out what it reads in these slots, only moved, cast or scaled."""
    if is_op(node, *_FORMS):
        return _is_scaling(view, node)
    return is_op(node, *_QUANTIZED) or (is_op(node, *MOVES) and (node.op == "Concat" or 0 in slots))


def _is_scaling(view: GraphView, node: gs.Node) -> bool:
    """Whether a Mul or Sub makes floats of stored integers."""
    sides = [side for tensor in node.inputs if (side := view.producer(tensor, "Cast", *_FORMS)) is not None]
    stored = (view.array(side.inputs[0]) is not None for side in sides)
    return bool(sides) and all(stored) and all(view.array(t) is not None or view.producer(t) for t in node.inputs)


def _why_foreign(node: gs.Node) -> str:
    """Say that an operator is not known, and what to do where ONNX Runtime's optimizer has written it."""
    text = f"{operator(node)} is not an operator that this pass knows"
    written = node.domain == "com.microsoft.nchwc" or (
        node.domain == "com.microsoft" and str(node.op).startswith(_OPTIMIZED)
    )
    return text + ("; take the file from before ONNX Runtime optimized it" if written else "")


def _why(view: GraphView, tensor: gs.Tensor, constant: gs.Constant, fate: _Fate) -> str:
    """Say why a large constant is no weight that the pass could take."""
    if (reason := why_unknown(tensor, view)) is not None and view.array(tensor) is None:
        return reason
    if not fate.uses:
        if fate.given_out:
            return "is given out as it is" if view.is_output(tensor) else "is given out, only moved or cast"
        return "is read for its shape only" if fate.measured else "is read by nothing, eliminate-dead drops it"
    use = fate.uses[0]
    values = constant._values
    dtype = np.dtype(values.dtype) if isinstance(values, TensorValues) else values.dtype
    if use.scaled:
        return "is quantized already"
    if dtype.kind in "iub":
        return f"holds {dtype} values for {use.node.op}"
    if is_op(use.node, *CONVENTIONS):
        return f"is not read by {use.node.op} in the place of a weight that this pass takes"
    return f"is read by {use.node.op}, which is no layer with a weight"
