"""Steps against their formulas, and against each other where weights are correlated."""

import numpy as np
import pytest
from numpy.typing import NDArray

from graphopt.distill import optimizer
from graphopt.distill.optimizer import METHODS, Method, Optimizer
from graphopt.distill.parameters import Parameter


def parameter(shape: tuple[int, ...], is_weight: bool = True) -> Parameter:
    return Parameter("w", np.zeros(shape, np.float32), np.zeros(shape, bool), is_weight)


def gradients(count: int, size: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((count, size)).astype(np.float32)


def test_adam_by_its_formula() -> None:
    adam = Optimizer("adam", [parameter((2, 3)), parameter((4,), False)])
    moments, first, second = adam.start(), np.zeros(10), np.zeros(10)
    assert moments.curvature.size == 0
    for step, gradient in enumerate(gradients(7, 10), 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * np.square(gradient.astype(np.float64))
        wanted = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(adam.direction(moments, gradient, step), wanted, rtol=2e-4)


def test_soap_by_its_formula() -> None:
    soap = Optimizer("soap", [parameter((4,), False), parameter((4, 2, 2))])
    moments = soap.start()
    m, v = np.zeros((4, 4)), np.zeros((4, 4))
    for step, gradient in enumerate(gradients(optimizer.PERIOD + 3, 20), 1):
        g = gradient[4:].reshape(4, 4).astype(np.float64)
        found = soap.direction(moments, gradient, step)
        # Noughts in a covariance leave the choice of a basis open: the engine's is taken, and tested below.
        q, p = (side.basis(moments.curvature).astype(np.float64) for side, _ in soap._matrices[0].sides())
        m, turned = 0.9 * m + 0.1 * g, q.T @ g @ p
        v = 0.95 * v + 0.05 * turned * turned
        size = np.sqrt(v / (1 - 0.95**step))
        size += float(optimizer.DAMPING) * np.sqrt(np.square(size).mean())
        wanted = q @ (q.T @ m @ p / (1 - 0.9**step) / size) @ p.T
        np.testing.assert_allclose(found[4:].reshape(4, 4), wanted, rtol=1e-3, atol=1e-3)
        assert np.abs(found[:4]).max() < 3


def test_bases_are_those_of_the_covariances() -> None:
    soap = Optimizer("soap", [parameter((3, 5))])
    moments = soap.start()
    left, right = np.zeros((3, 3)), np.zeros((5, 5))
    for step, gradient in enumerate(gradients(optimizer.PERIOD + 1, 15), 1):
        soap.direction(moments, gradient, step)
        g = gradient.reshape(3, 5).astype(np.float64)
        left, right = 0.95 * left + 0.05 * g @ g.T, 0.95 * right + 0.05 * g.T @ g
    for side, is_left in soap._matrices[0].sides():
        basis, covariance = side.basis(moments.curvature), side.covariance(moments.curvature)
        np.testing.assert_allclose(covariance, left if is_left else right, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(basis.T @ basis, np.eye(side.size), atol=1e-5)
        diagonal = basis.T @ covariance @ basis
        np.testing.assert_allclose(diagonal, np.diag(np.diag(diagonal)), atol=1e-5 * np.abs(diagonal).max())


def test_a_long_side_keeps_its_plain_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "LARGEST", 4)
    moments = Optimizer("soap", [parameter((3, 5)), parameter((6, 7)), parameter((4, 1))]).start()
    assert moments.curvature.size == 2 * 3 * 3 + 2 * 4 * 4


def steps_to(method: Method, target: float, rate: float) -> int:
    """Least squares on inputs that vary together, as those of a layer do."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((12, 12)) * np.logspace(0, -2.5, 12)
    inputs = (rng.standard_normal((400, 12)) @ mixing.T).astype(np.float32)
    wanted = inputs @ rng.standard_normal((12, 6)).astype(np.float32)
    weight = np.zeros((6, 12), np.float32)
    learner = Optimizer(method, [parameter((6, 12))])
    moments, total = learner.start(), 400
    for step in range(1, total + 1):
        error = inputs @ weight.T - wanted
        if float(np.square(error).mean() / np.square(wanted).mean()) < target:
            return step
        gradient = (error.T @ inputs / len(inputs)).reshape(-1)
        fall = rate * (1 - step / (total + 1))
        weight -= np.float32(fall) * learner.direction(moments, gradient, step).reshape(weight.shape)
    return total


def test_soap_needs_fewer_steps_where_inputs_vary_together() -> None:
    found = {method: min(steps_to(method, 1e-5, rate) for rate in (0.01, 0.03, 0.1, 0.3)) for method in METHODS}  # type: ignore[arg-type]
    assert found["soap"] < 0.7 * found["adam"], found
