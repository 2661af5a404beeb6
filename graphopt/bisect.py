"""Finds the rewrites at fault by replaying a pass with some of them vetoed, as compilers bisect their passes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

NOT_UNDER_TEST = "left out while looking for the rewrite at fault"


@dataclass(frozen=True)
class Replay:
    """Whether running a pass again kept the contract, and if not, how it broke it."""

    holds: bool
    problem: str


Judge = Callable[[Mapping[str, str]], Replay]


def find_culprits(sites: Sequence[str], problem: str, judge: Judge, most: int) -> dict[str, str] | None:
    """Return the sites at fault, each with the reason, such that a replay with them vetoed holds.

    One culprit is found per round: the shortest failing prefix of the sites, by halving, ends with it. So c culprits
    among n sites cost about c * (log2(n) + 1) replays.

    Args:
        sites: All rewritten sites, in the order of their rewriting.
        problem: How the run with all of them broke the contract.
        judge: Replays the pass with these sites vetoed.
        most: How many culprits to look for.

    Returns:
        Vetoes by site, or None if more than ``most`` sites are at fault or no site is.
    """
    vetoes: dict[str, str] = {}
    for _ in range(most):
        suspects = [site for site in sites if site not in vetoes]
        culprit, how = _shortest_failing_prefix(suspects, vetoes, problem, judge)
        if culprit is None:
            return None
        vetoes[culprit] = f"breaks the contract: {how}"
        replay = judge(vetoes)
        if replay.holds:
            return vetoes
        problem = replay.problem
    return None


def _shortest_failing_prefix(
    suspects: Sequence[str], vetoes: Mapping[str, str], problem: str, judge: Judge
) -> tuple[str | None, str]:
    """Return the last site of the shortest prefix that breaks the contract, and how; None if even none of them does."""
    holds_at, fails_at = 0, len(suspects)
    if not suspects:
        return None, problem
    while fails_at - holds_at > 1:
        middle = (holds_at + fails_at) // 2
        replay = judge({**dict.fromkeys(suspects[middle:], NOT_UNDER_TEST), **vetoes})
        if replay.holds:
            holds_at = middle
        else:
            fails_at, problem = middle, replay.problem
    return suspects[fails_at - 1], problem
