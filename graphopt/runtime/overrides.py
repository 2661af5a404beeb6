"""Other values for initializers that a caller can override, since their defaults are only that."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.graph.constants import default_values
from graphopt.model import Model, to_proto
from graphopt.model.inference import with_inferred_shapes
from graphopt.numerics.tally import is_float_type
from graphopt.runtime.data import Feeds
from graphopt.runtime.roles import Roles

MOST_BYTES = 1 << 26
"""The smallest initializers are overridden, up to this many bytes in all."""


def overridden(model: Model, feeds: Feeds, rng: np.random.Generator, floats_only: bool = False) -> Feeds:
    """Return feeds with other values, of the same shape and type, for initializers that a caller can override.

    Floats keep their sign and scale where none is negative, and otherwise get noise of their own scale; integers that
    the graph uses as indices stay within the table, others within the range of the defaults; booleans are flipped.

    Args:
        model: The model; initializers listed as inputs can be overridden from IR version 4 on.
        feeds: What else is fed.
        rng: For the draws.
        floats_only: Whether integers and booleans keep their defaults, as where they are sizes or axes.

    Returns:
        The feeds themselves if there is nothing to override.
    """
    tensors = sorted(model.overridable(), key=lambda tensor: math.prod(tensor.shape))
    if not tensors:
        return feeds
    roles = Roles(with_inferred_shapes(to_proto(model, weights=False)).graph)
    others: Feeds = {}
    room = MOST_BYTES
    for tensor in tensors:
        default = default_values(tensor) if math.prod(tensor.shape) <= room else None
        if default is None or (floats_only and not is_float_type(default.dtype)):
            continue
        room -= default.nbytes
        value = _other(default, roles.of(tensor.name, default.ndim).high, rng)
        if value is not None:
            others[tensor.name] = value
    return {**feeds, **others} if others else feeds


def _other(default: NDArray[Any], high: int | None, rng: np.random.Generator) -> NDArray[Any] | None:
    """Return another value for one tensor; None for text and other types."""
    kind = default.dtype
    if kind.kind == "b":
        return np.asarray(np.logical_not(default))
    if kind.kind in "iu" and high is not None:
        high = min(high, int(np.iinfo(kind).max))
        return ((default % high + rng.integers(1, max(high, 2), default.shape)) % high).astype(kind)
    if kind.kind in "iu" and default.size:
        low, top = int(default.min()), int(default.max())
        if low < top:
            return rng.integers(low, top, default.shape, dtype=kind, endpoint=True)
        step = 1 if top < np.iinfo(kind).max else -1
        return np.asarray(default + kind.type(step))
    if not is_float_type(kind) or not default.size:
        return None
    values = default.astype(np.float64)
    finite = np.where(np.isfinite(values), values, 0.0)
    scale = float(np.sqrt(np.mean(finite**2))) or 1.0
    if (finite >= 0).all():
        drawn = np.where(finite > 0, finite * rng.uniform(0.4, 1.6, values.shape), scale * rng.random(values.shape))
    else:
        drawn = finite + scale * rng.standard_normal(values.shape)
    return np.asarray(np.where(np.isfinite(values), drawn, values)).astype(kind)
