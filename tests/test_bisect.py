"""Finding the rewrites at fault: every culprit, nothing but culprits, in few replays; another form before a veto."""

from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.bisect import NOT_UNDER_TEST, Replay, Treatment, find_culprits

SITES = [f"s{i}" for i in range(40)]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.sets(st.sampled_from(SITES), min_size=1, max_size=8))
def test_names_exactly_the_bad_sites(bad: set[str]) -> None:
    replays = 0

    def judge(treatment: Treatment) -> Replay:
        nonlocal replays
        replays += 1
        left = sorted(bad - set(treatment.vetoes))
        return Replay(not left, f"broken by {left}")

    found = find_culprits(SITES, "broken", judge, 8)
    assert found is not None
    assert set(found.vetoes) == bad
    assert not found.demotions
    assert all(reason.startswith("breaks the contract: broken") for reason in found.vetoes.values())
    assert replays <= len(bad) * 7


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.sets(st.sampled_from(SITES), max_size=3), st.sets(st.sampled_from(SITES), min_size=1, max_size=3))
def test_another_form_is_tried_before_a_veto(lost: set[str], cured: set[str]) -> None:
    def judge(treatment: Treatment) -> Replay:
        left = (lost | cured) - set(treatment.vetoes) - {site for site in cured - lost if site in treatment.demotions}
        return Replay(not left, "broken")

    found = find_culprits(SITES, "broken", judge, 12, other_form=1)
    assert found is not None
    assert set(found.vetoes) == lost
    assert found.demotions == dict.fromkeys(lost | cured, 1)


def test_what_was_treated_before_stays_treated() -> None:
    begin = Treatment({"s1": "before"}, {"s2": 2})

    def judge(treatment: Treatment) -> Replay:
        assert treatment.vetoes["s1"] == "before"
        assert treatment.demotions == {"s2": 2}
        return Replay("s3" in treatment.vetoes, "broken")

    found = find_culprits(SITES, "broken", judge, 4, begin)
    assert found is not None
    assert set(found.vetoes) == {"s1", "s3"}


def test_sites_left_for_now_keep_the_reasons_that_others_have() -> None:
    left = Treatment({"a": "broken"}, {"b": 1}).leaving(["a", "c"])
    assert (left.vetoes, left.demotions) == ({"a": "broken", "c": NOT_UNDER_TEST}, {"b": 1})


def test_gives_up_when_too_many_are_at_fault() -> None:
    assert find_culprits(SITES, "broken", lambda treatment: Replay(len(treatment.vetoes) > 30, "broken"), 4) is None


def test_gives_up_when_no_site_is_at_fault() -> None:
    assert find_culprits([], "broken", lambda treatment: Replay(False, "broken"), 4) is None


def test_halving_finds_the_first_of_two_and_asks_no_more_than_it_needs() -> None:
    asked: list[set[str]] = []

    def judge(treatment: Treatment) -> Replay:
        left = {site for site, reason in treatment.vetoes.items() if reason == NOT_UNDER_TEST}
        asked.append(set("abcd") - left)
        return Replay("a" in treatment.vetoes, "broken")

    found = find_culprits("abcd", "broken", judge, 1)
    assert found is not None
    assert set(found.vetoes) == {"a"}
    assert asked == [{"a", "b"}, {"a"}, {"a", "b", "c", "d"}]


def test_without_suspects_no_treatment_is_made_up() -> None:
    everything = Treatment({"a": "before"})
    assert find_culprits(["a"], "broken", lambda treatment: Replay(True, ""), 4, everything) is None
