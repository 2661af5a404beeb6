"""The proof of a run: the feeds, the sessions and the outputs of its models, and the judgement of one by another."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from graphopt.contract import BitExact, Contract
from graphopt.errors import DataError, GraphoptError, ModelError
from graphopt.model import Model, to_proto
from graphopt.model.exporter import weight_bytes
from graphopt.model.ranks import with_ranks
from graphopt.numerics.compare import Comparer, Comparison
from graphopt.proof.accuracy import require_scores
from graphopt.proof.batching import first_run
from graphopt.proof.dependence import dependent_outputs
from graphopt.proof.outputs import Outputs
from graphopt.proof.review import Pair, review
from graphopt.proof.sessions import Sessions
from graphopt.proof.timing import NOISE_ALONE, SECONDS_AGAIN, run_times, timed_feeds, timed_run
from graphopt.proof.unknown import Unknown
from graphopt.runtime.data import Data, Feeds, ListData
from graphopt.runtime.feeds import overridden
from graphopt.runtime.memory import give_back
from graphopt.runtime.session import Session
from graphopt.runtime.store import Store

MOST_KEPT = 4
"""Outputs of so many models are kept besides those of the one that a run began with."""

REVIEWED = 1 << 30
"""Weights of up to this many bytes are reviewed, as that takes several copies of them."""


class Proof:
    """Owns what models are judged with.

    Sessions are opened one behind the other, and released before the next; what a model gives out is computed once and
    kept while it is needed. The session without ONNX Runtime's optimizations is the instrument that finds culprits;
    the one with default options is what users open, and what counts at the end.

    Attributes:
        data: What models are run on.
        source: The model that the run began with.
        timed: Whether large models are timed while their default session is open.
        unknown: What ONNX Runtime cannot run of the model that the run began with; None if it can run all.
    """

    def __init__(self, source: Model, data: Data) -> None:
        """Prove what is made of ``source`` on ``data``."""
        self.data, self.source = data, source
        self.unknown = Unknown.of(source)
        self._sessions = Sessions(source, data.generated)
        self._store = Store()
        self._kept: OrderedDict[tuple[int, bool, frozenset[str]], Outputs] = OrderedDict()
        self._other_values: Feeds | None = None
        self.timed = False
        self._timed: dict[int, tuple[Model, float]] = {}

    @classmethod
    def opened(cls, source: Model, data: Data, *, scored: bool = True, known: Sequence[Feeds | None] = ()) -> "Proof":
        """Return a proof of what is made of a model that has been seen to run.

        Its data come in batches of a size that fits into memory, and its source declares the ranks of its outputs.

        Args:
            source: The model.
            data: What to run on.
            scored: Whether labels, if there are any, are to be scored.
            known: What the model gives on each of the feeds where that was computed already, optimizations off.

        Raises:
            ModelError: ONNX Runtime refuses the model or its inputs, so that nothing can be proved.
            DataError: There are labels, but the model does not give one row of class scores for each sample.
        """
        proof = cls(source, data)
        kept: Outputs | None = None
        try:
            if isinstance(data, ListData):  # few feeds: what they give is wanted later on as well
                proof._take(known)
                kept = proof.outputs(source)
                outputs = next(kept.read())
            else:
                proof.data, feeds, outputs = first_run(proof.session, source, data)
                if scored and data.labels is not None:
                    require_scores(source, feeds, outputs, next(proof.data.counts(1)))
        except GraphoptError as error:
            if isinstance(error, DataError):
                raise
            raise ModelError(f"{source.path or 'the model'} cannot be proved, as it does not run: {error}") from error
        ranks = {name: value.ndim for name, value in outputs.items() if isinstance(value, np.ndarray)}
        proof.source = with_ranks(source, ranks)
        if kept is not None:
            proof._kept.clear()
            proof._kept[id(proof.source), False, frozenset()] = replace(kept, owner=proof.source)
        return proof

    def __enter__(self) -> "Proof":
        """Return the proof itself; leaving it removes its files."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what is kept."""
        self._sessions.close()
        self._timed.clear()
        self._kept.clear()
        self._store.close()

    # -- running -------------------------------------------------------------------------------------------------------

    def feeds(self, limit: int | None = None) -> Iterator[Feeds]:
        """Yield what is fed: whole batches, until they hold ``limit`` samples.

        Of a model with initializers that a caller can override, the first samples come once more before all others,
        with other values for these, if it runs with them.
        """
        if other := self._with_other_values():
            yield other
        yield from self.data.batches(self._whole(limit))

    def counts(self, limit: int | None = None) -> Iterator[int]:
        """Yield how many samples each of the feeds holds."""
        if self._with_other_values():
            yield next(self.data.counts(1))
        yield from self.data.counts(self._whole(limit))

    def _whole(self, limit: int | None) -> int | None:
        """Return a limit in whole batches, so that outputs that were kept for one limit serve another."""
        return None if limit is None else -(-limit // self.data.at_once) * self.data.at_once

    def _with_other_values(self) -> Feeds:
        """Return feeds that override initializers; none if there are none to override or the model refuses them."""
        if self._other_values is None:
            self._other_values = {}
            if self.source.overridable() and not self.data.generated:
                feeds = overridden(self.source, next(self.data.batches(1)), np.random.default_rng(0))
                try:
                    self.session(self.source).run(feeds)
                except GraphoptError:
                    return {}
                self._other_values = feeds
        return self._other_values

    def session(
        self, model: Model, *, optimize: bool = False, threads: int | None = None, profile: Path | None = None
    ) -> Session:
        """Open a model; of one with operators that ONNX Runtime does not know, the part that does without them.

        The options are those of ``Session``.

        Raises:
            GraphoptError: ONNX Runtime cannot load it.
        """
        runnable = None if self.unknown is None else self.unknown.runnable(to_proto(model))
        return self._sessions.open(model, self.source, runnable, optimize=optimize, threads=threads, profile=profile)

    def outputs(
        self, model: Model, limit: int | None = None, *, optimize: bool = False, hidden: frozenset[str] = frozenset()
    ) -> Outputs:
        """Return a model's outputs on the first batches, up to ``limit`` samples; what is not known yet is computed.

        Args:
            model: The model; while it is kept, nobody may change it.
            limit: How many samples at most.
            optimize: Whether ONNX Runtime may rewrite the graph, as it does by default.
            hidden: Overridable initializers that are not fed.

        Raises:
            GraphoptError: ONNX Runtime cannot load or run the model.
        """
        key = (id(model), optimize, hidden)
        found = self._kept.get(key) or Outputs(model, self._store)
        self._kept[key] = found
        self._kept.move_to_end(key)
        session: Session | None = None
        threads = 1 if optimize and self.data.generated else None  # few samples: the session that is timed, too
        times: list[tuple[Feeds, float]] = []
        try:
            for index, (feeds, count) in enumerate(zip(self.feeds(limit), self.counts(limit), strict=True)):
                if index < len(found):
                    continue
                session = session or self.session(model, optimize=optimize, threads=threads)
                given = {name: value for name, value in feeds.items() if name not in hidden}
                outputs, spent = timed_run(session, given)
                times.append((feeds, spent))
                found.append(_real(outputs, feeds, count, self.data.at_once))
            if session is not None and self.timed and threads == 1 and not self._sessions.is_open(model):
                self._timed[id(model)] = model, self._time(session, times[1:])
        except GraphoptError:
            self._kept.pop(key).forget()
            raise
        finally:
            if session is not None:
                del session
                give_back()
        others = [each for each in self._kept if each[0] != id(self.source)]
        for each in others[:-MOST_KEPT]:
            self._kept.pop(each).forget()
        return found

    def _time(self, session: Session, times: list[tuple[Feeds, float]]) -> float:
        """Return the least time of one run of a session, in ms; what runs after its first took is known."""
        feeds, _ = timed_feeds(self.data)
        earlier = [spent for fed, spent in times if fed is feeds]
        source = self.least_ms(self.source)
        if source is None:
            return min(run_times([session], feeds, earlier=earlier)[0])
        enough = source * (1 + NOISE_ALONE)
        return min(run_times([session], feeds, earlier=earlier, seconds=SECONDS_AGAIN, enough=enough)[0])

    def _take(self, known: Sequence[Feeds | None]) -> None:
        """Keep what the source gives on the first feeds, up to the first of which that is not known."""
        found = Outputs(self.source, self._store)
        for outputs in known:
            if outputs is None:
                break
            found.append(outputs)
        self._kept[id(self.source), False, frozenset()] = found

    def least_ms(self, model: Model) -> float | None:
        """Return the time of one run in a default session on one thread if it was measured while that was open."""
        return self._timed[id(model)][1] if id(model) in self._timed else None

    # -- judging -------------------------------------------------------------------------------------------------------

    def compare(
        self,
        reference: Model,
        candidate: Model,
        contract: Contract,
        limit: int | None = None,
        *,
        optimize: bool = False,
        freezes: bool = False,
        reviewed: bool = True,
    ) -> Comparison:
        """Compare two models' outputs on the same inputs.

        A broken contract other than BitExact is reviewed, see ``review``, if the weights are at most 1 GB.

        Args:
            reference: The model to hold the other to.
            candidate: The model to judge.
            contract: What must hold, for each output and its parts.
            limit: How many samples to run at most.
            optimize: Whether ONNX Runtime may rewrite both graphs, as it does by default.
            freezes: Whether the candidate may have made constants of initializers that a caller could override.
            reviewed: Whether to review a broken contract.

        Raises:
            GraphoptError: ONNX Runtime cannot load or run a model.
        """
        gone = _overridable(reference) - _overridable(candidate)
        hidden = frozenset(gone if freezes else ())
        left = self.outputs(reference, limit, optimize=optimize, hidden=hidden)
        right = self.outputs(candidate, limit, optimize=optimize, hidden=hidden)
        comparer = Comparer(contract)
        for samples, wanted, given in zip(self.counts(limit), left.read(), right.read(), strict=False):
            comparer.add(wanted, given, samples)
        if self.unknown is not None and (change := self.unknown.changed(to_proto(candidate))):
            comparer.refuse(change)
        if gone and not freezes:
            comparer.refuse(f"initializer {min(gone)!r} can no longer be overridden")
        plain = self._without_constants(comparer.result(), reference)
        large = max(weight_bytes(reference), weight_bytes(candidate)) > REVIEWED
        if plain.holds or isinstance(contract, BitExact) or large or not reviewed or self.unknown is not None:
            return plain
        pair = Pair(to_proto(reference), to_proto(candidate), optimize, self.data.generated)
        return review(plain, pair, contract, lambda: zip(self.feeds(limit), self.counts(limit), strict=True))

    def _without_constants(self, comparison: Comparison, reference: Model) -> Comparison:
        """Return a comparison that does not call those outputs blind that depend on no input."""
        if not comparison.blind:
            return comparison
        proto = to_proto(reference, weights=False)
        known = dependent_outputs(proto if self.unknown is None else self.unknown.runnable(proto))
        return replace(comparison, blind=tuple(name for name in comparison.blind if name in known))


def _real(outputs: Feeds, feeds: Feeds, count: int, at_once: int) -> Feeds:
    """Return outputs without the samples that a batch was filled up with, where it holds fewer than ``at_once``."""
    if count >= at_once:
        return outputs
    fed = {len(value) for value in feeds.values() if isinstance(value, np.ndarray) and value.ndim}
    if len(fed) != 1 or (size := fed.pop()) <= count:
        return outputs
    return {
        name: value[:count] if isinstance(value, np.ndarray) and value.ndim and len(value) == size else value
        for name, value in outputs.items()
    }


def _overridable(model: Model) -> set[str]:
    """Return the names of the initializers that a caller can override."""
    return {str(tensor.name) for tensor in model.overridable()}


def compare_models(
    reference: Model, candidate: Model, data: Data, contract: Contract, limit: int | None = None, **options: bool
) -> Comparison:
    """Compare two models once, see ``Proof.compare``."""
    with Proof(reference, data) as proof:
        return proof.compare(reference, candidate, contract, limit, **options)
