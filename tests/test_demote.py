"""Finding a way: the sites that cost most are demoted, no more than needed, and only then is a pass given up."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.bisect import Treatment
from graphopt.demote import MAX_PROBES, Judge, Measured, Probe, find_a_way, rank

STEPS = ("form", "range", "blocks", "bits")
REAL = {0: 1.0, 1: 1.0, 2: 0.8, 3: 0.3, 4: 1e-4}
"""What is left of a site's noise at each level."""


def judge_of(noise: dict[str, float], floor_db: float, seen: list[Treatment]) -> Judge:
    def judge(treatment: Treatment) -> Measured:
        seen.append(treatment)
        left = [site for site in noise if site not in treatment.vetoes]
        total = sum(noise[site] * REAL[treatment.demotions.get(site, 0)] for site in left)
        return Measured(total <= 10 ** (-floor_db / 10), total)

    return judge


def probe_of(noise: dict[str, float]) -> Probe:
    def probe(sites: Sequence[str]) -> float:
        return sum(noise[site] for site in sites)

    return probe


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 90), st.sampled_from([10.0, 20.0, 30.0]))
def test_a_way_is_found_and_the_costly_sites_take_it(seed: int, count: int, floor_db: float) -> None:
    rng = np.random.default_rng(seed)
    noise = {f"s{i}": float(10 ** rng.uniform(-6, 0)) for i in range(count)}
    ranking = rank(list(noise), probe_of(noise), 10 ** (-floor_db / 10))
    assert set(ranking.noise) == set(noise)
    assert sum(ranking.noise.values()) == pytest.approx(sum(noise.values()))
    assert all(ranking.noise[site] == pytest.approx(noise[site]) for site in ranking.alone)
    seen: list[Treatment] = []
    judge = judge_of(noise, floor_db, seen)
    if judge(Treatment()).holds:
        return
    found = find_a_way(ranking, STEPS, floor_db, Treatment(), judge, form=False)
    assert found is not None
    assert judge(found).holds
    assert len(seen) < 24
    worst = max(noise, key=lambda site: noise[site])
    assert worst in found.demotions or worst in found.vetoes
    assert 1 not in found.demotions.values()  # another form changes nothing in a session without optimizations


def test_sites_that_cost_little_are_left_as_they_were() -> None:
    noise = {f"s{i}": 1e-7 for i in range(50)} | {"bad": 0.5}
    ranking = rank(list(noise), probe_of(noise), 0.01)
    found = find_a_way(ranking, STEPS, 20.0, Treatment(), judge_of(noise, 20.0, []), form=False)
    assert found is not None
    assert set(found.demotions) == {"bad"}
    assert not found.vetoes


def test_few_probes_are_made_however_many_sites_there_are() -> None:
    calls: list[int] = []
    noise = {f"s{i}": 1.0 / 2000 for i in range(2000)}

    def probe(sites: Sequence[str]) -> float:
        calls.append(len(sites))
        return sum(noise[site] for site in sites)

    rank(list(noise), probe, 0.01)
    assert len(calls) <= MAX_PROBES + 1


def test_behind_the_last_step_a_site_is_left_as_it_was_and_the_reason_says_so() -> None:
    noise = {"a": 1.0, "b": 1e-9}
    judge = judge_of(noise, 60.0, [])
    found = find_a_way(rank(list(noise), probe_of(noise), 1e-6), STEPS, 60.0, Treatment(), judge, form=True)
    assert found is not None
    assert found.vetoes == {"a": "left as it was: with it an output falls below 60 dB"}


def test_a_pass_without_steps_leaves_sites_as_they_were() -> None:
    noise = {"a": 1.0, "b": 1e-9}
    judge = judge_of(noise, 20.0, [])
    found = find_a_way(rank(list(noise), probe_of(noise), 0.01), (), 20.0, Treatment(), judge, form=True)
    assert found is not None
    assert set(found.vetoes) == {"a"}


def test_it_gives_up_only_when_nothing_is_left() -> None:
    judged: list[Treatment] = []

    def never(treatment: Treatment) -> Measured:
        judged.append(treatment)
        return Measured(False, math.inf)

    ranking = rank(["a", "b"], lambda sites: 0.5, 0.01)
    assert find_a_way(ranking, ("bits",), 20.0, Treatment(), never, form=True) is None
    assert set(judged[-1].vetoes) == {"a", "b"}


def test_what_was_treated_before_stays_treated() -> None:
    noise = {"a": 0.5, "b": 0.5, "c": 1e-9}
    begin = Treatment({"a": "before"}, {"b": 2})
    seen: list[Treatment] = []
    found = find_a_way(
        rank(list(noise), probe_of(noise), 0.01), STEPS, 20.0, begin, judge_of(noise, 20.0, seen), form=False
    )
    assert found is not None
    assert found.vetoes["a"] == "before"
    assert found.demotions["b"] > 2
    assert "a" not in found.demotions


@pytest.mark.parametrize("form", [True, False])
def test_steps_are_taken_from_the_first_on(form: bool) -> None:
    """A first step that is no other form is taken in any session."""
    ranking = rank(["a"], lambda sites: 0.01, 0.01)
    found = find_a_way(ranking, ("bits", "bits"), 20.0, Treatment(), lambda treatment: Measured(True, 0.0), form=form)
    assert found == Treatment({}, {"a": 1})


def test_four_fifths_of_the_noise_that_the_floor_allows_are_aimed_at() -> None:
    noise = {"a": 0.009, "b": 0.0085, "c": 1e-9}
    ranking = rank(list(noise), probe_of(noise), 0.01)
    both = find_a_way(ranking, ("bits",), 20.0, Treatment(), lambda treatment: Measured(True, 0.0), form=True)
    assert both == Treatment({}, {"a": 1, "b": 1})
    noise["b"] = 0.0075
    ranking = rank(list(noise), probe_of(noise), 0.01)
    one = find_a_way(ranking, ("bits",), 20.0, Treatment(), lambda treatment: Measured(True, 0.0), form=True)
    assert one == Treatment({}, {"a": 1})


@pytest.mark.parametrize(("share", "more"), [(0.35, False), (0.45, True)])
def test_groups_that_make_less_than_two_fifths_of_the_noise_are_not_looked_into(share: float, more: bool) -> None:
    noise = {f"s{i}": share * 0.01 / 64 for i in range(64)}
    ranking = rank(list(noise), probe_of(noise), 0.01)
    calls: list[int] = []

    def probe(sites: Sequence[str]) -> float:
        calls.append(len(sites))
        return sum(noise[site] for site in sites)

    rank(list(noise), probe, 0.01)
    assert calls[:16] == [4] * 16
    assert (len(calls) > 16) is more
    assert sum(ranking.noise.values()) == pytest.approx(share * 0.01)


@pytest.mark.parametrize(("form", "levels"), [(True, [1, 2]), (False, [2])])
def test_another_form_is_passed_over_where_it_changes_nothing(form: bool, levels: list[int]) -> None:
    seen: list[int] = []

    def judge(treatment: Treatment) -> Measured:
        seen.append(treatment.demotions["a"])
        return Measured(treatment.demotions["a"] == 2, 0.001)

    ranking = rank(["a"], lambda sites: 0.001, 0.01)
    found = find_a_way(ranking, ("form", "bits", "bits"), 20.0, Treatment(), judge, form=form)
    assert found == Treatment({}, {"a": 2})
    assert seen == levels


def test_where_noise_is_more_than_was_expected_more_sites_are_demoted_at_once() -> None:
    seen: list[int] = []

    def judge(treatment: Treatment) -> Measured:
        seen.append(len(treatment.demotions))
        return Measured(len(seen) > 1, 4 * (0.0012 * (10 - seen[-1]) + 0.000012 * seen[-1]))

    ranking = rank([f"s{i}" for i in range(10)], lambda sites: 0.0012 * len(sites), 0.01)
    assert find_a_way(ranking, ("bits",), 20.0, Treatment(), judge, form=True) is not None
    assert seen == [4, 9]
