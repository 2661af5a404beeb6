"""Decides which activations are quantized so that runtimes find integer kernels, and puts Q and DQ nodes there.

Placement is by tensor: QuantizeLinear and DequantizeLinear follow a tensor, and everything that reads it reads what
comes out. A runtime that sees DequantizeLinear, an operator and QuantizeLinear in a row computes it on integers.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.view import GraphView, is_op
from graphopt.numerics.quantization import Affine

SAME_SCALE = (
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Resize",
    "Identity", "DepthToSpace", "SpaceToDepth", "Expand", "Tile",
)  # fmt: skip
AVERAGES = ("GlobalAveragePool", "AveragePool")
_CLAMPS = ("Relu", "Clip")


@dataclass
class Placement:
    """The tensors to quantize, in groups that share a scale: ``parent`` is a union-find forest over tensor ids."""

    tensors: dict[int, gs.Tensor] = field(default_factory=dict)
    parent: dict[int, int] = field(default_factory=dict)

    def add(self, tensor: gs.Tensor) -> None:
        """Quantize a tensor."""
        self.tensors.setdefault(id(tensor), tensor)
        self.parent.setdefault(id(tensor), id(tensor))

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


def place(view: GraphView, layers: list[gs.Node]) -> Placement:
    """Return what to quantize around ``layers`` of the main graph, whose weights are quantized.

    1. The first input of each layer, and the output of each Conv behind its Relu or Clip.
    2. Residual additions of two quantized tensors, and averages of one: their outputs.
    3. What operators that only move values, or take the largest, make of a quantized tensor, with the same scale.

    A tensor that the model gives out stays float.
    """
    placement = Placement()
    for node in layers:
        placement.add(node.inputs[0])
        if is_op(node, "Conv", "ConvTranspose"):
            _add_output(view, placement, node)
    for node in list(view.model.graph.nodes):
        if view.edit.is_removed(node):
            continue
        data = [tensor for tensor in node.inputs if not tensor.is_empty()]
        if (is_op(node, *AVERAGES) and data[0] in placement) or (
            is_op(node, "Add") and len(data) == 2 and all(tensor in placement for tensor in data)
        ):
            _add_output(view, placement, node)
        elif is_op(node, *SAME_SCALE):
            sources = data if node.op == "Concat" else data[:1]
            outputs = [out for out in node.outputs[: 1 if node.op == "MaxPool" else None] if not out.is_empty()]
            free = all(not view.is_output(out) for out in outputs) and not _is_clamped(view, node)
            if free and outputs and all(source in placement for source in sources):
                for tensor in [*sources[1:], *outputs]:
                    placement.join(tensor, sources[0])
    return placement


def _is_clamped(view: GraphView, node: gs.Node) -> bool:
    """Whether a Relu or Clip alone reads what a Concat puts together.

    It is quantized behind that only: OpenVINO 2026.4 crashes where an unsigned QuantizeLinear stands before a Relu too.
    """
    readers = view.readers(node.outputs[0])
    return is_op(node, "Concat") and len(readers) == 1 and is_op(readers[0], *_CLAMPS)


def _add_output(view: GraphView, placement: Placement, node: gs.Node) -> None:
    """Quantize what a node computes, behind the Relu or Clip that alone reads it."""
    out = node.outputs[0]
    readers = view.readers(out)
    if len(readers) == 1 and is_op(readers[0], *_CLAMPS) and readers[0].inputs[0] is out and not view.is_output(out):
        out = readers[0].outputs[0]
    if not view.is_output(out):
        placement.add(out)


def insert(view: GraphView, tensor: gs.Tensor, scale: gs.Tensor, zero: gs.Tensor) -> None:
    """Put QuantizeLinear and DequantizeLinear behind a tensor of the main graph; questions of shape still read it.

    From opset 21 on, ONNX Runtime 1.32 fails at moving a DequantizeLinear with an int8 zero point past the Reshape that
    it makes when it turns MatMul and Add into a Gemm; so there a zero point of nought is left away, as it may be.
    """
    edit, near = view.edit, view.model.graph.nodes[0]
    readers = [node for node in view.readers(tensor) if not is_op(node, "Shape", "Size")]
    quantized, real = edit.variable(f"{tensor.name}_q"), edit.variable(f"{tensor.name}_dq")
    for node in {id(node): node for node in readers}.values():
        for index, read in enumerate(node.inputs):
            if read is tensor:
                edit.set_input(node, index, real)
    edit.add_node(near, "QuantizeLinear", [tensor, scale, zero], [quantized])
    stored = view.array(zero)
    plain = view.opset >= 21 and stored is not None and stored.dtype == np.int8 and not stored.any()
    edit.add_node(near, "DequantizeLinear", [quantized, scale] if plain else [quantized, scale, zero], [real])


def parameters(affine: Affine, low: float, high: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return scale and zero point of one tensor as DequantizeLinear takes them."""
    scale, zero = affine.parameters(np.array([low]), np.array([high]))
    return scale.reshape(()), zero.astype(np.int32).astype(affine.kind.dtype).reshape(())
