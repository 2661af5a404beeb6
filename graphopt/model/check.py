"""What a model must fulfil to be worked on: each check has one sentence for what is wrong."""

import math
from collections.abc import Iterable

import onnx
from onnx import TensorProto, helper

from graphopt.errors import ModelError
from graphopt.model.weights import SUB_BYTE_BITS, byte_size

_MAX_ELEMENTS = 2**62
_KNOWN_TYPES = {TensorProto.UNDEFINED, *helper.get_all_tensor_dtypes()}
_INT32_STORED = {
    TensorProto.INT32,
    TensorProto.INT16,
    TensorProto.INT8,
    TensorProto.UINT16,
    TensorProto.UINT8,
    TensorProto.BOOL,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ,
    TensorProto.FLOAT8E5M2,
    TensorProto.FLOAT8E5M2FNUZ,
    TensorProto.FLOAT8E8M0,
    *SUB_BYTE_BITS,
}
_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
    **dict.fromkeys(_INT32_STORED, "int32_data"),
}
DATA_FIELDS = tuple(sorted(set(_FIELDS.values())))
"""The fields besides ``raw_data`` that a tensor can have its values in."""


def check_header(header: onnx.ModelProto, has_graph: bool) -> None:
    """Check versions.

    Raises:
        ModelError: There is no graph, no version, or one newer than the installed onnx package knows.
    """
    if not has_graph:
        raise ModelError("not an ONNX model: it has no graph")
    if not header.ir_version:
        raise ModelError("not an ONNX model: it has no IR version")
    if header.ir_version > onnx.IR_VERSION or header.ir_version < 0:
        raise ModelError(f"IR version {header.ir_version} is unknown, the newest known one is {onnx.IR_VERSION}")
    if not header.opset_import:
        raise ModelError("the model imports no operator set")
    check_opsets(header.opset_import)
    seen = set()
    for function in header.functions:
        identity = (function.domain, function.name, function.overload)
        if identity in seen:
            raise ModelError(f"two local functions are {function.domain}.{function.name}")
        seen.add(identity)
        check_opsets(function.opset_import)
    check_recursion(header.functions)


def check_opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> None:
    """Check that operator sets of ONNX's own domains are known.

    Raises:
        ModelError: One is newer than the installed onnx package knows, or imported at two versions.
    """
    newest = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": onnx.defs.onnx_ml_opset_version()}
    versions: dict[str, int] = {}
    for entry in imports:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"two versions of the operator set {domain or 'ai.onnx'!r} are imported")
        if not 1 <= entry.version <= newest.get(domain, entry.version):
            known = f", the newest known one is {newest[domain]}" if domain in newest else ""
            raise ModelError(f"opset {entry.version} of {domain or 'ai.onnx'!r} is unknown{known}")


def check_recursion(functions: Iterable[onnx.FunctionProto]) -> None:
    """Check that no local function calls itself, directly or through others.

    Raises:
        ModelError: One does.
    """
    calls = {(f.domain, f.name, f.overload): {(n.domain, n.op_type, n.overload) for n in _nodes(f)} for f in functions}
    while True:
        leaves = [name for name, called in calls.items() if not called & calls.keys()]
        if not leaves:
            break
        for name in leaves:
            del calls[name]
    if calls:
        domain, function, _ = next(iter(calls))
        raise ModelError(f"the local function {domain}.{function} calls itself")


def check_tensor(tensor: TensorProto, length: int | None = None) -> None:
    """Check that a tensor's data is as long as its type and dims say.

    Args:
        tensor: The tensor.
        length: Bytes of its raw data where that is not in the proto.

    Raises:
        ModelError: Its type is unknown, its dims are negative or overflow, or its data is shorter or longer.
    """
    label = f"tensor {tensor.name!r}"
    check_element_type(tensor.data_type, label)
    check_dims(tensor.dims, label)
    if tensor.data_type == TensorProto.UNDEFINED:
        raise ModelError(f"{label} has no element type")
    if length is None and tensor.HasField("raw_data"):
        length = len(tensor.raw_data)
    if length is not None and tensor.data_type != TensorProto.STRING:
        if length != (wanted := byte_size(tensor.data_type, tensor.dims)):
            raise ModelError(f"{label} of dims {list(tensor.dims)} needs {wanted} bytes of data, it has {length}")
        return
    count = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        count *= 2
    if tensor.data_type not in (
        TensorProto.FLOAT6E2M3,
        TensorProto.FLOAT6E3M2,
    ):  # the others of under 8 bits are packed
        count = -(-count * SUB_BYTE_BITS.get(tensor.data_type, 8) // 8)
    if (found := len(getattr(tensor, _FIELDS[tensor.data_type]))) != count:
        raise ModelError(f"{label} of dims {list(tensor.dims)} needs {count} values, it has {found}")


def check_name(name: str) -> None:
    """Check a name that ties a graph together; protobuf gives one that is not UTF-8 as bytes, and takes none.

    Raises:
        ModelError: It is not UTF-8.
    """
    if not isinstance(name, str):
        raise ModelError(f"the name {name!r} is not UTF-8")


def check_dims(dims: Iterable[int], label: str) -> None:
    """Check the dims of stored data.

    Raises:
        ModelError: One is negative, or their product is beyond any memory.
    """
    dims = list(dims)
    if min(dims, default=0) < 0 or math.prod(dim for dim in dims if dim) > _MAX_ELEMENTS:
        raise ModelError(f"{label} has the impossible dims {dims}")


def check_element_type(data_type: int, label: str) -> None:
    """Check that an element type is known, or undefined.

    Raises:
        ModelError: It is not.
    """
    if data_type not in _KNOWN_TYPES:
        raise ModelError(f"{label} has the unknown element type {data_type}")


def check_type(kind: onnx.TypeProto, name: str) -> None:
    """Check the element types in a declared type.

    Raises:
        ModelError: One is unknown.
    """
    while True:
        value = kind.WhichOneof("value")
        if value in ("tensor_type", "sparse_tensor_type"):
            return check_element_type(getattr(kind, value).elem_type, repr(name))
        if value in ("sequence_type", "optional_type"):
            kind = getattr(kind, value).elem_type
        elif value == "map_type":
            kind = kind.map_type.value_type
        else:
            return None


def _nodes(function: onnx.FunctionProto) -> Iterable[onnx.NodeProto]:
    """Yield the nodes of a function body, those of subgraphs included."""
    waiting = list(function.node)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting += [inner for graph in (attribute.g, *attribute.graphs) for inner in graph.node]
