"""Keep one of nodes that compute the same and of initializers that hold the same."""

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt import BitExact, GraphView, Pass, PassResult, Rewritten, Skip, Skipped
from graphopt.graph.folding import RANDOM
from graphopt.graph.symbolic import Expression, Facts
from graphopt.graph.symbolic.fact import element_type
from graphopt.graph.view import is_op
from graphopt.model.ir import RawAttribute
from graphopt.model.order import bodies
from graphopt.model.weights import MappedValues, TensorValues

_COMMUTATIVE = ("Add", "Mul", "And", "Or", "Xor", "Equal")
_SAMPLE = 64


@dataclass(frozen=True, kw_only=True)
class MergeDuplicates(Pass):
    """Keep one of nodes that compute the same and of initializers that hold the same.

    1. Initializers of equal type, shape and bytes, wherever in the main graph and its subgraphs they are, or in those
       of one function.
    2. Nodes of one graph with equal operator, attributes and inputs; the two inputs of Add, Mul and their kind in
       either order.
    3. Integers of one graph that are certainly equal although they are computed differently, such as the batch size
       read from two tensors.

    Refused: random operators; nodes with subgraphs; operators of other domains, which may remember something; two graph
    outputs that are equal; initializers that the caller can override.
    """

    name = "merge-duplicates"
    contract = BitExact()
    keeps_facts = True

    def run(self, view: GraphView) -> PassResult:
        """Merge initializers first, so that their readers become equal; then nodes, in order."""
        rewritten, skipped = _merge_initializers(view)
        arithmetic = any(True for _ in view.nodes("Shape", "Size"))
        merger = _NodeMerger(view, view.facts if arithmetic else None)
        for graph in view.graphs():
            first: dict[Hashable, gs.Node] = {}
            for node in graph.nodes:
                for key in merger.keys(node):
                    kept = first.setdefault(key, node)
                    if kept is node:
                        continue
                    try:
                        merger.merge(kept, node)
                        rewritten.append(Rewritten(view.site(node), f"is {view.site(kept)!r}"))
                    except Skip as reason:
                        skipped.append(Skipped(view.site(node), str(reason)))
                    break
        return PassResult(tuple(rewritten), tuple(skipped))


class _NodeMerger:
    """Tells which nodes are equal and merges two of them."""

    def __init__(self, view: GraphView, facts: Facts | None) -> None:
        self._view, self._facts = view, facts

    def keys(self, node: gs.Node) -> Iterator[Hashable]:
        """Yield what equal nodes have in common: what their output holds, if that is known, and how they compute it."""
        if not is_op(node, node.op) or node.op in RANDOM or bodies(node) or not node.outputs:
            return
        held = self._content(node)
        if held is not None:
            yield held
        reads = [id(tensor) if tensor.name else 0 for tensor in node.inputs]
        if node.op in _COMMUTATIVE:
            reads.sort()
        attributes = tuple((name, _attribute_key(node.attrs[name])) for name in sorted(node.attrs))
        yield node.op, tuple(reads), attributes, len(node.outputs)

    def _content(self, node: gs.Node) -> Hashable | None:
        """Return the integers that a node computes, if all are known and at least one as an expression only."""
        if self._facts is None or len(node.outputs) != 1:
            return None
        value = self._facts.value(node.outputs[0])
        if value is None:
            return None
        entries = tuple(value.reshape(-1).tolist())
        if None in entries or not any(isinstance(entry, Expression) for entry in entries):
            return None
        return self._facts.type(node.outputs[0]), value.shape, entries

    def merge(self, kept: gs.Node, node: gs.Node) -> None:
        """Let ``kept`` stand for ``node`` too.

        Raises:
            Skip: Both give out graph outputs, or the site is vetoed.
        """
        view = self._view
        view.require_permitted(view.site(node))
        pairs = list(zip(kept.outputs, node.outputs, strict=True))
        for own, other in pairs:
            if other.name and own.name and view.is_output(other) and view.is_output(own):
                raise Skip(f"{own.name!r} and {other.name!r}, which are equal, are both graph outputs")
        view.edit.remove([node])
        for index, (own, other) in enumerate(pairs):
            if not other.name:
                continue
            if not own.name or view.is_output(other):
                readers = bool(own.name and view.readers(own))
                view.edit.set_output(kept, index, other)
                if readers:
                    view.edit.replace_uses(own, other)
            else:
                view.edit.replace_uses(other, own)


def _attribute_key(value: object) -> Hashable:
    """Return something that is equal for equal attributes only."""
    if isinstance(value, gs.Constant):
        return id(value) if element_type(value) in (0, onnx.TensorProto.STRING) else _digest(value)
    if isinstance(value, RawAttribute):
        return bytes(value.proto.SerializeToString(deterministic=True))
    if isinstance(value, gs.Node.AttributeRef):
        return "reference", value.name
    if isinstance(value, list):
        return tuple(map(repr, value))
    return type(value).__name__, repr(value)


def _merge_initializers(view: GraphView) -> tuple[list[Rewritten], list[Skipped]]:
    """Keep one of equal initializers; only those of equal type, shape and sample are read whole."""
    rewritten: list[Rewritten] = []
    skipped: list[Skipped] = []
    alike: dict[Hashable, list[tuple[gs.Graph, gs.Constant]]] = {}
    for root in (view.model.graph, *view.model.functions):
        for graph, constant in _initializers(view, root):
            alike.setdefault((id(root), _sample(constant)), []).append((graph, constant))
    for group in (group for group in alike.values() if len(group) > 1):
        first: dict[bytes, tuple[gs.Graph, gs.Constant]] = {}
        for graph, constant in group:
            home, kept = first.setdefault(_digest(constant), (graph, constant))
            if kept is constant:
                continue
            try:
                view.require_permitted(constant.name)
                if view.is_output(constant):
                    raise Skip(f"{constant.name!r} is a graph output")
            except Skip as reason:
                skipped.append(Skipped(constant.name, str(reason)))
                continue
            view.edit.replace_uses(constant, kept)
            rewritten.append(Rewritten(constant.name, f"is {kept.name!r}"))
            # Sibling bodies may name theirs alike, until one moves outwards.
            if home is not graph and view.edit.names.bearers(kept) > 1:
                view.edit.names.rename(kept)
    return rewritten, skipped


def _initializers(view: GraphView, root: gs.Graph) -> Iterator[tuple[gs.Graph, gs.Constant]]:
    """Yield the initializers of a graph and its subgraphs that something reads and nobody can override."""
    waiting = [root]
    while waiting:
        graph = waiting.pop(0)
        waiting += [body for node in graph.nodes for body in bodies(node)]
        for constant in graph.initializers:
            plain = not hasattr(constant._values, "sparse") and element_type(constant) not in (
                0,
                onnx.TensorProto.STRING,
            )
            if plain and view.readers(constant) and not view.is_input(constant):
                yield graph, constant


def _sample(constant: gs.Constant) -> Hashable:
    """Return type, shape and a few bytes from the start, middle and end."""
    values = constant._values
    shape = tuple(int(n) for n in constant.shape)
    kind = element_type(constant)
    if isinstance(values, MappedValues):
        buffer, start, length = values.span
        raw = memoryview(buffer)
    else:
        array = np.ascontiguousarray(values.load() if isinstance(values, TensorValues) else values)
        raw, start, length = array.reshape(-1).view(np.uint8).data, 0, array.nbytes
    places = (start, start + max(0, length // 2 - _SAMPLE), start + max(0, length - _SAMPLE))
    return kind, shape, b"".join(bytes(raw[p : min(p + _SAMPLE, start + length)]) for p in places)


def _digest(constant: gs.Constant) -> bytes:
    """Return a hash over type, shape and all bytes, read a few megabytes at a time."""
    values = constant._values
    if isinstance(values, TensorValues):
        chunks = values.chunks() if isinstance(values, MappedValues) else iter([np.asarray(values.load()).tobytes()])
    else:
        chunks = iter([values.tobytes()])
    state = hashlib.blake2b(f"{element_type(constant)} {list(constant.shape)}".encode(), digest_size=20)
    for chunk in chunks:
        state.update(chunk)
    return state.digest()
