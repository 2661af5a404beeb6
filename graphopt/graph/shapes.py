"""Shapes of all tensors, by ONNX shape inference on the weight-free skeleton of the model."""

from collections.abc import Iterator, Sequence

import onnx
import onnx_graphsurgeon as gs

from graphopt.model import Model, to_proto
from graphopt.model.dimensions import named
from graphopt.model.inference import with_inferred_shapes
from graphopt.model.order import bodies

Shape = tuple[int | str | None, ...] | None


def infer_shapes(model: Model) -> dict[int, Shape]:
    """Return the shape of every tensor that inference can name, by ``id`` of the tensor object.

    What the model declares is where inference starts; where inference gives up, the declaration stands.
    """
    skeleton = to_proto(model, weights=False)
    for info in (*skeleton.graph.input, *skeleton.graph.value_info, *skeleton.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value < 0:  # some exporters mean "unknown" by it; inference takes it for a size
                dim.ClearField("dim_value")
    shapes: dict[int, Shape] = {}
    _collect(model.graph, with_inferred_shapes(skeleton, data_prop=True).graph, shapes)
    return shapes


def refresh_shapes(model: Model, changed: Sequence[gs.Node]) -> None:
    """Declare anew, or no longer, the shapes of all that ``changed`` nodes compute and of all that depends on it.

    What the main graph gives out keeps its declaration: that is the model's signature. The inputs of bodies keep their
    rank, which ONNX Runtime has to know and inference does not find out.
    """
    given = {id(tensor) for tensor in model.graph.outputs}
    stale = [tensor for tensor in _downstream(model, changed) if id(tensor) not in given and tensor.shape is not None]
    if not stale:
        return
    known = {dim for tensor in _variables(model) for dim in tensor.shape or () if isinstance(dim, str)}
    formal = {id(tensor) for graph in model.graphs() for tensor in graph.inputs}
    for tensor in stale:
        tensor.shape = [None] * len(tensor.shape) if id(tensor) in formal else None
    inferred = infer_shapes(model)
    for tensor in stale:
        shape = inferred.get(id(tensor))
        if shape is not None:
            tensor.shape = [dim if isinstance(dim, int) or dim in known else None for dim in shape]


def _downstream(model: Model, nodes: Sequence[gs.Node]) -> list[gs.Variable]:
    """Return every computed tensor that depends on an output of ``nodes``, those included, also across subgraphs.

    The number of the iteration and the condition, which a Loop gives to its body, are scalars whatever happens.
    """
    owners = {id(body): node for graph in model.graphs() for node in graph.nodes for body in bodies(node)}
    givers: dict[int, list[gs.Node]] = {}
    for graph in model.graphs():
        if id(graph) in owners:
            for tensor in graph.outputs:
                givers.setdefault(id(tensor), []).append(owners[id(graph)])
    waiting, found = list(nodes), {}
    while waiting:
        node = waiting.pop()
        formal = [tensor for body in bodies(node) for tensor in body.inputs[2 if node.op == "Loop" else 0 :]]
        for tensor in [*node.outputs, *formal]:
            if tensor.name and id(tensor) not in found:
                found[id(tensor)] = tensor
                waiting += [*tensor.outputs, *givers.get(id(tensor), ())]
    return list(found.values())


def _variables(model: Model) -> Iterator[gs.Variable]:
    """Yield every graph input and every computed tensor."""
    for graph in model.graphs():
        yield from (tensor for tensor in graph.inputs if isinstance(tensor, gs.Variable))
        for node in graph.nodes:
            yield from (tensor for tensor in node.outputs if isinstance(tensor, gs.Variable))


def _collect(graph: gs.Graph, proto: onnx.GraphProto, shapes: dict[int, Shape]) -> None:
    """Match a graph's tensors with its proto's value infos by name, then its subgraphs with theirs."""
    named = {info.name: _shape(info) for group in (proto.input, proto.value_info, proto.output) for info in group}
    for tensor in [*graph.inputs, *graph.outputs, *(out for node in graph.nodes for out in node.outputs)]:
        if tensor.name in named and named[tensor.name] is not None:
            shapes[id(tensor)] = named[tensor.name]
    for node, node_proto in zip(graph.nodes, proto.node, strict=True):
        protos = [a.g for a in node_proto.attribute if a.type == onnx.AttributeProto.GRAPH]
        for body, body_proto in zip(bodies(node), protos, strict=True):
            _collect(body, body_proto, shapes)


def _shape(info: onnx.ValueInfoProto) -> Shape:
    """Return a value info's shape, or None if it has no rank."""
    if not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else named(dim.dim_param)
        for dim in info.type.tensor_type.shape.dim
    )
