"""onnx-graphsurgeon's classes with what they would forget: the protos that they were read from."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_graphsurgeon.util.misc import SynchronizedList

from graphopt.model.weights import TensorValues, byte_size

_CHUNK = 1 << 20

Declared = tuple[Any, tuple[Any, ...] | None]
"""Element type and shape of a tensor, as a ValueInfoProto declared them."""

Info = tuple[onnx.ValueInfoProto, gs.Tensor | None]
"""A declaration and the tensor it is about; None if the graph has no such tensor."""


class RawAttribute:
    """An attribute that onnx-graphsurgeon cannot model (sparse tensors, types, lists of graphs): kept as it is."""

    def __init__(self, proto: onnx.AttributeProto) -> None:
        """Hold ``proto``."""
        self.proto = proto

    def __repr__(self) -> str:
        return f"RawAttribute({self.proto.name!r})"


class Variable(gs.Variable):  # type: ignore[misc]
    """A tensor that is computed; ``declared`` is what the file said of its type and shape."""

    declared: Declared | None


class Constant(gs.Constant):  # type: ignore[misc]
    """An initializer or tensor attribute; ``original`` is what the file has for it, ``declared`` its type and shape."""

    original: TensorValues | None
    declared: Declared | None


class Node(gs.Node):  # type: ignore[misc]
    """A node; ``source`` is its proto."""

    source: onnx.NodeProto | None


class Graph(gs.Graph):  # type: ignore[misc]
    """A graph, a subgraph or a function body.

    Attributes:
        rest: The proto without nodes, initializers, inputs, outputs and value_info.
        initializers: The constants that this graph owns, in file order, unused ones included.
        unused: Ids of those that nothing read in the file.
        input_infos: Declared inputs, overridable initializers included; a function's have names only.
        output_infos: Declared outputs.
        value_infos: Declared intermediate tensors.
    """

    rest: onnx.GraphProto | onnx.FunctionProto
    initializers: list[gs.Constant]
    unused: set[int]
    input_infos: list[Info]
    output_infos: list[Info]
    value_infos: list[Info]

    def __init__(
        self, nodes: list[gs.Node], inputs: list[gs.Tensor], outputs: list[gs.Tensor], rest: Any, opsets: Any
    ) -> None:
        """Make a graph of nodes that are wired already."""
        opset = next((o.version for o in opsets if o.domain in ("", "ai.onnx")), 1)
        super().__init__(nodes, inputs, outputs, rest.name, rest.doc_string, opset, list(opsets))
        self.rest = rest
        self.initializers = []
        self.unused = set()
        self.input_infos, self.output_infos, self.value_infos = [], [], []

    @property
    def is_function(self) -> bool:
        """Whether this is the body of a local function, which has no initializers and no declared inputs."""
        return isinstance(self.rest, onnx.FunctionProto)


def make_variable(name: str, dtype: Any = None, shape: Any = None, kind: str = "tensor_type") -> Variable:
    """Return a Variable; faster than its constructor, which matters for graphs of 100,000 nodes."""
    variable: Variable = Variable.__new__(Variable)
    variable.__dict__.update(name=name, dtype=dtype, shape=shape, type=kind, declared=None)
    _link(variable)
    return variable


def make_constant(name: str, values: TensorValues) -> Constant:
    """Return a Constant as the file has it."""
    constant: Constant = Constant.__new__(Constant)
    constant.__dict__.update(name=name, _values=values, data_location=None, _export_dtype=None, original=values)
    constant.declared = (values.dtype, tuple(values.shape))
    _link(constant)
    return constant


def make_node(
    op: str,
    name: str,
    attrs: dict[str, Any],
    inputs: Iterable[gs.Tensor],
    outputs: Iterable[gs.Tensor],
    domain: str | None,
    source: onnx.NodeProto | None,
) -> Node:
    """Return a Node wired to its tensors."""
    node: Node = Node.__new__(Node)
    node.__dict__.update(op=op, name=name, attrs=attrs, domain=domain, source=source)
    _link(node)
    for tensor in inputs:
        list.append(node.inputs, tensor)
        list.append(tensor.outputs, node)
    for tensor in outputs:
        list.append(node.outputs, tensor)
        list.append(tensor.inputs, node)
    return node


def _link(thing: Any) -> None:
    """Give a tensor or node its two synchronized lists, without running their constructor."""
    for name, other in (("inputs", "outputs"), ("outputs", "inputs")):
        links: Any = SynchronizedList.__new__(SynchronizedList)
        links.__dict__.update(parent_obj=thing, field_name=other)
        thing.__dict__[name] = links


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Hold Python's cycle collector off while many objects are made that all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def current_values(constant: gs.Constant) -> TensorValues | NDArray[Any]:
    """Return a constant's values: the file's own where what is there now equals them to the bit."""
    values: TensorValues | NDArray[Any] = constant._values
    original = constant.original if isinstance(constant, Constant) else None
    if original is None or isinstance(values, TensorValues):
        return values
    if original.dtype != values.dtype or tuple(original.shape) != values.shape:
        return values
    before = original.load()
    same = np.array_equal(before, values) if values.dtype.kind in "OSU" else same_bytes(before, values)
    return original if same else values


def value_bytes(values: TensorValues | NDArray[Any]) -> int:
    """Return the bytes that values take in a file; strings, which are small, count as nothing."""
    if isinstance(values, TensorValues):
        return values.nbytes
    data_type = TensorProto.STRING if values.dtype.kind in "OSU" else helper.np_dtype_to_tensor_dtype(values.dtype)
    return byte_size(data_type, values.shape)


def node_bytes(node: gs.Node) -> int:
    """Return about how many bytes a node takes in a file, its large weights left out."""
    source = node.source if isinstance(node, Node) else None
    if source is not None:
        return int(source.ByteSize()) + 4
    return 8 + sum(
        len(name or "") + 3 for name in (node.name, node.op, *(t.name for t in [*node.inputs, *node.outputs]))
    )


def same_bytes(left: NDArray[Any], right: NDArray[Any]) -> bool:
    """Whether two arrays of one type and shape are the same to the bit; neither is copied if it is contiguous."""
    if left.__array_interface__["data"] == right.__array_interface__["data"] and left.strides == right.strides:
        return True
    one, two = (np.asarray(side, order="C").reshape(-1).view(np.uint8) for side in (left, right))
    return all(np.array_equal(one[i : i + _CHUNK], two[i : i + _CHUNK]) for i in range(0, one.size, _CHUNK))
