"""Stable topological order of a graph's nodes, without recursion along chains."""

import heapq

import onnx_graphsurgeon as gs

from graphopt.errors import ModelError


def sort_nodes(graph: gs.Graph) -> bool:
    """Sort the nodes of one graph (not of its subgraphs); what is already in order stays. Kahn's algorithm.

    Returns:
        Whether the order changed.

    Raises:
        ModelError: The graph has a cycle.
    """
    nodes = list(graph.nodes)
    producer = {id(tensor): index for index, node in enumerate(nodes) for tensor in node.outputs if tensor.name}
    if all(producer.get(id(t), -1) < index for index, node in enumerate(nodes) for t in reads(node)):
        return False
    users: list[list[int]] = [[] for _ in nodes]
    waiting = [0] * len(nodes)
    for index, node in enumerate(nodes):
        for source in {producer[id(tensor)] for tensor in reads(node) if id(tensor) in producer}:
            users[source].append(index)
            waiting[index] += 1
    ready = [index for index, count in enumerate(waiting) if not count]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users[index]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    if len(order) != len(nodes):
        stuck = [nodes[i].name or nodes[i].op for i, count in enumerate(waiting) if count][:5]
        raise ModelError(f"the graph has a cycle through {', '.join(map(repr, stuck))}")
    graph.nodes[:] = [nodes[index] for index in order]
    return True


def reads(node: gs.Node) -> list[gs.Tensor]:
    """Return what a node reads: its inputs, and whatever its subgraphs read or give out (their own tensors too).

    The list is not to be changed: it may be the node's own.
    """
    found: list[gs.Tensor] = node.inputs
    waiting = bodies(node)
    if waiting:
        found = list(found)
    while waiting:
        body = waiting.pop()
        found += body.outputs
        for inner in body.nodes:
            found += inner.inputs
            waiting += bodies(inner)
    return found


def bodies(node: gs.Node) -> list[gs.Graph]:
    """Return the subgraphs that a node has as attributes, in order."""
    return [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
