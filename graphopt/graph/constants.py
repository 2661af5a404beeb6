"""Values of constant tensors, wherever an exporter has put them, and the one cast that new values go through."""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike, NDArray

from graphopt.model.weights import SparseValues
from graphopt.result import Skip

_SCALARS = {"value_float": np.float32, "value_int": np.int64, "value_floats": np.float32, "value_ints": np.int64}


def constant_values(tensor: gs.Tensor) -> NDArray[np.generic] | None:
    """Return the values of an initializer or Constant node, also behind Identity, uncached; None for anything else."""
    tensor = _before_identities(tensor)
    if isinstance(tensor, gs.Constant):
        return read_values(tensor)
    if len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant" and not tensor.inputs[0].domain:
        attributes = tensor.inputs[0].attrs
        if isinstance(attributes.get("value"), gs.Constant):
            return read_values(attributes["value"])
        for name, kind in _SCALARS.items():
            if isinstance(attributes.get(name), (int, float, list)):
                return np.asarray(attributes[name], dtype=kind)
    return None


def constant_of(tensor: gs.Tensor) -> gs.Constant | None:
    """Return the constant that a tensor is, also through Identity and Constant nodes; None if there is none."""
    tensor = _before_identities(tensor)
    if isinstance(tensor, gs.Constant):
        return tensor
    if len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant" and not tensor.inputs[0].domain:
        value = tensor.inputs[0].attrs.get("value")
        return value if isinstance(value, gs.Constant) else None
    return None


def is_stored_behind_identities(tensor: gs.Tensor) -> bool:
    """Whether a tensor's values are in the model: an initializer or a Constant node, also behind Identity."""
    tensor = _before_identities(tensor)
    return isinstance(tensor, gs.Constant) or (len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant")


def _before_identities(tensor: gs.Tensor) -> gs.Tensor:
    """Return what comes into the Identity nodes that a tensor comes out of."""
    while len(tensor.inputs) == 1 and tensor.inputs[0].op == "Identity" and not tensor.inputs[0].domain:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def read_values(constant: gs.Constant) -> NDArray[np.generic] | None:
    """Return a constant's array, read-only, without caching it on the constant; None for strings and sparse values."""
    values = constant._values
    if isinstance(values, SparseValues):
        return None
    array = values if isinstance(values, np.ndarray) else values.load()
    if not isinstance(array, np.ndarray) or array.dtype.kind in "OSU":
        return None
    array = array.view()
    array.flags.writeable = False
    return array


def cast(values: ArrayLike, dtype: Any, name: str) -> NDArray[Any]:
    """Cast float64 arithmetic once to the weight's own type.

    Raises:
        Skip: A finite value becomes Inf.
    """
    wide = np.asarray(values)
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype)
    if wide.dtype.kind == "f" and (np.isfinite(wide) & ~np.isfinite(narrow.astype(np.float64))).any():
        raise Skip(f"{name!r} would overflow {np.dtype(dtype).name}")
    return narrow


def dtype_of(tensor: gs.Tensor | None) -> Any:
    """Return the element type of a constant tensor; float32 where there is none."""
    values = None if tensor is None else constant_values(tensor)
    return np.float32 if values is None else values.dtype
