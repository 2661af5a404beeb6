"""One node as a proto of its own, outside its graph."""

from collections.abc import Sequence

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto

from graphopt.graph.constants import read_values


def node_proto(node: gs.Node, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.NodeProto | None:
    """Return a node under other tensor names, without name and subgraphs.

    Returns:
        None if an attribute cannot stand alone: a subgraph, a reference to a function's attribute, sparse values.
    """
    proto = onnx.NodeProto(op_type=node.op, domain=node.domain or "", input=inputs, output=outputs)
    source = getattr(node, "source", None)
    known = {} if source is None else {attribute.name: attribute for attribute in source.attribute}
    for name, value in node.attrs.items():
        if isinstance(value, (int, float, str)) or (isinstance(value, list) and value):
            attribute = onnx.helper.make_attribute(name, value)
            if name in known and known[name].type == AttributeProto.FLOAT and attribute.type == AttributeProto.INT:
                attribute = AttributeProto(name=name, type=AttributeProto.FLOAT, f=attribute.i)
            proto.attribute.append(attribute)
        elif isinstance(value, list):
            kind = known[name].type if name in known else AttributeProto.INTS
            proto.attribute.append(AttributeProto(name=name, type=kind))
        elif isinstance(value, gs.Constant) and (array := read_values(value)) is not None:
            proto.attribute.append(onnx.helper.make_attribute(name, onnx.numpy_helper.from_array(array)))
        else:
            return None
    return proto
