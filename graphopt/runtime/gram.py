"""What layers see: the second moments of the rows that their weights multiply, gathered from data."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.linear import LinearLayer, read_layer
from graphopt.graph.view import GraphView
from graphopt.model import Model
from graphopt.numerics.gptq import gptq
from graphopt.numerics.grouping import spread
from graphopt.numerics.quantization import Array, Floats, Quantized, dequantize
from graphopt.result import Skip
from graphopt.runtime.capture import Runs
from graphopt.runtime.feeds import Data

_ROWS_PER_RUN = 4096
_BYTES_AT_ONCE = 1 << 28


@dataclass(frozen=True, eq=False)
class Seen:
    """What one layer sees, group by group.

    Attributes:
        layer: The layer, with its float parameters.
        gram: The sum of a a^T over rows, [G, K, K].
        mean: The mean row, [G, K].
    """

    layer: LinearLayer
    gram: Floats
    mean: Floats

    def round(self, values: Array, quantized: Quantized) -> Quantized:
        """Return a quantized weight with its levels chosen by GPTQ, scales and zero points as they are."""
        shape, grouping = values.shape, quantized.grouping
        zero = np.zeros(()) if quantized.zero_point is None else quantized.zero_point.astype(np.float64)
        full = [np.broadcast_to(spread(each, shape, grouping), shape) for each in (quantized.scale, zero)]
        weight, scale, offset = (self._matrix(each) for each in (values.astype(np.float64), *full))
        pairs = [gptq(weight[g], self.gram[g], quantized.affine, scale[g], offset[g]) for g in range(len(self.gram))]
        levels = self._stored(np.stack([pair[0] for pair in pairs]), shape)
        error = np.stack([pair[1] for pair in pairs]) - weight
        return Quantized(
            levels,
            quantized.scale,
            quantized.zero_point,
            grouping,
            quantized.affine,
            quantized.signal,
            float(np.square(error).sum()),
        )

    def correct_bias(self, view: GraphView, values: Array, quantized: Quantized) -> bool:
        """Add to the bias what quantization takes from the mean of each output: (W - W') times the mean row.

        Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv 1906.04721).
        Returns whether the layer can have a bias.
        """
        if self.layer.bias is None:
            return False
        lost = self._matrix(values.astype(np.float64) - dequantize(quantized))
        shift = np.einsum("gmk,gk->gm", lost, self.mean) * float(self.layer.node.attrs.get("alpha", 1.0))
        self.layer.write(view, None, self.layer.bias + shift.reshape(self.layer.bias.shape))
        return True

    def _matrix(self, stored: Array) -> Array:
        """Return a weight as the layer stores it as [G, M, K]."""
        groups, _, inputs = self.gram.shape
        flat = stored if self._rows_first else stored.T
        return flat.reshape(groups, -1, inputs)

    def _stored(self, matrix: Array, shape: tuple[int, ...]) -> Array:
        """Return [G, M, K] as the layer stores it."""
        if self._rows_first:
            return matrix.reshape(shape)
        return np.ascontiguousarray(matrix[0].T)

    @property
    def _rows_first(self) -> bool:
        node = self.layer.node
        return node.op == "Conv" or (node.op == "Gemm" and bool(node.attrs.get("transB", 0)))


def look(view: GraphView, nodes: list[gs.Node], data: Data, samples: int) -> Iterator[Seen]:
    """Yield what each layer sees, for those Conv, Gemm and MatMul of the main graph that alone own their weight.

    The model as it is at the first step runs once for every 256 MB of second moments; the graph may change meanwhile.
    """
    model = view.model.copy()
    layers = [layer for node in nodes if (layer := _readable(view, node)) is not None]
    while layers:
        portion = [layers.pop(0)]
        size = _bytes(portion[0])
        while layers and size + _bytes(layers[0]) <= _BYTES_AT_ONCE:
            size += _bytes(layers[0])
            portion.append(layers.pop(0))
        yield from _watch(model, portion, data, samples)


def _watch(model: Model, layers: list[LinearLayer], data: Data, samples: int) -> Iterator[Seen]:
    """Run the model on data and sum up what these layers see."""
    shapes = [_shape(layer) for layer in layers]
    grams = [np.zeros((groups, inputs, inputs)) for groups, _, inputs in shapes]
    totals = [np.zeros((groups, inputs)) for groups, _, inputs in shapes]
    counts = [0] * len(layers)
    rng = np.random.default_rng(0)
    names = [str(tensor.name) for layer in layers for tensor in (layer.input, layer.node.outputs[0])]
    for _, tensors in Runs(model, names, data, samples):
        for index, layer in enumerate(layers):
            x, y = tensors[str(layer.input.name)], tensors[str(layer.node.outputs[0].name)]
            rows = layer.rows(x, y, _ROWS_PER_RUN, rng)[0].astype(np.float64)
            if np.isfinite(rows).all():
                grams[index] += rows.transpose(0, 2, 1) @ rows
                totals[index] += rows.sum(axis=1)
                counts[index] += rows.shape[1]
    for layer, gram, total, count in zip(layers, grams, totals, counts, strict=True):
        if count:
            yield Seen(layer, gram, total / count)


def _readable(view: GraphView, node: gs.Node) -> LinearLayer | None:
    """Return a layer whose rows can be told; None for any other."""
    if node.op not in ("Conv", "Gemm", "MatMul") or view.edit.graph_of(node) is not view.model.graph:
        return None
    try:
        layer = read_layer(view, node)
    except Skip:
        return None
    return None if layer.weight is None or view.array(layer.input) is not None else layer


def _bytes(layer: LinearLayer) -> int:
    groups, _, inputs = _shape(layer)
    return groups * inputs * inputs * 8


def _shape(layer: LinearLayer) -> tuple[int, ...]:
    return (0, 0, 0) if layer.weight is None else layer.weight.shape
