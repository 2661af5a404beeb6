"""Set the single weights that matter least to nought: a share of them, those below a threshold, or N of every M."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphopt import GraphView, Lossy, OptionError, Pass, PassResult, Rewritten, Skip, Skipped, option
from graphopt.distill.saliency import gradient_saliency
from graphopt.errors import GraphoptError
from graphopt.graph.dequantize import is_dequantized
from graphopt.graph.weights import MOVES, Weight, WeightUse, find_weights, is_float, is_stored, require_weight
from graphopt.numerics.sparsity import below, order, pattern_mask, smallest_limit

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
BLOCKED = ("Conv", "Gemm", "MatMul")
"""Operators whose kernels know N:M sparsity."""

PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class ZeroWeights(Pass):
    """Zero the weights that matter least, one by one.

    Criteria:

    - ``magnitude``: |w|;
    - ``gradient``: the mean over single samples of |dL/dw|, L the cross-entropy with the label or else with the class
      that the model itself finds likeliest; ``taylor``: of |w dL/dw| (arXiv 1611.06440). Both need ``--data``, a model
      with class scores and the extra graphopt[distill], and reach float32 weights in the main graph.

    One of these says how much:

    - ``--ratio``: this share of each weight tensor, or with ``--scope global`` of all of them together (Han et al.,
      arXiv 1506.02626). Of equal magnitudes all stay, so the share may fall a little short; with the other criteria
      the smaller magnitude goes first, then the earlier weight.
    - ``--threshold``: all weights that the criterion puts below it. What is measured on data is measured anew in a
      second run, with a little more below the threshold.
    - ``--pattern N:M``: all but the best N of every M successive weights along the axis that the layer sums over, such
      as 2:4 for sparse tensor cores (arXiv 2104.08378); Conv, Gemm and MatMul.

    Weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, read directly or through Transpose and its kind.
    Layers that share a weight go on sharing it. Zeros that are there already count, so that a second run does nothing.

    Refused: a weight that is computed, quantized or can be overridden, that something other than a layer reads (an
    embedding), or that holds NaN or Inf; for N:M also one whose summed axis is not a multiple of M long (a depthwise
    convolution), on which its layers do not agree, or that is put together from parts.

    The file keeps its size and standard kernels their speed: zeros pay where a runtime or a compressor makes use of
    them. How much accuracy goes is the user's choice, so the contract promises only that the model runs and gives
    finite values; the report shows the measured SQNR.
    """

    name = "zero-weights"
    contract = Lossy(min_sqnr_db=float("-inf"))
    accounts = "weights"

    criterion: Literal["magnitude", "gradient", "taylor"] = option("magnitude", "What a weight is judged by.")
    ratio: float | None = option(None, "Zero this share of the weights.", minimum=0.0, maximum=1.0)
    threshold: float | None = option(None, "Zero the weights that the criterion puts below this.", minimum=0.0)
    pattern: str | None = option(None, "Keep N of every M weights along the summed axis, such as 2:4.")
    scope: Literal["uniform", "global"] = option("uniform", "Take the ratio of each weight, or of all together.")
    samples: int = option(512, "How many calibration samples a criterion uses at most.", minimum=1)

    def __post_init__(self) -> None:
        """Check that exactly one option says how much, and the form of the pattern.

        Raises:
            OptionError: None does, several do, or the pattern is no N:M with N below M.
        """
        super().__post_init__()
        if sum(amount is not None for amount in (self.ratio, self.threshold, self.pattern)) != 1:
            raise OptionError(f"{self.name}: give one of --ratio, --threshold and --pattern")
        if self.pattern is not None:
            match = PATTERN.fullmatch(self.pattern)
            if match is None or int(match[1]) >= int(match[2]):
                raise OptionError(f"{self.name}: --pattern: {self.pattern!r} is not N:M with N below M, such as 2:4")

    def run(self, view: GraphView) -> PassResult:
        """Zero weight by weight; a layer is rewritten if one of its weights is."""
        done: dict[str, dict[str, None]] = {}
        kept: dict[str, dict[str, None]] = {}
        usable: list[Weight] = []
        for weight in find_weights(view):
            if not any(use.layer.op in LAYERS for use in weight.uses) or not _is_site(view, weight):
                continue
            try:
                self._require(view, weight)
                usable.append(weight)
            except Skip as reason:
                _tell(view, weight, str(reason), kept)
        scores = self._scores(view, usable, kept)
        shared = self._shared_limit(list(scores.values()))
        for weight in usable:
            if id(weight.source) not in scores:
                continue
            try:
                _tell(view, weight, self._zero(view, weight, scores[id(weight.source)], shared), done)
            except Skip as reason:
                _tell(view, weight, str(reason), kept)
        return PassResult(
            tuple(Rewritten(site, "; ".join([*told, *kept.get(site, {})])) for site, told in done.items()),
            tuple(Skipped(site, "; ".join(told)) for site, told in kept.items() if site not in done),
        )

    def _require(self, view: GraphView, weight: Weight) -> None:
        """Raise Skip unless the weight may be touched."""
        require_weight(view, weight)
        for use in weight.uses:
            site = view.site(use.layer)
            if use.layer.op not in LAYERS:
                raise Skip(f"{weight.source.name!r} is also read by {use.layer.op} {site!r}")

    def _scores(
        self, view: GraphView, weights: list[Weight], kept: dict[str, dict[str, None]]
    ) -> dict[int, NDArray[Any]]:
        """Return the scores of each weight's elements by the identity of its tensor; say of the others why not."""
        if self.criterion == "magnitude" or not weights:
            return {id(weight.source): require_weight(view, weight) for weight in weights}
        try:
            if view.calibration is None or view.calibration.generated:
                raise Skip(f"the {self.criterion} criterion needs calibration data (--data)")
            saliency = gradient_saliency(view.model, view.calibration, self.criterion, limit=self.samples)
        except (Skip, GraphoptError) as reason:
            for weight in weights:
                _tell(view, weight, str(reason), kept)
            return {}
        found: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
        for weight in weights:
            name, values = str(weight.source.name), require_weight(view, weight)
            if name not in saliency:
                _tell(view, weight, f"no gradient reaches {name!r} ({values.dtype}, {weight.uses[0].layer.op})", kept)
                continue
            found[id(weight.source)] = np.where(values == 0, 0.0, saliency[name]), values
        if self.threshold is not None:
            return {key: scores for key, (scores, _) in found.items()}
        return dict(zip(found, order(list(found.values())), strict=True))

    def _shared_limit(self, scores: list[NDArray[Any]]) -> float | None:
        """Return the limit that all weights have in common, None if each has its own."""
        if self.threshold is not None:
            return self.threshold
        if self.ratio is None or self.scope == "uniform":
            return None
        return smallest_limit(scores, int(self.ratio * sum(array.size for array in scores) + 1e-9))

    def _zero(self, view: GraphView, weight: Weight, scores: NDArray[Any], shared: float | None) -> str:
        """Zero one weight; return what that costs.

        Raises:
            Skip: There is nothing to zero, or the pattern does not fit.
        """
        values = require_weight(view, weight)
        if self.ratio is not None or self.threshold is not None:
            limit = shared
            if limit is None:
                limit = smallest_limit([scores], int((self.ratio or 0.0) * values.size + 1e-9))
            mask = below(scores, limit)
        else:
            keep, of = (int(number) for number in (self.pattern or "").split(":"))
            mask = pattern_mask(scores, _summed_axis(view, weight, values, of), keep, of)
        if not (values[mask] != 0).any():
            raise Skip(f"{weight.source.name!r} has nothing more to zero")
        zeroed = np.where(mask, np.zeros((), dtype=values.dtype), values)
        for reader in {id(node): node for node in view.readers(weight.source)}.values():
            for slot, tensor in enumerate(list(reader.inputs)):
                if tensor is weight.source:
                    view.edit.set_values(reader, slot, zeroed, dtype=zeroed.dtype)
        return _cost(str(weight.source.name), values, zeroed)


def _is_site(view: GraphView, weight: Weight) -> bool:
    """Whether to report on a weight: whatever is stored, as integers too, and what a convolution reads in any case."""
    if (values := view.array(weight.source)) is not None:
        return is_float(values.dtype)
    known = is_stored(view, weight.source) or is_dequantized(view, weight.source)
    return known or any(use.layer.op in LAYERS[:2] for use in weight.uses)


def _tell(view: GraphView, weight: Weight, text: str, story: dict[str, dict[str, None]]) -> None:
    """Add a line to each layer that uses a weight."""
    for site in dict.fromkeys(view.site(use.layer) for use in weight.uses):
        story.setdefault(site, {})[text] = None


def _summed_axis(view: GraphView, weight: Weight, values: NDArray[Any], of: int) -> int:
    """Return the axis along which N:M blocks lie.

    Raises:
        Skip: There is none, or it does not divide into blocks.
    """
    name = weight.source.name
    for use in weight.uses:
        if use.layer.op not in BLOCKED:
            raise Skip(f"{use.layer.op} has no N:M kernels")
        if (part := next(_parted(view, weight, use), None)) is not None:
            raise Skip(f"{name!r} is put together or taken apart by {part}")
    axis = weight.summed_axis
    if axis is None:
        raise Skip(f"the axis of {name!r} that its layers sum over is not known or not the same")
    if values.shape[axis] % of:
        raise Skip(f"{name!r} sums over {values.shape[axis]} weights, which is no multiple of {of}")
    return axis


def _parted(view: GraphView, weight: Weight, use: WeightUse) -> Iterator[str]:
    """Yield the operators between a weight and a layer that move the borders of blocks."""
    tensor = use.layer.inputs[use.slot]
    while tensor is not weight.source and (node := view.producer(tensor, *MOVES)) is not None:
        if node.op in ("Slice", "Split", "Concat"):
            yield f"{node.op} {view.site(node)!r}"
        tensor = node.inputs[0]


def _cost(name: str, values: NDArray[Any], zeroed: NDArray[Any]) -> str:
    """Say how many weights are zero now and what share of the weight's power is left."""
    wide, lost = values.astype(np.float64), values.astype(np.float64) - zeroed.astype(np.float64)
    zeros = int(zeroed.size - np.count_nonzero(zeroed))
    power, noise = (max(float(np.square(part).sum()), 1e-300) for part in (wide, lost))
    sqnr = 10 * math.log10(power / noise)
    return f"{zeros:,} of {values.size:,} weights of {name!r} are zero ({zeros / values.size:.1%}), {sqnr:.1f} dB"
