"""Replace what can be computed once and for all by its value."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt import FloatExact, GraphView, Pass, PassResult, Rewritten, Skip, Skipped, option
from graphopt.graph.folding import in_function, may_fold, plan_folds
from graphopt.graph.growth import Plan
from graphopt.graph.symbolic import Facts
from graphopt.graph.symbolic.attributes import attribute, tuple_of
from graphopt.graph.symbolic.targets import expand_numbers, reshape_numbers
from graphopt.graph.symbolic.values import LIMIT
from graphopt.model import Model
from graphopt.model.exporter import serialized_size
from graphopt.model.ir import make_constant
from graphopt.model.weights import TensorValues
from graphopt.runtime.evaluate import evaluate_nodes

Array = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Replace what can be computed once and for all by its value.

    1. A node whose inputs are all constant is computed by ONNX Runtime, all such nodes together in one session.
    2. Integers that are known although their source is not constant (a static dimension of a computed tensor, and
       arithmetic with it) are stored as they are: shapes are followed symbolically, from what the graph inputs declare.
    3. A Reshape or Expand to a computed shape gets a constant one where it says the same: an entry that repeats the
       input's own dimension becomes 0 (1 for Expand), and one that follows from the others becomes -1.
    4. A Constant node becomes an initializer, except in a function's body, for a graph output, or before IR version 4.

    The constants have every bit that the nodes gave. Outputs are equal up to rounding nevertheless: a runtime packs a
    weight that it meets as a constant, and sums in another order then.

    The file does not become larger than the run has found it, by more than ``allowance``: where all values together
    would take more than they free, those that take the most for each node that they save are left alone. Values of up
    to 256 bytes are not asked.

    A QuantizeLinear of a weight is a node like any other: its eight or sixteen bits are stored, and the float weight of
    a quantization-aware export goes. The DequantizeLinear behind it stays.

    Refused: what is random; DequantizeLinear and DynamicQuantizeLinear, which keep weights small; initializers that the
    caller can override; types that numpy lacks; a value that would add more than ``max_growth`` bytes to the file, or
    any to a file that must not grow; a value whose size cannot be told before it is computed.
    """

    name = "fold-constants"
    contract = FloatExact(rtol=1e-5, atol=1e-6)
    keeps_facts = True

    max_growth: int = option(1 << 20, "Leave a value alone that would add more than so many bytes.", minimum=0)
    allowance: int = option(0, "Let all values together make the file larger by so many bytes.", minimum=0)

    def run(self, view: GraphView) -> PassResult:
        """Fold until nothing more can be: each value can make further shapes known, and room for others."""
        rewritten: list[Rewritten] = []
        broken: dict[int, str] = {}
        plan = Plan()
        begun = _stored_bytes(view.original) if view.original is view.model and may_fold(view) else None
        room = partial(_room, view, begun, self.allowance)
        while may_fold(view):
            facts = view.facts
            plan = plan_folds(view, facts, self.max_growth, room, broken)
            values, failures = _compute(view, facts, plan)
            if failures:
                broken |= failures
                continue
            found = _replace(view, plan, values) + _simplify_targets(view, facts)
            view.edit.settle()
            rewritten += found
            if not found or not (plan.is_short or any(_is_news(facts, out, values) for out in plan.results)):
                break
            facts.refresh()
        skipped = [Skipped(view.site(node), reason) for node, reason in plan.refused]
        moved, kept = _store_constants(view)
        return PassResult(tuple(rewritten + moved), tuple(skipped + kept))


def _room(view: GraphView, begun: int | None, allowance: int) -> int:
    """Return by how many bytes the model may grow, so that it becomes no larger than the run has found it."""
    return (_stored_bytes(view.original) if begun is None else begun) + allowance - serialized_size(view.model)


def _stored_bytes(model: Model) -> int:
    """Return how large a model is on disk, or would be."""
    return serialized_size(model) if model.stored_bytes is None else model.stored_bytes


def _is_news(facts: Facts, tensor: gs.Tensor, values: dict[int, Array]) -> bool:
    """Whether a computed value is of the kind that shapes come from, and was not known before."""
    value = values[id(tensor)]
    if value.dtype.kind not in "ib" or value.size > LIMIT:
        return False
    known = facts.value(tensor)
    return known is None or not all(isinstance(entry, int) for entry in known.reshape(-1))


def _compute(view: GraphView, facts: Facts, plan: Plan) -> tuple[dict[int, Array], dict[int, str]]:
    """Return the values of a plan's results, by ``id``, and the nodes that ONNX Runtime cannot run, with its reason."""
    values = {id(out): _stated(facts, out) for out in plan.results if id(out) in plan.stated}
    sources = [(out, view.producer(out)) for out in plan.results if id(out) not in plan.stated]
    failures: dict[int, str] = {}
    for opset in sorted({facts.opset(node) for _, node in sources}):
        wanted = [out for out, node in sources if facts.opset(node) == opset]
        needed, given = _cone(view, facts, plan, wanted)
        evaluation = evaluate_nodes(needed, given, wanted, opset)
        values |= evaluation.arrays
        failures |= evaluation.failures
    return values, failures


def _stated(facts: Facts, tensor: gs.Tensor) -> Array:
    """Return a tensor whose every element the symbolic sweep knows."""
    value = facts.value(tensor)
    kind = onnx.helper.tensor_dtype_to_np_dtype(facts.type(tensor))
    return np.asarray([] if value is None else value.tolist(), dtype=kind).reshape(() if value is None else value.shape)


def _cone(
    view: GraphView, facts: Facts, plan: Plan, wanted: Sequence[gs.Tensor]
) -> tuple[list[gs.Node], dict[int, Array]]:
    """Return the nodes that ``wanted`` is computed from, in order, and the constants that these read."""
    needed: set[int] = set()
    given: dict[int, Array] = {}
    waiting = list(wanted)
    while waiting:
        tensor = waiting.pop()
        if not tensor.name or id(tensor) in given:
            continue
        if id(tensor) in plan.stated:
            given[id(tensor)] = _stated(facts, tensor)
        elif id(tensor) in plan.computable:
            node = view.producer(tensor)
            if node is not None and id(node) not in needed:
                needed.add(id(node))
                waiting += node.inputs
        elif (array := view.array(tensor)) is not None:
            given[id(tensor)] = array
    return [node for key, node in plan.nodes.items() if key in needed], given


def _replace(view: GraphView, plan: Plan, values: dict[int, Array]) -> list[Rewritten]:
    """Put the results in place of the nodes that compute them."""
    rewritten = [Rewritten(view.site(plan.nodes[key]), plan.nodes[key].op) for key in plan.nodes if key in plan.folded]
    results = [(out, node) for out in plan.results if (node := view.producer(out)) is not None]
    view.edit.remove(plan.nodes[key] for key in plan.folded)
    for out, node in results:
        constant = gs.Constant(out.name, np.array(values[id(out)], order="C"))
        if view.is_output(out):
            view.edit.add_node(node, "Constant", [], [out], {"value": constant})
        else:
            view.edit.replace_uses(out, constant)
    sources = (tensor for key in plan.folded for tensor in plan.nodes[key].inputs)
    for source in {id(tensor): tensor for tensor in sources}.values():
        node = view.producer(source, "Constant") if source.name else None
        if node is not None and not view.readers(source) and not view.is_output(source):
            view.edit.remove([node])
    return rewritten


def _simplify_targets(view: GraphView, facts: Facts) -> list[Rewritten]:
    """Give Reshape and Expand constant targets where these say the same as the computed ones."""
    rewritten = []
    for node in view.nodes("Reshape", "Expand"):
        if len(node.inputs) < 2 or isinstance(node.inputs[1], gs.Constant) or view.producer(node.inputs[1], "Constant"):
            continue
        target = tuple_of(facts.value(node.inputs[1]))
        if id(node) not in facts or view.site(node) in view.vetoes:
            continue
        if attribute(node, "allowzero", 0) and target is not None and 0 in target:
            continue
        solve = reshape_numbers if node.op == "Reshape" else expand_numbers
        numbers = None if target is None else solve(target, facts.shape(node.inputs[0]))
        if numbers is not None:
            values = np.asarray(numbers, dtype=np.int64)
            node.attrs.pop("allowzero", None)
            view.edit.set_input(node, 1, view.edit.constant(f"{node.outputs[0].name}_shape", values))
            rewritten.append(Rewritten(view.site(node), f"to {numbers}"))
    return rewritten


def _store_constants(view: GraphView) -> tuple[list[Rewritten], list[Skipped]]:
    """Turn Constant nodes into initializers."""
    rewritten, skipped = [], []
    for node in view.nodes("Constant"):
        out = node.outputs[0]
        if view.model.header.ir_version < 4 or in_function(view, node) or view.is_output(out):
            continue
        try:
            view.require_permitted(view.site(node))
        except Skip as reason:
            skipped.append(Skipped(view.site(node), str(reason)))
            continue
        stored = node.attrs.get("value")
        array = view.array(out)
        if isinstance(stored, gs.Constant) and isinstance(stored._values, TensorValues):
            constant: gs.Constant = make_constant(out.name, stored._values)
        elif array is not None:
            constant = gs.Constant(out.name, np.array(array, order="C"))
        else:
            continue
        view.edit.replace_uses(out, constant)
        view.edit.remove([node])
        rewritten.append(Rewritten(view.site(node), "Constant"))
    return rewritten, skipped
