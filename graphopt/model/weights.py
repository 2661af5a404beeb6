"""Values of constants that stay where the file has them until somebody asks."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_graphsurgeon.ir import tensor as gs_tensor

from graphopt.model.wire import Span

SUB_BYTE_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
    TensorProto.FLOAT6E2M3: 6,
    TensorProto.FLOAT6E3M2: 6,
}
_CHUNK = 1 << 22


Raw = bytes | memoryview
"""A weight's bytes as ONNX stores them."""


class TensorValues(gs_tensor.LazyValues):  # type: ignore[misc]
    """The values of a TensorProto, decoded whenever they are loaded and never kept."""

    def __init__(self, tensor: TensorProto) -> None:
        """Read ``tensor``, whose data is inside the proto."""
        self.tensor = tensor
        self.shape = list(tensor.dims)
        self.dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self.nbytes = byte_size(tensor.data_type, tensor.dims)

    def load(self) -> NDArray[Any]:
        """Return the array, in the tensor's own type (of ml_dtypes where numpy has none)."""
        if self.tensor.data_type == TensorProto.STRING:
            return np.array([_text(item) for item in self.tensor.string_data], dtype=object).reshape(self.shape)
        return numpy_helper.to_array(self.tensor)


class MappedValues(TensorValues):
    """Values in a range of a mapped file: loading a whole-byte type is a read-only view, not a copy."""

    def __init__(self, tensor: TensorProto, span: Span) -> None:
        """Read the bytes of ``tensor``, which describes them, from ``span``."""
        super().__init__(tensor)
        self.span = span

    def load(self) -> NDArray[Any]:
        """Return the array; read-only, and for whole-byte types without reading it yet."""
        buffer, start, length = self.span
        if self.tensor.data_type in SUB_BYTE_BITS:
            described = TensorProto(data_type=self.tensor.data_type, dims=self.tensor.dims)
            described.raw_data = buffer[start : start + length]
            return numpy_helper.to_array(described)
        count = math.prod(self.shape)
        if not count:
            return np.zeros(self.shape, self.dtype)
        return np.frombuffer(buffer, self.dtype, count, start).reshape(self.shape)

    def chunks(self) -> Iterator[Raw]:
        """Yield the tensor's raw bytes a few megabytes at a time, none of them copied."""
        buffer, start, length = self.span
        view = memoryview(buffer)
        for place in range(start, start + length, _CHUNK):
            yield view[place : min(place + _CHUNK, start + length)]


class SparseValues(TensorValues):
    """A sparse initializer: passes see it as constant without an array; it is written back as it was."""

    def __init__(self, sparse: onnx.SparseTensorProto) -> None:
        """Hold ``sparse``."""
        super().__init__(sparse.values)
        self.sparse = sparse
        self.shape = list(sparse.dims)

    def load(self) -> NDArray[Any]:
        """Return the dense array, as ONNX defines it: linear indices (rank 1) or one row of indices per value."""
        values = numpy_helper.to_array(self.sparse.values)
        indices = numpy_helper.to_array(self.sparse.indices)
        dense = np.zeros(self.shape, values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        return dense


def _text(data: bytes) -> str | bytes:
    """Return a string, or its bytes where they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def byte_size(data_type: int, dims: Any) -> int:
    """Return the bytes that a tensor's raw data must have; 0 for strings, which have no raw form."""
    if data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return 0
    bits = SUB_BYTE_BITS.get(data_type) or helper.tensor_dtype_to_np_dtype(data_type).itemsize * 8
    size: int = (math.prod(dims) * bits + 7) // 8
    return size


def describe(name: str, array: NDArray[Any]) -> tuple[TensorProto, Raw | None]:
    """Return a proto that describes ``array`` and its raw bytes; the bytes are None for strings, which it holds."""
    data_type = helper.np_dtype_to_tensor_dtype(array.dtype) if array.dtype.kind not in "US" else TensorProto.STRING
    if data_type == TensorProto.STRING or data_type in SUB_BYTE_BITS:
        proto = numpy_helper.from_array(
            np.asarray(array, dtype=object if data_type == TensorProto.STRING else None), name
        )
        raw = proto.raw_data if proto.HasField("raw_data") else None
        proto.ClearField("raw_data")
        return proto, raw
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    proto = TensorProto(name=name, data_type=data_type, dims=array.shape)
    flat = np.asarray(array, order="C").reshape(-1)
    return proto, flat.view(np.uint8).data if flat.size else b""
