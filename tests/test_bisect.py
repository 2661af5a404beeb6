"""Finding the rewrites at fault: every culprit, nothing but culprits, in few replays."""

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.bisect import Replay, find_culprits

SITES = [f"s{i}" for i in range(40)]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.sets(st.sampled_from(SITES), min_size=1, max_size=8))
def test_names_exactly_the_bad_sites(bad: set[str]) -> None:
    replays = 0

    def judge(vetoes: Mapping[str, str]) -> Replay:
        nonlocal replays
        replays += 1
        left = sorted(bad - set(vetoes))
        return Replay(not left, f"broken by {left}")

    culprits = find_culprits(SITES, "broken", judge, 8)
    assert culprits is not None
    assert set(culprits) == bad
    assert all(reason.startswith("breaks the contract: broken") for reason in culprits.values())
    assert replays <= len(bad) * 7


def test_gives_up_when_too_many_are_at_fault() -> None:
    assert find_culprits(SITES, "broken", lambda vetoes: Replay(len(vetoes) > 30, "broken"), 4) is None


def test_gives_up_when_no_site_is_at_fault() -> None:
    assert find_culprits([], "broken", lambda vetoes: Replay(False, "broken"), 4) is None
