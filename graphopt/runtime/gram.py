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
from graphopt.numerics.reconstruction import Layer, Moments, corrected_bias, ridge
from graphopt.result import Skip
from graphopt.runtime.capture import Runs
from graphopt.runtime.feeds import Data
from graphopt.runtime.shifts import FEWEST
from graphopt.runtime.side_by_side import Mask, held_out

_ROWS_PER_RUN = 4096
_BYTES_AT_ONCE = 1 << 28
_STAGES = 128
_ROWS_PER_COLUMN = 4
"""On unseen white noise GPTQ is worse than the nearest levels below one to three rows for each column of the weight."""
_DAMPINGS = (0.01, 0.1, 1.0, 10.0)
"""How strongly weights may be held to what they are when they are fitted, relative to the variance of what they see."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What one layer sees, group by group, and what it should make of it.

    Attributes:
        layer: The layer, with its float parameters.
        moments: Of its inputs with the layers before it quantized, and of its outputs in float, less its bias: of four
            samples in five, and of the others.
        rehearsal: The float model, in which layers that are done compute what their quantized forms will; None if no
            layer learns from those before it.
        fit: Whether the data are enough, and worth it, to learn weights from.
        samples: How many samples these are.
    """

    layer: LinearLayer
    moments: tuple[Moments, Moments]
    rehearsal: "_Rehearsal | None"
    fit: bool
    samples: int

    def finish(
        self, view: GraphView, values: Array, quantized: Quantized, rounded: bool, corrected: bool
    ) -> tuple[Quantized, str]:
        """Choose the levels by GPTQ and correct the bias, as asked; return the weight and what was done.

        Scales and zero points stay. The layers behind will see the result. What the data cannot carry is not fitted:
        with fewer than four rows for each column levels are the nearest ones, with fewer than 16 samples biases stay.

        Raises:
            Skip: The new values overflow the layer's type.
        """
        bias, how, total = self.layer.bias, "", self.moments[0] + self.moments[1]
        few = corrected and bias is not None and self.samples < FEWEST
        corrected = corrected and bias is not None and not few
        least = _ROWS_PER_COLUMN * _shape(self.layer)[2]
        if rounded and total.rows < least:
            how = f", to the nearest: GPTQ needs {least} rows of data here, there are {total.rows}"
        elif rounded:
            quantized, how = self._round(values, quantized, total, corrected), " by GPTQ"
        real = self._matrix(dequantize(quantized)) * self._factor
        if bias is not None and corrected:
            bias, how = bias + corrected_bias(total, real), f"{how} with its bias corrected"
        elif few:
            how += f", its bias left as it is: {FEWEST} samples are needed to correct it, there are {self.samples}"
        if self.rehearsal is not None:
            self.rehearsal.take_over(view.site(self.layer.node), real, bias)
        if corrected:
            self.layer.write(view, None, bias)
        return quantized, how

    def _round(self, values: Array, quantized: Quantized, total: Moments, corrected: bool) -> Quantized:
        """Choose the levels whose outputs are the nearest to the float ones, the mean left to the bias if corrected."""
        shape, grouping = values.shape, quantized.grouping
        zero = np.zeros(()) if quantized.zero_point is None else quantized.zero_point.astype(np.float64)
        full = [np.broadcast_to(spread(each, shape, grouping), shape) for each in (quantized.scale, zero)]
        weight, scale, offset = (self._matrix(each) for each in (values.astype(np.float64), *full))
        gram = total.centred()[0] if corrected else total.aa
        best = self._fitted(weight * self._factor, total, corrected) / self._factor if self.fit else weight
        pairs = [gptq(best[g], gram[g], quantized.affine, scale[g], offset[g]) for g in range(len(gram))]
        levels = self._stored(np.stack([pair[0] for pair in pairs]), shape)
        error = np.stack([pair[1] for pair in pairs]) - weight
        return replace(quantized, levels=levels, noise=float(np.square(error).sum()))

    def _fitted(self, weight: Floats, total: Moments, corrected: bool) -> Floats:
        """Return the weight that makes up for what the layers before have lost, where that can be learnt.

        It is the one of least ``|A w'^T - Y|^2 + damping |w' - w|^2``. A layer that sees few rows would learn them by
        heart, so the damping is the one that is best on the samples that are set aside, or the weight stays. What is
        zero stays zero.
        """
        learnt, aside = self.moments
        if not learnt.rows or not aside.rows:
            return weight
        kept = Layer(weight, corrected_bias(learnt, weight) if corrected else np.zeros(weight.shape[:2]))
        free = weight != 0
        tries = [ridge(learnt, weight, damping, free, intercept=corrected) for damping in _DAMPINGS]
        errors = [float(aside.error(each.weight, each.bias).sum()) for each in (*tries, kept)]
        best = int(np.argmin(errors))
        if best == len(tries):
            return weight
        return ridge(total, weight, _DAMPINGS[best], free, intercept=corrected).weight

    @property
    def _factor(self) -> float:
        """What the operator multiplies its stored weight with."""
        return float(self.layer.node.attrs.get("alpha", 1.0)) if self.layer.node.op == "Gemm" else 1.0

    def _matrix(self, stored: Array) -> Array:
        """Return a weight as the layer stores it as [G, M, K]."""
        groups, _, inputs = _shape(self.layer)
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

    def __init__(self, model: Model, follows: bool) -> None:
        self._original = model
        self._follows = follows
        self._copy = GraphView(model.copy())
        self._nodes = {self._copy.site(node): node for node in self._copy.nodes()}
        self._differs = False

    def take_over(self, site: str, weight: Floats, bias: Floats | None) -> None:
        """Have a layer compute with this weight and bias from now on."""
        if self._follows:
            read_layer(self._copy, self._nodes[site]).write(self._copy, weight, bias)
            self._differs = True

    def watch(
        self, layers: Sequence[LinearLayer], data: Data, samples: int, squares: bool
    ) -> list[tuple[Moments, Moments]]:
        """Run on data and return the moments of each layer, see ``Seen``; without ``squares`` only the means.

        What the first layer reads comes from the copy. Were it so for a layer behind it too, both would make up for the
        same errors, and together for too much; so that one sees the float inputs.
        """
        names = [str(tensor.name) for layer in layers for tensor in (layer.input, layer.output)]
        first = str(layers[0].input.name)
        original = Runs(self._original, names, data, samples)
        pairs: Iterable[tuple[int, Mapping[str, Any], Mapping[str, Any]]]
        pairs = ((count, each, each) for count, each in original)
        if self._differs:
            copy = Runs(self._copy.model, [first], original.data, samples)
            pairs = ((count, wanted, given) for (count, wanted), (_, given) in zip(original, copy, strict=True))
        rng = np.random.default_rng(0)
        found = [(_moments(layer, squares), _moments(layer, squares)) for layer in layers]
        done = 0
        for count, wanted, given in pairs:
            aside = held_out(done, count)
            done += count
            for moments, layer in zip(found, layers, strict=True):
                source, y = str(layer.input.name), wanted[str(layer.output.name)]
                x = given[source] if source == first else wanted[source]
                if x.shape == wanted[source].shape:
                    _add(moments, layer, *layer.rows(x, y, _ROWS_PER_RUN, rng), aside, squares)
        return found


def look(view: GraphView, nodes: list[gs.Node], data: Data, samples: int, squares: bool = True) -> Iterator[Seen]:
    """Yield what each layer sees, for those Conv, Gemm and MatMul of the main graph that alone own their weight.

    In the order of the graph, a stage for each tensor that layers read (128 stages at most, of 256 MB of moments). In a
    stage the float model runs once, and so does a copy in which the layers of the stages before are as ``Seen.finish``
    has left them. Without ``squares``, with fewer than 16 samples and with generated ones all see the float inputs:
    biases alone, corrected one behind the other where most of an image is background, lead the net astray. The graph
    itself may change meanwhile.

    Args:
        view: The model.
        nodes: Its layers.
        data: What to run on.
        samples: On how many samples at most.
        squares: Whether second moments are needed, as for GPTQ.
    """
    place = {id(node): index for index, node in enumerate(view.model.graph.nodes)}
    layers = [layer for node in nodes if (layer := _readable(view, node)) is not None]
    layers.sort(key=lambda layer: place[id(layer.node)])
    count = min(data.size, samples)
    if not squares:
        yield from _means(view, layers, data, count)
        return
    learns = not data.generated and count >= FEWEST
    rehearsal = _Rehearsal(view.model.copy(), learns)
    for stage in _stages(layers, squares, _STAGES if learns else 1):
        for layer, moments in zip(stage, rehearsal.watch(stage, data, samples, squares), strict=True):
            if moments[0].rows or moments[1].rows:
                yield Seen(layer, moments, rehearsal, learns, count)


def _means(view: GraphView, layers: list[LinearLayer], data: Data, samples: int) -> Iterator[Seen]:
    """Yield the means of what layers see in float; one run serves all replays, which keep them in the view's memory."""
    kept: dict[str, tuple[Moments, Moments]] = view.memory.setdefault(f"means of {samples} samples", {})
    missing = [layer for layer in layers if view.site(layer.node) not in kept]
    if missing:
        found = _Rehearsal(view.model.copy(), False).watch(missing, data, samples, False)
        kept |= {view.site(layer.node): moments for layer, moments in zip(missing, found, strict=True)}
    for layer in layers:
        moments = kept[view.site(layer.node)]
        if moments[0].rows or moments[1].rows:
            yield Seen(layer, moments, None, False, samples)


def _stages(layers: list[LinearLayer], squares: bool, count: int) -> Iterator[list[LinearLayer]]:
    """Cut the layers into ``count`` stages; those that read the same tensor are together if there is room."""
    most = -(-len({id(layer.input) for layer in layers}) // count)
    stage: list[LinearLayer] = []
    for layer in layers:
        inputs = {id(each.input) for each in (*stage, layer)}
        size = sum(_bytes(each, squares) for each in (*stage, layer))
        if stage and (len(inputs) > most or size > _BYTES_AT_ONCE):
            yield stage
            stage = []
        stage.append(layer)
    if stage:
        yield stage


def _add(
    moments: tuple[Moments, Moments], layer: LinearLayer, rows: Array, outputs: Array, aside: Mask, squares: bool
) -> None:
    """Add rows, sorted by sample, and the float outputs less the layer's bias, if they are finite."""
    rows, outputs = rows.astype(np.float64), outputs.astype(np.float64)
    if not np.isfinite(rows).all() or not np.isfinite(outputs).all():
        return
    if layer.bias is not None:
        outputs = outputs - layer.bias[:, None, :]
    marks = aside[np.arange(rows.shape[1]) * len(aside) // max(rows.shape[1], 1)]
    for part, chosen in zip(moments, (~marks, marks), strict=True):
        if chosen.any():
            add = part.add if squares else part.add_means
            add(rows[:, chosen], outputs[:, chosen])


def _moments(layer: LinearLayer, squares: bool) -> Moments:
    """Return empty moments, without room for second ones if they are not wanted."""
    groups, outputs, inputs = _shape(layer)
    if squares:
        return Moments(groups, inputs, outputs)
    moments = Moments(groups, 0, 0)
    moments.a, moments.y = np.zeros((groups, inputs)), np.zeros((groups, outputs))
    return moments


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
    return 16 * groups * inputs * (inputs + outputs) if squares else 0


def _shape(layer: LinearLayer) -> tuple[int, int, int]:
    assert layer.weight is not None
    groups, outputs, inputs = layer.weight.shape
    return groups, outputs, inputs
