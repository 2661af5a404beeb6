"""GPTQ against the update it is derived from, written out with explicit inverses, and against every choice there is."""

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graphopt.numerics.gptq import gptq
from graphopt.numerics.grouping import Grouping
from graphopt.numerics.quantization import TYPES, Affine, dequantize, quantize

Floats = NDArray[np.float64]


def optimal_brain_quantization(
    weight: Floats, gram: Floats, scale: Floats, low: int, high: int, damping: float = 0.01
) -> NDArray[np.int64]:
    """Frantar et al. 2022 (arXiv 2208.11580), equations 2 and 4, one column after another in the order of GPTQ.

    The inverse is brought down by each column that is done; GPTQ's Cholesky factor is a faster form of this.
    """
    order = np.argsort(-np.diag(gram), kind="stable")
    levels = np.zeros(weight.shape, np.int64)
    inverse = np.linalg.inv(gram + damping * np.diag(gram).mean() * np.eye(len(gram)))
    left = weight.copy()
    for column in order:
        step = scale[:, column]
        levels[:, column] = np.clip(np.rint(left[:, column] / step), low, high)
        error = left[:, column] - levels[:, column] * step
        left -= np.outer(error / inverse[column, column], inverse[column])
        inverse = inverse - np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
        inverse[column] = inverse[:, column] = 0.0
        inverse[column, column] = 1.0
    return levels


def rows(count: int, inputs: int, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal((count, inputs)) @ rng.standard_normal((inputs, inputs)), 0.0)


@pytest.mark.parametrize("grouping", [Grouping(0), Grouping(1, 8)], ids=["channels", "blocks"])
@pytest.mark.parametrize("inputs", [16, 40, 160])
def test_it_is_optimal_brain_quantization_in_a_fixed_order(inputs: int, grouping: Grouping) -> None:
    """160 columns go beyond one block of lazy updates; blocks of scales are static, whatever the order of columns."""
    weight = np.random.default_rng(1).standard_normal((7, inputs))
    seen = rows(500, inputs)
    affine = Affine(TYPES["int4"])
    scale = quantize(weight, affine, grouping).scale
    scale = scale[:, None] if grouping.block is None else np.repeat(scale, 8, axis=1)
    levels, real = gptq(weight, seen.T @ seen, affine, scale, np.zeros((1, 1)))
    full = np.broadcast_to(scale, weight.shape).astype(np.float64)
    wanted = optimal_brain_quantization(weight, seen.T @ seen, full, -8, 7)
    np.testing.assert_array_equal(levels.astype(np.int64), wanted)
    np.testing.assert_array_equal(real, wanted * full)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_the_size_of_what_is_seen_does_not_matter(factor: float) -> None:
    weight, seen = np.random.default_rng(1).standard_normal((5, 24)), rows(100, 24)
    affine = Affine(TYPES["int4"])
    scale = quantize(weight, affine, Grouping(0)).scale[:, None]
    once, _ = gptq(weight, seen.T @ seen, affine, scale, np.zeros((1, 1)))
    again, _ = gptq(weight, seen.T @ seen * factor, affine, scale, np.zeros((1, 1)))
    np.testing.assert_array_equal(once, again)


def test_without_anything_seen_it_rounds_to_nearest() -> None:
    weight = np.random.default_rng(1).standard_normal((5, 24))
    affine = Affine(TYPES["int4"])
    nearest = quantize(weight, affine, Grouping(0))
    levels, _ = gptq(weight, np.zeros((24, 24)), affine, nearest.scale[:, None], np.zeros((1, 1)))
    np.testing.assert_array_equal(levels, nearest.levels)


def test_between_the_best_of_all_choices_and_rounding_to_nearest() -> None:
    """All 4^6 choices of six weights of 2 bits, forty times: GPTQ gets most of what there is to gain."""
    affine = Affine(TYPES["int2"], symmetric=False)
    every = np.array(list(itertools.product(range(-2, 2), repeat=6)), np.float64)
    lost: dict[str, float] = dict.fromkeys(("nearest", "gptq", "best"), 0.0)
    for seed in range(40):
        weight, seen = np.random.default_rng(seed).standard_normal((1, 6)), rows(50, 6, seed)
        gram = seen.T @ seen
        nearest = quantize(weight, affine, Grouping(0))
        assert nearest.zero_point is not None
        scale, zero = nearest.scale[:, None], nearest.zero_point.astype(np.float64)[:, None]

        def loss(real: NDArray[Any], weight: Floats = weight, gram: Floats = gram) -> NDArray[Any]:
            found: NDArray[Any] = np.einsum("mk,kl,ml->m", real - weight, gram, real - weight)
            return found

        lost["nearest"] += float(loss(dequantize(nearest))[0])
        lost["gptq"] += float(loss(gptq(weight, gram, affine, scale, zero)[1])[0])
        lost["best"] += float(loss((every - zero) * scale.astype(np.float64)).min())
    assert lost["best"] <= lost["gptq"] <= lost["nearest"]
    assert lost["gptq"] - lost["best"] < 0.35 * (lost["nearest"] - lost["best"])
