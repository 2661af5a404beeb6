"""One forward sweep over a model that tells types, symbolic shapes and the content of small integer tensors.

What the file declares for tensors in the middle is not believed, only what the graph inputs declare, which a runtime
enforces: declarations go stale when somebody edits a model.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import onnx_graphsurgeon as gs

from graphopt.graph.constants import default_values
from graphopt.graph.symbolic import expression as ex
from graphopt.graph.symbolic import shapes, values
from graphopt.graph.symbolic.attributes import Value, has_reference
from graphopt.graph.symbolic.fact import UNKNOWN, Fact, as_value, element_type, followed, merge_shapes
from graphopt.graph.symbolic.infer import infer, is_known
from graphopt.graph.symbolic.shapes import Partial
from graphopt.graph.symbolic.values import LIMIT, SymbolicShape
from graphopt.model import Model
from graphopt.model.ir import no_garbage_collection
from graphopt.model.order import bodies

Read = tuple[Fact | None, ...]


class _Visit(NamedTuple):
    """A node that the sweep has been at.

    Attributes:
        node: The node.
        opset: The version of the default domain that it is read by.
        read: What was known of its inputs then; None if it has to be looked at again.
        given: The ids of its outputs then.
    """

    node: gs.Node
    opset: int
    read: Read | None
    given: tuple[int, ...]


class Facts:
    """What is known of every tensor of a model, by identity; it stays true while passes keep each tensor's values."""

    def __init__(self, model: Model) -> None:
        """Sweep over ``model``."""
        self._model = model
        self._known: dict[int, tuple[gs.Tensor, Fact]] = {}  # with the tensor: ids are reused once an object is gone
        self._constants: dict[int, tuple[gs.Constant, Callable[[], Any], Fact]] = {}
        self._visits: dict[int, _Visit] = {}
        self._count = 0
        self.refresh()

    def refresh(self) -> None:
        """Sweep again after edits: over nodes that are new, or read something of which other things are known now."""
        self._fed = {id(tensor) for tensor in self._model.overridable()}
        with no_garbage_collection():
            self._sweep(self._model.graph, self._model.opset, trusted=True)
            for function in self._model.functions:
                self._sweep(function, function.opset or self._model.opset, trusted=False)

    def moved_to(self, copy: Model) -> "Facts":
        """Return what is known, for a copy of the model that nothing has been changed in since."""
        twin = Facts.__new__(Facts)
        twin._model, twin._count, twin._constants = copy, self._count, {}
        twin._fed = {id(tensor) for tensor in copy.overridable()}
        twin._known = {
            id(other): (other, self._known[id(tensor)][1])
            for tensor, other in _variable_pairs(self._model, copy)
            if id(tensor) in self._known
        }
        twin._visits = {}
        for graph, image in zip(self._model.graphs(), copy.graphs(), strict=True):
            for node, other in zip(graph.nodes, image.nodes, strict=True):
                seen = self._visits.get(id(node))
                if seen is not None and seen.given == tuple(map(id, node.outputs)):
                    twin._visits[id(other)] = _Visit(other, seen.opset, seen.read, tuple(map(id, other.outputs)))
        return twin

    # -- questions -----------------------------------------------------------------------------------------------------

    def __contains__(self, node_id: int) -> bool:
        """Whether the sweep has seen a node, by its ``id``."""
        return node_id in self._visits

    def of(self, tensor: gs.Tensor) -> Fact:
        """Return all that is known of a tensor."""
        known = self._known.get(id(tensor))
        if known is not None:
            return known[1]
        return self._constant(tensor) if isinstance(tensor, gs.Constant) and tensor.name else UNKNOWN

    def type(self, tensor: gs.Tensor) -> int:
        """Return the element type in ONNX's numbering; 0 if unknown or not a tensor."""
        return self.of(tensor).type

    def shape(self, tensor: gs.Tensor) -> SymbolicShape:
        """Return a tuple of int and Expression, or None if not even the rank is known."""
        return self.of(tensor).shape

    def value(self, tensor: gs.Tensor) -> Value | None:
        """Return the content of a small integer or boolean tensor: int, bool, Expression or None; None if unknown."""
        return self.of(tensor).value

    def opset(self, node: gs.Node) -> int:
        """Return the version of the default domain that a node is read by; functions have their own."""
        return self._visits[id(node)].opset

    def adopt(self, node: gs.Node, other: gs.Node) -> None:
        """Take in a node that a pass has put in the place of ``other``, with the same outputs."""
        self._visits[id(node)] = _Visit(node, self._visits[id(other)].opset, None, ())

    # -- learning ------------------------------------------------------------------------------------------------------

    def _constant(self, tensor: gs.Constant) -> Fact:
        """Return what an initializer holds; it is looked at when it is first asked for, and when it has changed."""
        seen = self._constants.get(id(tensor))
        stored = tensor._values
        if seen is not None and seen[0] is tensor and seen[1]() is stored:
            return seen[2]
        shape, kind = tuple(int(n) for n in tensor.shape), element_type(tensor)
        array = None
        if id(tensor) not in self._fed and stored.nbytes <= 8 * LIMIT:
            array = default_values(tensor)
        value = None if array is None else followed(kind, as_value(array))
        fact = Fact(kind, shape if value is None else value.shape, value)
        self._constants[id(tensor)] = tensor, weakref.ref(stored), fact
        return fact

    def _record(self, tensor: gs.Tensor, kind: int, shape: Partial, value: Value | None) -> None:
        """Remember a tensor; dimensions that are unknown get a name of their own."""
        if not tensor.name:
            return
        before = self._known.get(id(tensor))
        value = followed(kind, value)
        if before is not None:  # that still holds
            kind, value = kind or before[1].type, before[1].value if value is None else value
            shape = _sharpened(shape, before[1].shape)
        if value is not None:
            fact = Fact(kind, value.shape, value)
        else:
            fact = Fact(kind, None if shape is None else tuple(self._named(entry) for entry in shape), None)
        if before is None or not before[1].equals(fact):
            self._known[id(tensor)] = tensor, fact

    def _named(self, entry: ex.Entry | None) -> ex.Entry:
        """Return a dimension as it is, or a fresh name where it is unknown; a dimension is never negative."""
        if entry is None or (isinstance(entry, int) and entry < 0):
            self._count += 1
            return ex.name(f"?{self._count}")
        return entry if ex.nonnegative(entry) else ex.spelled("extent", entry, sign=True)

    # -- the sweep -----------------------------------------------------------------------------------------------------

    def _sweep(self, graph: gs.Graph, opset: int, trusted: bool) -> None:
        """Go through one graph in its order, into subgraphs where they stand."""
        for tensor in graph.inputs:
            if id(tensor) not in self._known:
                declared = tensor.shape if trusted and tensor.shape is not None else None
                shape = None if declared is None else tuple(_declared(n) for n in declared)
                self._record(tensor, element_type(tensor), shape, None)
        for node in graph.nodes:
            read = tuple(self.of(tensor) if tensor.name else None for tensor in node.inputs)
            seen = self._visits.get(id(node))
            given = tuple(map(id, node.outputs))
            if seen is None or seen.node is not node or seen.given != given or not _agree(seen.read, read):
                self._visits[id(node)] = _Visit(node, opset, read, given)
                self._visit(node, opset, read)
            if node.attrs:
                inner = bodies(node)
                for body in inner:
                    self._sweep(body, opset, trusted=False)
                if inner and node.op in ("If", "Loop") and node.domain in (None, "", "ai.onnx"):
                    self._conclude(node, inner)

    def _visit(self, node: gs.Node, opset: int, read: Read) -> None:
        """Learn about the outputs of one node."""
        standard = node.domain in (None, "", "ai.onnx")
        if standard and node.op == "Constant":
            array = default_values(node.outputs[0])
            if array is not None:
                kind = element_type(gs.Variable("", array.dtype))
                self._record(node.outputs[0], kind, array.shape, as_value(array))
            return
        types = infer(node, opset, read) if (standard or is_known(node)) and not bodies(node) else None
        first, value = _follow(node, opset, read) if standard and not has_reference(node) else (None, None)
        for index, (out, (kind, shape)) in enumerate(zip(node.outputs, types or repeat((0, None)), strict=False)):
            if index == 0 and first is not None:
                shape = merge_shapes(shape, first)
            self._record(out, kind or element_type(out), shape, value if index == 0 else None)

    def _conclude(self, node: gs.Node, inner: Sequence[gs.Graph]) -> None:
        """Learn about the outputs of an If what both branches tell, of a Loop the types."""
        if node.op == "If":
            for out, *sources in zip(node.outputs, *(body.outputs for body in inner), strict=False):
                self._record(out, *_common([self.of(source) for source in sources]), None)
            return
        for index, (out, source) in enumerate(zip(node.outputs, inner[0].outputs[1:], strict=False)):
            start = node.inputs[index + 2] if index + 2 < len(node.inputs) else source
            self._record(out, self.type(start), None, None)


def _common(facts: Sequence[Fact]) -> tuple[int, Partial]:
    """Return the type and shape that tensors have in common, as far as they do."""
    first, *others = facts
    kind = first.type if all(other.type == first.type for other in others) else 0
    shapes = [fact.shape for fact in facts if fact.shape is not None]
    if len(shapes) != len(facts) or len({len(shape) for shape in shapes}) != 1:
        return kind, None
    return kind, tuple(row[0] if len(set(row)) == 1 else None for row in zip(*shapes, strict=True))


def _follow(node: gs.Node, opset: int, read: Read) -> tuple[Partial, Value | None]:
    """Return what our own rules tell of the first output: its shape and what it holds."""
    measure, follow = shapes.RULES.get(node.op), values.RULES.get(node.op)
    if measure is None and follow is None:
        return None, None
    known = [None if fact is None else fact.value for fact in read]
    extents = [None if fact is None else fact.shape for fact in read]
    try:
        shape = measure(node, known, extents, opset) if measure else None
        return shape, follow(node, known, extents, opset) if follow else None
    except (IndexError, TypeError, ValueError):  # the node is malformed; a runtime would refuse it
        return None, None


def _agree(before: Read | None, now: Read) -> bool:
    """Whether the same is known of a node's inputs as when it was visited."""
    if before is None or len(before) != len(now):
        return False
    return all(a is b or (a is not None and b is not None and a.equals(b)) for a, b in zip(before, now, strict=True))


def _sharpened(shape: Partial, before: SymbolicShape) -> Partial:
    """Return the better of two true accounts of each dimension: a number, else the newer one."""
    merged = merge_shapes(shape, before)
    if merged is None or before is None or len(merged) != len(before):
        return merged
    return tuple(b if isinstance(b, int) and not isinstance(a, int) else a for a, b in zip(merged, before, strict=True))


def _variable_pairs(model: Model, copy: Model) -> Iterator[tuple[gs.Tensor, gs.Tensor]]:
    """Yield graph inputs and computed tensors of a model with those of its copy."""
    for graph, image in zip(model.graphs(), copy.graphs(), strict=True):
        yield from zip(graph.inputs, image.inputs, strict=True)
        for node, other in zip(graph.nodes, image.nodes, strict=True):
            yield from zip(node.outputs, other.outputs, strict=True)


def _declared(entry: int | str | None) -> ex.Entry | None:
    """Return a declared dimension; names of our own begin with other characters than a file's."""
    if isinstance(entry, str):
        return ex.name(f"dim {entry}" if entry[:1] in "~?" else entry) if entry else None
    return entry
