"""Even out the ranges of channels between two convolutions, so that few bits serve all channels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt import FloatExact, GraphView, Pass, PassResult, Rewritten, Skip, Skipped, option
from graphopt.graph.view import is_op

_BETWEEN = ("Relu", "LeakyRelu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Dropout")
_ROUNDS = 50
_LARGEST_EXPONENT = 20


@dataclass(eq=False)
class _Pair:
    """Two layers with one path between them, their weights, and the exponents of two that move between them."""

    site: str
    first: gs.Node
    second: gs.Node
    exponents: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EqualizeChannels(Pass):
    """Divide each channel of a Conv by a power of two, and multiply what the next Conv does with it.

    With r1 the largest weight of the channel in the first layer and r2 in the second, both become sqrt(r1 r2), to the
    nearest power of two, round after round until nothing moves (cross-layer equalization, Nagel et al. 2019, "Data-Free
    Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721, section 4.1). A power of two
    changes no mantissa, so the model computes the same floats but for overflow. Cases:

    1. Conv to Conv, both of any number of groups, depthwise included.
    2. Relu, LeakyRelu, pooling and Identity between them.

    Refused: a Clip between them (a bound does not scale), a tensor between them that something else reads or that the
    model gives out, and weights or biases that are shared, computed, or half precision. BatchNormalization should be
    folded first.
    """

    name = "equalize-channels"
    contract = FloatExact(rtol=1e-5, atol=1e-6)

    rounds: int = option(_ROUNDS, "Stop after this many rounds over all pairs.", minimum=1)

    def run(self, view: GraphView) -> PassResult:
        """Settle the exponents of all pairs together, then write each weight once."""
        pairs: list[_Pair] = []
        skipped: list[Skipped] = []
        weights: dict[int, tuple[gs.Node, list[NDArray[np.float64]]]] = {}
        for node in view.nodes("Conv"):
            site = view.site(node)
            try:
                view.require_permitted(site)
                second = _next(view, node)
                if second is None:
                    continue
                view.require_chosen(second)
                for each in (node, second):
                    weights.setdefault(id(each), (each, _parameters(view, each)))
            except Skip as reason:
                skipped.append(Skipped(site, str(reason)))
            else:
                channels = weights[id(node)][1][0].shape[0]
                pairs.append(_Pair(site, node, second, np.zeros(channels, np.int64)))
        self._settle(pairs, {key: arrays[0] for key, (_, arrays) in weights.items()})
        moved = [pair for pair in pairs if pair.exponents.any()]
        rewritten = [
            Rewritten(p.site, f"up to 2^{np.abs(p.exponents).max()} to {view.site(p.second)!r}") for p in moved
        ]
        _write(view, moved, weights)
        return PassResult(tuple(rewritten), tuple(skipped))

    def _settle(self, pairs: list[_Pair], weights: dict[int, NDArray[np.float64]]) -> None:
        """Move powers of two between the layers of each pair until all are even."""
        scaled = dict(weights)
        for _ in range(self.rounds):
            still = True
            for pair in pairs:
                before = np.abs(scaled[id(pair.first)]).reshape(len(pair.exponents), -1).max(axis=1)
                after = _input_ranges(scaled[id(pair.second)], len(pair.exponents))
                alive = (before > 0) & (after > 0)
                ratio = np.where(alive, before, 1.0) / np.where(alive, after, 1.0)
                step = np.rint(np.log2(ratio) / 2.0).astype(np.int64)
                limit = np.clip(pair.exponents + step, -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
                step = limit - pair.exponents
                if step.any():
                    still = False
                    pair.exponents = limit
                    scaled[id(pair.first)] = _scale_outputs(scaled[id(pair.first)], -step)
                    scaled[id(pair.second)] = _scale_inputs(scaled[id(pair.second)], step)
            if still:
                return


def _next(view: GraphView, node: gs.Node) -> gs.Node | None:
    """Return the Conv that alone reads a Conv's output; None if what reads it is no Conv.

    Raises:
        Skip: A Conv follows, but the way there does not scale.
    """
    tensor, hurdle = node.outputs[0], ""
    while True:
        readers = view.readers(tensor)
        if view.is_output(tensor) or not readers:
            return None
        if len(readers) > 1:
            if all(is_op(reader, "Conv") for reader in readers):
                raise Skip(f"{tensor.name!r} has {len(readers)} readers")
            return None
        reader = readers[0]
        if is_op(reader, "Conv") and reader.inputs[0] is tensor:
            if hurdle:
                raise Skip(hurdle)
            return reader
        if is_op(reader, "Clip") and reader.inputs[0] is tensor:
            hurdle = hurdle or f"Clip {view.site(reader)!r} has bounds that do not scale"
        elif not is_op(reader, *_BETWEEN) or reader.inputs[0] is not tensor:
            return None
        if any(view.readers(out) or view.is_output(out) for out in list(reader.outputs)[1:]):
            return None
        tensor = reader.outputs[0]


def _parameters(view: GraphView, node: gs.Node) -> list[NDArray[np.float64]]:
    """Return weight and, if there is one, bias, which only this layer may read.

    Raises:
        Skip: They are computed, shared, half precision or not finite.
    """
    tensors = [tensor for tensor in list(node.inputs)[1:] if not tensor.is_empty()]
    arrays = view.require_constants(*tensors)
    for tensor in tensors:
        view.require_private(tensor)
        if (stored := view.array(tensor)) is not None and stored.dtype.itemsize < 4:
            raise Skip(f"{tensor.name!r} is {stored.dtype}, whose smallest values would vanish")
    return arrays


def _input_ranges(weight: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    """Return the largest weight of each input channel of a Conv weight [M, C / G, ...]."""
    groups = channels // weight.shape[1]
    split = np.abs(weight).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    ranges: NDArray[np.float64] = split.max(axis=(1, 3)).reshape(-1)
    return ranges


def _scale_outputs(values: NDArray[np.float64], exponents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Multiply each slice of axis 0 by two to the power of its exponent."""
    return np.ldexp(values, exponents.reshape(-1, *[1] * (values.ndim - 1)))


def _scale_inputs(weight: NDArray[np.float64], exponents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Multiply each input channel of a Conv weight by two to the power of its exponent."""
    groups = len(exponents) // weight.shape[1]
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return np.ldexp(split, exponents.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def _write(view: GraphView, pairs: list[_Pair], weights: dict[int, tuple[gs.Node, list[NDArray[np.float64]]]]) -> None:
    """Write the layers that pairs have changed."""
    changed: dict[int, None] = {}
    for pair in pairs:
        first, second = weights[id(pair.first)][1], weights[id(pair.second)][1]
        first[:] = [_scale_outputs(values, -pair.exponents) for values in first]
        second[0] = _scale_inputs(second[0], pair.exponents)
        changed |= {id(pair.first): None, id(pair.second): None}
    for key in changed:
        node, arrays = weights[key]
        slots: Iterator[int] = (i for i, t in enumerate(node.inputs) if i and not t.is_empty())
        for slot, values in zip(slots, arrays, strict=True):
            view.edit.set_values(node, slot, values)
