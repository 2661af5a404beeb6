"""Store the weights of layers as integers, in the operators that lose no time where the proof runs."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import ClassVar, Literal

from graphopt import GraphView, Lossy, OptionError, Pass, PassResult, Rewritten, Skip, Skipped, option
from graphopt.graph.dequantize import BLOCK_OPSET, PREFERRED_OPSET, is_dequantized, lowest_opset, overhead
from graphopt.graph.slots import scaled_rows
from graphopt.graph.weights import (
    LOOKUPS,
    Weight,
    computed_from,
    find_weights,
    is_candidate,
    is_float,
    is_stored,
    require_weight,
)
from graphopt.numerics.grouping import Grouping
from graphopt.numerics.ladder import blocks
from graphopt.numerics.quantization import TYPES
from graphopt.numerics.ranges import mse, range_rule
from graphopt.runtime.evaluate import evaluate_cone
from graphopt.runtime.feeds import generate
from graphopt.runtime.gram import Seen, look

from .choice import Chooser, Wish, write
from .demotion import STEPS
from .forms import FAST_BLOCK, product
from .tables import why_no_embedding

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
_FEWEST_SAMPLES = 16
"""How many samples of the user's it takes to correct the bias of a site that is demoted."""

_FLOORS = {16: 20.0, 8: 20.0, 4: 6.0, 3: 3.0, 2: 1.0}


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Quantize each weight: by default to int8, symmetric, with one scale for each output channel or block of 128.

    q = clip(round(w / scale) + zero, low, high), and the model computes w' = (q - zero) * scale (ONNX,
    DequantizeLinear; arXiv 2106.08295, section 2.2). The float weight leaves the file. Cases:

    1. Conv, ConvTranspose, Gemm, MatMul (either side, any rank), Gather, Slice with computed bounds, LSTM, GRU, RNN,
       and Einsum where it is a matrix product.
    2. The weight is an initializer or a Constant node, read directly, through Transpose, Reshape, Slice and their
       kind, or as what a Loop or a local function hands to its body unchanged; or it is computed from constants that
       nothing else needs.
    3. Layers that share a weight go on sharing it, with one scale for all of it if they disagree on the channel axis.

    4. A table that only look-ups read (Gather, Slice with computed bounds) is an embedding, and a weight, if it holds
       trained vectors that go into a layer. By their values: 16 columns or more (with fewer, scales for each row eat up
       what is saved, and coordinates, palettes and curves are of that kind); both signs; most of their power around
       the means of columns and rows, not in these (they hold 0.00 to 0.12 of it in real embeddings, 0.42 in sinusoids,
       0.75 in grids of coordinates); columns that do not all rise or fall from row to row; and columns of like scale,
       three in four of which keep 10 dB in eight bits with a scale for each row. By their use: the rows reach a layer,
       a normalization, a Softmax or a sum, or are the output as they are. What is only added to an output is data.

    Refused: a weight that is computed from inputs, that the caller can override, that anything but a layer reads, that
    holds NaN or Inf, or that would not get smaller; and any other table, unless ``tables`` is all.

    ``representation`` auto writes what loses no time in ONNX Runtime's default session: Cast and Mul, which are folded
    when the model is loaded; for a large matrix DequantizeLinear, where it is fused with the product (see ``forms``);
    for a table integers, from which Gather picks rows before they are scaled. The integers are the same in each form.
    Only DequantizeLinear needs a newer opset: 21 for blocks and for 4 and 16 bits, 25 for int2, and 19 is asked for
    otherwise, the first that runs in ONNX's reference evaluator and has half-precision scales; auto asks for it where
    most values of the model's weights are in matrices that it is fused with. Where a model cannot be
    raised it has one scale per channel from opset 13 and one per weight from 10.

    A demoted site takes steps: Cast and Mul instead of DequantizeLinear; the range of least squared error, and its bias
    corrected where there are 16 samples; finer blocks; more bits.

    With GPTQ the layers are done in order: each sees its inputs behind layers that are quantized already, and is to
    give out what it gave out in float. It and bias correction are for Conv, Gemm and MatMul of the main graph whose
    weight is theirs alone and read directly; other weights are rounded to the nearest.

    Eight bits leave about 35 to 45 dB on a layer's weights and 30 dB and more on whole nets; an output below 20 dB (an
    error of a tenth of its size) means that a layer does not bear it. The floor is 6 dB for four bits, 3 dB for three,
    1 dB for two. Three bits are a grid of 8 levels within int4: for studies of accuracy, and for runtimes that repack.
    """

    name = "quantize-weights"
    contract = Lossy(min_sqnr_db=20.0)
    accounts = "weights"
    compresses = True
    demotions: ClassVar[tuple[str, ...]] = STEPS

    dtype: Literal["int8", "uint8", "int16", "uint16", "int4", "uint4", "int3", "uint3", "int2", "float8"] = option(
        "int8",
        "The type that weights are stored in; float8 is e4m3fn. ONNX has no type of 3 bits: int3 and uint3 keep to 8 "
        "levels but are held in int4 and uint4, and take as much room.",
    )
    granularity: Literal["auto", "tensor", "channel", "block"] = option(
        "auto",
        "Which values share a scale: all, an output channel, or neighbours within one. auto: an output channel, but "
        "blocks of 128 where ONNX Runtime multiplies fastest with them.",
    )
    block_size: int = option(
        32, "Largest number of values in a block; the largest divisor that runtimes bear is taken.", minimum=2
    )
    symmetric: bool = option(True, "Map zero to the middle of the range; otherwise the range follows the values.")
    range: Literal["minmax", "percentile", "mse", "std"] = option("minmax", "Which range of values to cover.")
    percentile: float = option(99.9, "Share of values that --range percentile covers.", minimum=50, maximum=100)
    deviations: float = option(4.0, "Standard deviations that --range std covers.", minimum=0.5, maximum=100)
    representation: Literal["auto", "dq", "qdq", "mul"] = option(
        "auto",
        "auto: for each weight what loses no time in ONNX Runtime; dq: DequantizeLinear; qdq: float weight, "
        "QuantizeLinear, DequantizeLinear; mul: Cast and Mul.",
    )
    tables: Literal["embeddings", "all"] = option(
        "embeddings", "Which tables behind Gather and Slice to quantize: those of trained vectors, or all."
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

    @property
    def fits(self) -> bool:
        """Whether levels or biases are fitted to data."""
        return self.rounding == "gptq" or self.bias_correction

    def required_opset(self, view: GraphView) -> int:
        """Ask for the opset of the forms that the weights will have."""
        candidates = [weight for weight in find_weights(view) if is_candidate(view, weight)]
        kind = TYPES[self.dtype]
        if not candidates:
            return 0
        if self.representation == "auto":
            lowest = lowest_opset(kind.name, kind.opset, Grouping(), "mul")
            return max(lowest, self._fused_opset(view, candidates))
        down = max((min(view.demotions.get(view.site(u.layer), 0), 3) for w in candidates for u in w.uses), default=0)
        blocky = self.granularity == "block" or self.min_sqnr is not None or down > STEPS.index("blocks")
        finest = Grouping(0, self.block_size) if blocky else Grouping(0)
        wanted = 0 if self.representation == "mul" else BLOCK_OPSET if self.min_sqnr else PREFERRED_OPSET
        return max(wanted, lowest_opset(kind.name, kind.opset, finest, self.representation))

    def _fused_opset(self, view: GraphView, weights: list[Weight]) -> int:
        """Return the opset for DequantizeLinears that are fused with products, if these have most values; else 0."""
        opsets, fused, total = [0], 0, 0
        for weight in weights:
            shape = view.shape(weight.source) or ()
            size = math.prod(each for each in shape if isinstance(each, int))
            total += size
            if opset := self._opset_to_fuse(view, weight):
                opsets.append(opset)
                fused += size
        return max(opsets) if 2 * fused >= total else 0

    def _opset_to_fuse(self, view: GraphView, weight: Weight) -> int:
        """Return the opset for the DequantizeLinear of one weight that is to be fused; 0 if it cannot be."""
        values = view.array(weight.source)
        found = None if values is None else product(view, weight, values.dtype.name)
        if values is None or found is None or weight.summed_axis is None or self.granularity == "tensor":
            return 0
        grouping = Grouping(1 - weight.summed_axis)
        if self.granularity != "channel":
            size = self.block_size if self.granularity == "block" else FAST_BLOCK
            grouping = blocks(values.shape, weight.summed_axis, size, True) or grouping
        kind = TYPES[self.dtype]
        lowest = max(PREFERRED_OPSET, lowest_opset(kind.name, kind.opset, grouping, "dq"))
        raised = replace(found, opset=max(found.opset, lowest))
        return lowest if raised.take(weight, values.shape, kind, grouping) else 0

    def run(self, view: GraphView) -> PassResult:
        """Quantize weight by weight; a layer is rewritten if one of its weights is."""
        weights = {id(weight.source): weight for weight in find_weights(view) if _is_site(view, weight)}
        layers = {id(use.layer): _Layer(view.site(use.layer)) for weight in weights.values() for use in weight.uses}
        quantized_before = list(_quantized_already(view))
        unseen = ((weight, None) for weight in list(weights.values()))
        finished: set[int] = set()
        for weight, seen in chain(self._looked_at(view, weights), unseen):
            if id(weight.source) in finished:
                continue
            finished.add(id(weight.source))
            users = {id(use.layer): layers[id(use.layer)] for use in weight.uses}.values()
            try:
                detail, nbytes = self._quantize(view, weight, seen)
            except Skip as reason:
                for layer in users:
                    layer.kept[view.vetoes.get(layer.site, str(reason))] = None
            else:
                for layer in users:
                    layer.done[detail] = None
                    layer.nbytes += nbytes
        return PassResult(
            tuple(Rewritten(layer.site, layer.story(), layer.nbytes) for layer in layers.values() if layer.done),
            (
                *(Skipped(layer.site, layer.story()) for layer in layers.values() if not layer.done),
                *quantized_before,
            ),
        )

    def _looked_at(self, view: GraphView, weights: Mapping[int, Weight]) -> Iterator[tuple[Weight, Seen]]:
        """Yield the weights whose layers' inputs are gathered from data, if the options or a demotion ask for it."""
        asked = self.rounding == "gptq" or self.bias_correction
        data = view.calibration
        enough = data is not None and not data.generated and data.size >= _FEWEST_SAMPLES
        if not asked and not (enough and any(_steps_down(view, weight) for weight in weights.values())):
            return
        owners = [w for w in weights.values() if len(w.uses) == 1 and w.uses[0].layer.inputs[1:2] == [w.source]]
        layers = [weight.uses[0].layer for weight in owners]
        data = data if data is not None else generate(view.model)
        for seen in look(view, layers, data, self.samples, squares=self.rounding == "gptq"):
            weight = weights[id(seen.layer.node.inputs[1])]
            if asked or _steps_down(view, weight):
                yield weight, seen

    def _quantize(self, view: GraphView, weight: Weight, seen: Seen | None) -> tuple[str, int]:
        """Quantize one weight; return what was done to it, and the bytes that it takes.

        Raises:
            Skip: It stays float.
        """
        name, computed, freed = str(weight.source.name), None, None
        recurrent = next((use.layer.op for use in weight.uses if use.layer.op in _RECURRENT), None)
        if self.representation == "qdq" and recurrent is not None:
            raise Skip(f"OpenVINO loads no {recurrent} that reads {name!r} behind QuantizeLinear, the form dq does it")
        deep = len(view.shape(weight.source) or ()) > 2 and any(use.layer.op == "Einsum" for use in weight.uses)
        if self.representation == "qdq" and deep:
            raise Skip(f"OpenVINO loads no Einsum that reads {name!r} behind QuantizeLinear, the form dq does it")
        if recurrent is not None and _has_quantized_activations(view):
            raise Skip(f"OpenVINO loads no {recurrent} with {name!r} as integers where activations are quantized")
        if (cone := computed_from(view, weight)) is not None:
            if (freed := cone.freed(view)) <= overhead(name):
                raise Skip(f"{name!r} is computed from {freed} bytes of constants")
            computed = evaluate_cone(view, cone)
        values = require_weight(view, weight, computed)
        if self.tables == "embeddings" and (reason := why_no_embedding(view, weight, values)) is not None:
            raise Skip(reason)
        chooser = Chooser(view, weight, values, self._wish(), values.nbytes if freed is None else freed)
        chosen, steps = chooser.choose(_steps_down(view, weight), seen is not None)
        best, how = chosen.best, ""
        corrects = self.bias_correction or "range" in steps
        if seen is not None and (self.rounding == "gptq" or corrects):
            rounded = self.rounding == "gptq" and self.representation != "qdq"
            best, how = seen.finish(view, values, best, rounded, corrects)
            chosen = replace(chosen, best=best)
        form = write(view, weight, values.dtype, chosen)
        kind, grouping = best.affine.kind, best.grouping
        detail = f"{name!r} to {kind.title} {grouping}, {best.sqnr_db:.1f} dB{how}{form}"
        if chosen.failed:
            first = chosen.failed[0]
            detail = f"{detail}, after {first.affine.kind.name} {first.grouping} with {first.sqnr_db:.1f} dB"
        return detail, best.affine.nbytes(values.shape, grouping)

    def _wish(self) -> Wish:
        """Return what the options ask for."""
        rule = range_rule(self.range, self.percentile, self.deviations)
        kind, form = TYPES[self.dtype], self.representation
        return Wish(kind, self.symmetric, self.granularity, self.block_size, form, rule, mse, self.min_sqnr)


@dataclass
class _Layer:
    """What became of the weights of one layer; dicts for their order."""

    site: str
    done: dict[str, None] = field(default_factory=dict)
    kept: dict[str, None] = field(default_factory=dict)
    nbytes: int = 0

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
    for node in view.nodes(*LOOKUPS):
        if node.inputs and (scaled := scaled_rows(view, node)) is not None:
            yield Skipped(view.site(scaled), f"{node.inputs[0].name!r} is quantized already")


def _has_quantized_activations(view: GraphView) -> bool:
    """Whether something else than a constant is quantized."""
    return any(view.array(node.inputs[0]) is None for node in view.nodes("QuantizeLinear"))


def _steps_down(view: GraphView, weight: Weight) -> int:
    """Return how many steps the layers of a weight are demoted: the most of them."""
    return max((view.demotions.get(view.site(use.layer), 0) for use in weight.uses), default=0)


def _is_site(view: GraphView, weight: Weight) -> bool:
    """Whether to report on a weight: it is stored as floats, or quantized already, or its layers always have one."""
    if (values := view.array(weight.source)) is not None:
        return is_float(values.dtype)
    if is_stored(view, weight.source) or is_dequantized(view, weight.source) or computed_from(view, weight) is not None:
        return True
    return any(use.layer.op in _ALWAYS_WEIGHTED for use in weight.uses)
