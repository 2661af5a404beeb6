"""What can be told of one node's outputs from what the walk knows so far: small values, and shapes."""

import math
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.graph.channels.facts import Facts, is_vague
from graphopt.graph.channels.shape_arithmetic import evaluate_values
from graphopt.graph.shapes import Shape
from graphopt.graph.symbolic.attributes import has_reference
from graphopt.model.inference import REFUSALS


def refine(node: gs.Node, facts: Facts) -> None:
    """Find the values and, where model-wide inference gave up, the shapes of a node's outputs."""
    for out in node.outputs:
        facts.is_constant(out)  # remembered: what comes later asks whether all that it reads is constant
    found = None if has_reference(node) else evaluate_values(node, facts)
    if found is not None and node.outputs:
        facts.learn_values(node.outputs[0], found)
    if any(is_vague(facts.view.shape(out)) for out in node.outputs if out.name):
        for out, shape in zip(node.outputs, _infer_outputs(node, facts), strict=False):
            facts.learn_shape(out, shape)


def attributes(node: gs.Node) -> dict[str, Any] | None:
    """Return a node's attributes as plain values, tensors as protos; None if one of them is neither."""
    plain: dict[str, Any] = {}
    for name, value in node.attrs.items():
        if isinstance(value, gs.Constant):
            array = value.values
            plain[name] = onnx.numpy_helper.from_array(np.asarray(array), name)
        elif isinstance(value, (int, float, str)) or (isinstance(value, list) and value):
            plain[name] = value
        else:
            return None
    return plain


def _infer_outputs(node: gs.Node, facts: Facts) -> list[Shape]:
    """Return the shapes of a node's outputs as ONNX's own inference gives them; empty where it cannot."""
    if node.domain not in (None, "", "ai.onnx"):
        return []
    if node.op == "Reshape" and (target := _reshaped(node, facts)) is not None:
        return [target]
    if node.op == "ConstantOfShape" and (values := facts.values(node.inputs[0])) is not None:
        numbers = zip(
            values.array.ravel().tolist(), values.known.ravel().tolist(), values.names(facts.symbols), strict=True
        )
        return [tuple(number if known else name for number, known, name in numbers)]
    if node.op == "GroupNormalization":  # a function of ONNX, whose inference needs element types throughout
        return [facts.shape(node.inputs[0])]
    plain = attributes(node)
    if plain is None:
        return []
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for tensor in node.inputs:
        if not tensor.name:
            continue
        kind = element_type(tensor, facts)
        types[tensor.name] = onnx.helper.make_tensor_type_proto(kind, facts.shape(tensor))
        if (values := facts.values(tensor)) is not None and values.known.all():
            data[tensor.name] = onnx.numpy_helper.from_array(np.asarray(values.array), tensor.name)
    proto = onnx.helper.make_node(str(node.op), [t.name for t in node.inputs], [t.name for t in node.outputs], **plain)
    try:
        schema = onnx.defs.get_schema(str(node.op), facts.view.opset, "")
        found = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[onnx.helper.make_opsetid("", facts.view.opset)]
        )
    except REFUSALS:
        return []
    for out in node.outputs:
        if out.name in found and found[out.name].HasField("tensor_type"):
            facts.memory[id(out), "element type"] = found[out.name].tensor_type.elem_type
    return [_shape(found.get(out.name)) for out in node.outputs]


def _reshaped(node: gs.Node, facts: Facts) -> Shape:
    """Return the shape that a partly known target gives; None if nothing of it is known."""
    values = facts.values(node.inputs[1]) if len(node.inputs) > 1 else None
    before = facts.shape(node.inputs[0])
    if values is None or values.array.ndim != 1:
        return None
    if node.attrs.get("allowzero", 0) and ((values.array == 0) & values.known).any():
        return None
    sizes: list[int | str | None] = []
    names = values.names(facts.symbols)
    for axis, (size, known) in enumerate(zip(values.array.tolist(), values.known.tolist(), strict=True)):
        copied = known and size == 0 and before is not None and axis < len(before)
        told = size if known and size > 0 else names[axis]
        sizes.append(before[axis] if copied and before is not None else told)
    unknown = [axis for axis, size in enumerate(sizes) if size is None]
    if before is not None and len(unknown) == 1 and None not in before:
        open_names = [size for size in before if isinstance(size, str)]
        rest = [size for size in sizes if isinstance(size, str)]
        whole = math.prod(size for size in before if isinstance(size, int))
        part = math.prod(size for size in sizes if isinstance(size, int))
        if sorted(open_names) == sorted(rest) and part and whole % part == 0:
            sizes[unknown[0]] = whole // part
        elif len(open_names) == len(rest) + 1 and part == whole:
            sizes[unknown[0]] = next((name for name in open_names if open_names.count(name) != rest.count(name)), None)
    return tuple(sizes)


def element_type(tensor: gs.Tensor, facts: Facts) -> int:
    """Return ONNX's code of a tensor's element type; float where nothing tells."""
    if isinstance(tensor.dtype, int):
        return tensor.dtype
    if tensor.dtype is not None:
        return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
    if known := facts.memory.get((id(tensor), "element type")):
        return int(known)
    for given in facts.view.borders.outside(tensor):
        return element_type(given, facts)
    values = facts.values(tensor)
    return onnx.TensorProto.FLOAT if values is None else int(onnx.helper.np_dtype_to_tensor_dtype(values.array.dtype))


def _shape(found: onnx.TypeProto | None) -> Shape:
    """Return the shape in a type, or None if it has no rank."""
    if found is None or not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in found.tensor_type.shape.dim
    )
