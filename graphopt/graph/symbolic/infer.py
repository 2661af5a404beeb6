"""One forward sweep over a model that tells types, symbolic shapes and the content of small integer tensors.

What the file declares for tensors in the middle is not believed, only what the graph inputs declare, which a runtime
enforces: declarations go stale when somebody edits a model.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, TypeProto

from graphopt.graph.constants import constant_values
from graphopt.graph.protos import node_proto
from graphopt.graph.symbolic import expression as ex
from graphopt.graph.symbolic import shapes, values
from graphopt.graph.symbolic.attributes import Value, has_reference
from graphopt.graph.symbolic.values import SymbolicShape
from graphopt.model import Model
from graphopt.model.ir import no_garbage_collection

_REFUSALS = (
    onnx.defs.SchemaError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)
_Type = tuple[int, shapes.Partial]
"""Element type, 0 if unknown, and shape."""
_Content = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and elements."""
_FOLLOWED = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


class Facts:
    """What is known of every tensor of a model, by identity; it stays true while passes keep each tensor's values."""

    def __init__(self, model: Model) -> None:
        """Sweep over ``model``."""
        self._model = model
        self._types: dict[int, int] = {}
        self._shapes: dict[int, SymbolicShape] = {}
        self._values: dict[int, Value | None] = {}
        self._alive: list[gs.Tensor] = []  # ids are reused once an object is gone
        self._fed = {id(tensor) for tensor in model.overridable()}
        self._count = 0
        self._opsets: dict[int, tuple[int, gs.Node]] = {}
        with no_garbage_collection():
            self._sweep(model.graph, model.opset, trusted=True)
            for function in model.functions:
                self._sweep(function, function.opset or model.opset, trusted=False)

    def __contains__(self, node_id: int) -> bool:
        """Whether the sweep has seen a node, by its ``id``."""
        return node_id in self._opsets

    def type(self, tensor: gs.Tensor) -> int:
        """Return the element type in ONNX's numbering; 0 if unknown or not a tensor."""
        self._learn_constant(tensor)
        return self._types.get(id(tensor), 0)

    def shape(self, tensor: gs.Tensor) -> SymbolicShape:
        """Return a tuple of int and Expression, or None if not even the rank is known."""
        self._learn_constant(tensor)
        return self._shapes.get(id(tensor))

    def value(self, tensor: gs.Tensor) -> Value | None:
        """Return the content of a small integer or boolean tensor: int, bool, Expression or None; None if unknown."""
        self._learn_constant(tensor)
        return self._values.get(id(tensor))

    def opset(self, node: gs.Node) -> int:
        """Return the version of the default domain that a node is read by; functions have their own."""
        return self._opsets[id(node)][0]

    def adopt(self, node: gs.Node, other: gs.Node) -> None:
        """Take in a node that a pass has put in the place of ``other``, with the same outputs."""
        self._opsets[id(node)] = self._opsets[id(other)][0], node

    def _learn_constant(self, tensor: gs.Tensor) -> None:
        """Learn about an initializer when it is first asked for."""
        if not isinstance(tensor, gs.Constant) or id(tensor) in self._types:
            return
        shape = tuple(int(n) for n in tensor.shape)
        array = None
        if id(tensor) not in self._fed and int(np.prod(shape)) <= values.LIMIT:
            array = constant_values(tensor)
        self._record(tensor, element_type(tensor), shape, None if array is None else as_value(array))

    def _record(self, tensor: gs.Tensor, kind: int, shape: shapes.Partial, value: Value | None) -> None:
        """Remember a tensor; dimensions that are unknown get a name of their own."""
        if not tensor.name:
            return
        self._alive.append(tensor)
        self._types[id(tensor)] = kind
        if value is not None and kind in _FOLLOWED and value.size <= values.LIMIT:
            limit = 2 ** (31 if kind == TensorProto.INT32 else 63)
            fits = np.frompyfunc(lambda a: a if not isinstance(a, int) or -limit <= a < limit else None, 1, 1)(value)
            value = np.asarray(fits, dtype=object)
            self._values[id(tensor)] = value
            self._shapes[id(tensor)] = value.shape
            return
        self._shapes[id(tensor)] = None if shape is None else tuple(self._known(entry) for entry in shape)

    def _known(self, entry: ex.Entry | None) -> ex.Entry:
        """Return a dimension as it is, or a fresh name where it is unknown; a dimension is never negative."""
        if entry is None or (isinstance(entry, int) and entry < 0):
            self._count += 1
            return ex.name(f"?{self._count}")
        return entry if ex.nonnegative(entry) else ex.name(f"extent[{entry}]")

    # -- the sweep -----------------------------------------------------------------------------------------------------

    def _sweep(self, graph: gs.Graph, opset: int, trusted: bool) -> None:
        """Go through one graph in its order, into subgraphs where they stand."""
        for tensor in graph.inputs:
            declared = tensor.shape if trusted and tensor.shape is not None else None
            shape = None if declared is None else tuple(_declared(n) for n in declared)
            self._record(tensor, element_type(tensor), shape, None)
        for node in graph.nodes:
            self._opsets[id(node)] = opset, node
            self._visit(node, opset)
            for body in (value for value in node.attrs.values() if isinstance(value, gs.Graph)):
                self._sweep(body, opset, trusted=False)

    def _visit(self, node: gs.Node, opset: int) -> None:
        """Learn about the outputs of one node."""
        standard = node.domain in (None, "", "ai.onnx")
        if standard and node.op == "Constant":
            array = constant_values(node.outputs[0])
            if array is not None:
                held = as_value(array) if array.size <= values.LIMIT else None
                self._record(node.outputs[0], onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, held)
            return
        types = self._infer(node, opset) if standard and not _has_body(node) else None
        first, value = self._follow(node, opset) if standard and not has_reference(node) else (None, None)
        for index, (out, (kind, shape)) in enumerate(zip(node.outputs, types or repeat((0, None)), strict=False)):
            if index == 0 and first is not None:
                shape = _merge(shape, first)
            self._record(out, kind or element_type(out), shape, value if index == 0 else None)

    def _follow(self, node: gs.Node, opset: int) -> tuple[shapes.Partial, Value | None]:
        """Return what our own rules tell of the first output: its shape and what it holds."""
        measure, follow = shapes.RULES.get(node.op), values.RULES.get(node.op)
        if measure is None and follow is None:
            return None, None
        known = [self.value(tensor) if tensor.name else None for tensor in node.inputs]
        extents = [self.shape(tensor) if tensor.name else None for tensor in node.inputs]
        try:
            shape = measure(node, known, extents, opset) if measure else None
            return shape, follow(node, known, extents, opset) if follow else None
        except (IndexError, TypeError, ValueError):  # the node is malformed; a runtime would refuse it
            return None, None

    def _infer(self, node: gs.Node, opset: int) -> Sequence[_Type] | None:
        """Ask ONNX for the types of a node's outputs; None if it cannot tell."""
        inputs = [f"i{index}" if tensor.name else "" for index, tensor in enumerate(node.inputs)]
        outputs = [f"o{index}" if tensor.name else "" for index, tensor in enumerate(node.outputs)]
        proto = node_proto(node, inputs, outputs)
        if proto is None or any(tensor.name and not self.type(tensor) for tensor in node.inputs):
            return None
        types = tuple((self._types[id(t)], self._shapes.get(id(t))) if t.name else None for t in node.inputs)
        contents = tuple(self._content(tensor) if tensor.name else None for tensor in node.inputs)
        return _ask(proto.SerializeToString(deterministic=True), opset, types, contents)

    def _content(self, tensor: gs.Tensor) -> _Content | None:
        """Return what a tensor holds if every element is known."""
        value = self.value(tensor)
        if value is None:
            return None
        entries = tuple(value.reshape(-1).tolist())
        return (value.shape, entries) if all(isinstance(entry, int) for entry in entries) else None


@lru_cache(maxsize=4096)  # a model has many equal nodes, and is swept over again and again
def _ask(
    node: bytes, opset: int, types: tuple[tuple[int, SymbolicShape] | None, ...], contents: tuple[_Content | None, ...]
) -> tuple[_Type, ...] | None:
    """Return element type and shape of each output of a node by ONNX's own inference, None where it refuses.

    Args:
        node: The node, serialized; its inputs are called i0, i1, ..., or nothing where one is absent.
        opset: The version of the default domain.
        types: Element type and shape of each input.
        contents: Shape and elements of each input, where they are known.
    """
    proto = onnx.NodeProto.FromString(node)
    names: dict[str, ex.Expression] = {}
    known = {f"i{i}": _write(*entry, names) for i, entry in enumerate(types) if entry is not None}
    data = {}
    for index, (entry, content) in enumerate(zip(types, contents, strict=True)):
        if entry is not None and content is not None:
            array = np.asarray(content[1], dtype=onnx.helper.tensor_dtype_to_np_dtype(entry[0]))
            data[f"i{index}"] = onnx.numpy_helper.from_array(array.reshape(content[0]))
    try:
        schema = onnx.defs.get_schema(proto.op_type, opset, "")
        imports = [onnx.helper.make_opsetid("", opset)]
        found = onnx.shape_inference.infer_node_outputs(schema, proto, known, data, {}, imports, 10)
    except _REFUSALS:
        return None
    return tuple(_read(found.get(name), names) for name in proto.output)


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


def _read(proto: TypeProto | None, names: dict[str, ex.Expression]) -> _Type:
    """Return element type and shape from ONNX's answer, with its dimension names turned back."""
    if proto is None or not proto.HasField("tensor_type"):
        return 0, None
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    dims = tensor.shape.dim
    return tensor.elem_type, tuple(
        dim.dim_value if dim.HasField("dim_value") else names.get(dim.dim_param) for dim in dims
    )


def as_value(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> Value | None:
    """Return a small constant as Python integers or booleans, or None if it holds anything else."""
    if array.dtype not in (np.int64, np.int32, np.bool_):
        return None
    return np.asarray(array.astype(object), dtype=object)


def element_type(tensor: gs.Tensor) -> int:
    """Return the declared element type in ONNX's numbering, 0 if there is none."""
    stored = getattr(getattr(tensor, "_values", None), "tensor", None)
    if isinstance(stored, onnx.TensorProto):
        return stored.data_type
    if tensor.dtype is None or isinstance(tensor.dtype, int):
        return tensor.dtype or 0
    try:
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
    except (ValueError, TypeError, KeyError):
        return 0


def _merge(shape: shapes.Partial, other: shapes.Partial) -> shapes.Partial:
    """Return what two accounts of one shape tell together."""
    if shape is None or other is None or len(shape) != len(other):
        return other if shape is None else shape
    return tuple(b if a is None else a for a, b in zip(shape, other, strict=True))


def _declared(entry: int | str | None) -> ex.Entry | None:
    if isinstance(entry, str):
        return ex.name(entry.lstrip("~") or "dim") if entry else None
    return entry


def _has_body(node: gs.Node) -> bool:
    return any(isinstance(value, gs.Graph) for value in node.attrs.values())
