"""Reconstruction arithmetic against direct least squares on all rows at once."""

import numpy as np
import pytest
from numpy.typing import NDArray

from graphopt.numerics import reconstruction
from graphopt.numerics.reconstruction import Moments, corrected_bias, ridge

Array = NDArray[np.float64]


def drawn(groups: int, rows: int, inputs: int, outputs: int, seed: int = 0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(groups, rows, inputs)) @ rng.normal(size=(groups, inputs, inputs)) + 3.0
    return mixed, rng.normal(size=(groups, rows, outputs)) - 2.0, rng.normal(size=(groups, outputs, inputs))


def gathered(a: Array, y: Array, pieces: int = 1) -> Moments:
    moments = Moments(a.shape[0], a.shape[2], y.shape[2])
    for part in np.array_split(np.arange(a.shape[1]), pieces):
        moments.add(a[:, part], y[:, part])
    return moments


def direct(a: Array, y: Array, start: Array, damping: float, free: NDArray[np.bool_]) -> tuple[Array, Array]:
    """One output at a time: least squares on stacked rows, the damping as extra rows, an unpenalized intercept."""
    centred = a - a.mean(axis=0)
    held = np.sqrt(damping * np.square(centred).sum() / a.shape[1])
    weight = start.copy()
    for m in range(len(start)):
        columns = np.flatnonzero(free[m])
        if columns.size:
            left = np.vstack([centred[:, columns], held * np.eye(columns.size)])
            right = np.concatenate([(y[:, m] - y[:, m].mean()) - centred @ start[m], np.zeros(columns.size)])
            weight[m, columns] += np.linalg.lstsq(left, right, rcond=None)[0]
    return weight, y.mean(axis=0) - weight @ a.mean(axis=0)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pieces", [1, 7])
def test_ridge_is_the_least_squares_of_all_rows(groups: int, pieces: int) -> None:
    a, y, start = drawn(groups, 200, 9, 4)
    layer = ridge(gathered(a, y, pieces), start, damping=1e-2)
    for g in range(groups):
        weight, bias = direct(a[g], y[g], start[g], 1e-2, np.ones(start[g].shape, bool))
        np.testing.assert_allclose(layer.weight[g], weight, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(layer.bias[g], bias, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("way", ["one pattern at a time", "conjugate gradients"])
def test_zeros_stay_zero_and_the_rest_is_optimal(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "MANY_PATTERNS", 99 if way == "one pattern at a time" else 0)
    a, y, start = drawn(2, 300, 12, 20, seed=1)
    free = np.random.default_rng(2).random(start.shape) > 0.4
    free[0, 3] = False
    start = np.where(free, start, 0.0)
    layer = ridge(gathered(a, y), start, 1e-3, free)
    assert not layer.weight[~free].any()
    for g in range(2):
        weight, _ = direct(a[g], y[g], start[g], 1e-3, free[g])
        np.testing.assert_allclose(layer.weight[g], weight, rtol=1e-6, atol=1e-8)


def test_large_layers_get_fewer_steps_and_each_is_an_improvement(monkeypatch: pytest.MonkeyPatch) -> None:
    a, y, start = drawn(1, 300, 40, 30, seed=1)
    a = a * np.geomspace(1, 1e3, 40)
    free = np.random.default_rng(2).random(start.shape) > 0.4
    start = np.where(free, start, 0.0)
    moments = gathered(a, y)
    monkeypatch.setattr(reconstruction, "FEWEST_STEPS", 1)
    errors = []
    for steps in (0, 1, 2, 4, 8, 16):
        monkeypatch.setattr(reconstruction, "MOST_WORK", steps * start.size * 40)
        layer = ridge(moments, start, 1e-9, free)
        errors.append(float(moments.error(layer.weight, layer.bias).sum()))
    assert errors[0] == errors[1], "one step at least"
    assert sorted(errors, reverse=True) == errors
    assert len(set(errors[1:])) == 5
    assert errors[0] < float(moments.error(start, reconstruction.corrected_bias(moments, start)).sum())


def test_a_layer_that_can_be_matched_is_matched() -> None:
    a, _, start = drawn(1, 500, 8, 5)
    truth, shift = start + 0.5, np.arange(5.0)
    layer = ridge(gathered(a, a @ truth.transpose(0, 2, 1) + shift), start, damping=1e-9)
    np.testing.assert_allclose(layer.weight, truth, atol=1e-5)
    np.testing.assert_allclose(layer.bias[0], shift, atol=1e-4)


def test_heavy_damping_keeps_the_weight() -> None:
    a, y, start = drawn(1, 100, 6, 2)
    np.testing.assert_allclose(ridge(gathered(a, y), start, damping=1e12).weight, start, atol=1e-9)


def test_inputs_that_are_always_zero_keep_their_weights() -> None:
    a, y, start = drawn(1, 100, 6, 2)
    a[:, :, 2] = 0.0
    np.testing.assert_array_equal(ridge(gathered(a, y), start).weight[..., 2], start[..., 2])
    silent = ridge(gathered(np.zeros_like(a), y), start)
    np.testing.assert_array_equal(silent.weight, start)
    np.testing.assert_allclose(silent.bias, y.mean(axis=1), rtol=1e-12)


def test_fewer_rows_than_inputs() -> None:
    a, y, start = drawn(1, 5, 40, 3)
    layer = ridge(gathered(a, y), start, damping=1e-3)
    weight, _ = direct(a[0], y[0], start[0], 1e-3, np.ones(start[0].shape, bool))
    np.testing.assert_allclose(layer.weight[0], weight, rtol=1e-6, atol=1e-8)


def test_bias_gives_the_right_mean() -> None:
    a, y, start = drawn(3, 64, 5, 4)
    bias = corrected_bias(gathered(a, y, 4), start)
    answered = a @ start.transpose(0, 2, 1) + bias[:, None, :]
    np.testing.assert_allclose(answered.mean(axis=1), y.mean(axis=1), rtol=1e-12)


def test_error_is_the_mean_squared_error() -> None:
    a, y, start = drawn(2, 128, 7, 3)
    bias = np.random.default_rng(5).normal(size=(2, 3))
    told = gathered(a, y, 3).error(start, bias)
    measured = np.square(a @ start.transpose(0, 2, 1) + bias[:, None, :] - y).mean(axis=1)
    np.testing.assert_allclose(told, measured, rtol=1e-11)


def test_memory_does_not_grow_with_rows() -> None:
    few, many = (gathered(*drawn(1, rows, 4, 2)[:2]) for rows in (10, 10_000))
    assert {k: np.size(v) for k, v in vars(few).items()} == {k: np.size(v) for k, v in vars(many).items()}
