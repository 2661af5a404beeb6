"""Takes the axis of seeds out of elementwise operators, where ONNX Runtime is slow with it."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "Equal", "Less", "Greater")

Shapes = Mapping[str, tuple[int, ...]]


def without_seed_axis(proto: onnx.ModelProto, seed: str) -> None:
    """Let operators that broadcast work on [...] instead of [..., 1], in place; a Reshape on each side costs nothing.

    Each derivative has a last axis for its seeds, of which there is one here. ONNX Runtime goes along the innermost
    axis when it broadcasts, one number at a time: a division by a scalar takes a hundred times longer than it should.

    Args:
        proto: A model that gives derivatives, at fixed shapes.
        seed: The input of seeds.
    """
    fixed = next(info for info in proto.graph.input if info.name == seed)
    fixed.CopyFrom(helper.make_tensor_value_info(seed, fixed.type.tensor_type.elem_type, [1]))
    shapes = _shapes(proto)
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for number, node in enumerate(nodes):
        if _is_slow(node, shapes):
            proto.graph.node.extend(_narrowed(proto, node, shapes, f"loss/seeds/{number}"))
        else:
            proto.graph.node.append(node)


def _shapes(proto: onnx.ModelProto) -> Shapes:
    """Return all shapes that are known."""
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for info in [*graph.input, *graph.value_info, *graph.output]:
        kind = info.type.tensor_type
        if kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim):
            shapes[info.name] = tuple(axis.dim_value for axis in kind.shape.dim)
    return shapes


def _is_slow(node: NodeProto, shapes: Shapes) -> bool:
    """Whether a node broadcasts along a last axis of one."""
    if node.op_type not in ELEMENTWISE or node.domain not in ("", "ai.onnx"):
        return False
    if not all(name in shapes for name in [*node.input, *node.output]):
        return False
    result, given = shapes[node.output[0]], {shapes[name] for name in node.input}
    # A size of nought would mean "as it was" to Reshape.
    return len(result) > 1 and result[-1] == 1 and len(given) > 1 and not any(0 in shape for shape in given)


def _narrowed(proto: onnx.ModelProto, node: NodeProto, shapes: Shapes, prefix: str) -> list[NodeProto]:
    """Return nodes that do the same without the last axis."""
    nodes = []

    def reshape(source: str, target: str, shape: tuple[int, ...]) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(shape, np.int64), target + "/shape"))
        nodes.append(helper.make_node("Reshape", [source, target + "/shape"], [target]))

    operands = []
    for slot, name in enumerate(node.input):
        if not shapes[name]:
            operands.append(name)
            continue
        operands.append(f"{prefix}/{slot}")
        reshape(name, operands[-1], shapes[name][:-1])
    inner = NodeProto()
    inner.CopyFrom(node)
    del inner.input[:]
    inner.input.extend(operands)
    inner.output[0] = f"{prefix}/result"
    nodes.append(inner)
    reshape(inner.output[0], node.output[0], shapes[node.output[0]])
    return nodes
