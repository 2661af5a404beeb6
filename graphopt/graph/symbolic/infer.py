"""Asks ONNX's own shape inference about one node at a time, with symbolic dimensions going in and coming out."""

from collections.abc import Hashable, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TypeProto

from graphopt.graph.protos import node_proto
from graphopt.graph.symbolic import expression as ex
from graphopt.graph.symbolic.fact import Fact
from graphopt.graph.symbolic.shapes import Partial
from graphopt.graph.symbolic.values import SymbolicShape
from graphopt.model.inference import REFUSALS

Answer = tuple[tuple[int, Partial], ...]
"""Element type, 0 if unknown, and shape of each output."""

_Content = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and elements."""

_ASKED_AS = {
    ("Slice", 10): 11,
    **{("MaxPool", version): 22 for version in (10, 11, 12)},
    **{("AveragePool", version): 22 for version in (10, 11, 19)},
}
"""Versions whose inference is wrong, and those of the same meaning to ask instead.

Slice of version 10 keeps the name of an axis that it cuts. Pooling with ``ceil_mode`` counted windows that begin in the
padding behind the data; ONNX Runtime computes none in any version.
"""

_MOST = 4096
_ANSWERS: dict[Hashable, Answer | None] = {}
"""What ONNX has answered: a model has many equal nodes, and is swept over again and again."""


def infer(node: gs.Node, opset: int, read: Sequence[Fact | None]) -> Answer | None:
    """Return element type and shape of each output of a node by ONNX's inference.

    Args:
        node: A node of the default domain.
        opset: The version of that domain.
        read: What is known of its inputs; None for one that is absent.

    Returns:
        One entry per output; None if an input's type is not known, or where ONNX refuses.
    """
    if any(fact is not None and not fact.type for fact in read):
        return None
    contents = tuple(None if fact is None else _content(fact) for fact in read)
    types = tuple(None if fact is None else (fact.type, fact.shape) for fact in read)
    present = tuple(bool(tensor.name) for tensor in node.outputs)
    attributes, proto = _attributes(node), None
    if attributes is None:
        proto = _standing_alone(node)
        if proto is None:
            return None
        attributes = proto.SerializeToString(deterministic=True)
    key = (node.op, attributes, opset, present, types, contents)
    if key not in _ANSWERS:
        proto = proto or _standing_alone(node)
        if len(_ANSWERS) >= _MOST:
            _ANSWERS.clear()
        _ANSWERS[key] = None if proto is None else _ask(proto, opset, types, contents)
    return _ANSWERS[key]


def _standing_alone(node: gs.Node) -> onnx.NodeProto | None:
    """Return the node with inputs i0, i1, ... and outputs o0, o1, ...; None if it cannot stand alone."""
    inputs = [f"i{index}" if tensor.name else "" for index, tensor in enumerate(node.inputs)]
    outputs = [f"o{index}" if tensor.name else "" for index, tensor in enumerate(node.outputs)]
    return node_proto(node, inputs, outputs)


def _attributes(node: gs.Node) -> Hashable | None:
    """Return what equal attributes have in common, if all are of plain kinds; else None."""
    found = []
    for name, value in node.attrs.items():
        kind = type(value)
        if kind is list:
            if not value:
                return None
            found.append((name, type(value[0]), tuple(value)))
        elif kind in (int, float, str):
            found.append((name, kind, value))
        else:
            return None
    return tuple(found)


def _content(fact: Fact) -> _Content | None:
    """Return what a tensor holds if every element is known."""
    if fact.value is None:
        return None
    entries = tuple(fact.value.reshape(-1).tolist())
    return (fact.value.shape, entries) if all(isinstance(entry, int) for entry in entries) else None


def _ask(
    proto: onnx.NodeProto,
    opset: int,
    types: tuple[tuple[int, SymbolicShape] | None, ...],
    contents: tuple[_Content | None, ...],
) -> Answer | None:
    """Return element type and shape of each output, None where ONNX refuses.

    Args:
        proto: The node; its inputs are called i0, i1, ..., or nothing where one is absent.
        opset: The version of the default domain.
        types: Element type and shape of each input.
        contents: Shape and elements of each input, where they are known.
    """
    names: dict[str, ex.Expression] = {}
    known = {f"i{i}": _write(*entry, names) for i, entry in enumerate(types) if entry is not None}
    data = {}
    for index, (entry, content) in enumerate(zip(types, contents, strict=True)):
        if entry is not None and content is not None:
            array = np.asarray(content[1], dtype=onnx.helper.tensor_dtype_to_np_dtype(entry[0]))
            data[f"i{index}"] = onnx.numpy_helper.from_array(array.reshape(content[0]))
    try:
        schema = onnx.defs.get_schema(proto.op_type, opset, "")
        if version := _ASKED_AS.get((proto.op_type, schema.since_version)):
            schema, opset = onnx.defs.get_schema(proto.op_type, version, ""), version
        proto = _with_defaults(proto, schema)
        imports = [onnx.helper.make_opsetid("", opset)]
        found = onnx.shape_inference.infer_node_outputs(schema, proto, known, data, {}, imports, 10)
    except REFUSALS:
        return None
    sizes = [size for entry in types if entry is not None for size in ((None,) if entry[1] is None else entry[1])]
    zero = 0 if 0 in sizes or all(isinstance(size, int) for size in sizes) else None
    return tuple(_read(found.get(name), names, zero) for name in proto.output)


def _with_defaults(proto: onnx.NodeProto, schema: onnx.defs.OpSchema) -> onnx.NodeProto:
    """Return a node with the defaults of its attributes written out: the inference of STFT takes others for them."""
    given = {attribute.name for attribute in proto.attribute}
    whole = onnx.NodeProto()
    whole.CopyFrom(proto)
    whole.attribute.extend(
        each.default_value for each in schema.attributes.values() if each.default_value.name and each.name not in given
    )
    return whole


def _write(kind: int, shape: SymbolicShape, names: dict[str, ex.Expression]) -> TypeProto:
    """Return a type for ONNX, each symbolic dimension under the text of its expression, which ``names`` gains."""
    proto = TypeProto()
    proto.tensor_type.elem_type = kind
    if shape is not None:
        proto.tensor_type.shape.SetInParent()
        for entry in shape:
            dim = proto.tensor_type.shape.dim.add()
            if isinstance(entry, int):
                dim.dim_value = entry
            else:
                dim.dim_param = str(entry)
                names[dim.dim_param] = entry
    return proto


def _read(proto: TypeProto | None, names: dict[str, ex.Expression], zero: int | None) -> tuple[int, Partial]:
    """Return element type and shape from ONNX's answer, with its dimension names turned back.

    ``zero`` is what a size of 0 says: nothing where an input's size is not known and none is 0, as the inference of
    Attention takes a size that it does not know for 0.
    """
    if proto is None or not proto.HasField("tensor_type"):
        return 0, None
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    dims = tensor.shape.dim
    return tensor.elem_type, tuple(
        (dim.dim_value or zero) if dim.HasField("dim_value") else names.get(dim.dim_param) for dim in dims
    )
