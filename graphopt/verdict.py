"""What a run as a whole comes to: held against the original, and what its reader should be told besides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.base import Pass, option_values
from graphopt.contract import FloatExact, on_inputs, total_contract
from graphopt.errors import GraphoptError, ModelError
from graphopt.model import Model
from graphopt.model.ranks import with_ranks
from graphopt.report import Check, PassReport
from graphopt.result import PassResult
from graphopt.runtime.check import compare_models, top1
from graphopt.runtime.data import Data
from graphopt.runtime.session import Session

FINAL_SAMPLES = 1024


@dataclass(frozen=True)
class Verdict:
    """What the check of the whole run found: nothing, if there was none.

    Attributes:
        check: The result against the original.
        top1: Top-1 accuracy before and after, from 0 to 1, where there are labels.
        failures: What broke, a sentence each.
        notes: What a reader should know besides.
    """

    check: Check | None = None
    top1: tuple[float, float] | None = None
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def seen_running(model: Model, data: Data) -> Model:
    """Return the model with its outputs declared as they are, having seen it run.

    Raises:
        ModelError: ONNX Runtime refuses the model or its inputs, so that nothing can be proved.
    """
    try:
        outputs = Session(model).run(next(data.batches()))
    except GraphoptError as error:
        raise ModelError(f"{model.path or 'the model'} cannot be proved, as it does not run: {error}") from error
    return with_ranks(model, {name: value.ndim for name, value in outputs.items() if isinstance(value, np.ndarray)})


def judge(
    source: Model, optimized: Model, data: Data, passes: Sequence[Pass], reports: Sequence[PassReport]
) -> Verdict:
    """Hold the result to the sum of the kept passes' contracts against the original."""
    contracts = [each.contract for each, told in _kept(passes, reports) if told.rewritten]
    total = on_inputs(total_contract(contracts), data.generated)
    check = Check.of(compare_models(source, optimized, data, total, FINAL_SAMPLES))
    failures = () if check.holds else (f"the whole run broke {check.contract}: {check.problem}",)
    notes = []
    try:
        notes += _gap(optimized, data)
    except GraphoptError as error:
        refusal = f"with its graph optimizations on, {error}"
        if _runs_optimized(source, data):
            return Verdict(check, None, (*failures, refusal))
        notes.append(f"{refusal}; the original neither")
    if data.generated:
        notes.append("checked on generated inputs: the numerics are proved, accuracy was not measured")
    accuracy = None if data.labels is None else (top1(source, data), top1(optimized, data))
    return Verdict(check, accuracy, failures, tuple(notes))


def failed(passes: Sequence[Pass], reports: Sequence[PassReport]) -> list[str]:
    """Name the passes that failed, then the compressing ones that could do nothing at all."""
    failures = [f"{each.name}: {each.failure}" for each in reports if each.failure]
    for each, told in _kept(passes, reports):
        if each.compresses and not told.rewritten:
            first = f"{told.skipped[0].site}: {told.skipped[0].reason}" if told.skipped else "no place to work on"
            failures.append(f"{each.name}: nothing to do ({first})")
    return failures


def not_smaller(passes: Sequence[Pass], reports: Sequence[PassReport], before: int, after: int) -> list[str]:
    """Say so if a run that was to compress gives a file as large as the original, whatever has made it grow."""
    compressed = any(each.compresses and told.rewritten for each, told in _kept(passes, reports))
    return [f"the result is not smaller: {before:,} bytes became {after:,}"] if compressed and after >= before else []


def _kept(passes: Sequence[Pass], reports: Sequence[PassReport]) -> list[tuple[Pass, PassResult]]:
    """Pair each kept report with its pass."""
    by_key = {(each.name, str(option_values(each))): each for each in passes}
    return [(by_key[(each.name, str(each.options))], each.result) for each in reports if each.kept]


def _gap(model: Model, data: Data) -> list[str]:
    """Run the result as a user would, optimizations on, and tell if that differs from what was proved."""
    gap = compare_models(model, model, data, FloatExact(rtol=1e-3, atol=1e-4), FINAL_SAMPLES, optimize=(False, True))
    if gap.holds:
        return []
    return [f"with its graph optimizations on, ONNX Runtime gives other results than without: {gap.problem}"]


def _runs_optimized(model: Model, data: Data) -> bool:
    """Whether a model runs as a user would run it, optimizations on."""
    try:
        Session(model, optimize=True).run(next(data.batches()))
    except GraphoptError:
        return False
    return True


def slower(timing: tuple[float, float] | None, model: Model) -> list[str]:
    """Say in plain words when the result is slower than the original, and what to do about it."""
    if timing is None or timing[1] <= timing[0]:
        return []
    told = f"slower than the original on one thread of ONNX Runtime: {timing[0]:.3g} ms became {timing[1]:.3g} ms"
    ops = {node.op for node in model.graph.nodes}
    if "DequantizeLinear" not in ops:
        return [told]
    if "QuantizeLinear" in ops:
        return [
            f"{told}; the integer kernels do not pay on this machine: quantize-weights with --representation mul"
            " gives a file as small that runs at float speed"
        ]
    return [
        f"{told}; ONNX Runtime's CPU provider computes the DequantizeLinear of each weight at every run: quantize with"
        " --representation mul (folded when the model is loaded), or set the session's entry"
        " session.disable_quant_qdq to 1"
    ]
