"""Computes what constant nodes give, on ONNX Runtime, as many nodes as possible in one session."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.errors import GraphoptError
from graphopt.graph import GraphView
from graphopt.graph.cone import Cone
from graphopt.graph.protos import node_proto

Array = NDArray[np.generic]


@dataclass
class Evaluation:
    """What came of it: arrays by ``id`` of the tensor, and for each node that cannot run, by ``id``, why."""

    arrays: dict[int, Array] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)


def evaluate_nodes(
    nodes: Sequence[gs.Node], given: Mapping[int, Array], wanted: Sequence[gs.Tensor], opset: int
) -> Evaluation:
    """Run default-domain nodes without subgraphs; where the whole fails, run half by half to find the node at fault.

    Args:
        nodes: The nodes, in topological order; their names and graphs do not matter.
        given: What they read from elsewhere, by ``id`` of the tensor.
        wanted: The tensors to compute.
        opset: The version of the default domain.
    """
    if not nodes:
        return Evaluation()
    try:
        return Evaluation(_run(nodes, given, wanted, opset))
    except GraphoptError as error:
        if len(nodes) == 1:
            return Evaluation(failures={id(nodes[0]): str(error)})
    middle = len(nodes) // 2
    early, late = nodes[:middle], nodes[middle:]
    read_later = {id(tensor) for node in late for tensor in node.inputs} | {id(tensor) for tensor in wanted}
    between = [out for node in early for out in node.outputs if out.name and id(out) in read_later]
    first = evaluate_nodes(early, given, between, opset)
    lost = {id(out) for node in early for out in node.outputs if id(out) not in first.arrays}
    runnable = []
    for node in late:
        if any(id(tensor) in lost for tensor in node.inputs):
            lost |= {id(out) for out in node.outputs}
        else:
            runnable.append(node)
    made = {id(out) for node in runnable for out in node.outputs}
    second = evaluate_nodes(
        runnable, {**given, **first.arrays}, [tensor for tensor in wanted if id(tensor) in made], opset
    )
    return Evaluation({**first.arrays, **second.arrays}, {**first.failures, **second.failures})


def evaluate_cone(view: GraphView, cone: Cone) -> Array | None:
    """Return what the last node of a cone gives first; None if a leaf cannot be read or ONNX Runtime refuses."""
    out = cone.nodes[-1].outputs[0]
    leaves = {id(leaf): view.array(leaf) for leaf in cone.leaves}
    given = {key: array for key, array in leaves.items() if array is not None}
    if len(given) < len(leaves):
        return None
    opset = view.edit.graph_of(cone.nodes[-1]).opset
    return evaluate_nodes(cone.nodes, given, [out], opset).arrays.get(id(out))


def _run(
    nodes: Sequence[gs.Node], given: Mapping[int, Array], wanted: Sequence[gs.Tensor], opset: int
) -> dict[int, Array]:
    """Run all nodes in one session.

    Raises:
        GraphoptError: ONNX Runtime, or an attribute, does not allow it.
    """
    from graphopt.runtime.session import Session  # a model that has nothing to compute need not wait for the import

    names: dict[int, str] = {}
    made = {id(out) for node in nodes for out in node.outputs}
    graph = onnx.GraphProto(name="constants")
    feeds: dict[str, Array] = {}
    for node in nodes:
        for tensor in [*node.inputs, *node.outputs]:
            names.setdefault(id(tensor), f"t{len(names)}" if tensor.name else "")
        proto = node_proto(node, [names[id(t)] for t in node.inputs], [names[id(t)] for t in node.outputs])
        if proto is None:
            raise GraphoptError(f"{node.op} has an attribute that cannot be evaluated")
        graph.node.append(proto)
        for tensor in node.inputs:
            name = names[id(tensor)]
            if name and id(tensor) not in made and name not in feeds:
                feeds[name] = given[id(tensor)]
                kind = onnx.helper.np_dtype_to_tensor_dtype(feeds[name].dtype)
                graph.input.append(onnx.helper.make_tensor_value_info(name, kind, feeds[name].shape))
    wanted = list({id(tensor): tensor for tensor in wanted}.values())
    graph.output.extend(onnx.ValueInfoProto(name=names[id(tensor)]) for tensor in wanted)
    model = onnx.ModelProto(ir_version=10, graph=graph, opset_import=[onnx.helper.make_opsetid("", opset)])
    results = Session(model).run(feeds)
    return {id(tensor): np.asarray(results[names[id(tensor)]]) for tensor in wanted}
