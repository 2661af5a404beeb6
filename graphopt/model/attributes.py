"""Attributes: proto to plain Python values and back, without losing any type."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, helper, numpy_helper
from onnx_graphsurgeon.util.misc import convert_from_onnx_attr_type, convert_to_onnx_attr_type

from graphopt.model.ir import RawAttribute, value_bytes

_FIELDS = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
}


def read_attribute(
    proto: AttributeProto,
    read_graph: Callable[[onnx.GraphProto], gs.Graph],
    read_tensor: Callable[[onnx.TensorProto], gs.Constant],
) -> Any:
    """Return the value of an attribute: a number, str, list, Constant, Graph, AttributeRef or RawAttribute."""
    kind = proto.type
    if proto.ref_attr_name:
        return gs.Node.AttributeRef(proto.ref_attr_name, convert_from_onnx_attr_type(kind))
    if kind == AttributeProto.GRAPH:
        return read_graph(proto.g)
    if kind == AttributeProto.TENSOR:
        return read_tensor(proto.t)
    if kind not in _FIELDS:
        return RawAttribute(proto)
    return _plain(proto)


def write_attributes(target: onnx.NodeProto, node: gs.Node, write_value: Callable[[AttributeProto, Any], None]) -> None:
    """Write the attributes of ``node``, of which ``target`` holds those of the file; equal ones keep their bytes.

    Args:
        target: A node proto with the file's attributes.
        node: The node with the attributes as they are now.
        write_value: Writes a Constant or a Graph into an attribute that has its name and type.
    """
    old = {attribute.name: attribute for attribute in target.attribute}
    if list(old) == list(node.attrs) and all(_unchanged(old[name], value) for name, value in node.attrs.items()):
        return
    new = []
    for name, value in node.attrs.items():
        before = old.get(name)
        if before is not None and _unchanged(before, value):
            new.append(before)
            continue
        attribute = _written(node, name, value, before, write_value)
        if before is not None and before.HasField("doc_string"):
            attribute.doc_string = before.doc_string
        new.append(attribute)
    kept = onnx.NodeProto(attribute=new)
    target.ClearField("attribute")
    target.attribute.MergeFrom(kept.attribute)


def attribute_bytes(node: gs.Node) -> int:
    """Return about how many bytes the values of a node's attributes take in a file, its bodies left out."""
    return sum(map(_attribute_bytes, node.attrs.values()))


def _attribute_bytes(value: Any) -> int:
    if isinstance(value, gs.Constant):
        return value_bytes(value._values)
    if isinstance(value, RawAttribute):
        return 0 if value.proto.graphs else int(value.proto.ByteSize())
    if isinstance(value, str | bytes):
        return len(value.encode() if isinstance(value, str) else value) + 1
    if isinstance(value, list | tuple):
        return sum(1 + _attribute_bytes(each) for each in value)  # each has a tag of its own
    if isinstance(value, int):
        return max(1, -(-(value % (1 << 64)).bit_length() // 7))  # written in groups of seven bits
    return 4 if isinstance(value, float) else 0


def _plain(proto: AttributeProto) -> Any:
    """Return a number, str or list; a RawAttribute if a string is not UTF-8."""
    value = getattr(proto, _FIELDS[proto.type])
    try:
        if proto.type == AttributeProto.STRING:
            return value.decode()
        if proto.type == AttributeProto.STRINGS:
            return [text.decode() for text in value]
    except UnicodeDecodeError:
        return RawAttribute(proto)
    return list(value) if proto.type in (AttributeProto.FLOATS, AttributeProto.INTS) else value


def _unchanged(proto: AttributeProto, value: Any) -> bool:
    """Whether ``proto`` still says what ``value`` is; False also where that takes looking into a tensor or graph."""
    if isinstance(value, RawAttribute):
        return value.proto is proto or value.proto == proto
    if isinstance(value, gs.Node.AttributeRef):
        return bool(proto.ref_attr_name == value.name)
    if proto.ref_attr_name or proto.type not in _FIELDS or isinstance(value, (gs.Tensor, gs.Graph, np.ndarray)):
        return False
    before = _plain(proto)
    if type(before) is not type(value):
        return False
    if isinstance(before, list):
        return len(before) == len(value) and all(
            type(a) is type(b) and _same(a, b) for a, b in zip(before, value, strict=True)
        )
    return _same(before, value)


def _same(left: Any, right: Any) -> bool:
    """Whether two plain values are equal, NaN and the sign of zero included."""
    if type(left) is not type(right):
        return False
    return bool(left == right and str(left) == str(right)) or bool(left != left and right != right)


def _written(
    node: gs.Node,
    name: str,
    value: Any,
    before: AttributeProto | None,
    write_value: Callable[[AttributeProto, Any], None],
) -> AttributeProto:
    """Return the proto of a new or changed attribute."""
    if isinstance(value, RawAttribute):
        attribute = AttributeProto()
        attribute.CopyFrom(value.proto)
        attribute.name = name
        return attribute
    if isinstance(value, gs.Node.AttributeRef):
        kind = convert_to_onnx_attr_type(value.type)
        return AttributeProto(name=name, type=kind, ref_attr_name=value.name)
    if isinstance(value, gs.Graph):
        attribute = AttributeProto(name=name, type=AttributeProto.GRAPH)
        write_value(attribute, value)
        return attribute
    if isinstance(value, (gs.Constant, onnx.TensorProto, np.ndarray)):
        attribute = AttributeProto(name=name, type=AttributeProto.TENSOR)
        if isinstance(value, gs.Constant):
            write_value(attribute, value)
        else:
            attribute.t.CopyFrom(value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value))
        return attribute
    kind = before.type if before is not None else _declared_type(node.op, node.domain or "", name)
    value = _builtin(value)
    if kind == AttributeProto.FLOAT and isinstance(value, int):
        value = float(value)
    if kind == AttributeProto.FLOATS and isinstance(value, list):
        value = [float(item) for item in value]
    if kind not in _FIELDS or not (isinstance(value, list) and not value):
        return helper.make_attribute(name, value)
    empty = AttributeProto(name=name)
    empty.type = kind  # type: ignore[assignment]
    return empty


def _builtin(value: Any) -> Any:
    """Return numpy scalars and tuples as what make_attribute tells apart."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (list, tuple)):
        return [_builtin(item) for item in value]
    return value


@cache
def _declared_type(op: str, domain: str, name: str) -> int:
    """Return the attribute type that the newest schema of an operator declares; UNDEFINED if it has none."""
    try:
        schema = onnx.defs.get_schema(op, domain="" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return AttributeProto.UNDEFINED
    declared = schema.attributes.get(name)
    return AttributeProto.UNDEFINED if declared is None else int(declared.type)  # type: ignore[call-overload]
