"""Fit each compressed layer to what the original model gave out in its place."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt import GraphView, Lossy, Pass, PassResult, Rewritten, Skip, option
from graphopt.graph.correspondence import Correspondence
from graphopt.graph.kept import KeptChannels
from graphopt.graph.linear import OPERATORS, LinearLayer, channel_rows, read_layer
from graphopt.graph.view import is_op
from graphopt.numerics.reconstruction import Layer, Moments, corrected_bias, ridge
from graphopt.result import Skipped
from graphopt.runtime.side_by_side import HELD_OUT, SideBySide, held_out

Array = NDArray[np.float64]

EXACT = 1e-9
"""A share of the output's power below which an error is rounding."""


@dataclass(frozen=True)
class _Target:
    """What a layer should give out: a tensor of the original, less ``other`` of the student where an Add joins it."""

    name: str
    kept: NDArray[np.int64] | None = None
    other: str | None = None


@dataclass(frozen=True)
class _Parameters:
    """New parameters of a layer; None where they stay."""

    weight: Array | None
    bias: Array | None


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Pass):
    """Fit weights and biases, layer by layer, from the student's inputs to the original's outputs.

    For each Conv, Gemm and MatMul in order, with A the rows of its input in the model as it is by then and Y what the
    original gives out in that place, ``|A w^T + b - Y|^2 + damping * tr(H) / K * |w - w0|^2`` is minimized (H is the
    centred ``A^T A``, K its size). Where an Add joins the layer with another branch, Y is the original's sum less that
    branch, so that the layer makes up for the branch's error too. Moments are gathered batch by batch, in float64.

    A weight that is zero stays zero, and a channel without weights keeps its bias: what was pruned stays pruned.
    Quantized weights keep their integers; those layers, and ConvTranspose, get a bias only (``--method bias`` for all).

    Where channels have been cut, the weights tell which are left, if nothing but a fold has touched them since.

    Every fifth sample is held out. A layer is kept as it was unless its error there falls by ``min_gain``; if the
    outputs of the whole model are then further from the original's than before, everything is. The contract looks back
    at the damaged model that the pass was given, so it promises finite outputs only: those two tests are the proof.

    Main graph only. Needs data from the user: nothing can be learnt from generated inputs.
    """

    name = "reconstruct"
    contract = Lossy(min_sqnr_db=float("-inf"))

    method: Literal["ridge", "bias"] = option("ridge", "Fit weights and bias, or the bias only.")
    damping: float = option(1e-3, "How strongly weights are held to what they are.", minimum=0.0, maximum=1e6)
    samples: int = option(512, "How many calibration samples to use at most.", minimum=HELD_OUT)
    rows: int = option(65536, "How many rows of a layer's input to use at most, chosen at random.", minimum=256)
    max_inputs: int = option(5000, "Fit only the bias of a layer with more weights per output.", minimum=1)
    min_gain: float = option(0.02, "By which share a layer's held-out error must fall.", minimum=0.0, maximum=1.0)
    seed: int = option(0, "Seed of the choice of rows.", minimum=0)

    @property
    def fits(self) -> bool:
        """Weights and biases are fitted to the data."""
        return True

    def run(self, view: GraphView) -> PassResult:
        """Fit on a copy, judge the whole, and take the layers over."""
        nodes = list(view.nodes(*OPERATORS))
        if (reason := self._obstacle(view)) is not None:
            return PassResult((), tuple(Skipped(view.site(node), reason) for node in nodes))
        trial = GraphView(view.model.copy(), view.vetoes, view.calibration, view.original)
        with SideBySide(trial.model, view.original, view.calibration, self.samples) as pair:
            return self._fit(view, nodes, _Fit(self, trial, pair))

    def _fit(self, view: GraphView, nodes: list[gs.Node], fit: "_Fit") -> PassResult:
        """Fit, and take over what has brought the outputs nearer to the original's."""
        before = fit.pair.distance()
        result = fit.run()
        if not result.rewritten:
            return result
        if (after := fit.pair.distance()) >= before:
            reason = f"fitting the layers moved the outputs away from the original's ({before:.3g} became {after:.3g})"
            taken_back = tuple(Skipped(rewritten.site, reason) for rewritten in result.rewritten)
            return PassResult((), result.skipped + taken_back)
        by_site = {view.site(node): node for node in nodes}
        for site, layer in fit.fitted.items():
            read_layer(view, by_site[site]).write(view, layer.weight, layer.bias)
        return result

    def _obstacle(self, view: GraphView) -> str | None:
        """Say why nothing can be fitted at all."""
        if view.original is view.model:
            return "there is no original to learn from: the pass has to run after those that change the model"
        if view.calibration is None or view.calibration.generated:
            return "needs calibration data (--data): nothing can be learnt from generated inputs"
        return None


class _Fit:
    """One run over a model: the layers fitted so far are already in it."""

    def __init__(self, options: Reconstruct, view: GraphView, pair: SideBySide) -> None:
        self.options, self.view, self.pair = options, view, pair
        self.original = GraphView(view.original)
        self.fitted: dict[str, _Parameters] = {}
        self._match = Correspondence(view, self.original)
        self._kept = KeptChannels(view, self.original, self._match)
        self._pending = {id(node) for node in view.nodes(*OPERATORS)}

    def run(self) -> PassResult:
        """Fit every layer in order."""
        rewritten, skipped = [], []
        main = {id(node) for node in self.view.model.graph.nodes}
        for node in list(self.view.nodes(*OPERATORS)):
            site = self.view.site(node)
            try:
                self.view.require_permitted(site)
                if id(node) not in main:
                    raise Skip("is inside a subgraph or function")
                rewritten.append(Rewritten(site, self._layer(node, site)))
            except Skip as reason:
                skipped.append(Skipped(site, str(reason)))
            self._pending.discard(id(node))
        return PassResult(tuple(rewritten), tuple(skipped))

    def _layer(self, node: gs.Node, site: str) -> str:
        """Fit one layer in place; return what was gained."""
        layer = read_layer(self.view, node)
        target = self._target(layer)
        only_bias = self.options.method == "bias" or layer.weight is None
        why = " (its weight is quantized)" if self.options.method == "ridge" and layer.weight is None else ""
        if not only_bias and layer.weight is not None and layer.weight.shape[2] > self.options.max_inputs:
            only_bias, why = True, f" ({layer.weight.shape[2]} weights per output)"
        if only_bias and layer.bias is None:
            raise Skip("it has no bias")
        parameters, before, after = self._bias(layer, target) if only_bias else self._ridge(layer, target)
        if before < EXACT:
            raise Skip("it answers as the original does")
        if not after < before * (1 - self.options.min_gain):
            raise Skip(f"its error would go from {before:.3g} to {after:.3g} of the output's power{why}")
        layer.write(self.view, parameters.weight, parameters.bias)
        self.fitted[site] = parameters
        return f"{'bias' if only_bias else 'weights'} fitted{why}: held-out error {before:.3g} became {after:.3g}"

    # -- the two methods -----------------------------------------------------------------------------------------------

    def _ridge(self, layer: LinearLayer, target: _Target) -> tuple[_Parameters, float, float]:
        """Fit weights and bias; return them with the held-out error before and after."""
        weight = layer.weight
        assert weight is not None
        bias = np.zeros(weight.shape[:2]) if layer.bias is None else layer.bias
        groups, outputs, inputs = weight.shape
        fitted, held = Moments(groups, inputs, outputs), Moments(groups, inputs, outputs)
        rng = np.random.default_rng(self.options.seed)
        share = self.options.rows / max(1, min(self.options.samples, self.view.calibration.size))
        for x, _, wanted, aside in self._activations(layer, target):
            for moments, chosen in ((fitted, ~aside), (held, aside)):
                if chosen.any():
                    limit = max(1, int(share * np.count_nonzero(chosen)))
                    moments.add(*layer.rows(x[chosen], wanted[chosen], limit, rng))
        _require_rows(fitted, held)
        free = weight != 0
        alive = free.any(axis=2)
        if not alive.any():
            raise Skip("all of its weights are zero")

        def solve(moments: Moments) -> Layer:
            solved = ridge(moments, weight, self.options.damping, free, intercept=layer.bias is not None)
            return Layer(solved.weight, np.where(alive, solved.bias, bias))

        trained = solve(fitted)
        power = held.power()[alive].sum() or 1.0
        before = held.error(weight, bias)[alive].sum() / power
        after = held.error(trained.weight, trained.bias)[alive].sum() / power
        final = solve(fitted + held)
        return _Parameters(final.weight, None if layer.bias is None else final.bias), before, after

    def _bias(self, layer: LinearLayer, target: _Target) -> tuple[_Parameters, float, float]:
        """Correct the bias by what the outputs are off on average: each channel is a layer of one weight, 1."""
        assert layer.bias is not None
        channels = layer.bias.size
        fitted, held = Moments(channels, 1, 1), Moments(channels, 1, 1)
        for _, y, wanted, aside in self._activations(layer, target):
            for moments, chosen in ((fitted, ~aside), (held, aside)):
                if chosen.any():
                    moments.add(channel_rows(layer, y[chosen]), channel_rows(layer, wanted[chosen]))
        _require_rows(fitted, held)
        one, zero = np.ones((channels, 1, 1)), np.zeros((channels, 1))
        alive = (fitted.centred()[0][:, 0, 0] > 1e-12 * fitted.aa[:, 0, 0])[:, None]
        shift = np.where(alive, corrected_bias(fitted, one), 0.0)
        power = held.power()[alive].sum() or 1.0
        before, after = (float(held.error(one, each)[alive].sum() / power) for each in (zero, shift))
        final = np.where(alive, corrected_bias(fitted + held, one), 0.0)
        return _Parameters(None, layer.bias + final.reshape(layer.bias.shape)), before, after

    # -- what the layer should give out --------------------------------------------------------------------------------

    def _target(self, layer: LinearLayer) -> _Target:
        """Choose the original's tensor that the layer's output stands for: the nearest of those that it may be."""
        joined = self._joined(layer.output)
        sums = [] if joined is None else self._match.candidates(joined[0])
        plain = self._match.candidates(layer.output)
        if not plain and not sums:
            raise Skip(f"the original has no tensor that {layer.output.name!r} stands for")
        for names, residual in ((sums, True), (plain, False)):
            tensor = joined[0] if residual and joined is not None else layer.output
            scored = [(score, target) for name in names for score, target in self._score(tensor, name)]
            if scored:
                _, target = min(scored, key=lambda pair: pair[0])
                return replace(target, other=str(joined[1].name)) if residual and joined is not None else target
        lost = f"{layer.output.name!r} has another shape than {[*sums, *plain][0]!r} of the original"
        raise Skip(f"{lost}, and its weights do not tell which channels are left")

    def _joined(self, tensor: gs.Tensor) -> tuple[gs.Tensor, gs.Tensor] | None:
        """Return the sum that only ``tensor`` and another branch go into, and that branch, if it is final by now."""
        readers = self.view.readers(tensor)
        if len(readers) != 1 or not is_op(readers[0], "Add") or self.view.is_output(tensor):
            return None
        other = readers[0].inputs[1 if readers[0].inputs[0] is tensor else 0]
        if other is tensor or self.view.array(other) is not None:
            return None
        waiting, seen = [other], {id(other)}
        while waiting:
            for node in waiting.pop().inputs:
                if id(node) in self._pending:
                    return None
                fresh = [read for read in node.inputs if id(read) not in seen]
                seen |= {id(read) for read in fresh}
                waiting += fresh
        return readers[0].outputs[0], other

    def _score(self, tensor: gs.Tensor, name: str) -> Iterator[tuple[float, _Target]]:
        """Yield a candidate and how far the tensor is from it on the first batch, if the shapes allow it."""
        given, wanted = map(np.asarray, self.pair.first(str(tensor.name), name))
        kept = None
        if given.shape != wanted.shape and given.ndim == wanted.ndim and (kept := self._kept.of(tensor)) is not None:
            axis = 1 if given.ndim > 2 and self.view.producer(tensor, "MatMul") is None else -1
            if kept.max() >= wanted.shape[axis]:
                return
            wanted = wanted.take(kept, axis=axis)
        if given.shape == wanted.shape and wanted.dtype.kind == "f":
            wide = wanted.astype(np.float64)
            yield float(np.square(given - wide).mean() / (wide.var() or 1.0)), _Target(name, kept)

    # -- activations ---------------------------------------------------------------------------------------------------

    def _activations(
        self, layer: LinearLayer, target: _Target
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[np.bool_]]]:
        """Yield, batch by batch, the layer's input and output, the output wanted, and which samples are held out."""
        names = [str(layer.input.name), str(layer.output.name), *([target.other] if target.other else [])]
        for student, teacher, held in self.pair.batches(names, str(layer.node.outputs[0].name), target.name):
            x, y = np.asarray(student[names[0]]), np.asarray(student[names[1]])
            wanted = np.asarray(teacher).astype(np.float64)
            if target.kept is not None:
                wanted = wanted.take(target.kept, axis=layer.axis)
            if target.other is not None:
                wanted = wanted - student[target.other]
            if y.shape != wanted.shape or len(x) != len(y):
                raise Skip(f"its output has shape {list(y.shape)}, the original's {list(wanted.shape)}")
            yield x, y, wanted, held if len(held) == len(x) else held_out(0, len(x))


def _require_rows(fitted: Moments, held: Moments) -> None:
    """Raise Skip if there are too few samples to fit and to judge."""
    if not fitted.rows or not held.rows:
        raise Skip(f"needs at least {HELD_OUT} calibration samples")
