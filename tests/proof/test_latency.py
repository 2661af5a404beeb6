"""What a measurement of time says besides times: its noise, its samples, and where a result takes longer."""

from typing import Any

import numpy as np
import pytest

from graphopt.model import Model, from_proto
from graphopt.proof import latency as latencies
from graphopt.proof import timing
from graphopt.proof.latency import SITES, _sites, latency
from graphopt.proof.timing import timed_feeds
from graphopt.runtime.data import ListData
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.runtime.session import Session
from graphopt.testing import draw, model


def linear(batch: str = "N", factor: float = 1.0) -> Model:
    weight = draw(6, 4) * np.float32(factor)
    return from_proto(model(f"g (float[{batch},6] x) => (float[{batch},4] y) {{ y = MatMul(x, w) }}", w=weight))


def test_the_figures_that_the_documentation_quotes() -> None:
    assert (latencies.NOISE, latencies.NOISE_ALONE, latencies.NOISE_MS, SITES) == (0.05, 0.1, 0.003, 5)
    assert (latencies.PROFILED, latencies.PAIRED) == (1 << 28, 1 << 25)


def opened(seen: list[dict[str, Any]]) -> Any:
    def opener(each: Model, **options: Any) -> Session:
        seen.append(options)
        return Session(each, **options)

    return opener


@pytest.mark.parametrize(("batch", "samples"), [("N", 1), ("3", 3), ("1", 1)])
def test_one_sample_is_run_where_the_batch_is_free_on_one_thread(batch: str, samples: int) -> None:
    subject, seen = linear(batch), list[dict[str, Any]]()
    found = latency(subject, linear(batch, 2.0), from_arrays({"x": draw(7, 6)}, subject), opened(seen))
    assert found.samples == samples
    assert len(seen) in (2, 4, 6)
    assert all(each == {"optimize": True, "threads": 1} for each in seen)
    assert found.noise >= 0.05 + 0.003 / found.before
    assert found.after > 0


@pytest.mark.parametrize("told", [None, 2.5])
@pytest.mark.parametrize("paired", [0, 1 << 25])
def test_a_result_that_is_the_source_takes_as_long(
    told: float | None, paired: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latencies, "PAIRED", paired)
    seen = list[dict[str, Any]]()
    found = latency(linear(), linear(), generate(linear()), opened(seen), known=lambda model: told)
    assert found.before == found.after == (told or found.before) > 0
    assert found.noise == pytest.approx(0.003 / found.before)
    assert found.same
    assert not found.slower
    assert found.ratio == 1
    assert len(seen) == (told is None)


@pytest.mark.parametrize(
    ("times", "share"),
    [
        ([], 0.0),
        ([3.0], 0.0),
        ([3.0, 3.0], 0.0),
        ([3.0, 2.0], 0.5),
        ([2.0, 3.0], 0.5),
        ([4.0, 9.0, 2.0, 2.5], 0.25),
        ([9.0, 2.0, 3.0], 0.5),
    ],
)
def test_what_sets_two_halves_of_the_same_runs_apart_is_the_machine(times: list[float], share: float) -> None:
    assert timing.unrest(times) == pytest.approx(share)


@pytest.mark.parametrize(
    ("told", "kept", "noise"),
    [
        ([([4.0, 4.0], [3.0, 3.0])], (4.0, 3.0), 0.05),
        ([([4.0, 4.4], [4.3, 4.3])], (4.0, 4.3), 0.1),
        ([([4.0, 4.0], [4.3, 5.16])], (4.0, 4.3), 0.2),
        ([([4.0, 4.0], [5.0, 5.0]), ([4.0, 4.0], [4.1, 4.1])], (4.0, 4.1), 0.05),
        ([([4.0, 4.0], [5.0, 5.0]), ([3.0, 3.0], [5.0, 5.0]), ([2.0, 2.0], [3.0, 3.0])], (2.0, 3.0), 0.05),
    ],
)
def test_in_turn_a_model_is_slower_beyond_the_noise_that_was_measured_and_in_three_pairs(
    told: list[tuple[list[float], list[float]]],
    kept: tuple[float, float],
    noise: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent = iter(told)
    monkeypatch.setattr(latencies, "run_times", lambda sessions, feeds: next(spent))
    found = latency(linear(), linear(factor=2.0), generate(linear()))
    assert (found.before, found.after) == kept
    assert found.noise == pytest.approx(noise + 0.003 / kept[0])
    assert not found.same
    assert found.slower is (len(told) == 3)
    assert next(spent, None) is None


def test_of_ready_feeds_those_with_the_fewest_samples_are_run() -> None:
    feeds = [{"x": draw(n, 6)} for n in (4, 2, 3)]
    for generated, samples, index in ((True, 2, 1), (False, 1, 0)):
        chosen, count = timed_feeds(ListData(feeds, generated))
        assert chosen is feeds[index]
        assert count == samples


@pytest.mark.parametrize(("earlier", "runs"), [(None, 4), ([], 3), ([1e9], 2), ([1e-9, 1e9], 1)])
def test_the_first_run_does_not_count_and_earlier_ones_do(
    earlier: list[float] | None, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted(Session):
        runs = 0

        def run(self, feeds: Any) -> dict[str, Any]:
            self.runs += 1
            return super().run(feeds)

    monkeypatch.setattr(timing, "ROUNDS", 3)
    session = Counted(linear(), optimize=True, threads=1)
    least = min(timing.run_times([session], {"x": draw(2, 6)}, earlier=earlier)[0])
    assert session.runs == runs
    assert least == 1e-9 if runs == 1 else 1e-9 < least < 1e9


def test_what_is_fast_enough_is_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([5.0, 4.0, 3.0, 2.0, 1.0])
    monkeypatch.setattr(timing, "timed_run", lambda session, feeds: ({}, next(spent)))
    session = Session(linear(), optimize=True, threads=1)
    assert timing.run_times([session], {}, earlier=[], seconds=60, enough=2.0) == [[5.0, 4.0, 3.0, 2.0]]
    assert next(spent) == 1.0


def test_two_runs_are_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = iter([5.0, 4.0, 3.0])
    monkeypatch.setattr(timing, "timed_run", lambda session, feeds: ({}, next(spent)))
    session = Session(linear(), optimize=True, threads=1)
    assert timing.run_times([session], {}, earlier=[], enough=9.0) == [[5.0, 4.0]]
    assert timing.run_times([session], {}, earlier=[2.5], enough=9.0) == [[2.5, 3.0]]


@pytest.mark.parametrize(("told", "opened_again"), [((1e6, 1e7), True), ((1e7, 1e6), False), ((1e6, 1.05e6), False)])
def test_large_models_are_measured_again_before_one_is_called_slower(
    told: tuple[float, float], opened_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = linear(), linear(factor=2.0)
    monkeypatch.setattr(latencies, "PAIRED", 0)
    seen: list[dict[str, Any]] = []
    times = {id(before): told[0], id(after): told[1]}
    found = latency(before, after, generate(before), opened(seen), known=lambda each: times[id(each)])
    assert len(seen) in ((2, 4) if opened_again else (0,))
    assert ((found.before, found.after) == told) is not opened_again
    assert found.before <= told[0]
    assert found.after <= told[1]


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ((10.0, 10.9, 2.0, 2.4), (10.0, 10.9)),
        ((10.0, 12.0, 3.0, 3.1), (3.0, 3.1)),
        ((10.0, 12.0, 3.0, 3.6, 4.0, 4.1), (4.0, 4.1)),
        ((10.0, 12.0, 3.0, 3.6, 4.0, 4.9, 5.0, 5.0), (4.0, 4.9)),
    ],
)
def test_a_large_model_is_slower_if_it_is_in_three_pairs(
    told: tuple[float, ...], kept: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = linear(), linear(factor=2.0)
    monkeypatch.setattr(latencies, "PAIRED", 0)
    spent, asked = iter(told), list[float]()

    def scripted(sessions: Any, feeds: Any, **options: Any) -> list[list[float]]:
        asked.append(options.get("enough", 0.0))
        return [[next(spent)]]

    monkeypatch.setattr(latencies, "run_times", scripted)
    found = latency(before, after, generate(before))
    assert (found.before, found.after) == kept
    assert asked[3::2] == pytest.approx([1.1 * each for each in told[2 : len(asked) : 2]], rel=1e-9, abs=0)


@pytest.mark.parametrize(("bytes_more", "alone"), [(0, False), (-1, True)])
def test_large_models_are_run_one_behind_the_other(
    bytes_more: int, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, small = linear(), from_proto(model("g (float[N,6] x) => (float[N,6] y) { y = Relu(x) }"))
    monkeypatch.setattr(latencies, "PAIRED", 6 * 4 * 4 + bytes_more)
    for before, after in ((subject, small), (small, subject)):
        asked: list[Model] = []

        def known(each: Model, asked: list[Model] = asked) -> float | None:
            asked.append(each)
            return 2.0 if len(asked) == 1 else None

        found = latency(before, after, generate(subject), known=known)
        assert found.noise >= (0.1 if alone else 0.05) + 0.003 / found.before - 1e-12
        assert (found.before == 2.0) is alone
        assert [id(each) for each in asked] == ([id(before), id(after)] if alone else [])


def test_sites_are_those_of_operators_that_take_longer_in_all() -> None:
    old = {("a", "Conv"): 5.0, ("b", "Conv"): 1.0, ("c", "Relu"): 1.0}
    new = {("a", "Conv"): 1.0, ("b", "Conv"): 4.9, ("c", "Relu"): 1.5, ("d", "Relu"): 2.5, ("", "Relu"): 9.0}
    assert _sites(old, new) == (("d", "Relu", 2.5), ("c", "Relu", 1.5))
    assert _sites(new, new) == ()
    many = {(f"s{i}", "Mul"): float(i + 1) for i in range(9)}
    assert [site for site, _, _ in _sites({}, many)] == ["s8", "s7", "s6", "s5", "s4"]


def test_a_much_slower_result_names_its_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, deep = draw(6, 1000), draw(1000, 1000)
    text = "g (float[N,6] x) => (float[N,1000] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    large = from_proto(model(text, w=wide, v=deep))
    found = latency(linear(), large, generate(linear()))
    assert found.slower
    assert found.sites[0][:2] == ("y", "MatMul")
    monkeypatch.setattr(latencies, "PROFILED", wide.nbytes + deep.nbytes - 1)
    assert latency(linear(), large, generate(linear())).sites == ()
    assert np.isfinite(found.ratio)
