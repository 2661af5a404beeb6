"""Evaluates an operator itself on known channel values, so that f(0) is right for every f."""

from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from graphopt.graph.channels.facts import Vector
from graphopt.graph.channels.inference import attributes


def evaluate(node: gs.Node, inputs: list[Vector | float | None], opset: int) -> Vector | None:
    """Apply an element-wise operator to vectors of uniform channel values (NaN: unknown, and so is the result).

    Args:
        node: The node; only its operator and attributes are used.
        inputs: One vector for each input, a float for an input that must stay a scalar, None for an absent one.
        opset: The operator set version.

    Returns:
        The values of the first output, or None if the operator cannot be evaluated.
    """
    plain = attributes(node)
    if plain is None or any(isinstance(value, onnx.TensorProto) for value in plain.values()):
        return None
    vectors = [value for value in inputs if isinstance(value, np.ndarray)]
    result = np.full(len(vectors[0]), np.nan)
    ready = ~np.isnan(np.stack(vectors)).any(axis=0)
    if not ready.any():
        return result
    columns, place = np.unique(np.stack(vectors)[:, ready], axis=1, return_inverse=True)
    settings = tuple(
        (name, tuple(value) if isinstance(value, list) else value) for name, value in sorted(plain.items())
    )
    scalars = tuple(value if isinstance(value, (float, type(None))) else "vector" for value in inputs)
    values = _run(str(node.op), opset, settings, scalars, columns.tobytes())
    if values is None or len(values) != columns.shape[1]:
        return None
    result[ready] = values[place.ravel()]
    return result


@lru_cache(maxsize=4096)
def _run(
    op: str, opset: int, settings: tuple[tuple[str, object], ...], scalars: tuple[Any, ...], data: bytes
) -> NDArray[np.float64] | None:
    """Run one operator in ONNX's reference implementation; None if it refuses."""
    vectors = np.frombuffer(data, dtype=np.float64).reshape(sum(s == "vector" for s in scalars), -1)
    names, feeds, rows = [], {}, iter(vectors)
    for index, scalar in enumerate(scalars):
        names.append("" if scalar is None else f"x{index}")
        if scalar is not None:
            feeds[names[-1]] = next(rows) if scalar == "vector" else np.float64(scalar)
    settings_map: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings
    }
    node = onnx.helper.make_node(op, names, ["y"], **settings_map)
    kind = onnx.TensorProto.DOUBLE
    infos = [onnx.helper.make_tensor_value_info(n, kind, list(np.shape(v))) for n, v in feeds.items()]
    result = onnx.helper.make_tensor_value_info("y", kind, [vectors.shape[1]])
    graph = onnx.helper.make_graph([node], "one", infos, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            (found,) = ReferenceEvaluator(model).run(None, {n: np.asarray(v) for n, v in feeds.items()})
    except Exception:  # the reference implementation raises many kinds; not knowing is always sound
        return None
    return np.asarray(found, dtype=np.float64).ravel()
