"""The Python interface: optimize and validate, as the command line does them."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import get_args

import onnx

from graphopt.arguments import AnyData, AnyModel, AnyPasses, as_data, as_model, as_passes, require, texts
from graphopt.base import narrowed
from graphopt.contract import BitExact, Contract, FloatExact, Lossy
from graphopt.errors import GraphoptError, OptionError
from graphopt.judged import judged_run
from graphopt.model import Model, save, to_proto
from graphopt.model.dimensions import without_names
from graphopt.model.save import ExternalPolicy
from graphopt.numerics.compare import Comparison
from graphopt.pipeline import Pipeline, Run
from graphopt.presets import preset_passes
from graphopt.progress import Progress, silent
from graphopt.proof.latency import latency as measure_latency
from graphopt.proof.proof import Proof
from graphopt.report import Latency, Report, measure
from graphopt.report.circumstances import collect, describe_data
from graphopt.runtime.data import ListData
from graphopt.runtime.session import use_custom_operators
from graphopt.verdict import failed, not_smaller, remedy

DEFAULT_PRESET = "default"

MAX_DROP = 2.0
"""How many points of top-1 a run that compresses may lose unless the caller allows more."""


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
    passes: AnyPasses | None = None,
    data: AnyData | None = None,
    *,
    check: bool = True,
    keep_going: bool = False,
    fixed_point: bool | int = False,
    latency: bool = True,
    max_drop: float = MAX_DROP,
    custom_ops: Sequence[str | PathLike[str]] | str = (),
    max_opset: int | None = None,
    only: Sequence[str] | str = (),
    skip: Sequence[str] | str = (),
    progress: Progress = silent,
) -> Result:
    """Run passes over a model and prove what they did.

    Args:
        model: A path, the bytes of a file, a proto or a loaded model; it is not changed.
        passes: Passes or their names, one or several; None runs the preset ``default``: clean-up until nothing changes,
            then prune-channels and quantize-weights.
        data: A path that ``--data`` would take; arrays by input name, or one array for a model of one input; batches
            of these (a list, a generator, or a callable that returns an iterator), which are read once and kept in
            temporary files; a ``graphopt.runtime.data.Data``. None generates inputs from the signature.
        check: Whether to prove each pass and the whole run; without, nothing is run.
        keep_going: Whether to run the passes after one that failed.
        fixed_point: Whether to repeat the passes until nothing changes; a number repeats the first so many, and runs
            those behind them once.
        latency: Whether to time both models in a session with default options, on one thread; only with ``check``.
        max_drop: How many points of top-1 a run that compresses may lose, where the data have labels.
        custom_ops: Libraries with operators that ONNX Runtime does not know.
        max_opset: The opset beyond which no pass may raise the model; None sets no bound.
        only: Patterns of the sites that passes may rewrite; not where a pass has an ``only`` of its own.
        skip: Patterns of sites that no pass may rewrite.
        progress: Called for each step.

    Returns:
        The optimized model and the report; a pass that fails is taken back and stands in ``report.failures``.

    Raises:
        ModelError: The model is unusable.
        DataError: The data does not fit the model.
        OptionError: A pass is unknown, or an argument is of a kind that is not taken.
    """
    require(max_drop, (int, float), "a number of points", "max_drop")
    if max_opset is not None:
        require(max_opset, int, "a whole number", "max_opset")
    if not callable(progress):
        raise OptionError(f"progress: {progress!r} cannot be called")
    only, skip = texts(only, "only"), texts(skip, "skip")
    libraries = texts(custom_ops, "custom_ops")
    if not isinstance(fixed_point, bool):
        require(fixed_point, int, "True, False or a number of passes", "fixed_point")
    every, fixed_point = preset_passes(DEFAULT_PRESET) if passes is None else (as_passes(passes), fixed_point)
    stages = [narrowed(each, only, skip).stages() for each in every]
    chosen = [stage for each in stages for stage in each]
    rounds = stages if fixed_point is True else stages[: max(0, fixed_point)]
    repeated = sum(map(len, rounds))
    use_custom_operators(libraries)
    source = as_model(model)
    feeds, known = as_data(data, source) if check or data is not None else (None, ())
    with ExitStack() as stack:
        proof = None
        if check and feeds is not None:
            # Names that the model does not keep to at run time are no facts for passes either.
            source = without_names(source, feeds.unbound if isinstance(feeds, ListData) else frozenset())
            proof = stack.enter_context(Proof.opened(source, feeds, known=known))
            proof.timed = latency
            source, feeds = proof.source, proof.data
        pipeline = Pipeline(chosen, feeds, proof, keep_going, repeated, progress, max_opset=max_opset)
        run, verdict = judged_run(pipeline, source, max_drop)
        timing, notes = _timed(proof, run.after.model, progress) if latency else (None, ())
    optimized = run.after.model
    before, after = measure(source, run.before.known_facts), measure(optimized, run.after.known_facts)
    larger = not_smaller(chosen, run.reports, before.bytes, after.bytes)
    report = Report(
        source=str(source.path or ""),
        target="",
        before=before,
        after=after,
        passes=run.reports,
        check=verdict.check,
        top1=verdict.top1,
        latency=timing,
        failures=(*failed(chosen, run.reports), *larger, *verdict.failures),
        notes=tuple(dict.fromkeys((*source.repairs, *_notes_of(run), *verdict.notes, *notes))),
        circumstances=collect(
            source,
            optimized,
            describe_data(data, feeds),
            {
                "check": check,
                "keep_going": keep_going,
                "fixed_point": repeated if 0 < repeated < len(chosen) else repeated > 0,
                "latency": latency,
                "custom_ops": libraries,
                "max_drop": max_drop,
                "max_opset": max_opset,
                **({"only": only} if only else {}),
                **({"skip": skip} if skip else {}),
            },
        ),
    )
    return Result(optimized, report)


def _notes_of(run: Run) -> Iterator[str]:
    """Yield what passes say besides; patterns that match nothing are said of the first round, when sites have gone."""
    told: set[tuple[str, str]] = set()
    for each in run.reports:
        key = each.name, str(each.options)
        if key not in told:
            yield from each.result.notes
        told.add(key)


def _timed(proof: Proof | None, optimized: Model, progress: Progress) -> tuple[Latency | None, tuple[str, ...]]:
    """Time the original and the result; say why not where one cannot be run."""
    if proof is None or proof.unknown is not None:
        return None, ()
    progress("timing", 1, 1)
    try:
        timing = measure_latency(proof.source, optimized, proof.data, proof.session, proof.least_ms)
    except GraphoptError as error:
        return None, (f"the time of a run could not be measured: {error}",)
    return replace(timing, remedy=remedy(optimized)) if timing.slower else timing, ()


def validate(
    reference: AnyModel,
    candidate: AnyModel,
    data: AnyData | None = None,
    contract: Contract | None = None,
    *,
    custom_ops: Sequence[str | PathLike[str]] = (),
) -> Comparison:
    """Compare two models' outputs on the same inputs, on ONNX Runtime with optimizations off.

    Args:
        reference: The model to hold the other to.
        candidate: The model to judge.
        data: What to run on; generated from the reference's signature if None.
        contract: What must hold; float rounding (rtol 1e-4, atol 1e-5) if None.
        custom_ops: Libraries with operators that ONNX Runtime does not know.

    Returns:
        What was measured per output, and whether all of it keeps the contract.

    Raises:
        ModelError: A model is unusable.
        DataError: The data does not fit the reference.
        GraphoptError: ONNX Runtime cannot load or run a model.
    """
    use_custom_operators(texts(custom_ops, "custom_ops"))
    if contract is not None and not isinstance(contract, BitExact | FloatExact | Lossy):
        raise OptionError(f"contract: {contract!r} is none; BitExact, FloatExact and Lossy are")
    source, other = as_model(reference, "reference"), as_model(candidate, "candidate")
    judged = contract if contract is not None else FloatExact(rtol=1e-4, atol=1e-5)
    feeds, known = as_data(data, source)
    with Proof.opened(source, feeds, scored=False, known=known) as proof:
        return proof.compare(proof.source, other, judged)


def save_model(model: AnyModel, path: str | PathLike[str], external_data: ExternalPolicy = "auto") -> None:
    """Write a model, whole or not at all.

    Args:
        model: A loaded model, a proto, or a path to copy from.
        path: The target.
        external_data: "auto" (weights beside the model above 2 GB), "always" or "never".

    Raises:
        ModelError: The model is unusable, the target cannot be written, or weights of over 2 GB may not be external.
    """
    require(path, (str, PathLike), "a path", "path")
    if external_data not in get_args(ExternalPolicy):
        raise OptionError(f"external_data: {external_data!r} is not one of {', '.join(get_args(ExternalPolicy))}")
    save(as_model(model), path, external_data)


def with_target(report: Report, target: str, size: int | None) -> Report:
    """Return the report with the target's name and, if it was written, the size of its files."""
    after = report.after if size is None else dataclasses.replace(report.after, bytes=size)
    return dataclasses.replace(report, target=target, after=after)
