"""Tells rounding errors that a model blows up, or turns into another choice, from real ones."""

import dataclasses
from collections import Counter

import numpy as np
import onnx

from graphopt.contract import Contract, FloatExact, Lossy
from graphopt.errors import GraphoptError
from graphopt.model.inference import with_inferred_shapes
from graphopt.numerics.compare import Comparer, Comparison, combine
from graphopt.runtime.data import Data
from graphopt.runtime.decisions import Decision, ForcedPair, find_decisions
from graphopt.runtime.noise import DRAWS, FACTOR, excused, shaken_feeds, shaken_model
from graphopt.runtime.session import Session


def second_look(
    plain: Comparison,
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    data: Data,
    contract: Contract,
    limit: int | None = None,
    optimize: tuple[bool, bool] = (False, False),
) -> Comparison:
    """Judge a comparison that failed once more.

    1. If both models have discrete operators in common (see ``decisions``), what leads to them and what follows from
       the reference's choices is compared instead of the outputs. On generated inputs a Lossy contract lets a Softmax
       or Sigmoid at the end count as one of them.
    2. What still breaks a FloatExact contract is held against the reference's own noise (see ``noise``).

    Args:
        plain: The comparison that failed.
        reference: The model to hold the other to.
        candidate: The model to judge.
        data: What to run on.
        contract: What must hold.
        limit: How many samples to run at most.
        optimize: Whether ONNX Runtime may optimize the reference and the candidate.

    Returns:
        A comparison that holds, with a note that says why; or ``plain``, with the finding of the closer look if there
        is one.
    """
    decisions = find_decisions(reference, candidate, isinstance(contract, Lossy) and data.generated)
    judged = plain
    if decisions:
        ops = ", ".join(f"{count} {op}" for op, count in Counter(each.op for each in decisions).items())
        try:
            forced = _compare_forced(reference, candidate, decisions, data, contract, limit, optimize)
        except GraphoptError as error:
            decisions = []
            note = f"the discrete operators ({ops}) could not be judged apart: {error}"
            judged = dataclasses.replace(plain, notes=(*plain.notes, note))
        else:
            note = f"judged by what goes into the discrete operators ({ops}) and on the reference's choices there"
            judged = dataclasses.replace(forced, notes=(*forced.notes, f"{note}; the outputs: {plain.problem}"))
    if judged.holds or not isinstance(contract, FloatExact):
        return judged
    quiet = _within_noise(judged, reference, decisions, data, contract, limit, optimize)
    return quiet or judged


def _compare_forced(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    decisions: list[Decision],
    data: Data,
    contract: Contract,
    limit: int | None,
    optimize: tuple[bool, bool],
) -> Comparison:
    """Compare on the reference's decisions."""
    comparer = Comparer(contract)
    for left, right in ForcedPair(reference, candidate, decisions, optimize).sweep(data, limit):
        comparer.add(left, right)
    return comparer.result()


def _within_noise(
    judged: Comparison,
    reference: onnx.ModelProto,
    decisions: list[Decision],
    data: Data,
    contract: FloatExact,
    limit: int | None,
    optimize: tuple[bool, bool],
) -> Comparison | None:
    """Return the comparison with mere noise accepted, or None if there is more than that."""
    typed = with_inferred_shapes(reference)  # where inference gives up, the noise of operators is not measured
    noises = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        comparer = Comparer(contract)
        shaken = shaken_model(typed, rng)
        try:
            if decisions:
                own = [dataclasses.replace(each, candidate=each.reference) for each in decisions]
                pair = ForcedPair(reference, shaken, own, (optimize[0], optimize[0]))
                for feeds in data.batches(limit):
                    comparer.add(*pair.run(feeds, shaken_feeds(feeds, rng)))
            else:
                left, right = Session(reference, optimize=optimize[0]), Session(shaken, optimize=optimize[0])
                for feeds in data.batches(limit):
                    comparer.add(left.run(feeds), right.run(shaken_feeds(feeds, rng)))
        except GraphoptError:
            return None
        noises.append(comparer.result())
    outputs = excused(judged, noises)
    if outputs is None:
        return None
    count = sum(not output.holds for output in judged.outputs)
    others = f" (and {count - 1} more)" if count > 1 else ""
    note = (
        f"{judged.problem}{others}; that is at most {FACTOR:g} times the model's own float noise "
        "(every float one unit in the last place off)"
    )
    return combine(contract, outputs, (*judged.notes, note))
