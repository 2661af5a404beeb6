"""Values of constant tensors, wherever an exporter has put them."""

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.model.weights import SparseValues

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
