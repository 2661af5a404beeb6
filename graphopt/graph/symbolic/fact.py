"""What is known of one tensor: its type, its shape, and what it holds if that is a few integers."""

from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from graphopt.graph.symbolic.attributes import Value
from graphopt.graph.symbolic.shapes import Partial
from graphopt.graph.symbolic.values import LIMIT, SymbolicShape

_BOUNDS: dict[int, int] = {TensorProto.INT64: 2**63, TensorProto.INT32: 2**31, TensorProto.BOOL: 2**63}


class Fact(NamedTuple):
    """What is known of one tensor.

    Attributes:
        type: Element type in ONNX's numbering; 0 if unknown or not a tensor.
        shape: A tuple of int and Expression; None if not even the rank is known.
        value: The content of a small integer or boolean tensor, None where unknown.
    """

    type: int
    shape: SymbolicShape
    value: Value | None

    def equals(self, other: "Fact") -> bool:
        """Whether the other fact says just the same."""
        if self is other:
            return True
        if self.type != other.type or self.shape != other.shape or (self.value is None) != (other.value is None):
            return False
        return self.value is None or other.value is None or self.value.tolist() == other.value.tolist()


UNKNOWN = Fact(0, None, None)


def followed(kind: int, value: Value | None) -> Value | None:
    """Return a value as far as it is worth following: integers that fit their type, not too many of them."""
    bound = _BOUNDS.get(kind)
    if value is None or bound is None or value.size > LIMIT:
        return None
    entries = value.reshape(-1).tolist()
    if all(not isinstance(entry, int) or -bound <= entry < bound for entry in entries):
        return np.asarray(value, dtype=object)
    fitting = np.empty(len(entries), dtype=object)
    fitting[:] = [entry if not isinstance(entry, int) or -bound <= entry < bound else None for entry in entries]
    return fitting.reshape(value.shape)


def as_value(array: NDArray[np.generic]) -> Value | None:
    """Return a small constant as Python integers or booleans, or None if it holds anything else."""
    if array.size > LIMIT or array.dtype not in (np.int64, np.int32, np.bool_):
        return None
    return np.asarray(array.astype(object), dtype=object)


def element_type(tensor: gs.Tensor) -> int:
    """Return the declared element type in ONNX's numbering, 0 if there is none."""
    stored = getattr(getattr(tensor, "_values", None), "tensor", None)
    if isinstance(stored, TensorProto):
        return stored.data_type
    if tensor.dtype is None or isinstance(tensor.dtype, int):
        return tensor.dtype or 0
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
    except (ValueError, TypeError, KeyError):
        return 0


def merge_shapes(shape: Partial, other: Partial) -> Partial:
    """Return what two accounts of one shape tell together; where both tell something, the first counts."""
    if shape is None or other is None or len(shape) != len(other):
        return other if shape is None else shape
    return tuple(b if a is None else a for a, b in zip(shape, other, strict=True))
