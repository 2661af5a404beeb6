"""Least squares that makes a compressed layer answer like the original: streaming moments, ridge, bias correction."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MANY_PATTERNS = 16
"""Above this number of distinct zero patterns, the rows are solved together by conjugate gradients."""


MOST_WORK, FEWEST_STEPS = 1 << 37, 64
"""Conjugate gradients end after so many multiplications, but not before so many steps; each step is an improvement."""


class Moments:
    """First and second moments of a layer's inputs A and of the outputs Y wanted of it, in float64.

    They are added up batch by batch. A layer has G groups, each with K inputs and M outputs; a dense layer is one
    group. What is kept is O(G K (K + M)), whatever the number of rows.
    """

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        """Start with no rows."""
        self.rows = 0
        self.a = np.zeros((groups, inputs))
        self.y = np.zeros((groups, outputs))
        self.yy = np.zeros((groups, outputs))
        self.aa = np.zeros((groups, inputs, inputs))
        self.ay = np.zeros((groups, inputs, outputs))

    def add(self, inputs: ArrayLike, outputs: ArrayLike) -> None:
        """Add rows: inputs [G, rows, K] and the outputs wanted for them [G, rows, M]."""
        a, y = np.asarray(inputs, np.float64), np.asarray(outputs, np.float64)
        self.add_means(a, y)
        self.yy += np.square(y).sum(axis=1)
        self.aa += a.transpose(0, 2, 1) @ a
        self.ay += a.transpose(0, 2, 1) @ y

    def add_means(self, inputs: ArrayLike, outputs: ArrayLike) -> None:
        """Add rows to the first moments only, which are all that ``corrected_bias`` needs."""
        a, y = np.asarray(inputs, np.float64), np.asarray(outputs, np.float64)
        self.rows += a.shape[1]
        self.a += a.sum(axis=1)
        self.y += y.sum(axis=1)

    def __add__(self, more: "Moments") -> "Moments":
        """Return the moments of the rows of both."""
        total = Moments(*self.ay.shape)
        for name, value in vars(self).items():
            setattr(total, name, value + getattr(more, name))
        return total

    def power(self) -> Array:
        """Return the variance of each output wanted, [G, M]."""
        mean = self.y / max(self.rows, 1)
        spread: Array = np.maximum(self.yy / max(self.rows, 1) - mean * mean, 0.0)
        return spread

    def centred(self) -> tuple[Array, Array]:
        """Return the covariances times rows: of the inputs [G, K, K], and of inputs with outputs [G, K, M]."""
        a = self.a / max(self.rows, 1)
        return (
            self.aa - self.rows * a[:, :, None] * a[:, None, :],
            self.ay - a[:, :, None] * self.y[:, None, :],
        )

    def error(self, weight: ArrayLike, bias: ArrayLike) -> Array:
        """Return the mean squared error [G, M] on these rows of ``weight`` [G, M, K] and ``bias`` [G, M]."""
        w, b = np.asarray(weight, np.float64), np.asarray(bias, np.float64)
        squares = np.einsum("gmk,gmk->gm", w @ self.aa, w) + self.yy + self.rows * b * b
        crossed = b * (w @ self.a[:, :, None])[:, :, 0] - np.einsum("gmk,gkm->gm", w, self.ay) - b * self.y
        total: Array = np.maximum(squares + 2 * crossed, 0.0)
        return total / max(self.rows, 1)


@dataclass(frozen=True)
class Layer:
    """The parameters of a layer: weight [G, M, K] and bias [G, M]."""

    weight: Array
    bias: Array


def corrected_bias(moments: Moments, weight: ArrayLike) -> Array:
    """Return the bias [G, M] that gives the outputs the right mean with ``weight`` [G, M, K] as it is.

    The closed form of bias correction (Nagel et al. 2019, "Data-Free Quantization", with the mean measured on data).
    """
    w = np.asarray(weight, np.float64)
    shift: Array = moments.y - (w @ moments.a[:, :, None])[:, :, 0]
    return shift / max(moments.rows, 1)


def ridge(
    moments: Moments,
    weight: ArrayLike,
    damping: float = 1e-3,
    free: NDArray[np.bool_] | None = None,
    intercept: bool = True,
) -> Layer:
    """Return the layer that answers best, not straying further from ``weight`` than the data warrants.

    Minimizes, per group, ``|A w^T + b - Y|^2 + damping * tr(H) / K * |w - w0|^2`` with H the centred ``A^T A``.

    Args:
        moments: Of the layer's inputs and the outputs wanted.
        weight: w0, [G, M, K].
        damping: How strongly w is held to w0, relative to the mean variance of the inputs.
        free: Which elements of ``weight`` may change, [G, M, K]; all if None.
        intercept: Whether the layer has a bias; without, it stays zero and nothing is centred.
    """
    start = np.asarray(weight, np.float64)
    covariance, crossed = moments.centred() if intercept else (moments.aa, moments.ay)
    size = covariance.shape[1]
    held = damping * np.trace(covariance, axis1=1, axis2=2) / size
    damped = covariance.copy()
    damped[:, np.arange(size), np.arange(size)] += np.where(held > 0, held, 1.0)[:, None]
    wanted = crossed.transpose(0, 2, 1) - start @ covariance
    if free is None or free.all():
        step = np.linalg.solve(damped, wanted.transpose(0, 2, 1)).transpose(0, 2, 1)
    else:
        step = np.stack([_masked(damped[g], wanted[g], free[g]) for g in range(len(start))])
    solved = start + step
    return Layer(solved, corrected_bias(moments, solved) if intercept else np.zeros(start.shape[:2]))


def _masked(matrix: Array, wanted: Array, free: NDArray[np.bool_]) -> Array:
    """Solve ``step @ matrix = wanted`` row by row, each on its own free elements; the others stay zero."""
    patterns, owner = np.unique(free, axis=0, return_inverse=True)
    if len(patterns) > MANY_PATTERNS:
        return _conjugate_gradients(matrix, wanted, free)
    step = np.zeros_like(wanted)
    for index, pattern in enumerate(patterns):
        rows = np.flatnonzero(owner.reshape(-1) == index)
        columns = np.flatnonzero(pattern)
        if columns.size:
            step[np.ix_(rows, columns)] = np.linalg.solve(
                matrix[np.ix_(columns, columns)], wanted[np.ix_(rows, columns)].T
            ).T
    return step


def _conjugate_gradients(matrix: Array, wanted: Array, free: NDArray[np.bool_], tolerance: float = 1e-9) -> Array:
    """Solve all rows at once (Hestenes and Stiefel 1952, Jacobi preconditioned), each kept within its free elements."""
    scale = 1.0 / np.diagonal(matrix)
    step = np.zeros_like(wanted)
    residual = np.where(free, wanted, 0.0)
    direction = residual * scale
    energy = (residual * direction).sum(axis=1)
    goal = energy * tolerance**2
    steps = max(FEWEST_STEPS, MOST_WORK // max(1, wanted.size * len(matrix)))
    for _ in range(min(4 * len(matrix), steps)):
        active = energy > goal
        if not active.any():
            break
        turned = np.where(free, direction @ matrix, 0.0)
        curvature = (direction * turned).sum(axis=1)
        length = np.divide(energy, curvature, out=np.zeros_like(energy), where=active & (curvature > 0))
        step += length[:, None] * direction
        residual -= length[:, None] * turned
        scaled = residual * scale
        fresh = (residual * scaled).sum(axis=1)
        turn = np.divide(fresh, energy, out=np.zeros_like(energy), where=energy > 0)
        direction, energy = scaled + turn[:, None] * direction, fresh
    return step
