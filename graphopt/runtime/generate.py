"""Generates inputs that a model can run on, from its signature and from what its graph does with them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from graphopt.errors import DataError, GraphoptError
from graphopt.model import Model
from graphopt.runtime.axes import NAMES, UNNAMED, UNNAMED_BATCH
from graphopt.runtime.data import Feeds, ListData
from graphopt.runtime.drawer import Drawer
from graphopt.runtime.overrides import overridden
from graphopt.runtime.plans import Plan, first_plans, fixed_plans, further_plans, telling_plans
from graphopt.runtime.probe import Answer, Probe, Seen

FIXED_DRAWS = 3
_TELLING, _SOUND = 3, 4
"""The score of an output that differs between samples."""
MOST_CLASSES = 6
"""Of so many classes of axes each is set apart by itself, where setting all of them apart does not run."""


@dataclass(frozen=True)
class Drawn:
    """Generated inputs, and what the model gives on each of them, optimizations off; None where that was not kept."""

    data: ListData
    outputs: tuple[Feeds | None, ...]


def generate(model: Model, seed: int = 0) -> ListData:
    """Return the data that ``draw_inputs`` finds."""
    return draw_inputs(model, seed).data


def draw_inputs(model: Model, seed: int = 0) -> Drawn:
    """Draw feeds for two sizes of the dynamic axes, or three draws where nothing is dynamic.

    Floats are standard normal; images and sound differ from sample to sample in brightness, contrast and coarse
    patterns. Integers that reach Gather, GatherND, OneHot and the like stay below the table's length, masks are 0 or 1,
    lengths between 1 and the sequence's. An axis is as long as the first weight that meets it demands, and names that
    are sums or products of others are computed.

    Each draw is tried on ONNX Runtime in another process, which may crash. If it is refused, other sizes and values are
    tried; likewise, a few times, if a float output is never finite, is constant, or is equal for all samples: such
    outputs cannot tell a good model from a constant; or if there is a NaN in it, as behind the logarithm of a negative
    number, next to which rounding decides between a number and NaN. The draws that say most are kept.

    In one of the draws equally named axes, unnamed ones, and axes of different names are not equally long, as far as
    the model runs with that. If it has initializers that a caller can override, a last draw feeds other values for
    them, as far as it runs.

    Args:
        model: The model; it is loaded once, optimizations off.
        seed: For the draws.

    Returns:
        The feeds, the first of them of at least two samples where the model takes a batch; which outputs said nothing
        (``silent``); which names of dimensions were seen to bind nothing (``unbound``); and what the model gives.

    Raises:
        GraphoptError: ONNX Runtime cannot load the model.
        DataError: No draw runs.
    """
    with Probe(model) as probe:
        search = _Search(Drawer(model), probe, np.random.default_rng(seed))
        search.find(model)
        outputs = tuple(map(probe.values, search.answers))
    silent = tuple(name for name, score in _scores(search.answers).items() if score < _TELLING)
    return Drawn(ListData(search.feeds, generated=True, silent=silent, unbound=search.unbound), outputs)


def _scores(runs: list[Answer]) -> dict[str, int]:
    """Return what each output says: 0 nothing finite, 1 a constant, 2 the same for all samples, 3 more, 4 without NaN.

    Float outputs count; where there is none, the others. Outputs that are always empty are left out.
    """
    named: dict[str, list[Seen]] = {}
    for each in (each for run in runs for each in run.outputs if each.kind):
        named.setdefault(each.name, []).append(each)
    floats = {name: each for name, each in named.items() if each[0].kind == "float"}
    return {name: _score(each) for name, each in (floats or named).items()}


def _score(seen: list[Seen]) -> int:
    """Return what one output says in all runs."""
    if not any(each.finite for each in seen):
        return 0
    if any(each.moved or each.differs(seen[0]) for each in seen):
        return _TELLING if any(each.nan for each in seen) else _SOUND
    return 2 if any(each.varies for each in seen) else 1


@dataclass(frozen=True)
class _Draws:
    """Feeds drawn by one plan, and what the model made of them."""

    plan: Plan
    feeds: list[Feeds]
    answers: list[Answer]

    @property
    def score(self) -> tuple[int, int]:
        """How much they say: of the outputs that say least, then in all."""
        scores = _scores(self.answers).values()
        return min(scores, default=_SOUND), sum(scores)


class _Search:
    """Looks for draws that run and say something.

    Attributes:
        feeds: What has been found.
        answers: What the model made of each.
        unbound: Names of dimensions whose axes need not be equally long.
    """

    def __init__(self, drawer: Drawer, probe: Probe, rng: np.random.Generator) -> None:
        self._drawer, self._probe, self._rng = drawer, probe, rng
        self._widen = 32 if drawer.has_images else 0
        self._refusal = ""
        self.feeds: list[Feeds] = []
        self.answers: list[Answer] = []
        self.unbound: frozenset[str] = frozenset()

    def find(self, model: Model) -> None:
        """Draw.

        Raises:
            DataError: Nothing runs.
        """
        first = self._first()
        if first is None:
            raise DataError(f"cannot generate inputs that the model runs on, give it data; {self._refusal}")
        self._keep(first)
        if self._drawer.dynamic:
            self._keep(self._other_sizes(first.plan))
        wanted = 2 if self._drawer.dynamic else FIXED_DRAWS
        while self._drawer.order and len(self.feeds) < wanted and (again := self._try(first.plan)) is not None:
            self._keep(again)
        for floats_only in (False, True):
            feeds = overridden(model, self.feeds[0], self._rng, floats_only)
            if feeds is self.feeds[0]:
                break
            if (answer := self._run(feeds)) is not None:
                self._keep(_Draws(first.plan, [feeds], [answer]))
                break

    def _keep(self, draws: _Draws | None) -> None:
        """Take draws into the result."""
        if draws is not None:
            self.feeds += draws.feeds
            self.answers += draws.answers

    def _first(self) -> _Draws | None:
        """Return draws that run, by the first plan that does, or by one of a few others if they say more."""
        drawer = self._drawer
        plans: Iterable[Plan] = fixed_plans()
        if drawer.dynamic:
            plans = first_plans(drawer.lengths, self._widen, drawer.axes.has_past)
        best = next((draws for plan in plans if (draws := self._several(plan)) is not None), None)
        if best is None or not drawer.order:
            return best
        for plan in telling_plans(best.plan, drawer.longest):
            if best.score[0] == _SOUND:
                break
            draws = self._several(plan)
            if draws is not None and draws.score > best.score:
                best = draws
        return best

    def _several(self, plan: Plan) -> _Draws | None:
        """Draw samples of one size by a plan, twice if one run does not hold several; None if it does not run."""
        draws = self._try(plan)
        if draws is None or not self._drawer.order or any(each.moved is not None for each in draws.answers[0].outputs):
            return draws
        again = self._try(plan)
        return draws if again is None else _Draws(plan, draws.feeds + again.feeds, draws.answers + again.answers)

    def _other_sizes(self, plan: Plan) -> _Draws | None:
        """Return a draw of other sizes than a plan's, axes of one class apart as far as the model runs with that."""
        for other in further_plans(plan, self._drawer.lengths, self._widen):
            draws = self._try(other)
            if draws is not None and draws.score[0]:
                return self._set_apart(draws)
        return None

    def _set_apart(self, draws: _Draws) -> _Draws:
        """Return a draw in which as many classes of axes as possible are apart, or what is given if none can be."""
        axes = self._drawer.axes
        lengths = [key for key in axes.classes if not axes.is_batch(key)]
        for classes in dict.fromkeys((axes.classes, tuple(lengths))):
            if classes and (apart := self._apart(draws.plan, classes)) is not None:
                return apart
        if len(axes.classes) < 2 and not any(map(axes.has_ranks, axes.classes)):
            return draws
        for key in axes.classes[:MOST_CLASSES]:
            for form in (key, f"{key}@") if axes.has_ranks(key) else (key,):
                if (apart := self._apart(draws.plan, [*draws.plan.apart, form])) is not None:
                    draws = apart
                    break
        return draws

    def _apart(self, plan: Plan, classes: Iterable[str]) -> _Draws | None:
        """Return a draw with these classes of axes apart, noting their names, or None.

        It has to run whichever axis is the longest: an index may happen to stay within a longer table.
        """
        draws = self._try(replace(plan, apart=frozenset(classes)))
        if draws is None or not draws.score[0] or self._try(replace(draws.plan, descending=True)) is None:
            return None
        names = {key.removesuffix("@") for key in draws.plan.apart}
        self.unbound = frozenset(names - {UNNAMED, UNNAMED_BATCH, NAMES})
        return draws

    def _try(self, plan: Plan) -> _Draws | None:
        """Draw once and run; None if it cannot be."""
        try:
            feeds = self._drawer.draw(plan, self._rng)
        except DataError as error:
            self._refusal = self._refusal or str(error)
            return None
        answer = self._run(feeds)
        return None if answer is None else _Draws(plan, [feeds], [answer])

    def _run(self, feeds: Feeds) -> Answer | None:
        """Run on feeds; None if they are refused."""
        try:
            return self._probe.run(feeds)
        except GraphoptError as error:
            self._refusal = self._refusal or str(error)
            return None
