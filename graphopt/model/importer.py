"""Protos to graph."""

from collections import ChainMap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, helper

from graphopt.errors import ModelError
from graphopt.model.attributes import read_attribute
from graphopt.model.check import (
    DATA_FIELDS,
    check_dims,
    check_element_type,
    check_header,
    check_name,
    check_tensor,
    check_type,
)
from graphopt.model.dimensions import forget_doubtful_names, named
from graphopt.model.external import MissingDataError
from graphopt.model.ir import (
    Constant,
    Graph,
    Info,
    Node,
    Variable,
    make_constant,
    make_node,
    make_variable,
    no_garbage_collection,
    same_bytes,
)
from graphopt.model.model import Model
from graphopt.model.order import sort_nodes
from graphopt.model.weights import MappedValues, SparseValues, TensorValues
from graphopt.model.wire import Span, WireError, marker_index, split, strip

Scope = ChainMap[str, gs.Tensor]
P = TypeVar("P", onnx.GraphProto, onnx.FunctionProto)
Resolve = Callable[[TensorProto], Span]

_MODEL_GRAPH = 7
_GRAPH_LISTS = ("node", "initializer", "sparse_initializer", "input", "output", "value_info")
_FUNCTION_LISTS = ("node", "input", "output", "value_info")


def from_proto(proto: onnx.ModelProto, path: Path | None = None) -> Model:
    """Build a Model, which keeps its own copy of all that ``proto`` says.

    External data is not looked up: such a tensor must have been loaded into the proto.

    Raises:
        ModelError: The proto is not a usable model.
    """
    try:
        data = proto.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise ModelError(
            "the model is larger than protobuf can hold in memory (2 GB); load it from its file"
        ) from error
    return read_model(*strip(data), _no_external, path)


def read_model(skeleton: bytes, spans: Sequence[Span], external: Resolve, path: Path | None) -> Model:
    """Build a Model from a skeleton.

    Args:
        skeleton: Serialized model with markers in place of big weights.
        spans: Where those weights are.
        external: Finds the bytes of a tensor that is stored externally.
        path: The file, for the model to remember.

    Raises:
        ModelError: The skeleton is not a usable model.
    """
    try:
        rest, main = split(skeleton, _MODEL_GRAPH)
        header = onnx.ModelProto.FromString(rest)
        graph = onnx.GraphProto.FromString(main or b"")
    except (WireError, DecodeError) as error:
        raise ModelError(f"not an ONNX model: {error}") from error
    check_header(header, main is not None)
    reader = _Reader(header, spans, external)
    with no_garbage_collection():
        functions = [reader.function(function) for function in header.functions]
        model = Model(reader.graph(graph, ChainMap()), header, path, functions=functions)
        model.repairs = (*reader.repairs, *_repaired(model))
        forget_doubtful_names(model)
    if len(reader.used) != len(spans):
        lost = next(span for index, span in enumerate(spans) if index not in reader.used)
        raise ModelError(f"the {lost.length} bytes of tensor data at byte {lost.start} are where ONNX knows none")
    header.ClearField("functions")
    for inner in model.graphs():
        given = {id(tensor) for tensor in inner.outputs}
        inner.unused = {id(t) for t in inner.initializers if not t.outputs and id(t) not in given}
    return model


def _repaired(model: Model) -> tuple[str, ...]:
    """Sort the nodes of every graph that is not in topological order, and tell of it.

    Raises:
        ModelError: A graph has a cycle.
    """
    unsorted = [graph.name or "the main graph" for graph in model.graphs() if sort_nodes(graph)]
    return tuple(f"the nodes of {name} were not in topological order" for name in unsorted)


class _Reader:
    """Reads the graphs of one model."""

    def __init__(self, header: onnx.ModelProto, spans: Sequence[Span], external: Resolve) -> None:
        self._opsets = list(header.opset_import)
        self._spans = spans
        self._external = external
        self.used: set[int] = set()
        self.repairs: list[str] = []

    def function(self, proto: onnx.FunctionProto) -> Graph:
        """Read the body of a local function."""
        scope: Scope = ChainMap({})
        self._inputs(proto.input, scope)
        nodes = self._nodes(proto.node, scope)
        value_infos = [_info(info, scope) for info in proto.value_info]
        inputs, outputs = [scope[name] for name in proto.input], [self._find(name, scope) for name in proto.output]
        graph = Graph(nodes, inputs, outputs, _without(proto, _FUNCTION_LISTS), proto.opset_import or self._opsets)
        graph.value_infos = value_infos
        return graph

    def graph(self, proto: onnx.GraphProto, outer: Scope) -> Graph:
        """Read a graph whose nodes may capture tensors of ``outer``."""
        scope = outer.new_child({})
        initializers = [self._initializer(tensor) for tensor in proto.initializer]
        initializers += [self._sparse(tensor) for tensor in proto.sparse_initializer]
        for constant in initializers:
            if not constant.name:
                raise ModelError("an initializer has no name")
            check_name(constant.name)
            if constant.name in scope.maps[0]:
                raise ModelError(f"two initializers are named {constant.name!r}")
            scope.maps[0][constant.name] = constant
        self._inputs([info.name for info in proto.input], scope)
        nodes = self._nodes(proto.node, scope)
        input_infos, value_infos, output_infos = (
            [_info(info, scope) for info in infos] for infos in (proto.input, proto.value_info, proto.output)
        )
        inputs = [tensor for _, tensor in input_infos if isinstance(tensor, gs.Variable)]
        outputs = [self._find(info.name, scope) for info in proto.output]
        graph = Graph(nodes, inputs, outputs, _without(proto, _GRAPH_LISTS), self._opsets)
        graph.initializers = initializers
        graph.input_infos, graph.value_infos, graph.output_infos = input_infos, value_infos, output_infos
        return graph

    def _inputs(self, names: Sequence[str], scope: Scope) -> None:
        """Make a tensor for each input that is not an initializer too."""
        if len(set(names)) != len(names) or "" in names:
            raise ModelError(f"two inputs have the same name, or one has none: {list(names)}")
        for name in names:
            check_name(name)
            scope.maps[0].setdefault(name, make_variable(name))

    def _nodes(self, protos: Sequence[onnx.NodeProto], scope: Scope) -> list[Node]:
        """Read nodes; first every tensor that they produce, so that captures and unsorted nodes find theirs."""
        local = scope.maps[0]
        for proto in protos:
            for name in proto.output:
                if not name:
                    continue
                check_name(name)
                if name in local:
                    raise ModelError(f"{name!r} is produced twice, the second time by a {proto.op_type} node")
                local[name] = make_variable(name)
        return [self._node(proto, scope) for proto in protos]

    def _node(self, proto: onnx.NodeProto, scope: Scope) -> Node:
        """Read one node."""
        attributes: dict[str, Any] = {}
        check_name(proto.op_type)
        for attribute in proto.attribute:
            check_name(attribute.name)
            if attribute.name in attributes:
                raise ModelError(f"the {proto.op_type} node {proto.name!r} has two attributes {attribute.name!r}")
            attributes[attribute.name] = read_attribute(
                attribute, lambda body: self.graph(body, scope), self._initializer
            )
        inputs = [self._find(name, scope) if name else make_variable("") for name in proto.input]
        outputs = [scope.maps[0][name] if name else make_variable("") for name in proto.output]
        domain = proto.domain if proto.HasField("domain") else None
        return make_node(proto.op_type, proto.name, attributes, inputs, outputs, domain, proto)

    def _find(self, name: str, scope: Scope) -> gs.Tensor:
        """Return the tensor of a name in scope.

        Raises:
            ModelError: Nothing defines it.
        """
        tensor = scope.maps[0].get(name)
        if tensor is None and (tensor := scope.get(name)) is None:
            raise ModelError(f"{name!r} is used but no input, initializer or node defines it")
        return tensor

    def _initializer(self, proto: TensorProto) -> Constant:
        """Read a tensor; its values stay where they are."""
        if proto.data_location == TensorProto.EXTERNAL:
            check_element_type(proto.data_type, f"tensor {proto.name!r}")
            check_dims(proto.dims, f"tensor {proto.name!r}")
            return self._external_tensor(proto)
        return self._inline(proto)

    def _inline(self, proto: TensorProto) -> Constant:
        """Read a tensor that has its bytes in the model."""
        index = marker_index(proto.raw_data)
        if index is None or index >= len(self._spans):
            check_tensor(proto)
            return make_constant(proto.name, TensorValues(proto))
        self.used.add(index)
        span = self._spans[index]
        check_tensor(_described(proto), span.length)
        return make_constant(proto.name, MappedValues(_described(proto), span))

    def _external_tensor(self, proto: TensorProto) -> Constant:
        """Read a tensor whose bytes are in another file.

        Some tools leave its bytes in the model too. Where both are the same, or only the model has them, they are taken
        once, and ``repairs`` says so; ONNX Runtime takes the file's without a word where they differ.

        Raises:
            ModelError: The two differ, or the file's bytes cannot be read.
        """
        described = _described(proto)
        for name in DATA_FIELDS:
            described.ClearField(name)
        twice = any(len(getattr(proto, name)) for name in ("raw_data", *DATA_FIELDS))
        inside = self._inline(_without_place(proto)) if twice else None
        label = f"weight {proto.name!r} has its data in the model and in {_location(proto)!r}"
        try:
            span = self._external(proto)
        except MissingDataError:
            if inside is None:
                raise
            self.repairs.append(f"{label}, which cannot be found: those of the model are taken")
            return inside
        constant = make_constant(proto.name, MappedValues(described, span))
        check_tensor(described, span.length)
        if inside is not None:
            if not same_bytes(inside._values.load(), constant._values.load()):
                raise ModelError(f"{label}, and the two differ: remove one of them")
            self.repairs.append(f"{label}, both the same: they are taken once")
        return constant

    def _sparse(self, proto: onnx.SparseTensorProto) -> Constant:
        """Read a sparse initializer, which goes by the name of its values."""
        check_dims(proto.dims, f"sparse tensor {proto.values.name!r}")
        for part in (proto.values, proto.indices):
            if part.data_location == TensorProto.EXTERNAL:
                raise ModelError(f"the sparse tensor {proto.values.name!r} is external data, which is not supported")
            check_tensor(part)
        return make_constant(proto.values.name, SparseValues(proto))


def _without(proto: P, names: Sequence[str]) -> P:
    """Return a copy of a proto without some of its fields; copied twice, since protobuf keeps cleared memory."""
    cut, kept = type(proto)(), type(proto)()
    cut.CopyFrom(proto)
    for name in names:
        cut.ClearField(name)
    kept.CopyFrom(cut)
    return kept


def _described(proto: TensorProto) -> TensorProto:
    """Return all of a tensor but its data and where that is."""
    described = TensorProto()
    described.CopyFrom(proto)
    described.ClearField("raw_data")
    return _without_place(described) if proto.data_location == TensorProto.EXTERNAL else described


def _without_place(proto: TensorProto) -> TensorProto:
    """Return a tensor that does not say of any file that it has its data."""
    inside = TensorProto()
    inside.CopyFrom(proto)
    inside.ClearField("external_data")
    inside.ClearField("data_location")
    return inside


def _location(proto: TensorProto) -> str:
    """Return the file that has the data of an external tensor."""
    return next((entry.value for entry in proto.external_data if entry.key == "location"), "")


def _info(info: onnx.ValueInfoProto, scope: Scope) -> Info:
    """Match a declaration with its tensor, and tell a computed tensor what is declared of it."""
    check_type(info.type, info.name)
    tensor = scope.maps[0].get(info.name)
    if tensor is None:
        return info, scope.get(info.name)
    if isinstance(tensor, Variable):
        kind = info.type.WhichOneof("value")
        if kind == "tensor_type":
            dtype, shape = _declared(info.type.tensor_type)
            tensor.dtype = tensor.dtype if dtype is None else dtype
            tensor.shape = tensor.shape if shape is None else shape
        elif kind is not None:
            tensor.type = kind
        tensor.declared = (tensor.dtype, None if tensor.shape is None else tuple(tensor.shape))
    return info, tensor


def _declared(kind: onnx.TypeProto.Tensor) -> tuple[Any, list[int | str | None] | None]:
    """Return element type (None if undefined) and shape (None if of unknown rank)."""
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else None
    if not kind.HasField("shape"):
        return dtype, None
    return dtype, [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else named(dim.dim_param)
        for dim in kind.shape.dim
    ]


def _no_external(proto: TensorProto) -> Span:
    raise MissingDataError(f"{proto.name!r} is external data, which only a file can have: load the model from its path")
