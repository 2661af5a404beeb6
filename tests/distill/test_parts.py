"""Schedules, augmentation, losses and penalties, each against its formula."""

import numpy as np
import onnx
import pytest

from graphopt.distill.augmentation import Augmentation
from graphopt.distill.losses import cross_entropy_values, divergence_values
from graphopt.distill.parameters import find_parameters
from graphopt.distill.regularization import Slice, shrink_groups, soft_threshold
from graphopt.distill.schedules import SCHEDULES, learning_rate
from graphopt.testing import model


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("cosine", [2.0, 1.7071067811865475, 1.0, 0.2928932188134524, 0.0]),
        ("exponential", [2.0, 0.6324555320336759, 0.2, 0.06324555320336758, 0.02]),
        ("step", [2.0, 2.0, 0.2, 0.02, 0.02]),
    ],
)
def test_schedules(schedule: str, wanted: list[float]) -> None:
    found = [learning_rate(schedule, 2.0, step, 100) for step in (0, 25, 50, 75, 100)]  # type: ignore[arg-type]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_rises_to_the_peak(schedule: str) -> None:
    rates = [learning_rate(schedule, 1.0, step, 100, warmup=4) for step in range(6)]  # type: ignore[arg-type]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-12)
    assert rates[5] <= 1.0


@pytest.mark.parametrize(
    ("kind", "levels", "limits"),
    [
        ("int4", [-4, 3], (-4, 3)),
        ("int4", [-3, 4], (-8, 7)),
        ("int4", [-5, 3], (-8, 7)),
        ("uint4", [0, 7], (0, 7)),
        ("uint4", [1, 8], (0, 15)),
        ("int8", [-4, 3], (-128, 127)),
    ],
)
def test_three_bits_held_in_four_stay_three(kind: str, levels: list[int], limits: tuple[int, int]) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(kind.upper()))
    proto = model(
        "g (float[N,2] x) => (float[N,2] y) { w = DequantizeLinear(q, s, z) y = MatMul(x, w) }",
        opset=21,
        ir_version=10,
        q=np.array([levels, levels[::-1]]).astype(dtype),
        s=np.array(0.5, np.float32),
        z=np.array(0).astype(dtype),
    )
    grid = find_parameters(proto)[0].grid
    assert grid is not None
    assert (grid.low, grid.high) == limits
    found = grid.levels(np.array([[99.0, -99.0]] * 2, np.float32)).astype(int)
    assert (found == [limits[::-1]] * 2).all()


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("g (float[3,1,2] x) => (float[A,B,C,D] y) { y = LSTM<hidden_size = 2>(x, w, r) }", (1, 8, 2)),
        ("g (float[1,4,3,3] x) => (float[A,B,C,D] y) { y = ConvTranspose<group = 2>(x, w) }", (4, 3, 2, 2)),
    ],
    ids=["LSTM", "ConvTranspose with groups"],
)
def test_zeros_of_a_weight_without_a_channel_axis_stay(text: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    values[..., 0] = 0
    weights = {"w": values, "r": np.ones((1, 8, 2), np.float32)} if "LSTM" in text else {"w": values}
    parameter = next(each for each in find_parameters(model(text, **weights)) if each.name == "w")
    assert parameter.is_weight
    np.testing.assert_array_equal(parameter.frozen, values == 0)


def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((32, 2, 7, 6)).astype(np.float32)


def test_flip_mirrors_whole_images() -> None:
    given = images()
    changed = Augmentation(flip=True).apply(given, np.random.default_rng(1))
    kept = np.array([np.array_equal(new, old) for new, old in zip(changed, given, strict=True)])
    turned = np.array([np.array_equal(new, old[..., ::-1]) for new, old in zip(changed, given, strict=True)])
    assert (kept ^ turned).all()
    assert 5 < turned.sum() < 27


def test_shift_moves_by_whole_pixels_and_repeats_the_border() -> None:
    given = np.broadcast_to(np.arange(10, dtype=np.float32), (16, 1, 10, 10))
    changed = Augmentation(shift=0.2).apply(given, np.random.default_rng(1))
    moves = {tuple(np.clip(np.arange(10) + move, 0, 9)) for move in (-2, -1, 0, 1, 2)}
    assert {tuple(row) for image in changed for row in image[0]} <= moves
    assert len({tuple(image[0, 0]) for image in changed}) > 2


def test_rotation_by_a_quarter() -> None:
    given = images()[:, :, :6, :6]
    turned = Augmentation(rotate=90.0).apply(given, _Most())  # type: ignore[arg-type]
    np.testing.assert_allclose(turned, np.rot90(given, 1, axes=(2, 3)), atol=1e-5)


class _Most(np.random.Generator):
    """Draws the largest angle and nothing else."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def uniform(self, low: float = 0.0, high: float = 1.0, size: object = None) -> np.ndarray:  # type: ignore[override]
        return np.full(size, high if high > 1 else 0.0 if low < 0 else 1.0)  # type: ignore[arg-type]


def test_crop_stays_within_the_range() -> None:
    given = images()
    changed = Augmentation(crop=0.5).apply(given, np.random.default_rng(1))
    assert changed.dtype == np.float32
    assert changed.shape == given.shape
    assert changed.max() <= given.max()
    assert changed.min() >= given.min()
    assert not np.array_equal(changed, given)


def test_mixing_blends_images_of_the_batch() -> None:
    given = np.stack([np.full((1, 3, 3), value, np.float32) for value in (0.0, 1.0, 2.0, 3.0)])
    changed = Augmentation(mix=1.0).apply(given, np.random.default_rng(4))
    assert (np.ptp(changed, axis=(1, 2, 3)) == 0).all()
    assert changed.min() >= 0
    assert changed.max() <= 3
    assert not np.array_equal(changed, given)


def test_pasting_puts_one_window_of_another_image_in() -> None:
    given = np.stack([np.full((2, 12, 9), value, np.float32) for value in range(64)])
    changed = Augmentation(paste=0.75).apply(given, np.random.default_rng(4))
    shares = []
    for new, old in zip(changed, given, strict=True):
        foreign = new[0] != old[0]
        np.testing.assert_array_equal(new[1] != old[1], foreign)
        np.testing.assert_array_equal(np.outer(foreign.any(axis=1), foreign.any(axis=0)), foreign)
        assert len(np.unique(new[0][foreign])) <= 1
        rows, columns = (np.flatnonzero(foreign.any(axis=axis)) for axis in (1, 0))
        assert all((np.diff(places) == 1).all() for places in (rows, columns))
        shares.append(foreign.mean())
    assert 32 < sum(share > 0 for share in shares) < 62
    assert max(shares) > 0.7
    assert changed.dtype == np.float32


def test_nothing_chosen_changes_nothing() -> None:
    given = images()
    assert Augmentation().apply(given, np.random.default_rng(0)) is given


def test_divergence_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.standard_normal((2, 5, 7))
    p, q = (np.exp(z / 3) / np.exp(z / 3).sum(axis=1, keepdims=True) for z in (teacher, student))
    wanted = (p * np.log(p / q)).sum(axis=1).mean() * 9
    assert divergence_values(student, teacher, 3.0) == pytest.approx(wanted, rel=1e-12)
    assert divergence_values(teacher, teacher, 3.0) == 0.0


def test_cross_entropy_by_its_definition() -> None:
    scores, labels = np.random.default_rng(1).standard_normal((5, 4)), np.array([0, 3, 1, 1, 2])
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    wanted = -np.log(chances[np.arange(5), labels]).mean()
    assert cross_entropy_values(scores, labels) == pytest.approx(wanted, rel=1e-12)


def test_soft_threshold() -> None:
    values = np.array([-2.0, -0.5, 0.0, 0.5, 2.0], np.float32)
    soft_threshold(values, 1.0)
    np.testing.assert_array_equal(values, [-1.0, 0.0, 0.0, 0.0, 1.0])


def test_groups_shrink_together_and_vanish_together() -> None:
    views = {"w": np.array([[3.0, 0.0], [0.1, 0.1]], np.float32), "b": np.array([4.0, 0.1], np.float32)}
    groups = [[Slice("w", (row,)), Slice("b", (row,))] for row in (0, 1)]
    assert shrink_groups(views, groups, 0.5) == 1
    factor = 1 - 0.5 * np.sqrt(3) / 5
    np.testing.assert_allclose(views["w"][0], [3 * factor, 0], rtol=1e-6)
    assert views["b"][0] == pytest.approx(4 * factor, rel=1e-6)
    assert not views["w"][1].any()
    assert views["b"][1] == 0
