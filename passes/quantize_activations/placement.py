"""Decides which activations are quantized, and who reads the quantized copy, by the integer kernels that runtimes have.

QuantizeLinear and DequantizeLinear follow a tensor, and those that gain by it read what comes out. A runtime that sees
DequantizeLinear, an operator and QuantizeLinear in a row computes the operator on integers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.view import GraphView, is_op
from graphopt.numerics.quantization import Affine

from .kernels import SAME_SCALE, normalize, takes_integers
from .reach import Reach, end, is_shape_question


@dataclass
class Placement:
    """The tensors to quantize, in groups that share a scale: ``parent`` is a union-find forest over tensor ids.

    Attributes:
        tensors: By id.
        bound: The ids of those that an integer kernel computes: all readers get the quantized copy, there is no other.
        kernels: The ids of the operators that are computed on integers beside the layers.
        layers: The ids of the layers.
        concats: Those of the kernels that put several tensors together, each behind what it reads.
    """

    layers: set[int]
    tensors: dict[int, gs.Tensor] = field(default_factory=dict)
    parent: dict[int, int] = field(default_factory=dict)
    bound: set[int] = field(default_factory=set)
    kernels: set[int] = field(default_factory=set)
    concats: list[gs.Node] = field(default_factory=list)

    def add(self, tensor: gs.Tensor, *, bound: bool = False) -> None:
        """Quantize a tensor."""
        self.tensors.setdefault(id(tensor), tensor)
        self.parent.setdefault(id(tensor), id(tensor))
        if bound:
            self.bound.add(id(tensor))

    def __contains__(self, tensor: gs.Tensor) -> bool:
        return id(tensor) in self.tensors

    def join(self, tensor: gs.Tensor, other: gs.Tensor) -> None:
        """Quantize both with one scale."""
        self.add(tensor)
        self.add(other)
        self.parent[self.root(tensor)] = self.root(other)

    def root(self, tensor: gs.Tensor) -> int:
        """Return the id that stands for the group of a tensor."""
        current = id(tensor)
        while self.parent[current] != current:
            self.parent[current] = self.parent[self.parent[current]]
            current = self.parent[current]
        return current

    def groups(self) -> list[list[gs.Tensor]]:
        """Return the groups, each in order of addition."""
        found: dict[int, list[gs.Tensor]] = {}
        for tensor in self.tensors.values():
            found.setdefault(self.root(tensor), []).append(tensor)
        return list(found.values())

    def feeds_only(self, view: GraphView, tensor: gs.Tensor, reader: gs.Node) -> bool:
        """Whether all that reads the quantized group of a tensor is ``reader`` and what shares the group's scale."""
        group = self.root(tensor)
        return all(
            node is reader or any(out in self and self.root(out) == group for out in node.outputs)
            for member in self.tensors.values()
            if self.root(member) == group
            for node in view.readers(member)
            if not is_shape_question(node)
        )

    def reads(self, node: gs.Node, slot: int, tensor: gs.Tensor) -> bool:
        """Whether a reader of a quantized tensor gets the quantized copy."""
        return id(tensor) in self.bound or id(node) in self.kernels or (id(node) in self.layers and slot == 0)


def place(view: GraphView, layers: list[gs.Node]) -> Placement:
    """Return what to quantize around ``layers`` of the main graph, whose weights are quantized.

    1. The first input of each layer. Only the layer reads the quantized copy.
    2. The output of each Conv, behind its Relu or Clip, if all that reads it leads to another layer: an integer kernel
       gives out integers only. Where a comparison, a choice or an output of the model reads it, it stays float.
       The same goes for a dense layer behind its Relu or Clip: where nothing quantizes what comes out, ONNX Runtime
       computes the layer on floats, and the weight's DequantizeLinear at every run.
    3. Residual additions of two quantized tensors, and averages of one, if a layer reads the result: their outputs.
    4. What operators that only move values, or take the largest, make of a quantized tensor on the way to a layer, with
       the same scale; a Concat of several has a scale that ``choose_scales`` shares where that costs little.

    So a tensor that the model gives out stays float, and so does all that leads from the last layer to the outputs.
    """
    reach = Reach(view, layers)
    placement = Placement({id(node) for node in layers})
    for node in layers:
        placement.add(node.inputs[0])
    for node in reach.nodes:
        if id(node) in placement.layers:
            if is_op(node, "Conv", "ConvTranspose") and reach.is_free_to_bind(out := end(view, node)):
                placement.add(out, bound=True)
            elif (clamped := _clamped(view, node)) is not None and reach.is_free_to_bind(clamped):
                placement.add(clamped, bound=True)
        elif takes_integers(view, node):
            _place_kernel(view, placement, reach, node)
    return placement


def _clamped(view: GraphView, node: gs.Node) -> gs.Tensor | None:
    """Return what a dense layer gives out behind its Relu or Clip, also if an Add of a constant brings the bias."""
    if not is_op(node, "Gemm", "MatMul"):
        return None
    readers = view.readers(node.outputs[0])
    adds = len(readers) == 1 and is_op(readers[0], "Add") and not view.is_output(node.outputs[0])
    if is_op(node, "MatMul") and adds and any(view.array(operand) is not None for operand in readers[0].inputs):
        node = readers[0]
    behind = end(view, node)
    return None if behind is node.outputs[0] else behind


def _place_kernel(view: GraphView, placement: Placement, reach: Reach, node: gs.Node) -> None:
    """Quantize what an operator with an integer kernel computes, if it reads quantized tensors and a layer follows."""
    data = [tensor for tensor in node.inputs if not tensor.is_empty()]
    moves = is_op(node, *SAME_SCALE)
    sources = data if is_op(node, "Concat", "Add") else data[:1]
    outputs = list(_results(node)) if moves else [end(view, node)]
    if not all(source in placement for source in sources):
        return
    if not all(reach.is_free_to_bind(out) for out in outputs) or not any(reach.is_near(out) for out in outputs):
        return
    bound = not moves or all(id(source) in placement.bound for source in sources)
    if not bound and not all(reach.is_near(out, all_readers=True) for out in outputs):
        return
    placement.kernels.add(id(node))
    for out in outputs:
        placement.add(out, bound=bound)
    if is_op(node, "Concat") and len(sources) > 1:
        placement.concats.append(node)
    elif moves:
        for tensor in outputs:
            placement.join(tensor, sources[0])


def _results(node: gs.Node) -> Iterator[gs.Tensor]:
    """Yield the outputs that hold what the first input holds."""
    for out in node.outputs[: 1 if node.op == "MaxPool" else None]:
        if not out.is_empty():
            yield out


def insert(view: GraphView, placement: Placement, tensor: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor) -> None:
    """Put QuantizeLinear and DequantizeLinear behind a tensor of the main graph, for those that ``placement`` names.

    Questions of shape read the integers of a bound tensor: a float reader would keep ONNX Runtime from computing it on
    integers. From opset 21 on, ONNX Runtime 1.32 fails at moving a DequantizeLinear with an int8 zero point past the
    Reshape that it makes when it turns MatMul and Add into a Gemm; so there a zero point of zero is left out.
    """
    edit, near = view.edit, view.model.graph.nodes[0]
    quantized, real = edit.variable(f"{tensor.name}_q"), edit.variable(f"{tensor.name}_dq")
    for node in {id(node): node for node in view.readers(tensor)}.values():
        for slot, read in enumerate(node.inputs):
            if read is tensor and placement.reads(node, slot, tensor):
                edit.set_input(node, slot, quantized if is_shape_question(node) else real)
    edit.add_node(near, "QuantizeLinear", [tensor, scale, zero], [quantized])
    stored = view.array(zero)
    plain = view.opset >= 21 and stored is not None and stored.dtype == np.int8 and not stored.any()
    edit.add_node(near, "DequantizeLinear", [quantized, scale] if plain else [quantized, scale, zero], [real])


def normalize_kernels(view: GraphView, placement: Placement) -> None:
    """Take off attributes at their defaults that integer kernels do not know."""
    for node in view.model.graph.nodes:
        if id(node) in placement.kernels:
            normalize(node)


def parameters(affine: Affine, low: float, high: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return scale and zero point of one tensor as DequantizeLinear takes them."""
    scale, zero = affine.parameters(np.array([low]), np.array([high]))
    return scale.reshape(()), zero.astype(np.int32).astype(affine.kind.dtype).reshape(())
