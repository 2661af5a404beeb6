"""One pass on one model: run it on a copy, prove it, treat the sites that break it, or revert it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graphopt.base import Pass
from graphopt.bisect import Replay, Treatment, find_culprits
from graphopt.contract import Lossy, in_default_session, on_inputs
from graphopt.demote import Measured, find_a_way, rank
from graphopt.errors import GraphoptError, ModelError
from graphopt.graph import GraphView
from graphopt.graph.account import complete
from graphopt.graph.symbolic import Facts
from graphopt.model import Model, fingerprint, raise_opset
from graphopt.model.exporter import serialized_size
from graphopt.model.fingerprint import is_untouched
from graphopt.numerics.compare import BEYOND
from graphopt.proof.proof import Proof
from graphopt.report import Check
from graphopt.report.report import Demoted
from graphopt.result import PassResult
from graphopt.runtime.feeds import Data
from graphopt.subject import Subject

CHECK_SAMPLES = 128
CRASHED = "crashed"
PROBE_SAMPLES = 8
MAX_CULPRITS = 16
MAX_LOSSY_CULPRITS = 4
"""The noise of a lossy pass comes from all of its sites: taking many of them out one by one explains nothing."""


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        model: The model to go on with.
        result: What the pass says that it did.
        check: How it was proved.
        failure: Why the pass was reverted, if it was.
        treatment: What sites had to be vetoed or demoted for the contract to hold.
        demoted: The demoted sites, and what that cost.
        facts: What is known of the model's tensors, if the pass has kept it true.
        soft: Whether a broken check is a matter of noise alone, which demotion can help.
    """

    model: Model
    result: PassResult
    check: Check | None = None
    failure: str = ""
    treatment: Treatment = field(default_factory=Treatment)
    demoted: tuple[Demoted, ...] = ()
    facts: Facts | None = None
    soft: bool = False


@dataclass(frozen=True)
class Trial:
    """A pass, the model it works on, and what it is proved with.

    Attributes:
        each: The pass.
        subject: Its input.
        original: The model that the run began with.
        data: Feeds to calibrate with, None if there are none.
        proof: What to prove it with; None if nothing is to be proved.
        begin: How to treat sites that broke its contract before.
        default_session: Whether to hold the pass to its contract in a default session of ONNX Runtime as well.
        thorough: Whether to prove an exact pass on all generated inputs; else on the first, as the whole run is proved
            on all.
        max_opset: The opset beyond which the pass may not raise the model.
        least_db: What a pass that promises a ratio must reach at least, whatever it promises.
        memory: What the pass keeps from one replay to the next.
    """

    each: Pass
    subject: Subject
    original: Model
    data: Data | None
    proof: Proof | None
    begin: Treatment = field(default_factory=Treatment)
    default_session: bool = False
    thorough: bool = True
    max_opset: int | None = None
    least_db: float = -math.inf
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """The model that the pass works on; never changed."""
        return self.subject.model

    def run(self) -> Outcome:
        """Run the pass, prove its contract and that a compressing pass compresses, and account for every place."""
        outcome = self._run()
        if not self.each.accounts or outcome.failure.startswith(CRASHED):
            return outcome
        view = GraphView(self.model)
        return replace(outcome, result=complete(view, outcome.result, self.each.accounts))

    def _run(self) -> Outcome:
        """Run the pass and judge it."""
        outcome = self._attempt(self.begin)
        if self.proof is not None:
            for optimize in (False, True) if self.default_session else (False,):
                if outcome.failure or not outcome.result.rewritten:
                    break
                outcome = self._proved(outcome, optimize)
        if outcome.failure or not outcome.result.rewritten or not self.each.compresses:
            return outcome
        if serialized_size(outcome.model) >= serialized_size(self.model):
            return self._reverted(outcome, "would not make the file smaller")
        return outcome

    # -- running -------------------------------------------------------------------------------------------------------

    def _attempt(self, treatment: Treatment) -> Outcome:
        """Run the pass on a copy, unchecked."""
        copy, facts = self.subject.take(self.each.keeps_facts)
        try:
            view = self._view(copy, treatment, facts)
            needed = min(self.each.required_opset(view), self.max_opset or math.inf)
            if needed > copy.opset and (raised := _raised(copy, int(needed))) is not copy:
                view = self._view(raised, treatment, None)
            result = self.each.apply(view)
        except Exception as error:  # a pass may be anybody's code: its failure is data, the model is untouched
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            failure = f"{CRASHED}: {type(error).__name__}: {error}{notes}"
            return Outcome(self.model, PassResult(), failure=" ".join(failure.split()), treatment=treatment)
        if result.rewritten:
            facts = view.known_facts if self.each.keeps_facts else None
            return Outcome(view.model, result, facts=facts, treatment=treatment)
        if view.model.opset != self.model.opset:
            return Outcome(self.model, result, treatment=treatment)
        if not is_untouched(view.model, self.model) and fingerprint(view.model) != self.subject.identity:
            return Outcome(self.model, result, failure="says that it rewrote nothing but changed the graph")
        if self.each.keeps_facts:
            self.subject.give_back(view)
        return Outcome(self.model, result, treatment=treatment)

    def _view(self, model: Model, treatment: Treatment, facts: Facts | None) -> GraphView:
        calibration = None if self.data is None else self.data.calibration()
        vetoes: Mapping[str, str] = treatment.vetoes
        if self.proof is not None and self.proof.unknown is not None:
            vetoes = {**dict.fromkeys(self.proof.unknown.sites, self.proof.unknown.reason()), **vetoes}
        view = GraphView(model, vetoes, calibration, self.original, facts, treatment.demotions, self.memory)
        self.each.prepare(view)
        return view

    # -- proving -------------------------------------------------------------------------------------------------------

    def _proved(self, outcome: Outcome, optimize: bool) -> Outcome:
        """Hold the rewritten model to the pass's contract, and treat the sites that break it."""
        judged = self._judged(outcome, optimize)
        assert judged.check is not None
        if judged.check.holds:
            return judged
        treated = self._demoted(judged, optimize) if judged.soft else None
        return treated or self._without_culprits(judged, optimize)

    def _contract(self, optimize: bool) -> Any:
        assert self.proof is not None
        contract = on_inputs(self.each.contract, self.proof.data.generated)
        if isinstance(contract, Lossy) and contract.min_sqnr_db > -math.inf:
            contract = Lossy(max(contract.min_sqnr_db, self.least_db))
        return in_default_session(contract) if optimize else contract

    def _judged(self, outcome: Outcome, optimize: bool, limit: int = CHECK_SAMPLES) -> Outcome:
        """Compare the rewritten model with the pass's input."""
        assert self.proof is not None
        contract = self._contract(optimize)
        first = self.proof.data.generated and not self.thorough and not isinstance(contract, Lossy)
        try:
            comparison = self.proof.compare(
                self.model,
                outcome.model,
                contract,
                1 if first else limit,
                optimize=optimize,
                freezes=self.each.freezes,
                reviewed=limit == CHECK_SAMPLES,
            )
        except GraphoptError as error:
            return replace(outcome, check=Check(str(contract), False, None, None, None, str(error)), soft=False)
        floor = contract.min_sqnr_db if isinstance(contract, Lossy) else -math.inf
        worst = max((output.severity for output in comparison.outputs), default=0.0)
        soft = floor > -math.inf and worst < BEYOND and comparison.sqnr_db is not None
        return replace(outcome, check=Check.of(comparison), soft=soft)

    def _demoted(self, broken: Outcome, optimize: bool) -> Outcome | None:
        """Write the sites that cost most more carefully; None if that does not help."""
        floor = self._contract(optimize).min_sqnr_db
        sites = [rewritten.site for rewritten in broken.result.rewritten]
        best: list[Outcome] = []

        def probe(chosen: Sequence[str]) -> float:
            others = [site for site in sites if site not in set(chosen)]
            self.memory["probing"] = True
            try:
                return _noise(self._judged(self._attempt(broken.treatment.leaving(others)), optimize, PROBE_SAMPLES))
            finally:
                self.memory.pop("probing")

        def judge(treatment: Treatment) -> Measured:
            attempt = self._attempt(treatment)
            if attempt.failure or not attempt.result.rewritten:
                return Measured(False, math.inf)
            judged = self._judged(attempt, optimize)
            assert judged.check is not None
            best[:] = [judged]
            return Measured(judged.check.holds, _noise(judged))

        ranking = rank(sites, probe, 10 ** (-floor / 10))
        found = find_a_way(ranking, self.each.demotions, floor, broken.treatment, judge, form=optimize)
        if found is None:
            return None
        costs = {site: -10 * math.log10(noise) for site, noise in ranking.noise.items() if noise > 0}
        alone = {site: cost for site, cost in costs.items() if site in ranking.alone}
        return replace(best[0], demoted=(*broken.demoted, *self._what_changed(broken, best[0], alone)))

    def _what_changed(self, before: Outcome, after: Outcome, alone: Mapping[str, float]) -> list[Demoted]:
        """Say of each site that was treated what was written instead, and what that costs."""
        written = {each.site: each for each in after.result.rewritten}
        left = {each.site: each.reason for each in after.result.skipped}
        found = []
        for site in before.result.rewritten:
            now = written.get(site.site)
            if now is not None and now.detail == site.detail:
                continue
            level = after.treatment.demotions.get(site.site, 0)
            step = self.each.demotions[level - 1] if now is not None and level else "float"
            size = None if now is None or now.nbytes is None or site.nbytes is None else now.nbytes - site.nbytes
            text = now.detail if now is not None else left.get(site.site, after.treatment.vetoes.get(site.site, ""))
            found.append(Demoted(site.site, step, site.detail, text, size, alone.get(site.site)))
        return found

    def _without_culprits(self, broken: Outcome, optimize: bool) -> Outcome:
        """Find the sites that break the contract, and run the pass again with them treated."""
        replays: list[Outcome] = []

        def judge(treatment: Treatment) -> Replay:
            outcome = self._attempt(treatment)
            if outcome.failure:
                return Replay(False, outcome.failure)
            judged = self._judged(outcome, optimize)
            assert judged.check is not None
            replays[:] = [judged]
            return Replay(judged.check.holds, judged.check.problem)

        assert broken.check is not None
        sites = [rewritten.site for rewritten in broken.result.rewritten]
        most = MAX_LOSSY_CULPRITS if isinstance(self.each.contract, Lossy) and broken.soft else MAX_CULPRITS
        form = 1 if optimize and self.each.demotions[:1] == ("form",) else 0
        found = find_culprits(sites, broken.check.problem, judge, most, broken.treatment, form)
        if found is None or not replays[0].result.rewritten:
            where = " in a default session of ONNX Runtime" if optimize else ""
            return self._reverted(broken, f"broke its contract {broken.check.contract}{where}: {broken.check.problem}")
        return replace(replays[0], demoted=(*broken.demoted, *self._what_changed(broken, replays[0], {})))

    def _reverted(self, outcome: Outcome, failure: str) -> Outcome:
        return Outcome(self.model, outcome.result, outcome.check, failure)


def _noise(judged: Outcome) -> float:
    """Return the noise over the signal of the worst output; infinite where they cannot be compared."""
    check = judged.check
    if judged.failure or check is None or check.max_abs is None:
        return math.inf
    return 0.0 if check.sqnr_db is None else float(10 ** (-check.sqnr_db / 10))


def _raised(model: Model, version: int) -> Model:
    """Return the model at a newer opset, or as it was where that is refused: the pass then skips what needs it."""
    try:
        return raise_opset(model, version)
    except ModelError:
        return model
