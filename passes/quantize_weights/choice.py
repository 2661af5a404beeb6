"""Chooses type, scales, range and operators for one weight, by the options and by the steps that its sites are down."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graphopt import GraphView, Skip
from graphopt.graph.dequantize import (
    FP16_SCALE_OPSET,
    Lookup,
    Representation,
    Writer,
    lowest_opset,
    overhead,
)
from graphopt.graph.storage_rank import other_rank
from graphopt.graph.weights import LOOKUPS, Weight
from graphopt.numerics.grouping import Grouping
from graphopt.numerics.ladder import MORE_BITS, blocks, climb, finer, ladder
from graphopt.numerics.quantization import TYPES, Affine, Quantized, QuantizedType, Range

from .demotion import taken
from .forms import FAST_BLOCK, Product, is_lookup, lookups, product

Form = Literal["auto", "dq", "qdq", "mul"]
Granularity = Literal["auto", "tensor", "channel", "block"]


@dataclass(frozen=True)
class Wish:
    """What the options ask for: ``rule`` and ``careful_rule`` choose the range, the latter where a site is demoted."""

    kind: QuantizedType
    symmetric: bool
    granularity: Granularity
    block_size: int
    form: Form
    rule: Range
    careful_rule: Range
    min_sqnr: float | None


@dataclass(frozen=True)
class Choice:
    """A quantized weight, what was tried before it, and the operators that it is to be written with.

    ``product`` is a layer that is fused with its DequantizeLinear; ``lookups`` those that pick rows of integers.
    """

    best: Quantized
    failed: tuple[Quantized, ...]
    form: Representation
    product: Product | None = None
    lookups: tuple[Lookup, ...] = ()


class Chooser:
    """Makes the choice for one weight with these values, whose float form frees ``freed`` bytes."""

    def __init__(self, view: GraphView, weight: Weight, values: NDArray[np.generic], wish: Wish, freed: int) -> None:
        self._view, self._weight, self._values, self._wish = view, weight, values, wish
        self._room = 2 * values.nbytes if wish.form == "qdq" else freed - overhead(str(weight.source.name))
        self._product = product(view, weight, values.dtype.name) if wish.form == "auto" else None
        self._is_product = any(use.layer.op in ("MatMul", "Gemm") for use in weight.uses)

    def choose(self, count: int, corrects: bool) -> tuple[Choice, frozenset[str]]:
        """Return the choice for a weight that is ``count`` steps down, and which steps these are.

        ``corrects`` says whether the step of the range can correct a bias too.

        Raises:
            Skip: The opset has no form for the type, nothing is smaller than the float weight, or all lose too much.
        """
        self._require_opset()
        steps = taken(count, self._has(corrects)) if count else frozenset()
        wish = self._wish
        rule = wish.careful_rule if "range" in steps else wish.rule
        best, failed = climb(self._values, self._tries(steps), rule, wish.min_sqnr, self._room)
        if best is not None:
            return self._formed(best, failed, steps), steps
        name = self._weight.source.name
        if failed:
            most = max(attempt.sqnr_db for attempt in failed)
            raise Skip(f"{name!r} keeps {most:.1f} dB at best, less than {wish.min_sqnr:g}")
        raise Skip(f"{name!r} of {self._values.nbytes} bytes would not get smaller")

    def _require_opset(self) -> None:
        opset, kind, form = self._weight.home.opset, self._wish.kind, self._wish.form
        if opset < (lowest := self._lowest(kind, Grouping())):
            needs = f"opset {opset} has no " + ("DequantizeLinear" if form == "dq" else "operators")
            raise Skip(f"{needs} for {kind.name} weights, it needs {lowest}")

    def _lowest(self, kind: QuantizedType, grouping: Grouping) -> int:
        """Return the first opset with operators for a type and grouping."""
        form: Representation = "mul" if self._wish.form == "auto" else self._wish.form
        return lowest_opset(kind.name, kind.opset, grouping, form)

    def _fits(self, kind: QuantizedType, grouping: Grouping) -> bool:
        """Whether a type and grouping can be written, and take less than the float weight."""
        small = self._affine(kind).nbytes(self._values.shape, grouping) < self._room
        return small and self._weight.home.opset >= self._lowest(kind, grouping)

    def _affine(self, kind: QuantizedType) -> Affine:
        """Return how values map to a type.

        Scales in half precision are for DequantizeLinear alone: ONNX Runtime folds no Mul in half precision. OpenVINO
        2026.4 misreads a QuantizeLinear with negative scales.
        """
        half = self._values.dtype == np.float16 and self._weight.home.opset >= FP16_SCALE_OPSET
        narrow = half and self._wish.form in ("dq", "qdq")
        scales = np.dtype(np.float16 if narrow else np.float32)
        return Affine(kind, self._wish.symmetric, scales, negative_scales=self._wish.form != "qdq")

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _has(self, corrects: bool) -> dict[str, bool]:
        """Return for each step whether this weight has it."""
        kind, first = self._wish.kind, next(self._groupings(), Grouping())
        smaller, wider = self._finer(first), self._wider(kind)
        return {
            "form": self._is_fused(kind, first),
            "range": corrects or self._wish.rule is not self._wish.careful_rule,
            "blocks": smaller is not None and self._fits(kind, smaller),
            "bits": wider is not None and self._fits(wider, first),
        }

    def _finer(self, first: Grouping) -> Grouping | None:
        return finer(self._values.shape, self._weight.summed_axis, first, self._is_product)

    @staticmethod
    def _wider(kind: QuantizedType) -> QuantizedType | None:
        wider = MORE_BITS.get(kind.name)
        return None if wider is None else TYPES[wider]

    # -- types and scales ----------------------------------------------------------------------------------------------

    def _tries(self, steps: frozenset[str]) -> Iterator[tuple[Affine, Grouping]]:
        """Yield what to try, from what was asked for to what is always possible, where the opset allows it."""
        kind, shape = self._wish.kind, self._values.shape
        if "bits" in steps:
            kind = self._wider(kind) or kind
        for asked in self._groupings():
            first = (self._finer(asked) or asked) if "blocks" in steps else asked
            for wide, group in ladder(self._affine(kind), first, shape, self._weight.summed_axis, self._is_product):
                if self._weight.home.opset >= self._lowest(wide.kind, group):
                    yield wide, group

    def _groupings(self) -> Iterator[Grouping]:
        """Yield how values are to share scales."""
        wish, weight, shape = self._wish, self._weight, self._values.shape
        if wish.granularity == "auto" and weight.summed_axis is not None:
            fast = Grouping(weight.summed_axis, FAST_BLOCK)
            if self._is_fused(wish.kind, fast):
                yield fast
        if wish.granularity == "block":
            finest = blocks(shape, weight.summed_axis, wish.block_size, self._is_product)
            if finest is not None:
                yield finest
        channel = self._channel_axis()
        if wish.granularity != "tensor" and channel is not None:
            yield Grouping(channel)
        yield Grouping()

    def _channel_axis(self) -> int | None:
        """Return the axis of the channels; that of a table's rows counts where look-ups pick from the integers."""
        weight = self._weight
        picks = [is_lookup(weight, use) for use in weight.uses if use.layer.op in LOOKUPS]
        picked = self._wish.form == "auto" and not self._wish.kind.is_float and all(picks)
        return weight.common_axis if picked else weight.channel_axis

    # -- operators -----------------------------------------------------------------------------------------------------

    def _is_fused(self, kind: QuantizedType, grouping: Grouping) -> bool:
        return self._product is not None and self._product.take(self._weight, self._values.shape, kind, grouping)

    def _formed(self, best: Quantized, failed: list[Quantized], steps: frozenset[str]) -> Choice:
        """Choose the operators."""
        if self._wish.form != "auto":
            return Choice(best, tuple(failed), self._wish.form)
        if "form" not in steps and self._is_fused(best.affine.kind, best.grouping):
            return Choice(best, tuple(failed), "dq", product=self._product)
        return Choice(best, tuple(failed), "mul", lookups=tuple(lookups(self._view, self._weight, best)))


_WORDS = {
    "mul": "as Cast and Mul, folded at load",
    "dq": "as DequantizeLinear",
    "qdq": "behind QuantizeLinear and DequantizeLinear",
}


def write(view: GraphView, weight: Weight, dtype: "np.dtype[np.generic]", choice: Choice) -> str:
    """Write a weight as chosen; return the operators in words."""
    writer, best = Writer(view, weight.source, weight.home, dtype), choice.best
    if choice.product is not None:
        writer.write_product(best, choice.product.layer, choice.product.transposed)
        return ", as DequantizeLinear, fused with the product"
    words = []
    if choice.lookups:
        writer.write_rows(best, choice.lookups)
        words.append("rows looked up as integers, then Cast and Mul")
    done = {id(lookup.node) for lookup in choice.lookups}
    if any(id(node) not in done for node in view.readers(weight.source)):
        ranks = (other_rank(view, use.layer, best) for use in weight.uses)
        rank = next((rank for rank in ranks if rank is not None), None)
        writer.write(best, choice.form, rank)
        words.append(f"{'elsewhere ' if words else ''}{_WORDS[choice.form]}")
    return "".join(f", {each}" for each in words)
