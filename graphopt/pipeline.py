"""Runs passes one after another; each is tried on a copy, proved, and kept or taken back."""

import dataclasses
import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from graphopt.base import Pass
from graphopt.bisect import Treatment
from graphopt.model import Model
from graphopt.options import option_values
from graphopt.progress import Progress, silent
from graphopt.proof.proof import Proof
from graphopt.report import PassReport
from graphopt.runtime.feeds import Data
from graphopt.subject import Subject
from graphopt.trial import Trial

MAX_ROUNDS = 20
YOUNG_OBJECTS = 500_000


@dataclass(frozen=True)
class Run:
    """What a pipeline gives back: the model before and after, and a report for each pass that ran."""

    before: Subject
    after: Subject
    reports: tuple[PassReport, ...]


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes and how to run it.

    Attributes:
        passes: What to run, in order.
        data: What passes may calibrate with.
        proof: What each pass is proved with; None if nothing is to be proved.
        keep_going: Whether to run the passes after one that failed.
        repeated: How many passes, from the first on, to repeat until nothing changes; those behind them run once.
        progress: Called for each step with its text, how many are done, and of how many.
        default_session: Whether to hold each pass to its contract in a default session of ONNX Runtime as well.
        thorough: Whether to prove exact passes on all generated inputs, see ``Trial``.
        max_opset: The opset beyond which no pass may raise the model.
        least_db: What passes that promise a ratio must reach at least, see ``Trial``.
    """

    passes: Sequence[Pass]
    data: Data | None
    proof: Proof | None
    keep_going: bool = False
    repeated: int = 0
    progress: Progress = silent
    default_session: bool = False
    thorough: bool = False
    max_opset: int | None = None
    least_db: float = -math.inf

    def run(self, model: Model) -> Run:
        """Run the passes over ``model``, which itself is not changed.

        In the rounds after the first, a pass that finds nothing more to do is not reported again, one that has found
        nothing since the model last changed is not run again, and sites that broke a contract are treated as before.
        """
        before = Subject(model)
        with rare_garbage_collection() if all(each.keeps_facts for each in self.passes) else nullcontext():
            after, reports = self._run(before)
        return Run(before, after, tuple(reports))

    def _run(self, subject: Subject) -> tuple[Subject, list[PassReport]]:
        """Run the passes that are to be repeated in rounds, then the others."""
        original, reports = subject.model, list[PassReport]()
        every = range(len(self.passes))
        for part, rounds in ((every[: self.repeated], MAX_ROUNDS), (every[self.repeated :], 1)):
            subject = self._rounds(subject, original, part, rounds, reports)
            if reports and reports[-1].failure and not self.keep_going:
                return subject, reports
        self.progress("done", len(self.passes), len(self.passes))
        return subject, reports

    def _rounds(self, subject: Subject, original: Model, part: range, most: int, reports: list[PassReport]) -> Subject:
        """Run some of the passes in up to so many rounds; end before, where one fails or all are at rest."""
        seen = [subject]
        resting: dict[int, Model] = {}
        treatments: dict[int, Treatment] = {}
        for round_ in range(most):
            active: list[str] = []
            for index in part:
                each = self.passes[index]
                self.progress(each.name, index, len(self.passes))
                if resting.get(index) is subject.model:
                    continue
                begin = treatments.get(index, Treatment())
                subject, report, treatments[index] = self._step(each, subject, original, begin)
                if not report.result.rewritten:
                    resting[index] = subject.model
                if round_ == 0 or report.result.rewritten or report.failure:
                    reports.append(report)
                if report.failure and not self.keep_going:
                    return subject
                if report.result.rewritten and report.kept:
                    active.append(each.name)
            if not active or most == 1:
                break
            if any(map(subject.equals, seen)) or round_ == most - 1:
                failure = f"never comes to rest: {', '.join(active)} still find work after {round_ + 1} rounds"
                reports[-1] = dataclasses.replace(reports[-1], failure=failure)
                break
            seen.append(subject)
        return subject

    def _step(
        self, each: Pass, subject: Subject, original: Model, begin: Treatment
    ) -> tuple[Subject, PassReport, Treatment]:
        """Run one pass and time it; return how its sites were treated, too."""
        start = time.perf_counter()
        trial = Trial(
            each,
            subject,
            original,
            self.data,
            self.proof,
            begin,
            self.default_session,
            self.thorough,
            self.max_opset,
            self.least_db,
        )
        outcome = trial.run()
        report = PassReport(
            each.name,
            option_values(each),
            time.perf_counter() - start,
            not outcome.failure,
            outcome.result,
            outcome.check,
            outcome.failure,
            outcome.demoted,
            None if outcome.model.opset == subject.model.opset else (subject.model.opset, outcome.model.opset),
        )
        after = subject if outcome.model is subject.model else Subject(outcome.model, outcome.facts)
        return after, report, begin if outcome.failure else outcome.treatment


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Let Python look for unused cycles less often: graphs are cycles throughout, and most of them are in use.

    Not for passes that make weights anew: their dropped copies of a model would stay for too long.
    """
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], YOUNG_OBJECTS), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
