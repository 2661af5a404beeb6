"""Store the weights of layers as integers, with a DequantizeLinear in front of the layer."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graphopt import GraphView, Lossy, Pass, PassResult, Rewritten, Skip, Skipped
from graphopt.graph.dequantize import (
    FP16_SCALE_OPSET,
    PER_AXIS_OPSET,
    PREFERRED_OPSET,
    is_dequantized,
    overhead,
    replace_with_dequantize,
)
from graphopt.graph.weights import Weight, find_weights, is_candidate, is_float, is_stored, require_weight
from graphopt.numerics.quantization import TYPES, Affine, Grouping, Quantized, noise_share, quantize

_ALWAYS_WEIGHTED = ("Conv", "DeformConv", "ConvTranspose", "LSTM", "GRU", "RNN")


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Quantize each weight to int8, symmetric, with one scale for each output channel.

    q = clip(round(w / scale), -127, 127) with scale = max|w| / 127 over a channel, and DequantizeLinear computes
    w' = q * scale (ONNX, DequantizeLinear; arXiv 2106.08295, section 2.2). The float weight leaves the file. Cases:

    1. Conv, ConvTranspose, Gemm, MatMul (either side, any rank), Gather, LSTM, GRU, RNN, and Einsum where it is a
       matrix product.
    2. The weight is an initializer or a Constant node, read directly or through Transpose, Reshape, Slice and their
       kind.
    3. Layers that share a weight go on sharing it. If they disagree on the channel axis, the better one is taken.

    Refused: a weight that is computed, that the caller can override, that anything but a layer reads, that holds NaN or
    Inf, or that would not get smaller. Below opset 13 all channels of a weight have one scale; below opset 10 there is
    no DequantizeLinear. The pass asks for opset 19, the first whose DequantizeLinear has half-precision scales and runs
    in ONNX's reference evaluator as well.

    Eight bits leave about 35 to 45 dB on a layer's weights and 30 dB and more on whole nets; an output below 20 dB (an
    error of a tenth of its size) means that a layer does not bear it.
    """

    name = "quantize-weights"
    contract = Lossy(min_sqnr_db=20.0)
    compresses = True

    def required_opset(self, view: GraphView) -> int:
        """Ask for the DequantizeLinear that every runtime has, where there is a weight to quantize."""
        return PREFERRED_OPSET if any(is_candidate(view, weight) for weight in find_weights(view)) else 0

    def run(self, view: GraphView) -> PassResult:
        """Quantize weight by weight; a layer is rewritten if one of its weights is."""
        layers: dict[int, _Layer] = {}
        for weight in find_weights(view):
            if not _is_site(view, weight):
                continue
            users = [layers.setdefault(id(use.layer), _Layer(view.site(use.layer))) for use in weight.uses]
            try:
                detail = self._quantize(view, weight)
            except Skip as reason:
                for layer in users:
                    layer.kept[view.vetoes.get(layer.site, str(reason))] = None
            else:
                for layer in users:
                    layer.done[detail] = None
        return PassResult(
            tuple(Rewritten(layer.site, layer.story()) for layer in layers.values() if layer.done),
            tuple(Skipped(layer.site, layer.story()) for layer in layers.values() if not layer.done),
        )

    def _quantize(self, view: GraphView, weight: Weight) -> str:
        """Quantize one weight; return what was done to it.

        Raises:
            Skip: It stays float.
        """
        values = require_weight(view, weight)
        kind, opset = TYPES["int8"], weight.home.opset
        if opset < kind.opset:
            raise Skip(f"opset {opset} has no DequantizeLinear, which comes with opset {kind.opset}")
        half = values.dtype == np.float16 and opset >= FP16_SCALE_OPSET
        affine = Affine(kind, scale_dtype=np.dtype(np.float16 if half else np.float32))
        room = values.nbytes - overhead(str(weight.source.name))
        fitting = [group for group in _groupings(weight, opset) if affine.nbytes(values.shape, group) < room]
        if not fitting:
            raise Skip(f"{weight.source.name!r} of {values.nbytes} bytes would not get smaller")
        per_channel = [group for group in fitting if group.axis is not None]
        best = _best(values, weight, [quantize(values, affine, group) for group in per_channel or fitting])
        replace_with_dequantize(view, weight.source, weight.home, best, values.dtype)
        return f"{weight.source.name!r} to {kind.name} {best.grouping}, {best.sqnr_db:.1f} dB"


@dataclass
class _Layer:
    """What became of the weights of one layer; dicts for their order."""

    site: str
    done: dict[str, None] = field(default_factory=dict)
    kept: dict[str, None] = field(default_factory=dict)

    def story(self) -> str:
        """Return what was done, then what was not and why."""
        return "; ".join([*self.done, *self.kept])


def _is_site(view: GraphView, weight: Weight) -> bool:
    """Whether to report on a weight: it is stored as floats, or quantized already, or its layers always have one."""
    if (values := view.array(weight.source)) is not None:
        return is_float(values.dtype)
    if is_stored(view, weight.source) or is_dequantized(view, weight.source):
        return True
    return any(use.layer.op in _ALWAYS_WEIGHTED for use in weight.uses)


def _best(values: NDArray[np.generic], weight: Weight, attempts: list[Quantized]) -> Quantized:
    """Return the attempt whose worst use loses least, each use judged by its own channels."""
    if len(attempts) == 1:
        return attempts[0]
    axes = {use.channel for use in weight.uses if use.channel is not None}
    return min(attempts, key=lambda attempt: max(noise_share(values, attempt, axis) for axis in axes))


def _groupings(weight: Weight, opset: int) -> list[Grouping]:
    """Return the ways to group a weight's values: by each axis that a layer has its channels on, and all as one.

    OpenVINO 2026.4 reads scales along any axis but the first wrongly in front of a Gather, so there it is the first.
    """
    axes = {use.channel: None for use in weight.uses if use.channel is not None} if opset >= PER_AXIS_OPSET else {}
    rows_only = any(use.layer.op == "Gather" for use in weight.uses)
    return [*(Grouping(axis) for axis in axes if axis == 0 or not rows_only), Grouping()]
