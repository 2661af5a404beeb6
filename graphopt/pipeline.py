"""Runs passes one after another, proves each, and takes back what does not hold."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from graphopt.base import Pass
from graphopt.bisect import Verdict, find_culprits
from graphopt.contract import BitExact, Contract, FloatExact, Lossy
from graphopt.errors import ModelError
from graphopt.graph import GraphView
from graphopt.model import Model, fingerprint, raise_opset
from graphopt.report import Check, PassReport
from graphopt.report.metrics import serialized_size
from graphopt.result import PassResult
from graphopt.runtime.check import compare_models
from graphopt.runtime.feeds import Data

CHECK_SAMPLES = 128
MAX_ROUNDS = 20

Progress = Callable[[str, int, int], None]


def silent(step: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes and how to run it.

    Attributes:
        passes: What to run, in order.
        data: What each pass is proved on and may calibrate with; None turns the proofs off.
        keep_going: Whether to run the passes after one that failed.
        fixed_point: Whether to repeat the sequence until nothing changes.
        progress: Is told of each step: its text, how many are done, and of how many.
    """

    passes: Sequence[Pass]
    data: Data | None
    check: bool = True
    keep_going: bool = False
    fixed_point: bool = False
    progress: Progress = silent

    def run(self, model: Model) -> tuple[Model, tuple[PassReport, ...]]:
        """Return the rewritten model (``model`` itself is not changed) and a report for each pass that ran."""
        original = model
        reports: list[PassReport] = []
        seen = [fingerprint(model)]
        for round_ in range(MAX_ROUNDS if self.fixed_point else 1):
            active: list[str] = []
            for index, each in enumerate(self.passes):
                self.progress(each.name, index, len(self.passes))
                model, report = self._step(model, each, original)
                if round_ == 0 or report.result.rewritten or report.failure:
                    reports.append(report)
                if report.result.rewritten and report.kept:
                    active.append(each.name)
                if report.failure and not self.keep_going:
                    return model, tuple(reports)
            if not active or not self.fixed_point:
                break
            if (now := fingerprint(model)) in seen:
                failure = f"never comes to rest: {', '.join(active)} undo each other"
                reports[-1] = dataclasses.replace(reports[-1], failure=failure)
                break
            seen.append(now)
        self.progress("done", len(self.passes), len(self.passes))
        return model, tuple(reports)

    def _step(self, model: Model, each: Pass, original: Model) -> tuple[Model, PassReport]:
        """Run one pass on a copy of ``model``; return the copy if it holds, else ``model``."""
        start = time.perf_counter()
        after, result, check, failure = self._prove(model, each, original)
        report = PassReport(
            each.name, option_values(each), time.perf_counter() - start, not failure, result, check, failure
        )
        return (model if failure else after), report

    def _prove(
        self, model: Model, each: Pass, original: Model
    ) -> tuple[Model, PassResult, Check | None, str]:
        """Run one pass, check it, and veto the sites that break it."""
        after, result, failure = self._attempt(model, each, original, {})
        if failure or not result.rewritten:
            return model, result, None, failure
        check: Check | None = None
        if self.check and self.data is not None:
            check = Check.of(compare_models(model, after, self.data, each.contract, CHECK_SAMPLES))
            if not check.holds:
                problem = check.problem
                after, result, verdict = self._bisect(model, each, original, result, problem)
                if verdict is None:
                    return model, result, check, f"broke its contract {each.contract}: {problem}"
                check = verdict
        if each.compresses and serialized_size(after) >= serialized_size(model):
            return model, result, check, "would not make the file smaller"
        return after, result, check, ""

    def _attempt(
        self, model: Model, each: Pass, original: Model, vetoes: Mapping[str, str]
    ) -> tuple[Model, PassResult, str]:
        """Run one pass on a copy, unchecked; return the copy, what the pass told and why it failed, if it did."""
        before = fingerprint(model)
        calibration = None if self.data is None else self.data.calibration()
        subject = model.copy()
        try:
            needed = each.required_opset(GraphView(subject, vetoes, calibration, original))
            if needed > subject.opset:
                subject = _raised(subject, needed)
            result = each.apply(GraphView(subject, vetoes, calibration, original))
        except Exception as error:  # a pass may be anybody's code: its failure is data, the model is untouched
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            return model, PassResult(), f"crashed: {type(error).__name__}: {error}{notes}".replace("\n", " ")
        if not result.rewritten:
            changed = subject.opset == model.opset and fingerprint(subject) != before
            return model, result, "says that it rewrote nothing but changed the graph" if changed else ""
        return subject, result, ""

    def _bisect(
        self, model: Model, each: Pass, original: Model, result: PassResult, problem: str
    ) -> tuple[Model, PassResult, Check | None]:
        """Find the sites that break the contract, and run the pass again without them."""
        data = self.data
        assert data is not None
        last: dict[str, tuple[Model, PassResult, Check]] = {}

        def judge(vetoes: Mapping[str, str]) -> Verdict:
            after, told, failure = self._attempt(model, each, original, vetoes)
            if failure:
                return Verdict(False, failure)
            check = Check.of(compare_models(model, after, data, each.contract, CHECK_SAMPLES))
            last["run"] = (after, told, check)
            return Verdict(check.holds, check.problem)

        sites = [rewritten.site for rewritten in result.rewritten]
        self.progress(f"{each.name}: looking for the rewrite at fault", 0, len(sites))
        culprits = find_culprits(sites, problem, judge)
        if culprits is None or len(culprits) == len(sites) or not judge(culprits).holds:
            return model, result, None
        return last["run"]


def _raised(model: Model, version: int) -> Model:
    """Return the model at a newer opset, or as it was where that is refused: the pass then skips what needs it."""
    try:
        return raise_opset(model, version)
    except ModelError:
        return model


def option_values(each: Pass) -> dict[str, object]:
    """Return a pass's options by name."""
    return {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}


def total_contract(contracts: Sequence[Contract]) -> Contract:
    """Return what a run promises in total: rounding errors add up, and so do the noise powers of lossy passes."""
    if lossy := [each for each in contracts if isinstance(each, Lossy)]:
        noise = sum(10 ** (-each.min_sqnr_db / 10) for each in lossy)
        return Lossy(round(-10 * math.log10(noise), 2))
    if floats := [each for each in contracts if isinstance(each, FloatExact)]:
        return FloatExact(sum(each.rtol for each in floats), sum(each.atol for each in floats))
    return BitExact()
