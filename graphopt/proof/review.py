"""Reviews a broken contract: rounding errors that a model amplifies, or turns into another choice, are no faults."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from graphopt.contract import Contract, FloatExact, Lossy
from graphopt.errors import GraphoptError
from graphopt.model.inference import with_inferred_shapes
from graphopt.numerics.compare import Comparer, Comparison, combine
from graphopt.proof.discrete import Decision, ForcedPair, find_decisions
from graphopt.proof.noise import DRAWS, FACTOR, excused, shaken_feeds, shaken_model
from graphopt.runtime.data import Feeds
from graphopt.runtime.session import Session

Batches = Callable[[], Iterator[tuple[Feeds, int]]]
"""Gives feeds and how many samples they hold, from the first on."""


@dataclass(frozen=True)
class Pair:
    """Two models to hold against each other.

    Attributes:
        reference: The one that is right, with its weights.
        candidate: The one to judge.
        optimize: Whether ONNX Runtime may rewrite both graphs.
        generated: Whether the inputs were drawn, so that they say nothing of accuracy.
    """

    reference: onnx.ModelProto
    candidate: onnx.ModelProto
    optimize: bool = False
    generated: bool = False


def review(plain: Comparison, pair: Pair, contract: Contract, batches: Batches) -> Comparison:
    """Judge a comparison that failed once more.

    1. If both models have discrete operators in common (see ``discrete``), what leads to them and what follows from
       the reference's choices is compared instead of the outputs. On generated inputs a Lossy contract lets a Softmax
       or Sigmoid at the end count as one of them.
    2. What still breaks a FloatExact contract is held against the reference's own noise (see ``noise``).

    Args:
        plain: The comparison that failed.
        pair: The models.
        contract: What must hold.
        batches: What to run on.

    Returns:
        A comparison that holds, with a note that says why; or ``plain``, with the finding of the review if there is
        one.
    """
    decisions = find_decisions(pair.reference, pair.candidate, isinstance(contract, Lossy) and pair.generated)
    judged = plain
    if decisions:
        ops = ", ".join(f"{count} {op}" for op, count in Counter(each.op for each in decisions).items())
        try:
            forced = _compare_forced(pair, decisions, contract, batches)
        except GraphoptError as error:
            decisions = []
            judged = _noted(plain, f"the discrete operators ({ops}) could not be judged apart: {error}")
        else:
            note = f"judged by what goes into the discrete operators ({ops}) and on the reference's choices there"
            judged = dataclasses.replace(forced, notes=(*forced.notes, f"{note}; the outputs: {plain.problem}"))
            judged = dataclasses.replace(judged, agreement=plain.agreement, blind=plain.blind)
    if judged.holds or not isinstance(contract, FloatExact):
        return judged
    return _within_noise(judged, pair, decisions, contract, batches)


def _compare_forced(pair: Pair, decisions: list[Decision], contract: Contract, batches: Batches) -> Comparison:
    """Compare on the reference's decisions."""
    comparer = Comparer(contract)
    forced = ForcedPair(pair.reference, pair.candidate, decisions, pair.optimize)
    for feeds, samples in batches():
        comparer.add(*forced.run(feeds), samples)
    return comparer.result()


def _within_noise(
    judged: Comparison, pair: Pair, decisions: list[Decision], contract: FloatExact, batches: Batches
) -> Comparison:
    """Return the comparison with mere noise accepted, or as it was if there is more than that."""
    typed = with_inferred_shapes(pair.reference)  # where inference gives up, the noise of operators is not measured
    noises = []
    for seed in range(DRAWS):
        try:
            noises.append(_noise(typed, pair, decisions, contract, batches, np.random.default_rng(seed)))
        except GraphoptError as error:
            return _noted(judged, f"the model's own float noise could not be measured: {error}")
    outputs = excused(judged, noises)
    if outputs is None:
        return judged
    count = sum(not output.holds for output in judged.outputs)
    others = f" (and {count - 1} more)" if count > 1 else ""
    note = (
        f"{judged.problem}{others}; that is at most {FACTOR:g} times the model's own float noise "
        "(every float one unit in the last place off)"
    )
    quiet = combine(contract, outputs, (*judged.notes, note), judged.samples)
    return dataclasses.replace(quiet, agreement=judged.agreement, blind=judged.blind)


def _noise(
    typed: onnx.ModelProto,
    pair: Pair,
    decisions: list[Decision],
    contract: FloatExact,
    batches: Batches,
    rng: np.random.Generator,
) -> Comparison:
    """Compare the reference with itself, every float in it moved by a unit in the last place."""
    comparer = Comparer(contract)
    shaken = shaken_model(typed, rng)
    if decisions:
        own = [dataclasses.replace(each, candidate=each.reference) for each in decisions]
        forced = ForcedPair(pair.reference, shaken, own, pair.optimize)
        for feeds, samples in batches():
            comparer.add(*forced.run(feeds, shaken_feeds(feeds, rng)), samples)
    else:
        left, right = Session(pair.reference, optimize=pair.optimize), Session(shaken, optimize=pair.optimize)
        for feeds, samples in batches():
            comparer.add(left.run(feeds), right.run(shaken_feeds(feeds, rng)), samples)
    return comparer.result()


def _noted(comparison: Comparison, note: str) -> Comparison:
    """Return a comparison with one note more."""
    return dataclasses.replace(comparison, notes=(*comparison.notes, note))
