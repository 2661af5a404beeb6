"""Finds a way for a lossy pass that misses its floor: the sites that cost most are written more carefully."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graphopt.bisect import Treatment

MAX_ROUNDS = 24
MAX_PROBES = 32
_FIRST_GROUPS = 16
_MARGIN = 0.8
"""So much of the noise that the floor allows is aimed at."""

_ENOUGH = 0.4
"""Groups that make less of the noise that the floor allows need not be known site by site."""

_FORM = "form"
_LEFT = {"form": 1.0, "range": 0.5, "blocks": 0.4, "bits": 0.01}
"""What a step is expected to leave of a site's noise, until it has been measured."""

Probe = Callable[[Sequence[str]], float]
"""Measures the noise (its power over the signal's) that these sites alone make."""


@dataclass(frozen=True)
class Measured:
    """A replay, judged: whether it holds, and the noise that it leaves."""

    holds: bool
    noise: float


Judge = Callable[[Treatment], Measured]


@dataclass
class Ranking:
    """The noise that each site makes.

    Attributes:
        noise: By site.
        alone: The sites that were measured by themselves; others share what was measured of a group.
    """

    noise: dict[str, float] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)


def rank(sites: Sequence[str], probe: Probe, floor: float) -> Ranking:
    """Measure what each site adds to the noise.

    Neighbours are measured together first; groups that matter are halved until their sites are known one by one. The
    noise of sites adds up, more or less, as rounding errors of different weights are hardly correlated.

    Args:
        sites: All sites, in order.
        probe: Measures some of them.
        floor: The noise that is allowed in all.
    """
    size = max(1, -(-len(sites) // _FIRST_GROUPS))
    groups = [list(sites[start : start + size]) for start in range(0, len(sites), size)]
    known = [(probe(group), group) for group in groups]
    probes = len(known)
    while probes < MAX_PROBES:
        open_groups = [each for each in known if len(each[1]) > 1]
        if not open_groups or sum(noise for noise, _ in open_groups) < _ENOUGH * floor:
            break
        worst = max(open_groups, key=lambda each: each[0])
        known.remove(worst)
        middle = len(worst[1]) // 2
        known += [(probe(half), half) for half in (worst[1][:middle], worst[1][middle:])]
        probes += 2
    ranking = Ranking()
    for noise, group in known:
        ranking.noise |= dict.fromkeys(group, noise / len(group))
        if len(group) == 1:
            ranking.alone.add(group[0])
    return ranking


def find_a_way(
    ranking: Ranking, steps: Sequence[str], floor_db: float, begin: Treatment, judge: Judge, *, form: bool
) -> Treatment | None:
    """Demote the sites that cost most until the floor holds; None if nothing is left to demote.

    Args:
        ranking: What each site costs.
        steps: The pass's steps, see ``Pass.demotions``; behind the last a site is left as it was.
        floor_db: The SQNR that must hold.
        begin: The treatment that misses it.
        judge: Replays the pass and measures it.
        form: Whether writing a site in another form can help: not where ONNX Runtime leaves the graph as it is.
    """
    allowed = _MARGIN * 10 ** (-floor_db / 10)
    first = 0 if form or not steps or steps[0] != _FORM else 1
    noise = {site: max(value, 1e-12) for site, value in ranking.noise.items() if site not in begin.vetoes}
    levels, vetoes = dict(begin.demotions), dict(begin.vetoes)
    for _ in range(MAX_ROUNDS):
        moved = False
        while noise and (not moved or sum(noise.values()) > allowed):
            site = max(noise, key=lambda each: noise[each])
            moved = True
            levels[site] = max(levels.get(site, 0), first) + 1
            if levels[site] > len(steps):
                del noise[site], levels[site]
                vetoes[site] = f"left as it was: with it an output falls below {floor_db:g} dB"
            else:
                noise[site] *= _LEFT.get(steps[levels[site] - 1], 0.5)
        if not moved:
            return None
        treatment = Treatment(dict(vetoes), dict(levels))
        measured = judge(treatment)
        if measured.holds:
            return treatment
        expected = sum(noise.values())
        scale = measured.noise / expected if expected and math.isfinite(measured.noise) else 4.0
        noise = {site: value * max(scale, 1.0) for site, value in noise.items()}
    return None
