"""The Python interface: optimize and validate, as the command line does them."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import onnx
from numpy.typing import NDArray

from graphopt.base import Pass
from graphopt.contract import Contract, FloatExact
from graphopt.model import Model, from_proto, load, save, to_proto
from graphopt.model.save import ExternalPolicy
from graphopt.numerics.compare import Comparison
from graphopt.pipeline import Pipeline
from graphopt.progress import Progress, silent
from graphopt.registry import create
from graphopt.report import Latency, Report, measure
from graphopt.report.circumstances import collect, describe_data
from graphopt.runtime.check import compare_models
from graphopt.runtime.feeds import Data, from_arrays, generate, load_data
from graphopt.runtime.latency import median_latencies
from graphopt.verdict import Verdict, failed, judge, not_smaller, seen_running, slower

DEFAULT_PASSES = ("fold-batchnorm", "prune-channels", "quantize-weights")

AnyModel = Model | onnx.ModelProto | str | PathLike[str]
AnyData = Data | Mapping[str, NDArray[Any]] | str | PathLike[str]


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        optimized: The model; weights that no pass touched are still the file's.
        report: What was done and measured.
    """

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
    custom_ops: Sequence[str | PathLike[str]] = (),
    max_drop: float = 2.0,
    max_opset: int | None = None,
    progress: Progress = silent,
) -> Result:
    """Run passes over a model and prove what they did.

    Args:
        model: A path, a proto or a loaded model; it is not changed.
        passes: Passes or their names; None runs fold-batchnorm, prune-channels and quantize-weights, on a model with
            local functions inline-functions before them.
        data: A path that ``--data`` would take, or arrays by input name; None generates inputs from the signature.
        check: Whether to prove each pass and the whole run; without, nothing is run.
        keep_going: Whether to run the passes after one that failed.
        fixed_point: Whether to repeat the passes until nothing changes.
        latency: Whether to time both models, in ms, on one thread.
        custom_ops: Libraries of custom operators that sessions load.
        max_drop: How many points of top-1 a compressing run may lose.
        max_opset: The opset beyond which no pass may raise the model; None sets no bound.
        progress: Is told of each step.

    Returns:
        The optimized model and the report; a pass that fails is taken back and stands in ``report.failures``.

    Raises:
        ModelError: The model is unusable.
        DataError: The data does not fit the model.
        OptionError: A pass is unknown.
    """
    source = as_model(model)
    named = default_passes(source) if passes is None else passes
    chosen = [create(each) if isinstance(each, str) else each for each in named]
    feeds = as_data(data, source) if check or data is not None else None
    if check and feeds is not None:
        source = seen_running(source, feeds)
    run = Pipeline(chosen, feeds, check, keep_going, fixed_point, progress).run(source)
    optimized, reports = run.after.model, run.reports
    judged = Verdict()
    if check and feeds is not None:
        progress("checking the whole", len(chosen), len(chosen))
        judged = judge(source, optimized, feeds, chosen, reports)
    timing = median_latencies(source, optimized, feeds or generate(source)) if latency else None
    before, after = measure(source, run.before.known_facts), measure(optimized, run.after.known_facts)
    larger = not_smaller(chosen, reports, before.bytes, after.bytes)
    report = Report(
        source=str(source.path or ""),
        target="",
        before=before,
        after=after,
        passes=reports,
        check=judged.check,
        top1=judged.top1,
        latency=None if timing is None else Latency(*timing, samples=(feeds or generate(source)).at_once),
        failures=(*failed(chosen, reports), *larger, *judged.failures),
        notes=(*source.repairs, *judged.notes, *slower(timing, optimized)),
        circumstances=collect(
            source,
            optimized,
            describe_data(data, feeds),
            {
                "check": check,
                "keep_going": keep_going,
                "fixed_point": fixed_point,
                "latency": latency,
                "custom_ops": tuple(map(str, custom_ops)),
                "max_drop": max_drop,
                "max_opset": max_opset,
            },
        ),
    )
    return Result(optimized, report)


def default_passes(model: Model) -> list[str]:
    """Return the passes that run where none is named; bodies of local functions go to where they are called first."""
    return [*(["inline-functions"] if model.functions else []), *DEFAULT_PASSES]


def validate(
    reference: AnyModel, candidate: AnyModel, data: AnyData | None = None, contract: Contract | None = None
) -> Comparison:
    """Compare two models' outputs on the same inputs, on ONNX Runtime with optimizations off.

    Args:
        reference: The model to hold the other to.
        candidate: The model to judge.
        data: What to run on; generated from the reference's signature if None.
        contract: What must hold; float rounding (rtol 1e-4, atol 1e-5) if None.

    Returns:
        What was measured per output, and whether all of it keeps the contract.

    Raises:
        ModelError: A model is unusable.
        DataError: The data does not fit the reference.
        GraphoptError: ONNX Runtime cannot load or run a model.
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

    Raises:
        ModelError: The model is unusable, the target cannot be written, or weights of over 2 GB may not be external.
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


def with_target(report: Report, target: str, size: int | None) -> Report:
    """Return the report with the target's name and, if it was written, the size of its files."""
    after = report.after if size is None else dataclasses.replace(report.after, bytes=size)
    return dataclasses.replace(report, target=target, after=after)
