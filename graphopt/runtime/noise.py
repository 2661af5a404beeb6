"""A model's own float noise: how far its outputs move when its inputs and weights move by a unit in the last place."""

import dataclasses
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from graphopt.numerics.compare import BEYOND, Comparison, OutputDifference
from graphopt.runtime.data import Feeds

FACTOR = 4.0
"""A difference of up to this many times the noise is noise."""

MAX_NOISE = 0.05
"""A noise above this share of an output's spread excuses nothing: such an output proves nothing either."""

DRAWS = 2
_MIN_ELEMENTS = 16


def shaken_feeds(feeds: Feeds, rng: np.random.Generator) -> Feeds:
    """Return feeds whose floats are one unit in the last place larger or smaller; zeros stay."""
    return {name: _shaken(value, rng) if isinstance(value, np.ndarray) else value for name, value in feeds.items()}


def shaken_weights(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Return the model with its float initializers moved likewise; those of a few elements, settings mostly, stay."""
    shaken = onnx.ModelProto()
    shaken.CopyFrom(model)
    for tensor in shaken.graph.initializer:
        if np.prod(tensor.dims) >= _MIN_ELEMENTS and tensor.data_type in (
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.DOUBLE,
            onnx.TensorProto.FLOAT16,
        ):
            tensor.CopyFrom(onnx.numpy_helper.from_array(_shaken(onnx.numpy_helper.to_array(tensor), rng), tensor.name))
    return shaken


def _shaken(values: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Move floats one unit in the last place up or down."""
    if values.dtype.kind != "f":
        return values
    towards = np.where(rng.random(values.shape) < 0.5, -np.inf, np.inf).astype(values.dtype)
    moved = np.nextafter(values, towards)
    return np.where((values == 0) | ~np.isfinite(moved), values, moved)


def excused(comparison: Comparison, noises: list[Comparison]) -> tuple[OutputDifference, ...] | None:
    """Return the outputs with those whose differences are mere noise accepted, or None if one is more than that.

    Both the largest difference and the root mean square have to be within ``FACTOR`` times the noise's, so that neither
    a single wrong element nor a small error everywhere hides in it.
    """
    judged = []
    for output in comparison.outputs:
        if output.holds:
            judged.append(output)
            continue
        same = [each for noise in noises for each in noise.outputs if each.name == output.name]
        largest = max((each.max_abs for each in same), default=0.0)
        rms = max((each.rms for each in same), default=0.0)
        strange = output.severity >= BEYOND or any(each.severity >= BEYOND for each in same)
        if strange or output.max_abs > FACTOR * largest or output.rms > FACTOR * rms or rms > MAX_NOISE * output.spread:
            return None
        judged.append(dataclasses.replace(output, holds=True, problem="", severity=0.0))
    return tuple(judged)
