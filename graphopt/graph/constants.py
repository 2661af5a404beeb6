"""Values of constant tensors, wherever an exporter has put them, and the one cast that new values go through."""

from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike, NDArray

from graphopt.model.weights import SparseValues
from graphopt.result import Skip

_SCALARS = {"value_float": np.float32, "value_int": np.int64, "value_floats": np.float32, "value_ints": np.int64}


class Inputs(Protocol):
    """Knows what a caller can feed: a ``GraphView`` or an ``Edit``."""

    def is_input(self, tensor: gs.Tensor) -> bool:
        """Whether a graph takes ``tensor`` in, an overridable initializer included."""


def fixed_tensor(tensor: gs.Tensor, inputs: Inputs) -> gs.Tensor | None:
    """Return the initializer or output of a Constant node that ``tensor`` equals whatever a caller feeds.

    This is the one place that decides what a constant is: every reader of values asks it, directly or through
    ``fixed_values`` and ``fixed_constant``. Identity nodes are followed. An initializer that is a graph input too is a
    default, which the caller can override, so neither it nor an Identity of it is a constant.
    """
    while not inputs.is_input(tensor):
        if (source := _before_identity(tensor)) is None:
            return tensor if isinstance(tensor, gs.Constant) or _is_given_by_constant_node(tensor) else None
        tensor = source
    return None


def fixed_values(tensor: gs.Tensor, inputs: Inputs) -> NDArray[np.generic] | None:
    """Return the values of a constant that nobody can change, read-only and uncached; None for anything else."""
    source = fixed_tensor(tensor, inputs)
    return None if source is None else default_values(source)


def fixed_constant(tensor: gs.Tensor, inputs: Inputs) -> gs.Constant | None:
    """Return the stored constant behind a tensor that nobody can change; None if there is none."""
    source = fixed_tensor(tensor, inputs)
    return None if source is None else constant_of(source)


def why_unknown(tensor: gs.Tensor, inputs: Inputs) -> str | None:
    """Say why a stored tensor has no ``fixed_values``, as what follows its name; None for one that is not stored."""
    while not isinstance(tensor, gs.Constant) and (source := _before_identity(tensor)) is not None:
        tensor = source
    if isinstance(tensor, gs.Constant):
        if inputs.is_input(tensor):
            return "can be overridden by the caller, freeze-initializers ends that"
        return "is stored sparse" if isinstance(tensor._values, SparseValues) else "holds strings"
    if not _is_given_by_constant_node(tensor):
        return None
    attributes = tensor.inputs[0].attrs
    return "is stored sparse" if "sparse_value" in attributes else "is given in a form that is not read"


def default_values(tensor: gs.Tensor) -> NDArray[np.generic] | None:
    """Return the values that the file stores for a tensor, which a caller may override: see ``fixed_values``.

    Initializers and Constant nodes are read, also behind Identity, uncached; None for anything else.
    """
    tensor = _before_identities(tensor)
    if isinstance(tensor, gs.Constant):
        return read_values(tensor)
    if _is_given_by_constant_node(tensor):
        attributes = tensor.inputs[0].attrs
        if isinstance(attributes.get("value"), gs.Constant):
            return read_values(attributes["value"])
        for name, kind in _SCALARS.items():
            if isinstance(attributes.get(name), (int, float, list)):
                return np.asarray(attributes[name], dtype=kind)
    return None


def constant_of(tensor: gs.Tensor) -> gs.Constant | None:
    """Return the stored constant behind Identity and Constant nodes, to know it by; its values may be overridden."""
    tensor = _before_identities(tensor)
    if isinstance(tensor, gs.Constant):
        return tensor
    if _is_given_by_constant_node(tensor):
        value = tensor.inputs[0].attrs.get("value")
        return value if isinstance(value, gs.Constant) else None
    return None


def _before_identities(tensor: gs.Tensor) -> gs.Tensor:
    """Return what comes into the Identity nodes that a tensor comes out of."""
    while (source := _before_identity(tensor)) is not None:
        tensor = source
    return tensor


def _before_identity(tensor: gs.Tensor) -> gs.Tensor | None:
    """Return what comes into the Identity that a tensor comes out of; None if it does not come out of one."""
    if len(tensor.inputs) == 1 and tensor.inputs[0].op == "Identity" and not tensor.inputs[0].domain:
        source: gs.Tensor = tensor.inputs[0].inputs[0]
        return source
    return None


def _is_given_by_constant_node(tensor: gs.Tensor) -> bool:
    """Whether a Constant node of the default domain gives a tensor out."""
    return len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant" and not tensor.inputs[0].domain


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
    if wide.dtype.kind == "f" and narrow.dtype.kind not in "biu":
        lost = ~np.isfinite(narrow if narrow.dtype.kind == "f" else narrow.astype(np.float64))
        if lost.any() and np.isfinite(wide[lost]).any():
            raise Skip(f"{name!r} would overflow {np.dtype(dtype).name}")
    return narrow


def dtype_of(tensor: gs.Tensor | None) -> Any:
    """Return the element type of a constant tensor; float32 where there is none."""
    values = None if tensor is None else default_values(tensor)
    return np.float32 if values is None else values.dtype
