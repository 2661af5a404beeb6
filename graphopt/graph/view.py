"""Answers every question a pass has about a graph: readers, producers, constants, shapes; and the refusals."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.borders import Borders
from graphopt.graph.constants import Inputs, fixed_values, why_unknown
from graphopt.graph.edit import Edit
from graphopt.graph.left_out import LeftOut
from graphopt.graph.shapes import Shape, infer_shapes
from graphopt.graph.symbolic import Facts
from graphopt.graph.symbolic.expression import is_fresh
from graphopt.model import Model
from graphopt.result import Skip


class GraphView:
    """A model as one pass run sees it: main graph, subgraph bodies and local functions alike.

    Tensors and nodes are compared by identity throughout: equality in onnx-graphsurgeon is by name or shallow content.
    """

    def __init__(
        self,
        model: Model,
        vetoes: Mapping[str, str] | None = None,
        calibration: Any = None,
        original: Model | None = None,
        facts: Facts | None = None,
        demotions: Mapping[str, int] | None = None,
        memory: dict[str, Any] | None = None,
    ) -> None:
        """Look at ``model``.

        Args:
            model: The model that the pass works on.
            vetoes: Sites that must be left alone, each with the reason.
            calibration: Feeds to calibrate with (a ``graphopt.runtime.feeds.Data``), None if there are none.
            original: The model that the run began with, the teacher of passes that recover accuracy.
            facts: What is known of the model's tensors already.
            demotions: How many steps a site has to be written more carefully, see ``Pass.demotions``.
            memory: What the pass keeps from one replay on the same model to the next, such as calibration statistics.
        """
        self.model = model
        self.original = model if original is None else original
        self.vetoes: dict[str, str] = dict(vetoes or {})
        self.left_out: LeftOut | None = None
        self.demotions = dict(demotions or {})
        self.memory: dict[str, Any] = {} if memory is None else memory
        self.calibration = calibration
        self.edit = Edit(model)
        self._shapes: dict[int, Shape] | None = None
        self.known_facts = facts

    # -- nodes ---------------------------------------------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """The version of the default operator domain that the main graph imports."""
        return self.model.opset

    def graphs(self) -> Iterator[gs.Graph]:
        """Yield the main graph, the bodies of local functions, and every subgraph below them."""
        yield from self.model.graphs()

    def nodes(self, *ops: str) -> Iterator[gs.Node]:
        """Yield the default-domain nodes of these operators (all nodes if none is named), in every graph."""
        for graph in list(self.graphs()):
            for node in list(graph.nodes):
                if not self.edit.is_removed(node) and (not ops or is_op(node, *ops)):
                    yield node

    def site(self, node: gs.Node) -> str:
        """Return the identity of a node in reports: the name of its first named output."""
        return next((str(out.name) for out in node.outputs if out.name), str(node.name) or str(node.op))

    # -- neighbours ----------------------------------------------------------------------------------------------------

    def producer(self, tensor: gs.Tensor, *ops: str) -> gs.Node | None:
        """Return the node that computes ``tensor``, if there is one and it is one of ``ops`` (any if none is named)."""
        for node in tensor.inputs:
            if not self.edit.is_removed(node) and (not ops or is_op(node, *ops)):
                return node
        return None

    def readers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Return the nodes that read ``tensor``, once per input slot, those inside subgraphs included."""
        return [node for node in tensor.outputs if not self.edit.is_removed(node)]

    @cached_property
    def borders(self) -> Borders:
        """Which inputs of loops' bodies and local functions always hold what a tensor outside holds."""
        return Borders(self.model)

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether ``tensor`` is an output of any graph: the model's, a subgraph's or a function's."""
        return self.edit.is_output(tensor)

    def is_input(self, tensor: gs.Tensor) -> bool:
        """Whether the caller can feed ``tensor``: a graph input, an overridable initializer included."""
        return self.edit.is_input(tensor)

    # -- values and shapes ---------------------------------------------------------------------------------------------

    def array(self, tensor: gs.Tensor) -> NDArray[np.generic] | None:
        """Return the values of a constant tensor in its own type, read-only, or None if it is not constant.

        Initializers and outputs of Constant nodes are constant, also behind Identity; an initializer that the caller
        can override is not, nor is an Identity of one.
        Nothing is cached: a weight is in memory only while the pass holds the array.
        """
        return fixed_values(tensor, self)

    def shape(self, tensor: gs.Tensor) -> Shape:
        """Return the inferred shape: a tuple of int, symbolic name or None (unknown); None if the rank is unknown."""
        if isinstance(tensor, gs.Constant):
            return tuple(tensor.shape)
        if self._shapes is None and self.known_facts is not None:
            told = self.known_facts.shape(tensor)
            if told is not None and not any(is_fresh(entry) for entry in told):
                return tuple(entry if isinstance(entry, int) else str(entry) for entry in told)
        if self._shapes is None:
            self._shapes = infer_shapes(self.model)
        return self._shapes.get(id(tensor))

    @property
    def facts(self) -> Facts:
        """Types, symbolic shapes and small integers, as far as they follow from what the graph inputs declare.

        A pass that asks again after edits calls ``refresh`` where it matters.
        """
        if self.known_facts is None:
            self.known_facts = Facts(self.model)
        return self.known_facts

    def forget_shapes(self, facts: bool = True) -> None:
        """Infer shapes anew at the next question, after edits that changed them.

        Args:
            facts: Whether what ``facts`` says may have changed too, so that it is found out anew as well.
        """
        self._shapes = None
        if facts:
            self.known_facts = None

    def variable_like(self, stem: str, tensor: gs.Tensor) -> gs.Variable:
        """Return a new tensor without producer, of the type and shape of ``tensor``."""
        shape = self.shape(tensor)
        new = self.edit.variable(stem, tensor)
        if self._shapes is not None and shape is not None:
            self._shapes[id(new)] = shape
        return new

    # -- refusals ------------------------------------------------------------------------------------------------------

    def require_permitted(self, site: str) -> None:
        """Raise Skip if the pipeline has vetoed ``site``."""
        if site in self.vetoes:
            raise Skip(self.vetoes[site])

    def why_left_out(self, node: gs.Node) -> str:
        """Return why the user's choice of sites leaves ``node`` out; empty if it does not."""
        return "" if self.left_out is None else self.left_out.reasons.get(self.site(node), "")

    def require_chosen(self, *nodes: gs.Node) -> None:
        """Raise Skip if the user leaves out one of these nodes, which a rewrite would change beside its own site."""
        for node in nodes:
            if reason := self.why_left_out(node):
                raise Skip(f"{self.site(node)!r} would change, which is {reason}")

    def require_private(self, tensor: gs.Tensor) -> None:
        """Raise Skip unless exactly one node input reads ``tensor`` and no graph gives it out."""
        if self.is_output(tensor):
            raise Skip(f"{tensor.name!r} is a graph output")
        if (count := len(self.readers(tensor))) != 1:
            raise Skip(f"{tensor.name!r} has {count} readers")

    def require_constants(self, *tensors: gs.Tensor) -> list[NDArray[np.float64]]:
        """Return the values of constant tensors as float64 arrays.

        Raises:
            Skip: A tensor is absent, not constant, not numeric, or holds NaN or Inf.
        """
        return [require_found(self.array(tensor), tensor, self) for tensor in tensors]


def require_found(values: NDArray[np.generic] | None, tensor: gs.Tensor, inputs: Inputs) -> NDArray[np.float64]:
    """Return what was found of a tensor's values as float64.

    Raises:
        Skip: Nothing was found, or the values are not numeric or hold NaN or Inf.
    """
    if values is None:
        raise Skip(f"{tensor.name!r} {why_unknown(tensor, inputs) or 'is not constant'}")
    return widen(values, str(tensor.name))


def widen(values: NDArray[np.generic], name: str) -> NDArray[np.float64]:
    """Return values as float64.

    Raises:
        Skip: They are not numeric, or hold NaN or Inf.
    """
    if values.dtype.kind not in "fiub" and not _is_low_precision_float(values.dtype):
        raise Skip(f"{name!r} holds {values.dtype} values")
    wide = np.asarray(values, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise Skip(f"{name!r} holds NaN or Inf")
    return wide


def is_op(node: gs.Node, *ops: str) -> bool:
    """Whether ``node`` is one of these operators of ONNX's default domain."""
    return node.op in ops and node.domain in (None, "", "ai.onnx")


def operator(node: gs.Node) -> str:
    """Return what reports call the operator of a node: with its domain, unless that is ONNX's default domain."""
    return str(node.op) if is_op(node, node.op) else f"{node.op} of {node.domain}"


def _is_low_precision_float(dtype: "np.dtype[np.generic]") -> bool:
    return dtype.name in ("bfloat16",) or dtype.name.startswith(("float8", "float4"))
