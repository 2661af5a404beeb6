"""Quantize weights and activations with QuantizeLinear and DequantizeLinear, so that runtimes compute on integers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt import GraphView, Lossy, Pass, PassResult, Rewritten, Skip, Skipped, option
from graphopt.graph.biases import Bias, find_bias, with_room_for
from graphopt.graph.dequantize import PER_AXIS_OPSET, PREFERRED_OPSET, Writer, is_dequantized
from graphopt.graph.qdq import Placement, insert, parameters, place
from graphopt.graph.view import is_op
from graphopt.graph.weights import Weight, computed_from, find_weights, is_float
from graphopt.numerics.grouping import Grouping
from graphopt.numerics.histogram import Observer
from graphopt.numerics.quantization import TYPES, Affine, quantize
from graphopt.runtime.capture import Runs
from graphopt.runtime.feeds import Data, generate
from graphopt.runtime.operands import Operand, require_operands
from graphopt.runtime.sensitivity import bearable, rank, worst_sqnr
from graphopt.runtime.session import Session
from graphopt.runtime.shifts import FEWEST, Means

_Parameters = tuple[NDArray[Any], NDArray[Any]]
_EIGHT_BITS = Affine(TYPES["int8"])


@dataclass(frozen=True)
class _Target:
    """What a runtime's integer kernels want; docs/quantization.md has the sources."""

    layers: tuple[str, ...]
    activations: Affine
    bias: bool = True


_UNSIGNED = Affine(TYPES["uint8"], symmetric=False)
_TARGETS = {
    "cpu": _Target(("Conv", "Gemm", "MatMul"), _UNSIGNED),
    "openvino": _Target(("Conv", "ConvTranspose", "Gemm", "MatMul"), _UNSIGNED, bias=False),
    "tensorrt": _Target(("Conv", "ConvTranspose", "Gemm", "MatMul"), _EIGHT_BITS, bias=False),
    "generic": _Target(("Conv", "ConvTranspose", "Gemm", "MatMul"), Affine(TYPES["int8"], symmetric=False)),
}
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RANKING_SAMPLES = 64


@dataclass(frozen=True)
class _Layer:
    """A layer that can be quantized, and what it reads as its weight."""

    node: gs.Node
    operand: Operand


@dataclass(frozen=True, kw_only=True)
class QuantizeActivations(Pass):
    """Quantize layers with a constant weight, and the tensors between them, to eight bits (static quantization).

    Each chosen tensor gets QuantizeLinear and DequantizeLinear with a scale measured on the calibration data; weights
    are int8 with a scale per output channel, biases int32 at the product of both scales. Placement follows what
    runtimes fuse: inputs of layers, outputs of convolutions behind their Relu or Clip, residual additions, averages,
    and one scale through whatever only moves values. Biases are corrected: the means of a layer's outputs, channel by
    channel, are those of the float model, on up to 64 samples (Nagel et al. 2019, arXiv 1906.04721, appendix D). Where
    that takes the model's outputs further from the float ones, with fewer than 16 samples or generated ones, they are
    left as they are.

    A weight that layers read transposed, sliced or otherwise moved, or that is computed from constants, is stored as
    they read it. Main graph only. Refused: a layer whose weight is refused by quantize-weights, is put together from
    several, or is half precision; a model below opset 13. BatchNormalization should be folded first. Without data the
    ranges come from generated inputs, and each rewrite says that its accuracy is not to be trusted.

    Eight bits on both sides leave about 20 to 30 dB on whole nets; the floor is 8 dB.
    """

    name = "quantize-activations"
    contract = Lossy(min_sqnr_db=8.0)
    compresses = True

    target: Literal["cpu", "openvino", "tensorrt", "generic"] = option(
        "cpu", "The runtime whose integer kernels are to be met: ONNX Runtime's CPU provider, OpenVINO, TensorRT, any."
    )
    range: Literal["minmax", "percentile", "entropy", "mse"] = option(
        "minmax", "Which range of an activation to cover."
    )
    percentile: float = option(99.99, "Share of values that --range percentile covers.", minimum=50, maximum=100)
    samples: int = option(512, "Calibrate on at most this many samples.", minimum=1)
    bias_correction: bool = option(True, "Put back into biases what quantization takes from mean outputs on the data.")
    min_sqnr: float | None = option(
        None, "Keep the most sensitive layers float until every output has this SQNR (dB).", minimum=0
    )

    def required_opset(self, view: GraphView) -> int:
        """Ask for the DequantizeLinear that every runtime has."""
        return PREFERRED_OPSET if self._layers(view)[0] else 0

    def run(self, view: GraphView) -> PassResult:
        """Calibrate, then quantize layer by layer and tensor by tensor."""
        layers, skipped = self._layers(view)
        if layers and view.opset < PER_AXIS_OPSET:
            low = f"opset {view.opset} has no scales per channel, they come with opset {PER_AXIS_OPSET}"
            skipped |= {view.site(layer.node): low for layer in layers}
            layers = []
        rewritten = self._calibrate_and_apply(view, layers, skipped) if layers else {}
        return PassResult(
            tuple(Rewritten(site, detail) for site, detail in rewritten.items()),
            tuple(Skipped(site, reason) for site, reason in skipped.items()),
        )

    def _calibrate_and_apply(self, view: GraphView, layers: list[_Layer], skipped: dict[str, str]) -> dict[str, str]:
        """Calibrate, quantize those of the layers that the model bears, say of the others why not, correct biases."""
        data = view.calibration if view.calibration is not None else generate(view.model)
        observers, means, data = self._watch(view, layers, data)
        notes = self._rank(view, layers, observers, data)
        skipped |= {site: note for site, (chosen, note) in notes.items() if not chosen}
        layers = [layer for layer in layers if view.site(layer.node) not in skipped]
        rewritten, biases = self._apply(view, layers, observers)
        view.edit.settle()
        means.narrow(str(bias.output.name) for bias in biases)
        shifts = means.shifts(view.model, lambda: data.batches(self.samples))
        for bias in biases:
            bias.shift = shifts.get(str(bias.output.name))
            bias.write(view)
        warning = "; generated inputs: do not trust its accuracy" if data.generated else ""
        return {
            site: detail + (f"; {notes[site][1]}" if site in notes else "") + warning
            for site, detail in rewritten.items()
        }

    def _watch(self, view: GraphView, layers: list[_Layer], data: Data) -> tuple[dict[str, Observer], Means, Data]:
        """Run the model; return what was seen of each tensor to quantize, of outputs to correct, and the runs' data."""
        placement = place(view, [layer.node for layer in layers])
        observers = {str(t.name): Observer(self.range == "minmax") for t in placement.tensors.values()}
        count = min(data.size, self.samples)
        corrected = self.bias_correction and not data.generated and count >= FEWEST
        ends = [(each.node, each.operand) for each in layers if corrected]
        biases = [find_bias(view, node, operand.values.shape, operand.axis) for node, operand in ends]
        means = Means(view.model, {str(b.output.name): (b.axis, b.rank) for b in biases if b is not None}, count)
        runs = Runs(view.model, [*observers, *means.names], data, self.samples, means.form)
        for samples, tensors in runs:
            means.add(tensors, samples)
            for name, observer in observers.items():
                if isinstance(tensors[name], np.ndarray):
                    observer.add(tensors[name])
            del tensors  # the next run would come on top of them
        return observers, means, runs.data

    def _layers(self, view: GraphView) -> tuple[list[_Layer], dict[str, str]]:
        """Return the layers to quantize, and why others are left."""
        found: list[_Layer] = []
        skipped: dict[str, str] = {}
        for weight in find_weights(view):
            users = [use.layer for use in weight.uses]
            kernels = [use.layer for use in weight.uses if use.layer.op in _LAYERS and use.slot == 1]
            constant = view.array(weight.source) is not None or computed_from(view, weight) is not None
            if not kernels:
                skipped |= _left_float(view, weight)
            if not kernels or (kernels[0].op == "MatMul" and not constant and not is_dequantized(view, weight.source)):
                continue
            try:
                operands = self._require(view, weight)
            except Skip as reason:
                skipped |= {view.site(node): view.vetoes.get(view.site(node), str(reason)) for node in users}
            else:
                found += [_Layer(node, operand) for operand in operands for node in operand.layers]
        return found, skipped

    def _require(self, view: GraphView, weight: Weight) -> list[Operand]:
        """Return what layers read of a weight.

        Raises:
            Skip: A layer that uses it cannot be computed on integers.
        """
        name = weight.source.name
        for use in weight.uses:
            if use.layer.op not in _TARGETS[self.target].layers or use.slot != 1:
                raise Skip(f"{name!r} is used by {use.layer.op}, which has no integer kernel on {self.target}")
            if view.edit.graph_of(use.layer) is not view.model.graph:
                raise Skip("lies in a subgraph or function: main graph only")
        operands = require_operands(view, weight)
        for operand in operands:
            if operand.values.dtype != np.float32:
                raise Skip(f"{name!r} is {operand.values.dtype}, integer kernels want float32 around them")
            if self.target == "cpu" and operand.values.shape[:2] == (1, 1) and is_op(operand.layers[0], "Conv"):
                raise Skip(f"{name!r} is a filter of one channel, which ONNX Runtime computes faster on floats")
        for data in (use.layer.inputs[0] for use in weight.uses):
            if is_dequantized(view, data) or view.producer(data, "DequantizeLinear"):
                raise Skip(f"{data.name!r} is quantized already")
            if view.array(data) is not None:
                raise Skip(f"{data.name!r} is constant, fold constants first")
        return operands

    def _rank(
        self, view: GraphView, layers: list[_Layer], observers: Mapping[str, Observer], data: Data
    ) -> dict[str, tuple[bool, str]]:
        """Return for each layer whether to quantize it and how sensitive it is; nothing if the model bears them all."""
        if self.min_sqnr is None:
            return {}
        feeds = list(data.batches(_RANKING_SAMPLES))
        session = Session(view.model)
        expected = [session.run(each) for each in feeds]

        def measure(sites: Sequence[str]) -> float:
            trial = GraphView(view.model.copy(), view.vetoes)
            chosen = [layer for layer in self._layers(trial)[0] if trial.site(layer.node) in sites]
            for bias in self._apply(trial, chosen, observers)[1]:
                bias.write(trial)
            trial.edit.settle()
            return worst_sqnr(trial.model, feeds, expected)

        every = [view.site(layer.node) for layer in layers]
        if measure(every) >= self.min_sqnr:
            return {}
        ranking = rank(every, measure)
        kept = set(bearable(ranking, measure, self.min_sqnr))
        place_of = {site: place + 1 for place, site in enumerate(ranking)}
        return {
            site: (
                site in kept,
                f"sensitivity {place_of[site]} of {len(every)}: quantized alone it leaves {alone:.1f} dB"
                + ("" if site in kept else f", kept float to reach {self.min_sqnr:g} dB"),
            )
            for site, alone in ranking.items()
        }

    def _apply(
        self, view: GraphView, layers: list[_Layer], observers: Mapping[str, Observer]
    ) -> tuple[dict[str, str], list[Bias]]:
        """Quantize these layers and what lies between them; return the details by site, and biases to be written."""
        placement = place(view, [layer.node for layer in layers])
        ranges = self._ranges(placement, observers)
        details, biases = dict[str, str](), list[Bias]()
        chosen: dict[int, list[_Layer]] = {}
        for layer in layers:
            chosen.setdefault(id(layer.operand), []).append(layer)
        for sharing in chosen.values():
            nodes = [layer.node for layer in sharing]
            done = self._quantize_operand(view, sharing[0].operand, nodes, ranges)
            for node, (detail, bias) in zip(nodes, done, strict=True):
                details[view.site(node)] = detail
                biases += [] if bias is None else [bias]
        self._insert(view, placement, ranges)
        return details, biases

    def _ranges(self, placement: Placement, observers: Mapping[str, Observer]) -> dict[int, _Parameters]:
        """Return scale and zero point of each tensor to quantize, by its id."""
        affine = _TARGETS[self.target].activations
        ranges: dict[int, _Parameters] = {}
        for group in placement.groups():
            seen = [observers[str(t.name)] for t in group if observers[str(t.name)].seen]
            bounds = [observer.bounds(self.range, self.percentile, affine) for observer in seen] or [(0.0, 0.0)]
            found = parameters(affine, min(low for low, _ in bounds), max(high for _, high in bounds))
            ranges |= {id(tensor): found for tensor in group}
        return ranges

    def _quantize_operand(
        self, view: GraphView, operand: Operand, nodes: list[gs.Node], ranges: Mapping[int, _Parameters]
    ) -> list[tuple[str, Bias | None]]:
        """Quantize what these layers read as their weight; return for each the detail for the report, and its bias."""
        values = operand.values
        scales = [float(ranges[id(node.inputs[0])][0]) for node in nodes]
        biases = [find_bias(view, node, values.shape, operand.axis) for node in nodes]
        quantized = quantize(values, _EIGHT_BITS, Grouping(operand.axis))
        integer = [
            (bias, scale)
            for bias, scale in zip(biases, scales, strict=True)
            if bias is not None and bias.fits and _TARGETS[self.target].bias
        ]
        if integer:
            widest = np.max([np.abs(bias.values) / scale for bias, scale in integer], axis=0)
            quantized = with_room_for(values, quantized, widest)
        for bias, scale in integer:
            bias.scale = quantized.scale.astype(np.float64) * scale
        if not is_op(nodes[0], "Conv"):  # ONNX Runtime 1.32 has integer kernels only for a zero point that is there
            quantized = replace(quantized, zero_point=np.zeros(quantized.scale.shape, np.int8))
        source, home = operand.store(view, nodes)
        Writer(view, source, home, values.dtype).write(quantized, "dq")
        done = f"{operand.name!r} to int8 {quantized.grouping}, {quantized.sqnr_db:.1f} dB"
        return [(f"{done}; input scale {scale:.3g}", bias) for scale, bias in zip(scales, biases, strict=True)]

    def _insert(self, view: GraphView, placement: Placement, ranges: Mapping[int, _Parameters]) -> None:
        """Put the Q and DQ nodes in; a group shares its constants."""
        for group in placement.groups():
            scale, zero = ranges[id(group[0])]
            name = str(group[0].name)
            constants = view.edit.constant(f"{name}_s", scale), view.edit.constant(f"{name}_z", zero)
            for tensor in group:
                insert(view, tensor, *constants)


def _left_float(view: GraphView, weight: Weight) -> dict[str, str]:
    """Say of layers without an integer kernel what would make their stored weight smaller."""
    values = view.array(weight.source)
    if values is None or not is_float(values.dtype):
        return {}
    reason = f"{weight.uses[0].layer.op} computes on floats; quantize-weights can store {weight.source.name!r} small"
    return {view.site(use.layer): reason for use in weight.uses}
