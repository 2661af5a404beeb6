"""Shapes of all tensors, by ONNX shape inference on the weight-free skeleton of the model."""

from collections.abc import Sequence

import onnx
import onnx_graphsurgeon as gs

from graphopt.model import Model, to_proto

Shape = tuple[int | str | None, ...] | None


def infer_shapes(model: Model) -> dict[int, Shape]:
    """Return the shape of every tensor that inference can name, by ``id`` of the tensor object.

    What the model declares is where inference starts; where inference gives up, the declaration stands.
    """
    skeleton = to_proto(model, weights=False)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception:  # onnx raises several kinds on odd models; declared shapes remain
        inferred = skeleton
    shapes: dict[int, Shape] = {}
    _collect(model.graph, inferred.graph, shapes)
    return shapes


def _collect(graph: gs.Graph, proto: onnx.GraphProto, shapes: dict[int, Shape]) -> None:
    """Match a graph's tensors with its proto's value infos by name, then its subgraphs with theirs."""
    named = {info.name: _shape(info) for group in (proto.input, proto.value_info, proto.output) for info in group}
    for tensor in [*graph.inputs, *graph.outputs, *(out for node in graph.nodes for out in node.outputs)]:
        if tensor.name in named and named[tensor.name] is not None:
            shapes[id(tensor)] = named[tensor.name]
    for node, node_proto in zip(graph.nodes, proto.node, strict=True):
        bodies: Sequence[onnx.GraphProto] = [a.g for a in node_proto.attribute if a.type == onnx.AttributeProto.GRAPH]
        for body, body_proto in zip((v for v in node.attrs.values() if isinstance(v, gs.Graph)), bodies, strict=True):
            _collect(body, body_proto, shapes)


def _shape(info: onnx.ValueInfoProto) -> Shape:
    """Return a value info's shape, or None if it has no rank."""
    if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in info.type.tensor_type.shape.dim
    )
