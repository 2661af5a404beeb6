"""Quantize weights and activations with QuantizeLinear and DequantizeLinear, so that runtimes compute on integers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt import GraphView, Lossy, Pass, PassResult, Rewritten, Skip, Skipped, option
from graphopt.graph.dequantize import PER_AXIS_OPSET, PREFERRED_OPSET, Writer, is_dequantized
from graphopt.graph.view import is_op
from graphopt.graph.weights import Weight, computed_from, find_weights, is_float
from graphopt.numerics.grouping import Grouping
from graphopt.numerics.quantization import Quantized, quantize
from graphopt.runtime.operands import Operand, require_operands
from graphopt.runtime.sensitivity import bearable, rank, worst_sqnr
from graphopt.runtime.session import Session

from .bias import Bias, find_bias, with_room_for
from .calibration import Calibration
from .kernels import joins_rows
from .placement import Placement, insert, normalize_kernels, place
from .reach import end
from .scales import Scale, choose_scales
from .targets import EIGHT_BITS, TARGETS

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
    runtimes fuse: inputs of layers, outputs of convolutions behind their Relu or Clip, and, where a layer reads the
    result, residual additions, averages, and one scale through whatever only moves values. Comparisons, choices, casts
    to integers and what leads from the last layer to the outputs read floats. Biases are corrected: the means of a
    layer's outputs, channel by channel, are those of the float model, on up to 64 samples (Nagel et al. 2019, arXiv
    1906.04721, appendix D). Where that takes the model's outputs further from the float ones, with fewer than 16
    samples or generated ones, or with a sample that is far louder than all others, they are left as they are.

    A few samples that alone set the range of a layer's input are named. The demotion "range" gives what a layer reads
    and gives out the range of least squared error among minmax, mse and percentile, without such samples.

    A weight that layers read transposed, sliced or otherwise moved, or that is computed from constants, is stored as
    they read it. Main graph only. Refused: a layer whose weight is refused by quantize-weights, is put together from
    several, or is half precision; a model below opset 13. BatchNormalization should be folded first. Without data the
    ranges come from generated inputs, and each rewrite says that its accuracy is not to be trusted.

    Eight bits on both sides leave about 20 to 30 dB on whole nets; the floor is 10 dB.
    """

    name = "quantize-activations"
    contract = Lossy(min_sqnr_db=10.0)
    accounts = "weights"
    compresses = True
    demotions = ("range",)
    sitewise = ("range", "percentile")

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

    @property
    def fits(self) -> bool:
        """Ranges are taken from the data, and biases with them."""
        return True

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
        rewritten = self._calibrate_and_apply(view, layers, skipped) if layers else []
        return PassResult(
            tuple(rewritten),
            tuple(Skipped(site, reason) for site, reason in skipped.items()),
        )

    def _calibrate_and_apply(self, view: GraphView, layers: list[_Layer], skipped: dict[str, str]) -> list[Rewritten]:
        """Calibrate, quantize those of the layers that the model bears, say of the others why not, correct biases."""
        plain = all(dict(each.values).get("range", "minmax") == "minmax" for each in self.override)
        seen = Calibration.of(view, self.samples, exact=self.range != "minmax" or not plain)
        self._watch(view, layers, seen)
        notes = self._rank(view, layers, seen)
        skipped |= {site: note for site, (chosen, note) in notes.items() if not chosen}
        layers = [layer for layer in layers if view.site(layer.node) not in skipped]
        rewritten, biases = self._apply(view, layers, seen)
        view.edit.settle()
        shifts = self._shifts(view, [done.site for done in rewritten], biases, seen)
        for bias in biases:
            bias.shift = shifts.get(str(bias.output.name))
            bias.write(view)
        warning = "; generated inputs: do not trust its accuracy" if seen.data.generated else ""
        if biases and self._corrects(view, seen) and seen.is_skewed():
            warning += "; biases left as they are: a sample among the first 64 is far louder than the others"
        return [
            replace(done, detail=done.detail + (f"; {notes[done.site][1]}" if done.site in notes else "") + warning)
            for done in rewritten
        ]

    def _rule(self, view: GraphView, site: str) -> tuple[str, float]:
        """Return by which rule the range of a layer's tensors is found, and the percentile."""
        own = self.at(view, site)
        return own.range, own.percentile

    def _watch(self, view: GraphView, layers: list[_Layer], seen: Calibration) -> None:
        """See each tensor to quantize, and the means of outputs to correct."""
        placement = place(view, [layer.node for layer in layers])
        ends = [(each.node, each.operand) for each in layers if self._corrects(view, seen)]
        biases = [find_bias(view, node, operand.values.shape, operand.axis) for node, operand in ends]
        outputs = {str(b.output.name): (b.axis, b.rank) for b in biases if b is not None}
        seen.watch(view, [str(tensor.name) for tensor in placement.tensors.values()], outputs)

    def _corrects(self, view: GraphView, seen: Calibration) -> bool:
        """Whether biases are corrected; while sites are only ranked by what they cost, they are not."""
        return self.bias_correction and seen.corrects and not view.memory.get("probing", False)

    def _shifts(
        self, view: GraphView, sites: Sequence[str], biases: list[Bias], seen: Calibration
    ) -> Mapping[str, NDArray[np.float64]]:
        """Return what to add to the outputs of the quantized layers ``sites``; it depends on all of these, and how."""
        if not biases or not self._corrects(view, seen) or seen.means is None or seen.is_skewed():
            return {}
        names = [str(bias.output.name) for bias in biases]
        key = tuple(sorted(sites)), tuple(sorted(view.demotions.items())), tuple(sorted(view.vetoes))
        if key not in seen.shifts:
            seen.shifts[key] = seen.means.narrowed(names).shifts(view.model, lambda: seen.data.batches(self.samples))
        return seen.shifts[key]

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
            if use.layer.op not in TARGETS[self.target].layers or use.slot != 1:
                raise Skip(f"{name!r} is used by {use.layer.op}, which has no integer kernel on {self.target}")
            if view.edit.graph_of(use.layer) is not view.model.graph:
                raise Skip(f"{name!r} is read in a subgraph or function: main graph only")
        operands = require_operands(view, weight)
        for operand in operands:
            if operand.values.dtype != np.float32:
                raise Skip(f"{name!r} is {operand.values.dtype}, integer kernels want float32 around them")
            if self.target == "cpu" and operand.values.shape[:2] == (1, 1) and is_op(operand.layers[0], "Conv"):
                raise Skip(f"{name!r} is a filter of one channel, which ONNX Runtime computes faster on floats")
        for data in (use.layer.inputs[0] for use in weight.uses):
            if is_dequantized(view, data) or view.producer(data, "DequantizeLinear"):
                raise Skip(f"{data.name!r} is quantized already")
            if (
                TARGETS[self.target].loads_openvino
                and is_op(operands[0].layers[0], "MatMul")
                and joins_rows(view, data)
            ):
                raise Skip(f"{data.name!r} joins rows, and OpenVINO loads no integer product of these")
            if view.array(data) is not None:
                raise Skip(f"{data.name!r} is constant, fold constants first")
        return operands

    def _rank(self, view: GraphView, layers: list[_Layer], seen: Calibration) -> dict[str, tuple[bool, str]]:
        """Return for each layer whether to quantize it and how sensitive it is; nothing if the model bears them all."""
        if self.min_sqnr is None:
            return {}
        feeds = list(seen.data.batches(_RANKING_SAMPLES))
        session = Session(view.model)
        expected = [session.run(each) for each in feeds]

        def measure(sites: Sequence[str]) -> float:
            key = tuple(sorted(sites)), tuple(sorted(view.demotions.items()))
            if key not in seen.ratios:
                trial = GraphView(view.model.copy(), view.vetoes, demotions=view.demotions, memory=view.memory)
                chosen = [layer for layer in self._layers(trial)[0] if trial.site(layer.node) in sites]
                biases = self._apply(trial, chosen, seen)[1]
                trial.edit.settle()
                shifts = self._shifts(trial, sites, biases, seen)
                for bias in biases:
                    bias.shift = shifts.get(str(bias.output.name))
                    bias.write(trial)
                trial.edit.settle()
                seen.ratios[key] = worst_sqnr(trial.model, feeds, expected)
            return seen.ratios[key]

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

    def _apply(self, view: GraphView, layers: list[_Layer], seen: Calibration) -> tuple[list[Rewritten], list[Bias]]:
        """Quantize these layers and what lies between them; return what was done, and biases to be written."""
        every = [layer.node for layer in layers]
        placement, affine = place(view, every), TARGETS[self.target].activations
        scales = choose_scales(view, placement, every, seen, affine, lambda site: self._rule(view, site))
        found: dict[str, Rewritten] = {}
        biases: list[Bias] = []
        chosen: dict[int, list[_Layer]] = {}
        for layer in layers:
            chosen.setdefault(id(layer.operand), []).append(layer)
        for sharing in chosen.values():
            nodes = [layer.node for layer in sharing]
            stories = [self._story(view, node, placement, scales, seen) for node in nodes]
            done = self._quantize_operand(view, sharing[0].operand, nodes, scales)
            for node, story, (weight, nbytes, bias) in zip(nodes, stories, done, strict=True):
                found[view.site(node)] = Rewritten(view.site(node), f"{weight}; {story}", nbytes)
                biases += [] if bias is None else [bias]
        normalize_kernels(view, placement)
        for group in placement.groups():
            chosen_scale, name = scales[id(group[0])], str(group[0].name)
            constants = [view.edit.constant(f"{name}_s", chosen_scale.scale)]
            constants.append(view.edit.constant(f"{name}_z", chosen_scale.zero))
            for tensor in group:
                insert(view, placement, tensor, *constants)
        return [found[view.site(layer.node)] for layer in layers], biases

    def _story(
        self, view: GraphView, node: gs.Node, placement: Placement, scales: Mapping[int, Scale], seen: Calibration
    ) -> str:
        """Say how a layer's input is quantized, and its output where that is not by the rule that was asked for."""
        given, out = node.inputs[0], end(view, node)
        story = f"input scale {scales[id(given)]}"
        if out in placement and scales[id(out)].rule:
            story += f"; output scale {scales[id(out)]}"
        loud = seen.loudness(str(given.name))
        return f"{story}; {loud}" if loud else story

    def _quantize_operand(
        self, view: GraphView, operand: Operand, nodes: list[gs.Node], scales: Mapping[int, Scale]
    ) -> list[tuple[str, int, Bias | None]]:
        """Quantize what these layers read as their weight.

        Returns:
            For each layer what was done, the bytes that this takes, and its bias. The first one bears the weight's.
        """
        values = operand.values
        given = [float(scales[id(node.inputs[0])].scale) for node in nodes]
        biases = [find_bias(view, node, values.shape, operand.axis) for node in nodes]
        quantized = quantize(values, EIGHT_BITS, Grouping(operand.axis))
        integer = [
            (bias, scale)
            for bias, scale in zip(biases, given, strict=True)
            if bias is not None and bias.fits and TARGETS[self.target].bias
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
        return [
            (done, (0 if index else _nbytes(quantized)) + (0 if bias is None else bias.nbytes), bias)
            for index, bias in enumerate(biases)
        ]


def _nbytes(quantized: Quantized) -> int:
    """Return the bytes of levels, scales and zero points."""
    zero = 0 if quantized.zero_point is None else quantized.zero_point.nbytes
    return quantized.levels.nbytes + quantized.scale.nbytes + zero


def _left_float(view: GraphView, weight: Weight) -> dict[str, str]:
    """Say of layers without an integer kernel what would make their stored weight smaller."""
    values = view.array(weight.source)
    if values is None or not is_float(values.dtype):
        return {}
    reason = f"{weight.uses[0].layer.op} computes on floats; quantize-weights can store {weight.source.name!r} small"
    return {view.site(use.layer): reason for use in weight.uses}
