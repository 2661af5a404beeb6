"""Rounding that makes up for itself: each column's error is taken out by the columns that are still to be rounded.

GPTQ: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv
2210.17323). It minimizes the squared error of the layer's output, ||A w' - A w||^2, over the rows A that it sees.
"""

import numpy as np

from graphopt.numerics.quantization import Affine, Array, Floats

_COLUMNS = 128


def gptq(
    weight: Floats, gram: Floats, affine: Affine, scale: Array, zero: Floats, damping: float = 0.01
) -> tuple[Array, Floats]:
    """Quantize a weight [M, K] that multiplies rows with the Gram matrix ``gram`` [K, K], the sum of a a^T.

    Columns are rounded from the most to the least excited one. A column that nothing excites is rounded to nearest. A
    weight of zero stays zero and takes over no error: what was pruned, in a pattern or not, stays so.

    Args:
        weight: The values.
        gram: Its diagonal is raised by ``damping`` times the diagonal's mean, so that it can be inverted.
        affine: The type of the levels.
        scale: Scales, broadcastable to [M, K].
        zero: Zero points, likewise.
        damping: See ``gram``.

    Returns:
        The levels [M, K], and the values that they stand for.
    """
    order = np.argsort(-np.diag(gram), kind="stable")
    left = weight[:, order].astype(np.float64)
    scale = np.broadcast_to(scale, weight.shape)[:, order]
    zero = np.broadcast_to(zero, weight.shape)[:, order]
    factor = _factor(gram[np.ix_(order, order)], damping)
    free = left != 0
    levels = np.empty(left.shape, affine.kind.dtype)
    real = np.empty_like(left)
    for start in range(0, left.shape[1], _COLUMNS):
        stop = min(start + _COLUMNS, left.shape[1])
        errors = np.empty((len(left), stop - start))
        for column in range(start, stop):
            part = slice(column, column + 1)
            levels[:, part] = affine.quantize(left[:, part], scale[:, part], zero[:, part])
            real[:, part] = affine.dequantize(levels[:, part], scale[:, part], zero[:, part])
            error = (left[:, column] - real[:, column]) / factor[column, column]
            left[:, column:stop] -= np.outer(error, factor[column, column:stop]) * free[:, column:stop]
            errors[:, column - start] = error
        left[:, stop:] -= (errors @ factor[start:stop, stop:]) * free[:, stop:]
    back = np.argsort(order, kind="stable")
    return levels[:, back], real[:, back]


def _factor(gram: Floats, damping: float) -> Floats:
    """Return the upper Cholesky factor of the damped Gram matrix's inverse."""
    mean = float(np.diag(gram).mean())
    damped = gram / mean if mean > 0 else np.zeros_like(gram)
    damped[np.diag_indices_from(damped)] += damping
    lower = np.linalg.cholesky(np.linalg.inv(damped))
    upper: Floats = lower.T
    return upper
