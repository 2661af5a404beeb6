"""Finds the rewrites at fault by replaying a pass with some of them vetoed, as compilers bisect their passes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

NOT_UNDER_TEST = "left out while looking for the rewrite at fault"


@dataclass(frozen=True)
class Treatment:
    """What a replay of a pass has to do otherwise.

    Attributes:
        vetoes: Sites to leave alone, each with the reason.
        demotions: How many steps a site is written more carefully.
    """

    vetoes: Mapping[str, str] = field(default_factory=dict)
    demotions: Mapping[str, int] = field(default_factory=dict)

    def leaving(self, sites: Sequence[str]) -> "Treatment":
        """Return this treatment with further sites left alone for now; what stands in it keeps its reason."""
        return Treatment({**dict.fromkeys(sites, NOT_UNDER_TEST), **self.vetoes}, self.demotions)


@dataclass(frozen=True)
class Replay:
    """Whether running a pass again kept the contract, and if not, how it broke it."""

    holds: bool
    problem: str


Judge = Callable[[Treatment], Replay]


def find_culprits(
    sites: Sequence[str], problem: str, judge: Judge, most: int, begin: Treatment | None = None, other_form: int = 0
) -> Treatment | None:
    """Return how to treat the sites at fault such that a replay holds.

    One culprit is found per round: the shortest failing prefix of the sites, by halving, ends with it. So c culprits
    among n sites cost about c * (log2(n) + 1) replays. A culprit is written in another form first, if the pass has one,
    and vetoed if it is found again.

    Args:
        sites: All rewritten sites, in the order of their rewriting.
        problem: How the run with all of them broke the contract.
        judge: Replays the pass with this treatment.
        most: How many culprits to look for.
        begin: The treatment to begin with.
        other_form: The step of demotion that is another form; 0 if there is none.

    Returns:
        The treatment, or None if more than ``most`` sites are at fault or no site is.
    """
    found = begin or Treatment()
    for _ in range(most):
        suspects = [site for site in sites if site not in found.vetoes]
        culprit, how = _shortest_failing_prefix(suspects, found, problem, judge)
        if culprit is None:
            return None
        if found.demotions.get(culprit, 0) < other_form:
            found = Treatment(found.vetoes, {**found.demotions, culprit: other_form})
        else:
            found = Treatment({**found.vetoes, culprit: f"breaks the contract: {how}"}, found.demotions)
        replay = judge(found)
        if replay.holds:
            return found
        problem = replay.problem
    return None


def _shortest_failing_prefix(
    suspects: Sequence[str], found: Treatment, problem: str, judge: Judge
) -> tuple[str | None, str]:
    """Return the last site of the shortest prefix that breaks the contract, and how; None if even none of them does."""
    holds_at, fails_at = 0, len(suspects)
    if not suspects:
        return None, problem
    while fails_at - holds_at > 1:
        middle = (holds_at + fails_at) // 2
        replay = judge(found.leaving(suspects[middle:]))
        if replay.holds:
            holds_at = middle
        else:
            fails_at, problem = middle, replay.problem
    return suspects[fails_at - 1], problem
