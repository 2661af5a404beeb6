"""One pass on one model: run it on a copy, prove it, veto the sites that break it, or give the model back as it was."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from graphopt.base import Pass
from graphopt.bisect import Replay, find_culprits
from graphopt.contract import Lossy, on_inputs
from graphopt.errors import GraphoptError, ModelError
from graphopt.graph import GraphView
from graphopt.graph.symbolic import Facts
from graphopt.model import Model, fingerprint, raise_opset
from graphopt.model.exporter import serialized_size
from graphopt.model.fingerprint import Fingerprint, is_untouched, outline
from graphopt.report import Check
from graphopt.result import PassResult
from graphopt.runtime.check import compare_models
from graphopt.runtime.feeds import Data

CHECK_SAMPLES = 128
MAX_CULPRITS = 16
MAX_LOSSY_CULPRITS = 4
"""The noise of a lossy pass comes from all of its sites: taking many of them out one by one explains nothing."""


class Subject:
    """A model that nobody changes: its identity, what is known of its tensors, and copies of it to work on."""

    def __init__(self, model: Model, facts: Facts | None = None) -> None:
        """Keep ``model`` and what is known of its tensors already."""
        self.model = model
        self._facts = facts
        self._spare: GraphView | None = None

    @cached_property
    def facts(self) -> Facts:
        """Types, symbolic shapes and small integers of the model's tensors."""
        if self._facts is None:
            return Facts(self.model)
        self._facts.refresh()
        return self._facts

    @property
    def known_facts(self) -> Facts | None:
        """The same, if something is known already."""
        return None if self._facts is None and "facts" not in self.__dict__ else self.facts

    @cached_property
    def identity(self) -> Fingerprint:
        """What tells whether another model is the same."""
        return fingerprint(self.model)

    @cached_property
    def outline(self) -> int:
        """What equal models have in common, and others hardly ever; cheaper than the identity."""
        return outline(self.model)

    def equals(self, other: "Subject") -> bool:
        """Whether the two models are the same."""
        return self.outline == other.outline and self.identity == other.identity

    def take(self, with_facts: bool) -> tuple[Model, Facts | None]:
        """Return a copy to work on, which nobody else has, and what is known of its tensors if that is wanted."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare.model, spare.known_facts if with_facts else None
        copy = self.model.copy()
        return copy, self.facts.moved_to(copy) if with_facts else None

    def give_back(self, view: GraphView) -> None:
        """Take back a copy that has turned out to be unchanged, for the next pass."""
        self._spare = view


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        model: The model to go on with.
        result: What the pass says that it did.
        check: How it was proved.
        failure: Why the pass was taken back, if it was.
        vetoes: The sites at fault.
        facts: What is known of the model's tensors, if the pass has kept it true.
    """

    model: Model
    result: PassResult
    check: Check | None = None
    failure: str = ""
    vetoes: Mapping[str, str] = field(default_factory=dict)
    facts: Facts | None = None


@dataclass(frozen=True)
class Trial:
    """A pass, the model it works on, and what it is proved on.

    Attributes:
        each: The pass.
        subject: Its input.
        original: The model that the run began with.
        data: Feeds to calibrate and to prove with, None if there are none.
        check: Whether to prove the pass.
        vetoes: Sites that broke its contract before, with the reason.
    """

    each: Pass
    subject: Subject
    original: Model
    data: Data | None
    check: bool
    vetoes: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """The model that the pass works on; never changed."""
        return self.subject.model

    def run(self) -> Outcome:
        """Run the pass, prove its contract and that a compressing pass compresses."""
        outcome = self._attempt({})
        if outcome.failure or not outcome.result.rewritten:
            return outcome
        if self.check and self.data is not None:
            outcome = self._judged(outcome)
            if outcome.check is not None and not outcome.check.holds:
                outcome = self._without_culprits(outcome)
        if outcome.failure or not self.each.compresses:
            return outcome
        if serialized_size(outcome.model) >= serialized_size(self.model):
            return self._taken_back(outcome, "would not make the file smaller")
        return outcome

    def _attempt(self, vetoes: Mapping[str, str]) -> Outcome:
        """Run the pass on a copy, unchecked."""
        copy, facts = self.subject.take(self.each.keeps_facts)
        try:
            view = self._view(copy, vetoes, facts)
            needed = self.each.required_opset(view)
            if needed > copy.opset and (raised := _raised(copy, needed)) is not copy:
                view = self._view(raised, vetoes, None)
            result = self.each.apply(view)
        except Exception as error:  # a pass may be anybody's code: its failure is data, the model is untouched
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            failure = f"crashed: {type(error).__name__}: {error}{notes}"
            return Outcome(self.model, PassResult(), failure=" ".join(failure.split()))
        if result.rewritten:
            return Outcome(view.model, result, facts=view.known_facts if self.each.keeps_facts else None)
        if view.model.opset != self.model.opset:
            return Outcome(self.model, result)
        if not is_untouched(view.model, self.model) and fingerprint(view.model) != self.subject.identity:
            return Outcome(self.model, result, failure="says that it rewrote nothing but changed the graph")
        if self.each.keeps_facts:
            self.subject.give_back(view)
        return Outcome(self.model, result)

    def _view(self, model: Model, vetoes: Mapping[str, str], facts: Facts | None) -> GraphView:
        calibration = None if self.data is None else self.data.calibration()
        return GraphView(model, {**self.vetoes, **vetoes}, calibration, self.original, facts)

    def _judged(self, outcome: Outcome) -> Outcome:
        """Hold the rewritten model to the pass's contract, against the pass's input."""
        assert self.data is not None
        contract = on_inputs(self.each.contract, self.data.generated)
        try:
            check = Check.of(compare_models(self.model, outcome.model, self.data, contract, CHECK_SAMPLES))
        except GraphoptError as error:
            check = Check(str(contract), False, math.inf, math.inf, None, str(error))
        return replace(outcome, check=check)

    def _without_culprits(self, broken: Outcome) -> Outcome:
        """Find the sites that break the contract, and run the pass again without them."""
        replays: dict[frozenset[str], Outcome] = {}

        def judge(vetoes: Mapping[str, str]) -> Replay:
            outcome = self._attempt(vetoes)
            if outcome.failure:
                return Replay(False, outcome.failure)
            judged = replays[frozenset(vetoes)] = self._judged(outcome)
            assert judged.check is not None
            return Replay(judged.check.holds, judged.check.problem)

        assert broken.check is not None
        sites = [rewritten.site for rewritten in broken.result.rewritten]
        most = MAX_LOSSY_CULPRITS if isinstance(self.each.contract, Lossy) else MAX_CULPRITS
        culprits = find_culprits(sites, broken.check.problem, judge, most)
        if culprits is None or not replays[frozenset(culprits)].result.rewritten:
            return self._taken_back(broken, f"broke its contract {broken.check.contract}: {broken.check.problem}")
        return replace(replays[frozenset(culprits)], vetoes=culprits)

    def _taken_back(self, outcome: Outcome, failure: str) -> Outcome:
        return Outcome(self.model, outcome.result, outcome.check, failure)


def _raised(model: Model, version: int) -> Model:
    """Return the model at a newer opset, or as it was where that is refused: the pass then skips what needs it."""
    try:
        return raise_opset(model, version)
    except ModelError:
        return model
