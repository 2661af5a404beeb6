"""What a model takes in and gives out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from graphopt.errors import DataError
from graphopt.model import Model, to_proto

Dim = int | str | None


@dataclass(frozen=True)
class TensorInfo:
    """One tensor input or output.

    Attributes:
        name: Its name.
        dtype: Its element type; object for strings.
        shape: One entry per axis, a symbolic name or None where it is dynamic; None if the rank is unknown.
    """

    name: str
    dtype: "np.dtype[Any]"
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        dims = "any rank" if self.shape is None else ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{'string' if self.dtype.kind == 'O' else self.dtype}[{dims}]"


@dataclass(frozen=True)
class Signature:
    """The inputs that must be fed and the outputs.

    Attributes:
        inputs: Tensor inputs by name; initializers that a caller may override are not among them.
        others: The types of the sequence, map and optional inputs by name.
        outputs: Tensor outputs by name.
        order: The names of all inputs that must be fed, in the model's order.
    """

    inputs: dict[str, TensorInfo]
    others: dict[str, onnx.TypeProto]
    outputs: dict[str, TensorInfo]
    order: tuple[str, ...]


def require_fit(label: str, values: "np.ndarray[Any, Any]", info: TensorInfo) -> "np.ndarray[Any, Any]":
    """Return what is fed to an input in one run, in its type.

    Raises:
        DataError: The type or the shape does not fit.
    """
    text = values.dtype.kind in "OUS" and info.dtype.kind == "O"
    if not text and not holds(values.dtype, info.dtype):
        raise DataError(f"{label} holds {values.dtype}, the model's {info.name!r} takes {info}")
    if info.shape is not None:
        wanted = [(want, have) for want, have in zip(info.shape, values.shape, strict=False) if isinstance(want, int)]
        if len(info.shape) != values.ndim or any(want != have for want, have in wanted):
            raise DataError(f"{label} has shape {values.shape}, the model's {info.name!r} takes {info}")
    return (
        values.astype(str).astype(object)
        if text and values.dtype.kind != "O"
        else values.astype(info.dtype, copy=False)
    )


def holds(stored: "np.dtype[Any]", taken: "np.dtype[Any]") -> bool:
    """Whether a type holds every value of the stored one, and both are of one kind."""
    kinds = {"f": "f", "i": "iu", "u": "iu"}
    return stored == taken or (stored.kind in kinds.get(taken.kind, "") and np.can_cast(stored, taken, "safe"))


def signature(model: Model | onnx.ModelProto) -> Signature:
    """Return a model's signature."""
    graph = to_proto(model, weights=False).graph if isinstance(model, Model) else model.graph
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {tensor.values.name for tensor in graph.sparse_initializer}
    fed = [info for info in graph.input if info.name not in stored]
    others = {info.name: info.type for info in fed if not info.type.HasField("tensor_type")}
    return Signature(_tensors(fed), others, _tensors(graph.output), tuple(info.name for info in fed))


def class_output(sign: Signature) -> str | None:
    """Return the output that holds the class scores: the first float one of at least two axes, else the first float."""
    floats = [each for each in sign.outputs.values() if each.dtype.kind == "f"]
    ranked = [each for each in floats if each.shape is None or len(each.shape) >= 2]
    return next((each.name for each in [*ranked, *floats]), None)


def class_count(sign: Signature) -> int | None:
    """Return the number of classes, if the model tells."""
    name = class_output(sign)
    shape = None if name is None else sign.outputs[name].shape
    last = shape[-1] if shape else None
    return last if isinstance(last, int) else None


def _tensors(infos: Iterable[onnx.ValueInfoProto]) -> dict[str, TensorInfo]:
    """Return the tensors among value infos."""
    return {
        info.name: TensorInfo(info.name, element_type(info.type.tensor_type.elem_type), tensor_shape(info.type))
        for info in infos
        if info.type.HasField("tensor_type")
    }


def element_type(code: int) -> "np.dtype[Any]":
    """Return numpy's type for ONNX's; object for strings and for what ONNX leaves undefined."""
    if code in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return np.dtype(object)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))


def tensor_shape(kind: onnx.TypeProto) -> tuple[Dim, ...] | None:
    """Return the shape of a tensor type; negative sizes, which some exporters write for dynamic ones, are unknown."""
    if not kind.tensor_type.HasField("shape"):
        return None
    dims: list[Dim] = []
    for dim in kind.tensor_type.shape.dim:
        if dim.HasField("dim_value"):
            dims.append(dim.dim_value if dim.dim_value >= 0 else None)
        else:
            dims.append(dim.dim_param or None)
    return tuple(dims)
