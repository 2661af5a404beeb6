"""Batches are as large as leaves activations within bounds, and a power of two."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graphopt.model import Model, from_proto
from graphopt.proof import batching
from graphopt.proof.batching import first_run
from graphopt.runtime.data import ArrayData, Data, ListData
from graphopt.runtime.feeds import from_arrays
from graphopt.runtime.session import Session
from graphopt.testing import draw, model

X = draw(200, 8)
READ_AND_WRITTEN = (8 + 32) * 4
"""Bytes of the activations of the only node, for one sample."""


def net(batch: str = "N") -> Model:
    return from_proto(model(f"g (float[{batch},8] x) => (float[{batch},32] y) {{ y = MatMul(x, w) }}", w=draw(8, 32)))


def batch_of(data: Data) -> int:
    assert isinstance(data, ArrayData)
    return data.batch


def samples(given: int) -> ArrayData:
    data = from_arrays({"x": X}, net())
    assert isinstance(data, ArrayData)
    assert (data.batch, data.fixed) == (128, False)
    return replace(data, batch=given)


def test_about_64_mb_of_activations_are_alive() -> None:
    assert batching.ACTIVATION_BYTES == 1 << 26


@pytest.mark.parametrize(
    ("room", "given", "taken"),
    [
        (2 * READ_AND_WRITTEN * 16, 128, 16),
        (2 * READ_AND_WRITTEN * 16 - 1, 128, 8),
        (2 * READ_AND_WRITTEN * 31, 128, 16),
        (2 * READ_AND_WRITTEN, 128, 1),
        (1, 128, 1),
        (1 << 30, 128, 128),
        (1 << 30, 100, 64),
        (1 << 30, 3, 2),
        (1 << 30, 2, 2),
    ],
)
def test_a_batch_is_the_power_of_two_that_fits(
    room: int, given: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "ACTIVATION_BYTES", room)
    data, feeds, outputs = first_run(Session, net(), samples(given))
    assert batch_of(data) == taken
    np.testing.assert_array_equal(feeds["x"], X[:1])
    assert outputs["y"].shape == (1, 32)


def test_the_largest_node_counts_and_not_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[N,8] x) => (float[N,8] y) { a = Relu(x) b = MatMul(a, w) y = MatMul(b, v) }"
    deep = from_proto(model(text, w=draw(8, 32), v=draw(32, 8)))
    monkeypatch.setattr(batching, "ACTIVATION_BYTES", 2 * READ_AND_WRITTEN * 4)
    assert batch_of(first_run(Session, deep, samples(128))[0]) == 4


def watched() -> tuple[list[Any], Callable[..., Session]]:
    """An opener and what it was asked for."""
    seen: list[Any] = []

    def opener(each: Model, **options: Any) -> Session:
        seen.append(options)
        return Session(each, **options)

    return seen, opener


@pytest.mark.parametrize(("batch", "size"), [("4", 4), ("1", 1)])
def test_a_fixed_batch_stays(batch: str, size: int) -> None:
    seen, opener = watched()
    given = from_arrays({"x": X[:6]}, net(batch))
    data, feeds, outputs = first_run(opener, net(batch), given)
    assert data is given
    assert feeds["x"].shape == (size, 8)
    assert outputs["y"].shape == (size, 32)
    assert seen == [{}]


def test_a_batch_of_one_and_feeds_of_a_folder_stay() -> None:
    for given in (samples(1), ListData([{"x": X[:3]}, {"x": X[:2]}])):
        seen, opener = watched()
        data, feeds, outputs = first_run(opener, net(), given)
        assert data is given
        np.testing.assert_array_equal(feeds["x"], X[: len(feeds["x"])])
        assert len(outputs["y"]) == len(feeds["x"]) == (1 if given.at_once == 1 and isinstance(given, ArrayData) else 3)
        assert seen == [{}]


def test_where_batches_are_free_one_sample_is_run_and_profiled() -> None:
    seen, opener = watched()
    first_run(opener, net(), samples(128))
    ((options),) = seen
    assert list(options) == ["profile"]
    assert not options["profile"].parent.exists()  # the profile is removed
