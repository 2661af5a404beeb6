"""What layers see behind layers that are quantized already, and what they gave out in float, gathered from data."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.graph.linear import LinearLayer, read_layer
from graphopt.graph.view import GraphView
from graphopt.model import Model
from graphopt.numerics.gptq import gptq
from graphopt.numerics.grouping import spread
from graphopt.numerics.quantization import Array, Floats, Quantized, dequantize
from graphopt.numerics.reconstruction import Moments, corrected_bias, ridge
from graphopt.result import Skip
from graphopt.runtime.capture import Runs
from graphopt.runtime.feeds import Data

_ROWS_PER_RUN = 4096
_BYTES_AT_ONCE = 1 << 28
_STAGES = 32
_HELD = 0.1
"""How strongly weights are held to what they are when they are fitted, relative to the variance of what they see."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What one layer sees, group by group, and what it should make of it.

    Attributes:
        layer: The layer, with its float parameters.
        moments: Of its inputs with the layers before it quantized, and of its outputs in float, less its bias.
        rehearsal: The float model, in which layers that are done compute what their quantized forms will.
        fit: Whether the data are worth learning from.
    """

    layer: LinearLayer
    moments: Moments
    rehearsal: "_Rehearsal"
    fit: bool

    def finish(
        self, view: GraphView, values: Array, quantized: Quantized, rounded: bool, corrected: bool
    ) -> tuple[Quantized, str]:
        """Choose the levels by GPTQ and correct the bias, as asked; return the weight and what was done.

        Scales and zero points stay. The layers behind will see the result.

        Raises:
            Skip: The new values overflow the layer's type.
        """
        bias, how = self.layer.bias, ""
        corrected = corrected and bias is not None
        if rounded:
            quantized, how = self._round(values, quantized, corrected), " by GPTQ"
        real = self._matrix(dequantize(quantized)) * self._factor
        if bias is not None and corrected:
            bias, how = bias + corrected_bias(self.moments, real), f"{how} with its bias corrected"
        self.rehearsal.take_over(view.site(self.layer.node), real, bias)
        if corrected:
            self.layer.write(view, None, bias)
        return quantized, how

    def _round(self, values: Array, quantized: Quantized, corrected: bool) -> Quantized:
        """Choose the levels whose outputs are the nearest to the float ones, their mean left to the bias if corrected.

        GPTQ starts from the weight of least ``|A w'^T - Y|^2 + damping |w' - w|^2``: what the layers before have lost
        is made up for where it can be.
        """
        shape, grouping = values.shape, quantized.grouping
        zero = np.zeros(()) if quantized.zero_point is None else quantized.zero_point.astype(np.float64)
        full = [np.broadcast_to(spread(each, shape, grouping), shape) for each in (quantized.scale, zero)]
        weight, scale, offset = (self._matrix(each) for each in (values.astype(np.float64), *full))
        gram = self.moments.centred()[0] if corrected else self.moments.aa
        best = weight
        if self.fit:
            best = ridge(self.moments, weight * self._factor, _HELD, intercept=corrected).weight / self._factor
        pairs = [gptq(best[g], gram[g], quantized.affine, scale[g], offset[g]) for g in range(len(gram))]
        levels = self._stored(np.stack([pair[0] for pair in pairs]), shape)
        error = np.stack([pair[1] for pair in pairs]) - weight
        return replace(quantized, levels=levels, noise=float(np.square(error).sum()))

    @property
    def _factor(self) -> float:
        """What the operator multiplies its stored weight with."""
        return float(self.layer.node.attrs.get("alpha", 1.0)) if self.layer.node.op == "Gemm" else 1.0

    def _matrix(self, stored: Array) -> Array:
        """Return a weight as the layer stores it as [G, M, K]."""
        groups, _, inputs = self.moments.aa.shape
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


class _Rehearsal:
    """Runs the float model and, beside it, a copy with the layers that are done as their quantized forms compute."""

    def __init__(self, model: Model) -> None:
        self._original = model
        self._copy = GraphView(model.copy())
        self._nodes = {self._copy.site(node): node for node in self._copy.nodes()}
        self._differs = False

    def take_over(self, site: str, weight: Floats, bias: Floats | None) -> None:
        """Have a layer compute with this weight and bias from now on."""
        layer = read_layer(self._copy, self._nodes[site])
        layer.write(self._copy, weight, bias)
        self._differs = True

    def watch(self, layers: Sequence[LinearLayer], data: Data, samples: int, squares: bool) -> list[Moments]:
        """Run on data and return the moments of each layer; without ``squares`` only the means."""
        names = [str(tensor.name) for layer in layers for tensor in (layer.input, layer.output)]
        original = Runs(self._original, names, data, samples)
        pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]] = ((each, each) for _, each in original)
        if self._differs:
            copy = Runs(self._copy.model, [str(layer.input.name) for layer in layers], original.data, samples)
            pairs = ((wanted, given) for (_, wanted), (_, given) in zip(original, copy, strict=True))
        rng = np.random.default_rng(0)
        found = [Moments(groups, inputs, outputs) for groups, outputs, inputs in map(_shape, layers)]
        for wanted, given in pairs:
            for moments, layer in zip(found, layers, strict=True):
                x, y = given[str(layer.input.name)], wanted[str(layer.output.name)]
                if x.shape == wanted[str(layer.input.name)].shape:
                    _add(moments, layer, *layer.rows(x, y, _ROWS_PER_RUN, rng), squares)
        return found


def look(view: GraphView, nodes: list[gs.Node], data: Data, samples: int, squares: bool = True) -> Iterator[Seen]:
    """Yield what each layer sees, for those Conv, Gemm and MatMul of the main graph that alone own their weight.

    In the order of the graph, in up to 32 stages of at most 256 MB of moments. In each stage the float model runs once,
    and so does a copy in which the layers of the stages before are as ``Seen.finish`` has left them. The graph itself
    may change meanwhile.

    Args:
        view: The model.
        nodes: Its layers.
        data: What to run on. From generated data only means are learnt.
        samples: On how many samples at most.
        squares: Whether second moments are needed, as for GPTQ.
    """
    place = {id(node): index for index, node in enumerate(view.model.graph.nodes)}
    layers = [layer for node in nodes if (layer := _readable(view, node)) is not None]
    layers.sort(key=lambda layer: place[id(layer.node)])
    rehearsal = _Rehearsal(view.model.copy())
    for stage in _stages(layers, squares):
        for layer, moments in zip(stage, rehearsal.watch(stage, data, samples, squares), strict=True):
            if moments.rows:
                yield Seen(layer, moments, rehearsal, not data.generated)


def _stages(layers: list[LinearLayer], squares: bool) -> Iterator[list[LinearLayer]]:
    """Cut the layers into stages."""
    most = -(-len(layers) // _STAGES)
    stage: list[LinearLayer] = []
    size = 0
    for layer in layers:
        if len(stage) == most or (stage and size + _bytes(layer, squares) > _BYTES_AT_ONCE):
            yield stage
            stage, size = [], 0
        stage.append(layer)
        size += _bytes(layer, squares)
    if stage:
        yield stage


def _add(moments: Moments, layer: LinearLayer, rows: Array, outputs: Array, squares: bool) -> None:
    """Add rows and the float outputs less the layer's bias, if they are finite."""
    rows, outputs = rows.astype(np.float64), outputs.astype(np.float64)
    if not np.isfinite(rows).all() or not np.isfinite(outputs).all():
        return
    if layer.bias is not None:
        outputs = outputs - layer.bias[:, None, :]
    if squares:
        moments.add(rows, outputs)
    else:
        moments.add_means(rows, outputs)


def _readable(view: GraphView, node: gs.Node) -> LinearLayer | None:
    """Return a layer whose rows can be told; None for any other."""
    if node.op not in ("Conv", "Gemm", "MatMul") or view.edit.graph_of(node) is not view.model.graph:
        return None
    try:
        layer = read_layer(view, node)
    except Skip:
        return None
    return None if layer.weight is None or view.array(layer.input) is not None else layer


def _bytes(layer: LinearLayer, squares: bool) -> int:
    groups, outputs, inputs = _shape(layer)
    return 8 * groups * inputs * (inputs + outputs) if squares else 0


def _shape(layer: LinearLayer) -> tuple[int, int, int]:
    assert layer.weight is not None
    groups, outputs, inputs = layer.weight.shape
    return groups, outputs, inputs
