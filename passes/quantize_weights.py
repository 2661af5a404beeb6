"""Store the weights of layers as integers, with a DequantizeLinear (or Cast and Mul) in front of the layer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graphopt import GraphView, Lossy, OptionError, Pass, PassResult, Rewritten, Skip, Skipped, option
from graphopt.graph.dequantize import (
    BLOCK_OPSET,
    FP16_SCALE_OPSET,
    PREFERRED_OPSET,
    Writer,
    is_dequantized,
    lowest_opset,
    other_rank,
    overhead,
)
from graphopt.graph.weights import (
    Weight,
    computed_from,
    find_weights,
    is_candidate,
    is_float,
    is_stored,
    require_weight,
)
from graphopt.numerics.grouping import Grouping
from graphopt.numerics.ladder import blocks, climb, ladder
from graphopt.numerics.quantization import TYPES, Affine, Quantized
from graphopt.numerics.ranges import range_rule
from graphopt.runtime.evaluate import evaluate_cone
from graphopt.runtime.feeds import generate
from graphopt.runtime.gram import Seen, look

_RECURRENT = ("LSTM", "GRU", "RNN")
_ALWAYS_WEIGHTED = ("Conv", "DeformConv", "ConvTranspose", *_RECURRENT)
_INTEGER_WEIGHTS = {
    "MatMulInteger": 1,
    "ConvInteger": 1,
    "QLinearMatMul": 3,
    "QLinearConv": 3,
    "QGemm": 3,
    "QAttention": 1,
    "DynamicQuantizeLSTM": 1,
    "DynamicQuantizeMatMul": 1,
    "MatMulIntegerToFloat": 1,
    "MatMulNBits": 1,
    "GatherBlockQuantized": 0,
}
"""Operators, ONNX Runtime's own among them, that read a weight as integers, and the input that it is."""
_FLOORS = {16: 20.0, 8: 20.0, 4: 6.0, 3: 3.0, 2: 0.0}


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Quantize each weight: by default to int8, symmetric, with one scale for each output channel.

    q = clip(round(w / scale) + zero, low, high), and the model computes w' = (q - zero) * scale (ONNX,
    DequantizeLinear; arXiv 2106.08295, section 2.2). The float weight leaves the file. Cases:

    1. Conv, ConvTranspose, Gemm, MatMul (either side, any rank), Gather, Slice with computed bounds, LSTM, GRU, RNN,
       and Einsum where it is a matrix product.
    2. The weight is an initializer or a Constant node, read directly, through Transpose, Reshape, Slice and their
       kind, or as what a Loop or a local function hands to its body unchanged; or it is computed from constants that
       nothing else needs.
    3. Layers that share a weight go on sharing it, with one scale for all of it if they disagree on the channel axis.

    Refused: a weight that is computed from inputs, that the caller can override, that anything but a layer reads, that
    holds NaN or Inf, or that would not get smaller. Below opset 13 all channels of a weight have one scale; below opset
    10 there is no DequantizeLinear. The pass asks for opset 19, the first whose DequantizeLinear has half-precision
    scales and runs in ONNX's reference evaluator as well; 4- and 16-bit types and blocks need 21, int2 needs 25.

    With GPTQ the layers are done in order: each sees its inputs behind layers that are quantized already, and is to
    give out what it gave out in float. It and bias correction are for Conv, Gemm and MatMul of the main graph whose
    weight is theirs alone and read directly; other weights are rounded to the nearest.

    Eight bits leave about 35 to 45 dB on a layer's weights and 30 dB and more on whole nets; an output below 20 dB (an
    error of a tenth of its size) means that a layer does not bear it. The floor is 6 dB for four bits, 3 dB for three,
    0 dB for two. Three bits are a grid of 8 levels within int4: for studies of accuracy, and for runtimes that repack.
    """

    name = "quantize-weights"
    contract = Lossy(min_sqnr_db=20.0)
    compresses = True

    dtype: Literal["int8", "uint8", "int16", "uint16", "int4", "uint4", "int3", "uint3", "int2", "float8"] = option(
        "int8",
        "The type that weights are stored in; float8 is e4m3fn. ONNX has no type of 3 bits: int3 and uint3 keep to 8 "
        "levels but are held in int4 and uint4, and take as much room.",
    )
    granularity: Literal["tensor", "channel", "block"] = option(
        "channel", "Which values share a scale: all, an output channel, or neighbours within one."
    )
    block_size: int = option(
        32, "Largest number of values in a block; the largest divisor that runtimes bear is taken.", minimum=2
    )
    symmetric: bool = option(True, "Map zero to the middle of the range; otherwise the range follows the values.")
    range: Literal["minmax", "percentile", "mse", "std"] = option("minmax", "Which range of values to cover.")
    percentile: float = option(99.9, "Share of values that --range percentile covers.", minimum=50, maximum=100)
    deviations: float = option(4.0, "Standard deviations that --range std covers.", minimum=0.5, maximum=100)
    representation: Literal["dq", "qdq", "mul"] = option(
        "dq", "dq: DequantizeLinear; qdq: float weight, QuantizeLinear, DequantizeLinear; mul: Cast and Mul."
    )
    rounding: Literal["nearest", "gptq"] = option(
        "nearest", "gptq: choose levels so that errors make up for each other on the data (Conv, Gemm, MatMul)."
    )
    bias_correction: bool = option(False, "Put back into biases what quantization takes from mean outputs on the data.")
    samples: int = option(512, "Samples to use for --rounding gptq and --bias-correction.", minimum=1)
    min_sqnr: float | None = option(
        None, "Give a weight below this SQNR (dB) finer blocks, then more bits, then leave it float.", minimum=0
    )

    def __post_init__(self) -> None:
        """Check the options; fewer bits promise less, and the form qdq does not make a file smaller."""
        super().__post_init__()
        if self.representation == "qdq" and self.dtype in ("int3", "uint3"):
            raise OptionError(f"{self.name}: QuantizeLinear knows no {self.dtype}, take --representation dq")
        if (self.representation, self.dtype) == ("qdq", "int2"):
            raise OptionError(
                f"{self.name}: ONNX Runtime cannot load a QuantizeLinear to int2, take --representation dq"
            )
        object.__setattr__(self, "contract", Lossy(min_sqnr_db=_FLOORS[TYPES[self.dtype].bits]))
        object.__setattr__(self, "compresses", self.representation != "qdq")

    def required_opset(self, view: GraphView) -> int:
        """Ask for the form that every runtime reads, where there is a weight to quantize."""
        if not any(is_candidate(view, weight) for weight in find_weights(view)):
            return 0
        finest = Grouping(0, self.block_size) if self.granularity == "block" or self.min_sqnr else Grouping(0)
        kind = TYPES[self.dtype]
        wanted = 0 if self.representation == "mul" else BLOCK_OPSET if self.min_sqnr else PREFERRED_OPSET
        return max(wanted, lowest_opset(kind.name, kind.opset, finest, self.representation))

    def run(self, view: GraphView) -> PassResult:
        """Quantize weight by weight; a layer is rewritten if one of its weights is."""
        weights = {id(weight.source): weight for weight in find_weights(view) if _is_site(view, weight)}
        layers = {id(use.layer): _Layer(view.site(use.layer)) for weight in weights.values() for use in weight.uses}
        unseen = ((weight, None) for weight in list(weights.values()))
        finished: set[int] = set()
        for weight, seen in chain(self._looked_at(view, weights), unseen):
            if id(weight.source) in finished:
                continue
            finished.add(id(weight.source))
            users = [layers[id(use.layer)] for use in weight.uses]
            try:
                detail = self._quantize(view, weight, seen)
            except Skip as reason:
                for layer in users:
                    layer.kept[view.vetoes.get(layer.site, str(reason))] = None
            else:
                for layer in users:
                    layer.done[detail] = None
        return PassResult(
            tuple(Rewritten(layer.site, layer.story()) for layer in layers.values() if layer.done),
            (
                *(Skipped(layer.site, layer.story()) for layer in layers.values() if not layer.done),
                *_quantized_already(view),
            ),
        )

    def _looked_at(self, view: GraphView, weights: Mapping[int, Weight]) -> Iterator[tuple[Weight, Seen]]:
        """Yield the weights whose layers' inputs are gathered from data, if the options ask for it."""
        if self.rounding == "nearest" and not self.bias_correction:
            return
        owners = [w for w in weights.values() if len(w.uses) == 1 and w.uses[0].layer.inputs[1] is w.source]
        data = view.calibration if view.calibration is not None else generate(view.model)
        layers = [weight.uses[0].layer for weight in owners]
        for seen in look(view, layers, data, self.samples, squares=self.rounding == "gptq"):
            yield weights[id(seen.layer.node.inputs[1])], seen

    def _quantize(self, view: GraphView, weight: Weight, seen: Seen | None) -> str:
        """Quantize one weight; return what was done to it.

        Raises:
            Skip: It stays float.
        """
        name, computed, freed = str(weight.source.name), None, None
        recurrent = next((use.layer.op for use in weight.uses if use.layer.op in _RECURRENT), None)
        if self.representation == "qdq" and recurrent is not None:
            raise Skip(f"OpenVINO loads no {recurrent} that reads {name!r} behind QuantizeLinear, the form dq does it")
        if recurrent is not None and _has_quantized_activations(view):
            raise Skip(f"OpenVINO loads no {recurrent} with {name!r} as integers where activations are quantized")
        if (cone := computed_from(view, weight)) is not None:
            if (freed := cone.freed(view)) <= overhead(name):
                raise Skip(f"{name!r} is computed from {freed} bytes of constants")
            computed = evaluate_cone(view, cone)
        values = require_weight(view, weight, computed)
        best, failed = self._choose(values, weight, values.nbytes if freed is None else freed)
        if best is None:
            if failed:
                most = max(attempt.sqnr_db for attempt in failed)
                raise Skip(f"{name!r} keeps {most:.1f} dB at best, less than {self.min_sqnr:g}")
            raise Skip(f"{name!r} of {values.nbytes} bytes would not get smaller")
        how = ""
        if seen is not None:
            rounded = self.rounding == "gptq" and self.representation != "qdq"
            best, how = seen.finish(view, values, best, rounded, self.bias_correction)
        ranks = (other_rank(view, use.layer, best) for use in weight.uses)
        rank = next((rank for rank in ranks if rank is not None), None)
        Writer(view, weight.source, weight.home, values.dtype).write(best, self.representation, rank)
        detail = f"{name!r} to {best.affine.kind.title} {best.grouping}, {best.sqnr_db:.1f} dB{how}"
        if not failed:
            return detail
        return f"{detail}, after {failed[0].affine.kind.name} {failed[0].grouping} with {failed[0].sqnr_db:.1f} dB"

    def _choose(
        self, values: NDArray[np.generic], weight: Weight, freed: int
    ) -> tuple[Quantized | None, list[Quantized]]:
        """Return the form that the options lead to and that takes less than ``freed`` bytes, and what lost too much.

        Raises:
            Skip: The opset of the weight's graph has none of the forms.
        """
        opset, form, kind = weight.home.opset, self.representation, TYPES[self.dtype]
        if opset < (lowest := lowest_opset(kind.name, kind.opset, Grouping(), form)):
            needs = f"opset {opset} has no " + ("DequantizeLinear" if form == "dq" else "operators")
            raise Skip(f"{needs} for {kind.name} weights, it needs {lowest}")
        half = values.dtype == np.float16 and (opset >= FP16_SCALE_OPSET or form == "mul")
        affine = Affine(kind, self.symmetric, np.dtype(np.float16 if half else np.float32))
        room = 2 * values.nbytes if form == "qdq" else freed - overhead(str(weight.source.name))
        axis = weight.summed_axis
        tries = (
            (wide, group)
            for first in self._groupings(values.shape, weight)
            for wide, group in ladder(affine, first, values.shape, axis, _is_product(weight))
            if opset >= lowest_opset(wide.kind.name, wide.kind.opset, group, form)
        )
        return climb(values, tries, range_rule(self.range, self.percentile, self.deviations), self.min_sqnr, room)

    def _groupings(self, shape: tuple[int, ...], weight: Weight) -> Iterator[Grouping]:
        """Yield how values are to share scales, from what was asked for to what is always possible."""
        channel = weight.channel_axis
        if self.granularity == "block":
            finest = blocks(shape, weight.summed_axis, self.block_size, _is_product(weight))
            if finest is not None:
                yield finest
        if self.granularity != "tensor" and channel is not None:
            yield Grouping(channel)
        yield Grouping()


@dataclass
class _Layer:
    """What became of the weights of one layer; dicts for their order."""

    site: str
    done: dict[str, None] = field(default_factory=dict)
    kept: dict[str, None] = field(default_factory=dict)

    def story(self) -> str:
        """Return what was done, then what was not and why."""
        return "; ".join([*self.done, *self.kept])


def _quantized_already(view: GraphView) -> Iterator[Skipped]:
    """Tell of layers that compute on integers."""
    for node in view.nodes():
        index = _INTEGER_WEIGHTS.get(node.op)
        if index is None or index >= len(node.inputs):
            continue
        values = view.array(node.inputs[index])
        if values is not None and values.dtype.kind in "iu":
            yield Skipped(view.site(node), f"{node.inputs[index].name!r} holds {values.dtype} values for {node.op}")


def _has_quantized_activations(view: GraphView) -> bool:
    """Whether something else than a constant is quantized."""
    return any(view.array(node.inputs[0]) is None for node in view.nodes("QuantizeLinear"))


def _is_product(weight: Weight) -> bool:
    """Whether a weight is that of a matrix product."""
    return any(use.layer.op in ("MatMul", "Gemm") for use in weight.uses)


def _is_site(view: GraphView, weight: Weight) -> bool:
    """Whether to report on a weight: it is stored as floats, or quantized already, or its layers always have one."""
    if (values := view.array(weight.source)) is not None:
        return is_float(values.dtype)
    if is_stored(view, weight.source) or is_dequantized(view, weight.source) or computed_from(view, weight) is not None:
        return True
    return any(use.layer.op in _ALWAYS_WEIGHTED for use in weight.uses)
