"""Judges what surrounds discrete operators, which turn a rounding error into another choice.

TopK, NonMaxSuppression, ArgMax, comparisons, roundings and the like jump where two scores are nearly equal, so a
detection model's boxes may change places though every float that led to them is right. Instead of its outputs, this
compares what the candidate gives to each such operator with what the reference gives to it, and the outputs on the
choices that the reference made: in the candidate these operators are cut out and their outputs become inputs. Nothing
is left unjudged: the operators themselves have to be the same in both models, attribute by attribute.

A Softmax or Sigmoid at a model's end can be judged likewise: on noise, which says nothing of accuracy, a classifier may
be quite sure of a class (or of none), and then a small error in the logits is another class altogether.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from graphopt.errors import GraphoptError
from graphopt.runtime.data import Feeds
from graphopt.runtime.session import Session

# fmt: off
DISCRETE = frozenset((
    "ArgMax", "ArgMin", "Bernoulli", "Binarizer", "Ceil", "DynamicQuantizeLinear", "Equal", "Floor", "Greater",
    "GreaterOrEqual", "Hardmax", "Less", "LessOrEqual", "Mod", "Multinomial", "NonMaxSuppression", "NonZero",
    "QLinearConv", "QLinearMatMul", "QuantizeLinear", "Round", "Sign", "TopK", "TreeEnsemble",
    "TreeEnsembleClassifier", "TreeEnsembleRegressor", "Unique",
))
# fmt: on
SATURATING = frozenset(("Softmax", "Sigmoid"))
_MOVES = ("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Slice", "Split", "Cast")
_BODIES = ("If", "Loop", "Scan")
_INTEGERS = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL", "INT4", "UINT4")


@dataclass(frozen=True)
class Decision:
    """A discrete operator that both models have.

    Attributes:
        op: Its type.
        outputs: The tensors that it computes, named alike in both models.
        reference: What it reads in the reference, slot by slot, and what its bodies capture.
        candidate: The same for the candidate.
    """

    op: str
    outputs: tuple[str, ...]
    reference: tuple[str, ...]
    candidate: tuple[str, ...]

    def probes(self, inputs: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """Yield the tensors to look at and a name for each look."""
        for slot, name in enumerate(inputs):
            if name:
                yield name, f"input {slot} of {self.op} {self.outputs[0]!r}"


def find_decisions(reference: onnx.ModelProto, candidate: onnx.ModelProto, saturating: bool = False) -> list[Decision]:
    """Return the discrete operators of the main graph that are the same in both models.

    An If, Loop or Scan whose bodies hold a discrete operator counts as one, if it is the same to the last bit.
    Operators that see no values of the inputs, only shapes and constants, are no decisions.

    Args:
        reference: The reference.
        candidate: The candidate.
        saturating: Whether a Softmax or Sigmoid that nothing but moves follow counts too.
    """
    tainted = tainted_tensors(reference.graph)
    last = _saturating_ends(reference.graph) if saturating else set()
    others = {node.output[0]: node for node in candidate.graph.node if node.output}
    found = []
    for node in reference.graph.node:
        if not node.output or not (_is_discrete(node) or node.output[0] in last):
            continue
        if tainted.isdisjoint((*node.input, *captured(node))):
            continue
        other = others.get(node.output[0])
        if other is not None and _is_same(node, other):
            outputs = tuple(name for name in node.output if name)
            outer = tuple(captured(node))
            found.append(Decision(node.op_type, outputs, tuple(node.input) + outer, tuple(other.input) + outer))
    return found


class ForcedPair:
    """A reference, and a candidate that takes over the reference's decisions."""

    def __init__(
        self,
        reference: onnx.ModelProto,
        candidate: onnx.ModelProto,
        decisions: list[Decision],
        optimize: bool = False,
    ) -> None:
        """Prepare both; the candidate is loaded when the types of the decisions are known.

        Args:
            reference: The reference with its weights.
            candidate: The candidate with its weights.
            decisions: The operators to force.
            optimize: Whether ONNX Runtime may rewrite both graphs.
        """
        self._decisions = decisions
        self._names = [name for decision in decisions for name in decision.outputs]
        self._candidate, self._optimize = candidate, optimize
        watched = _with_probes(reference, [each.probes(each.reference) for each in decisions])
        self._left = Session(watched, optimize=optimize, extra_outputs=self._names)
        self._right: Session | None = None

    def run(self, feeds: Feeds, candidate_feeds: Feeds | None = None) -> tuple[Feeds, Feeds]:
        """Return the probes and outputs of both for one batch; the candidate may get feeds of its own.

        Raises:
            GraphoptError: A model cannot be loaded or run, or a decision is no tensor.
        """
        left = self._left.run(feeds)
        choices = {name: left.pop(name) for name in self._names}
        if self._right is None:
            forced = _without(self._candidate, self._decisions, choices)
            probed = _with_probes(forced, [each.probes(each.candidate) for each in self._decisions])
            self._right = Session(probed, optimize=self._optimize)
        return left, self._right.run({**(candidate_feeds or feeds), **choices})


def tainted_tensors(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors whose values, not only shapes, depend on the values of the inputs."""
    tainted = {info.name for info in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and not tainted.isdisjoint((*node.input, *captured(node))):
            tainted.update(name for name in node.output if name)
    return tainted


def _is_discrete(node: onnx.NodeProto) -> bool:
    """Whether a node, or one in its bodies, jumps between values."""
    if node.op_type in ("Cast", "MaxPool"):
        to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
        return len(node.output) > 1 or (to > 0 and onnx.TensorProto.DataType.Name(to) in _INTEGERS)
    if node.op_type in _BODIES:
        return any(_is_discrete(inner) for body in bodies(node) for inner in body.node)
    return node.op_type in DISCRETE


def _saturating_ends(graph: onnx.GraphProto) -> set[str]:
    """Return what those Softmax and Sigmoid operators compute whose results reach nothing but outputs, only moved."""
    inner = {name for node in graph.node if node.op_type not in _MOVES for name in (*node.input, *captured(node))}
    for node in reversed(graph.node):
        if node.op_type in _MOVES and not inner.isdisjoint(node.output):
            inner.update(node.input)
    return {node.output[0] for node in graph.node if node.op_type in SATURATING and node.output[0] not in inner}


def _is_same(node: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    """Whether two nodes compute the same of their inputs."""
    left, right = (sorted(a.SerializeToString(deterministic=True) for a in each.attribute) for each in (node, other))
    return (
        (node.op_type, node.domain, list(node.output)) == (other.op_type, other.domain, list(other.output))
        and [bool(name) for name in node.input] == [bool(name) for name in other.input]
        and left == right
    )


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return a node's subgraphs."""
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def captured(node: onnx.NodeProto) -> list[str]:
    """Return the outer tensors that a node's bodies read, sorted."""
    found: set[str] = set()
    for body in bodies(node):
        own = {info.name for info in body.input} | {tensor.name for tensor in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        read = {name for inner in body.node for name in (*inner.input, *captured(inner))}
        found |= (read | {info.name for info in body.output}) - own - {""}
    return sorted(found)


def _with_probes(model: onnx.ModelProto, probes: list[Iterator[tuple[str, str]]]) -> onnx.ModelProto:
    """Return a model that also gives out these tensors under these names."""
    extra = onnx.GraphProto()
    for tensor, name in (pair for each in probes for pair in each):
        extra.node.add(op_type="Identity", input=[tensor], output=[name])
        extra.output.add(name=name)
    # Serialized messages merge by concatenation: this appends to the repeated fields of the graph.
    probed = onnx.ModelProto()
    probed.ParseFromString(model.SerializeToString() + onnx.ModelProto(graph=extra).SerializeToString())
    return probed


def _without(model: onnx.ModelProto, decisions: list[Decision], choices: Feeds) -> onnx.ModelProto:
    """Return a model in which the outputs of these operators are inputs."""
    cut = {decision.outputs[0] for decision in decisions}
    forced = onnx.ModelProto()
    forced.CopyFrom(model)
    kept = [node for node in forced.graph.node if not (node.output and node.output[0] in cut)]
    outputs = [info for info in forced.graph.output if info.name not in choices]
    infos = [info for info in forced.graph.value_info if info.name not in choices]
    for field, values in (("node", kept), ("output", outputs), ("value_info", infos)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        forced.graph.ClearField(field)
        getattr(forced.graph, field).extend(copies)
    for name, value in choices.items():
        if not isinstance(value, np.ndarray):
            raise GraphoptError(f"{name!r} is no tensor: its decision cannot be handed over")
        code = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        forced.graph.input.append(onnx.helper.make_tensor_value_info(name, code, [None] * value.ndim))
    return forced
