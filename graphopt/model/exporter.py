"""Graph to protos: what no pass has touched comes out as the very bytes that it came in as."""

from collections.abc import Callable
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto

from graphopt.errors import ModelError
from graphopt.model.attributes import write_attributes
from graphopt.model.declarations import matched, value_infos
from graphopt.model.ir import Constant, Graph, Node, current_values, no_garbage_collection, value_bytes
from graphopt.model.model import Model
from graphopt.model.weights import MappedValues, SparseValues, TensorValues, describe
from graphopt.model.wire import BIG, has_marker

Place = Callable[[TensorProto, Any], None]
"""Puts a weight's bytes into the proto that describes it, or notes there where they are.

It gets either the MappedValues of an unchanged weight or the raw bytes of a new one.
"""

LIMIT = 2**31 - 1
"""Bytes that a protobuf message, and so a model in one file, may have."""


def to_proto(model: Model, weights: bool = True) -> onnx.ModelProto:
    """Return the whole model as a proto.

    Args:
        model: The model, which is not changed.
        weights: Whether to put the weights in; otherwise those of 1 KB and more are described only, as external data
            without a place, which is what inference on structure needs.

    Raises:
        ModelError: With weights, the model is larger than a proto can be (2 GB).
    """
    if weights and (size := weight_bytes(model)) > LIMIT:
        raise ModelError(f"the weights are {size / 1e9:.1f} GB, more than the 2 GB that protobuf can hold in memory")
    return write_model(model, place_inside if weights else _place_nowhere)


def weight_bytes(model: Model) -> int:
    """Return the bytes of all weights, initializers and tensor attributes alike."""
    return sum(value_bytes(constant._values) for constant in model.constants())


def serialized_size(model: Model) -> int:
    """Return the bytes that the model takes as one file; the weights are counted, not copied."""
    weights = 0

    def count(tensor: TensorProto, data: Any) -> None:
        nonlocal weights
        weights += data.nbytes if isinstance(data, MappedValues) else len(data)

    return int(write_model(model, count).ByteSize()) + weights


def write_model(model: Model, place: Place) -> onnx.ModelProto:
    """Return the model as a proto, its big weights placed by ``place``."""
    model.adopt_constants()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.header)
    writer = _Writer(model.header.ir_version, place)
    with no_garbage_collection():
        writer.graph(model.graph, proto.graph)
        for function in model.functions:
            writer.function(function, proto.functions.add())
    return proto


class _Writer:
    """Writes the graphs of one model."""

    def __init__(self, ir_version: int, place: Place) -> None:
        self._ir_version = ir_version
        self._place = place

    def graph(self, graph: gs.Graph, target: onnx.GraphProto) -> None:
        """Write a graph into ``target``."""
        if isinstance(graph, Graph):
            target.CopyFrom(graph.rest)
        if target.name != graph.name:
            target.name = graph.name or ""
        if target.doc_string != (graph.doc_string or ""):
            target.doc_string = graph.doc_string or ""
        for node in graph.nodes:
            self._node(node, target.node.add())
        for constant in graph.initializers:
            values = current_values(constant)
            if isinstance(values, SparseValues):
                target.sparse_initializer.append(values.sparse)
            else:
                self._tensor(constant, target.initializer.add())
        target.input.extend(self._inputs(graph))
        target.output.extend(matched(graph.output_infos, graph.outputs))
        target.value_info.extend(value_infos(graph))

    def function(self, graph: Graph, target: onnx.FunctionProto) -> None:
        """Write a function body into ``target``; constants that a pass has added become Constant nodes."""
        target.CopyFrom(graph.rest)
        target.input.extend(tensor.name for tensor in graph.inputs)
        target.output.extend(tensor.name for tensor in graph.outputs)
        for constant in graph.initializers:
            node = target.node.add(op_type="Constant", output=[constant.name])
            self._tensor(constant, node.attribute.add(name="value", type=AttributeProto.TENSOR).t)
        for node in graph.nodes:
            self._node(node, target.node.add())
        target.value_info.extend(value_infos(graph))

    def _node(self, node: gs.Node, target: onnx.NodeProto) -> None:
        """Write one node."""
        if isinstance(node, Node) and node.source is not None:
            target.CopyFrom(node.source)
        inputs, outputs = [tensor.name for tensor in node.inputs], [tensor.name for tensor in node.outputs]
        if inputs != target.input:
            target.input[:] = inputs
        if outputs != target.output:
            target.output[:] = outputs
        if target.op_type != node.op:
            target.op_type = node.op
        if target.name != (node.name or ""):
            target.name = node.name
        if target.domain != (node.domain or ""):
            target.domain = node.domain or ""
        write_attributes(target, node, self._value)

    def _value(self, target: AttributeProto, value: gs.Constant | gs.Graph) -> None:
        """Write a tensor or graph attribute."""
        if isinstance(value, gs.Graph):
            self.graph(value, target.g)
        else:
            self._tensor(value, target.t)

    def _tensor(self, constant: gs.Constant, target: TensorProto) -> None:
        """Write an initializer or tensor attribute."""
        values = current_values(constant)
        original = constant.original if isinstance(constant, Constant) else None
        if isinstance(values, TensorValues):
            target.CopyFrom(values.tensor)
            if target.name != constant.name:
                target.name = constant.name
            if isinstance(values, MappedValues):
                self._place(target, values)
            elif _is_big(inside := target.raw_data):
                target.ClearField("raw_data")
                self._place(target, inside)
            return
        described, raw = describe(constant.name, values)
        if original is not None:
            described.metadata_props.extend(original.tensor.metadata_props)
            if original.tensor.HasField("doc_string"):
                described.doc_string = original.tensor.doc_string
        target.CopyFrom(described)
        if raw is not None and _is_big(raw):
            self._place(target, raw)
        elif raw is not None:
            target.raw_data = bytes(raw)

    def _inputs(self, graph: gs.Graph) -> list[onnx.ValueInfoProto]:
        """Return the declared inputs, which up to IR version 3 must name every initializer."""
        given = {id(tensor) for tensor in [*graph.inputs, *graph.initializers]}
        kept = [(info, tensor) for info, tensor in graph.input_infos if id(tensor) in given]
        known = {id(tensor) for _, tensor in kept}
        tensors = [tensor for _, tensor in kept] + [t for t in graph.inputs if id(t) not in known]
        if self._ir_version < 4:
            known |= {id(tensor) for tensor in tensors}
            tensors += [t for t in graph.initializers if id(t) not in known]
        return matched(kept, tensors)


def _is_big(raw: bytes | memoryview) -> bool:
    """Whether a weight's bytes are kept out of a skeleton."""
    return len(raw) >= BIG or has_marker(raw)


def place_inside(target: TensorProto, data: Any) -> None:
    """Put a weight into its proto."""
    target.raw_data = b"".join(data.chunks()) if isinstance(data, MappedValues) else bytes(data)


def _place_nowhere(target: TensorProto, data: Any) -> None:
    """Describe a weight only; small ones are kept, since shape inference reads them."""
    size = data.nbytes if isinstance(data, MappedValues) else len(data)
    if size < BIG:
        place_inside(target, data)
    else:
        target.data_location = TensorProto.EXTERNAL
