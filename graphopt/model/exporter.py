"""Graph to protos: what no pass has touched comes out as the very bytes that it came in as."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, helper

from graphopt.errors import ModelError
from graphopt.model.attributes import write_attributes
from graphopt.model.ir import Constant, Graph, Info, Node, Variable
from graphopt.model.model import Model
from graphopt.model.order import reads
from graphopt.model.weights import MappedValues, SparseValues, TensorValues, describe
from graphopt.model.wire import BIG, has_marker

Place = Callable[[TensorProto, Any], None]
"""Puts a weight's bytes into the proto that describes it, or notes there where they are.

It gets either the MappedValues of an unchanged weight or the raw bytes of a new one.
"""

LIMIT = 2**31 - 2**20
"""Bytes that a single-file model may have; protobuf's limit is 2 GB."""


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
    return write_model(model, _place_inside if weights else _place_nowhere)


def weight_bytes(model: Model) -> int:
    """Return the bytes of all weights, initializers and tensor attributes alike."""
    return sum(constant._values.nbytes for constant in model.constants())


def write_model(model: Model, place: Place) -> onnx.ModelProto:
    """Return the model as a proto, its big weights placed by ``place``."""
    model.adopt_constants()
    proto = onnx.ModelProto()
    proto.CopyFrom(model.header)
    writer = _Writer(model.header.ir_version, place)
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
            values = _values(constant)
            if isinstance(values, SparseValues):
                target.sparse_initializer.append(values.sparse)
            else:
                self._tensor(constant, target.initializer.add())
        target.input.extend(self._inputs(graph))
        target.output.extend(_matched(graph.output_infos, graph.outputs))
        target.value_info.extend(_value_infos(graph))

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
        target.value_info.extend(_value_infos(graph))

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
        values = _values(constant)
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
        return _matched(kept, tensors)


def _matched(infos: list[Info], tensors: list[gs.Tensor]) -> list[onnx.ValueInfoProto]:
    """Return a declaration for each tensor: its own of the file, if it has one, as far as that still holds."""
    waiting: dict[int, list[onnx.ValueInfoProto]] = {}
    for info, tensor in infos:
        waiting.setdefault(id(tensor), []).append(info)
    declared = []
    for place, tensor in enumerate(tensors):
        own = waiting.get(id(tensor))
        renewed = not own and place < len(infos) and infos[place][0].name == tensor.name
        declared.append(_declaration(own.pop(0) if own else infos[place][0] if renewed else None, tensor))
    return declared


def _value_infos(graph: gs.Graph) -> list[onnx.ValueInfoProto]:
    """Return what is declared of intermediate tensors: in file order, then what passes have added.

    What is about a tensor that the graph no longer has, or whose shape a pass has set to None, is dropped.
    """
    alive = {id(tensor) for node in graph.nodes for tensor in [*reads(node), *node.outputs]}
    alive |= {id(t) for t in [*graph.initializers, *graph.inputs, *graph.outputs]}
    infos = []
    known = {id(tensor) for _, tensor in [*graph.value_infos, *graph.input_infos, *graph.output_infos]}
    known |= {id(tensor) for tensor in [*graph.inputs, *graph.outputs]}
    for info, tensor in graph.value_infos:
        if tensor is None:
            infos.append(info)
        elif id(tensor) in alive and not _is_forgotten(tensor):
            infos.append(_declaration(info, tensor))
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name and id(tensor) not in known and tensor.dtype is not None and tensor.shape is not None:
                infos.append(_declaration(None, tensor))
    return infos


def _is_forgotten(tensor: gs.Tensor) -> bool:
    """Whether what the file declared of a tensor no longer holds, and nothing is known in its place."""
    declared = getattr(tensor, "declared", None)
    if isinstance(tensor, gs.Constant):
        return bool(declared is not None and _now(tensor) != declared)
    return bool(tensor.shape is None and declared is not None and declared[1] is not None)


def _now(tensor: gs.Tensor) -> tuple[Any, tuple[Any, ...] | None]:
    """Return element type and shape of a tensor as they are now."""
    return tensor.dtype, None if tensor.shape is None else tuple(tensor.shape)


def _declaration(info: onnx.ValueInfoProto | None, tensor: gs.Tensor) -> onnx.ValueInfoProto:
    """Return the declaration of a tensor: ``info`` itself if it still holds, else a new one with its documentation."""
    if info is not None and _now(tensor) == getattr(tensor, "declared", None):
        if info.name == tensor.name:
            return info
        renamed = onnx.ValueInfoProto()
        renamed.CopyFrom(info)
        renamed.name = tensor.name
        return renamed
    made = onnx.ValueInfoProto()
    if info is not None:
        made.CopyFrom(info)
        made.ClearField("type")
    made.name = tensor.name
    if tensor.dtype is not None:
        dtype = (
            tensor.dtype if isinstance(tensor.dtype, int) else helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        )
        made.type.CopyFrom(helper.make_tensor_type_proto(dtype, tensor.shape))
    elif isinstance(tensor, Variable) and info is not None:
        made.type.CopyFrom(info.type)
    return made


def _values(constant: gs.Constant) -> TensorValues | np.ndarray[Any, Any]:
    """Return a constant's values: the file's own where what is there now equals them to the bit."""
    values: TensorValues | np.ndarray[Any, Any] = constant._values
    original = constant.original if isinstance(constant, Constant) else None
    if original is None or values is original or isinstance(values, TensorValues):
        return values
    if original.dtype != values.dtype or tuple(original.shape) != values.shape:
        return values
    before = original.load()
    if values.dtype.kind in "OSU":
        same = np.array_equal(before, values)
    else:
        same = (
            before.__array_interface__["data"] == values.__array_interface__["data"]
            and before.strides == values.strides
        )
        same = same or before.tobytes() == values.tobytes()
    return original if same else values


def _is_big(raw: bytes | memoryview) -> bool:
    """Whether a weight's bytes are kept out of a skeleton."""
    return len(raw) >= BIG or has_marker(raw)


def _place_inside(target: TensorProto, data: Any) -> None:
    """Put a weight into its proto."""
    target.raw_data = b"".join(data.chunks()) if isinstance(data, MappedValues) else bytes(data)


def _place_nowhere(target: TensorProto, data: Any) -> None:
    """Describe a weight only; small ones are kept, since shape inference reads them."""
    size = data.nbytes if isinstance(data, MappedValues) else len(data)
    if size < BIG:
        _place_inside(target, data)
    else:
        target.data_location = TensorProto.EXTERNAL
