"""The step that follows a gradient: Adam, or SOAP, which runs Adam in the eigenbasis of each weight's gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from graphopt.distill.parameters import Parameter

Array = NDArray[np.float32]

Method = Literal["soap", "adam"]
METHODS: tuple[str, ...] = get_args(Method)

BETA1, EPSILON = np.float32(0.9), np.float32(1e-8)
BETA2: dict[Method, np.float32] = {"adam": np.float32(0.999), "soap": np.float32(0.95)}
"""How slowly the mean of squared gradients moves; of what is not a matrix, it is always Adam's."""

DAMPING = np.float32(1e-4)
"""Eigendirections whose gradients are below this share of the matrix's are not stepped in full: they are rounding."""
LARGEST = 512
"""A side of a matrix that is longer is not turned: its basis stays the plain one."""
PERIOD = 20
"""Steps from one eigenbasis to the next."""


@dataclass
class Moments:
    """What the steps so far leave behind, flattened as the parameters are.

    Attributes:
        first: The mean of gradients.
        second: The mean of squared gradients, for SOAP in the eigenbasis of the time.
        curvature: SOAP's covariances of gradients and their eigenbases, one matrix after the other.
    """

    first: Array
    second: Array
    curvature: Array


@dataclass(frozen=True)
class _Side:
    """One side of one matrix: where its covariance and its basis lie in ``Moments.curvature``."""

    size: int
    start: int

    def covariance(self, curvature: Array) -> Array:
        """Return a view."""
        return curvature[self.start : self.start + self.size**2].reshape(self.size, self.size)

    def basis(self, curvature: Array) -> Array:
        """Return a view; eigenvectors are columns."""
        start = self.start + self.size**2
        return curvature[start : start + self.size**2].reshape(self.size, self.size)


@dataclass(frozen=True)
class _Matrix:
    """One weight: where it lies among the parameters, as rows (its first axis) by columns (all others)."""

    begin: int
    rows: int
    columns: int
    left: _Side | None
    right: _Side | None

    def of(self, flat: Array) -> Array:
        """Return a view."""
        return flat[self.begin : self.begin + self.rows * self.columns].reshape(self.rows, self.columns)

    def sides(self) -> Iterator[tuple[_Side, bool]]:
        """Yield the sides that are turned, and whether it is the left one."""
        for side, is_left in ((self.left, True), (self.right, False)):
            if side is not None:
                yield side, is_left

    def turned(self, value: Array, curvature: Array, back: bool = False) -> Array:
        """Return a matrix in the eigenbases, or back in the plain one."""
        if self.left is not None:
            basis = self.left.basis(curvature)
            value = (basis if back else basis.T) @ value
        if self.right is not None:
            basis = self.right.basis(curvature)
            value = value @ (basis.T if back else basis)
        return value


class Optimizer:
    """Turns gradients into directions, at a learning rate of one.

    Adam is that of Kingma and Ba 2015. SOAP (Vyas et al. 2024, "Improving and stabilizing Shampoo using Adam") keeps,
    for each weight as a matrix G of gradients, the means of G G^T and G^T G, and lets Adam work in their eigenbases.
    That makes up for inputs of a layer that vary together, as they do where no BatchNormalization is left: it needs a
    fraction of Adam's steps. Biases, scales and tables are Adam's.
    """

    def __init__(self, method: Method, parameters: Sequence[Parameter]) -> None:
        """Lay out the parameters, which are flattened one after the other."""
        self.method = method
        self._size = sum(each.value.size for each in parameters)
        self._matrices: list[_Matrix] = []
        begin = self._curvature = 0
        for each in parameters:
            if method == "soap" and each.is_weight:
                rows, columns = each.value.shape[0], each.value.size // each.value.shape[0]
                matrix = _Matrix(begin, rows, columns, self._side(rows), self._side(columns))
                if matrix.left or matrix.right:
                    self._matrices.append(matrix)
            begin += each.value.size
        self._slow = np.full(self._size, 1 - BETA2["adam"], np.float32)
        for matrix in self._matrices:
            matrix.of(self._slow)[...] = 1 - BETA2["soap"]

    def _side(self, size: int) -> _Side | None:
        """Return room for one side, if it is worth turning."""
        if not 1 < size <= LARGEST:
            return None
        side = _Side(size, self._curvature)
        self._curvature += 2 * size**2
        return side

    def start(self) -> Moments:
        """Return moments of nothing."""
        return Moments(*(np.zeros(size, np.float32) for size in (self._size, self._size, self._curvature)))

    def direction(self, moments: Moments, gradient: Array, step: int) -> Array:
        """Return what to subtract, and bring the moments up to date, in place.

        Args:
            moments: Of the steps before.
            gradient: Of this step; not changed.
            step: How many there are, with this one.
        """
        if self._matrices:
            self._observe(moments, gradient, step)
        moments.first += (1 - BETA1) * (gradient - moments.first)
        seen = gradient.copy()
        for matrix in self._matrices:
            matrix.of(seen)[...] = matrix.turned(matrix.of(gradient), moments.curvature)
        moments.second += self._slow * (seen * seen - moments.second)
        first: Array = np.asarray(moments.first / np.float32(1 - float(BETA1) ** step), np.float32)
        for matrix in self._matrices:
            matrix.of(first)[...] = matrix.turned(matrix.of(first), moments.curvature)
        settled = 1 - (1 - self._slow) ** np.float32(step)
        size: Array = np.asarray(np.sqrt(moments.second / settled), np.float32)
        for matrix in self._matrices:
            part = matrix.of(size)
            part += DAMPING * np.sqrt(np.square(part).mean())
        direction = first / (size + EPSILON)
        for matrix in self._matrices:
            matrix.of(direction)[...] = matrix.turned(matrix.of(direction), moments.curvature, back=True)
        return np.asarray(direction, np.float32)

    def _observe(self, moments: Moments, gradient: Array, step: int) -> None:
        """Bring covariances up to date, and now and then the bases."""
        kept = BETA2["soap"]
        for matrix in self._matrices:
            part = matrix.of(gradient)
            for side, is_left in matrix.sides():
                covariance = side.covariance(moments.curvature)
                covariance *= kept
                covariance += (1 - kept) * (part @ part.T if is_left else part.T @ part)
                if (step - 1) % PERIOD == 0:
                    side.basis(moments.curvature)[...] = np.linalg.eigh(covariance)[1]
