"""The Python interface: optimize and validate, as the command line does them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from graphopt import pipeline
from graphopt.base import Pass
from graphopt.contract import Contract, FloatExact, on_inputs
from graphopt.errors import GraphoptError, ModelError
from graphopt.model import Model, from_proto, load, save, to_proto
from graphopt.model.ranks import with_ranks
from graphopt.model.save import ExternalPolicy
from graphopt.numerics.compare import Comparison
from graphopt.pipeline import Pipeline, Progress, silent, total_contract
from graphopt.registry import create
from graphopt.report import Check, PassReport, Report, measure
from graphopt.result import PassResult
from graphopt.runtime.check import compare_models, top1
from graphopt.runtime.feeds import Data, from_arrays, generate, load_data
from graphopt.runtime.latency import median_latencies
from graphopt.runtime.session import Session

DEFAULT_PASSES = ("fold-batchnorm", "prune-channels", "quantize-weights")
FINAL_SAMPLES = 1024

AnyModel = Model | onnx.ModelProto | str | PathLike[str]
AnyData = Data | Mapping[str, NDArray[Any]] | str | PathLike[str]


@dataclass(frozen=True)
class Result:
    """What a run gives back."""

    optimized: Model
    report: Report

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The optimized model as a proto, weights included (at most 2 GB; for more, pass ``optimized`` to save)."""
        return to_proto(self.optimized)

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for was done and verified."""
        return self.report.ok


def optimize(
    model: AnyModel,
    passes: Sequence[Pass | str] | None = None,
    data: AnyData | None = None,
    *,
    check: bool = True,
    keep_going: bool = False,
    fixed_point: bool = False,
    latency: bool = False,
    progress: Progress = silent,
) -> Result:
    """Run passes over a model and prove what they did.

    Args:
        model: A path, a proto or a loaded model; it is not changed.
        passes: Passes or their names; None runs fold-batchnorm, prune-channels and quantize-weights.
        data: A path that ``--data`` would take, or arrays by input name; None generates inputs from the signature.
        check: Whether to prove each pass and the whole run; without, nothing is run.
        keep_going: Whether to run the passes after one that failed.
        fixed_point: Whether to repeat the passes until nothing changes.
        latency: Whether to time both models, in ms, on one thread.
        progress: Is told of each step.

    Returns:
        The optimized model and the report; a pass that fails is taken back and stands in ``report.failures``.

    Raises:
        ModelError: The model is unusable.
        DataError: The data does not fit the model.
        OptionError: A pass is unknown.
    """
    source = as_model(model)
    chosen = [
        create(each) if isinstance(each, str) else each for each in (DEFAULT_PASSES if passes is None else passes)
    ]
    feeds = as_data(data, source) if check or data is not None else None
    if check and feeds is not None:
        source = _seen_running(source, feeds)
    plan = Pipeline(chosen, feeds, check, keep_going, fixed_point, progress)
    optimized, reports = plan.run(source)
    failures = [f"{each.name}: {each.failure}" for each in reports if each.failure]
    failures += _idle(chosen, reports)

    final, accuracy, notes = None, None, list(source.repairs)
    if check and feeds is not None:
        progress("checking the whole", len(chosen), len(chosen))
        contracts = [each.contract for each, told in _kept(chosen, reports) if told.rewritten]
        final, found = _whole_check(source, optimized, feeds, total_contract(contracts))
        notes += found
        if not final.holds:
            failures.append(f"the whole run broke {final.contract}: {final.problem}")
        if feeds.labels is not None:
            accuracy = (top1(source, feeds), top1(optimized, feeds))
    timing = median_latencies(source, optimized, feeds or generate(source)) if latency else None
    report = Report(
        str(source.path or ""),
        "",
        measure(source),
        measure(optimized),
        reports,
        final,
        accuracy,
        timing,
        tuple(failures),
        tuple(notes + _slower(timing, optimized)),
    )
    return Result(optimized, report)


def validate(
    reference: AnyModel, candidate: AnyModel, data: AnyData | None = None, contract: Contract | None = None
) -> Comparison:
    """Compare two models' outputs on the same inputs, on ONNX Runtime with optimizations off.

    Args:
        reference: The model to hold the other to.
        candidate: The model to judge.
        data: What to run on; generated from the reference's signature if None.
        contract: What must hold; float rounding (rtol 1e-4, atol 1e-5) if None.
    """
    source = as_model(reference)
    judged = contract if contract is not None else FloatExact(rtol=1e-4, atol=1e-5)
    return compare_models(source, as_model(candidate), as_data(data, source), judged)


def save_model(model: AnyModel, path: str | PathLike[str], external_data: ExternalPolicy = "auto") -> None:
    """Write a model, whole or not at all.

    Args:
        model: A loaded model, a proto, or a path to copy from.
        path: The target.
        external_data: "auto" (weights beside the model above 2 GB), "always" or "never".
    """
    save(as_model(model), path, external_data)


def as_model(model: AnyModel) -> Model:
    """Return any form of a model as a loaded one."""
    if isinstance(model, Model):
        return model
    return from_proto(model) if isinstance(model, onnx.ModelProto) else load(model)


def as_data(data: AnyData | None, model: Model) -> Data:
    """Return any form of data as feeds for ``model``."""
    if data is None:
        return generate(model)
    if isinstance(data, str | PathLike):
        return load_data(data, model)
    return from_arrays(data, model) if isinstance(data, Mapping) else data


def _seen_running(model: Model, data: Data) -> Model:
    """Return the model with its outputs declared as they are, having seen it run.

    Raises:
        ModelError: ONNX Runtime refuses the model or its inputs, so that nothing can be proved.
    """
    try:
        outputs = Session(model).run(next(data.batches()))
    except GraphoptError as error:
        raise ModelError(f"{model.path or 'the model'} cannot be proved, as it does not run: {error}") from error
    return with_ranks(model, {name: value.ndim for name, value in outputs.items() if isinstance(value, np.ndarray)})


def _whole_check(source: Model, optimized: Model, data: Data, contract: Contract) -> tuple[Check, list[str]]:
    """Hold the result to the sum of all contracts against the original; return what a reader should know besides."""
    total = on_inputs(contract, data.generated)
    check = Check.of(compare_models(source, optimized, data, total, FINAL_SAMPLES))
    notes = _gap(optimized, data)
    if data.generated:
        notes.append("checked on generated inputs: the numerics are proved, accuracy was not measured")
    return check, notes


def _kept(passes: Sequence[Pass], reports: Sequence[PassReport]) -> list[tuple[Pass, PassResult]]:
    """Pair each kept report with its pass."""
    by_key = {(each.name, str(pipeline.option_values(each))): each for each in passes}
    return [(by_key[(each.name, str(each.options))], each.result) for each in reports if each.kept]


def _idle(passes: Sequence[Pass], reports: Sequence[PassReport]) -> list[str]:
    """Name the compressing passes that could do nothing at all."""
    idle = []
    for each, told in _kept(passes, reports):
        if each.compresses and not told.rewritten:
            first = f"{told.skipped[0].site}: {told.skipped[0].reason}" if told.skipped else "no place to work on"
            idle.append(f"{each.name}: nothing to do ({first})")
    return idle


def _gap(model: Model, data: Data) -> list[str]:
    """Run the result as a user would, optimizations on, and tell if that differs from what was proved."""
    gap = compare_models(model, model, data, FloatExact(rtol=1e-3, atol=1e-4), FINAL_SAMPLES, optimize=(False, True))
    if gap.holds:
        return []
    return [f"with its graph optimizations on, ONNX Runtime gives other results than without: {gap.problem}"]


def _slower(timing: tuple[float, float] | None, model: Model) -> list[str]:
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


def with_target(report: Report, target: str, size: int | None) -> Report:
    """Return the report with the target's name and, if it was written, the size of its files."""
    after = report.after if size is None else dataclasses.replace(report.after, bytes=size)
    return dataclasses.replace(report, target=target, after=after)
