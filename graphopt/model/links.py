"""The links between nodes and tensors, changed by identity: onnx-graphsurgeon's lists compare by name or content.

A link stands in two lists, one of the node and one of the tensor. Its synchronized lists keep both, at the price of a
search in each; here the caller's side is written as it is meant, and the other side follows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs


def link_input(node: gs.Node, index: int, tensor: gs.Tensor) -> gs.Tensor:
    """Make ``node`` read ``tensor`` in a slot that it has; return what it read there."""
    old = node.inputs[index]
    list.__setitem__(node.inputs, index, tensor)
    drop_once(old.outputs, node)
    list.append(tensor.outputs, node)
    return old


def link_output(node: gs.Node, index: int, tensor: gs.Tensor) -> gs.Tensor:
    """Make ``node`` alone produce ``tensor`` in a slot that it has; return what it produced there."""
    old = node.outputs[index]
    list.__setitem__(node.outputs, index, tensor)
    drop_once(old.inputs, node)
    for other in list(tensor.inputs):
        if other is not node:
            outputs = [gs.Variable.empty() if each is tensor else each for each in other.outputs]
            list.__setitem__(other.outputs, slice(None), outputs)
    list.__setitem__(tensor.inputs, slice(None), [node])
    return old


def link_anew(node: gs.Node, inputs: Sequence[gs.Tensor], outputs: Sequence[gs.Tensor]) -> None:
    """Give a node other inputs and outputs."""
    for side, old, new in (("outputs", node.inputs, inputs), ("inputs", node.outputs, outputs)):
        for tensor in old:
            keep(getattr(tensor, side), lambda other: other is not node)
        for tensor in new:
            list.append(getattr(tensor, side), node)
        list.__setitem__(old, slice(None), new)


def unlink(nodes: Mapping[int, gs.Node]) -> None:
    """Take nodes, given by their ids, and the tensors around them out of each other's lists."""
    ends = (end for node in nodes.values() for end in [*node.inputs, *node.outputs])
    for tensor in {id(end): end for end in ends}.values():
        for side in (tensor.inputs, tensor.outputs):
            keep(side, lambda node: id(node) not in nodes)
    for node in nodes.values():
        list.clear(node.inputs)
        list.clear(node.outputs)


def keep(links: list[Any], wanted: Callable[[Any], bool]) -> None:
    """Leave only the wanted nodes or tensors in one list."""
    list.__setitem__(links, slice(None), [each for each in links if wanted(each)])


def trim(ends: list[gs.Tensor]) -> None:
    """Leave out absent tensors at the end of a node's inputs or outputs."""
    while ends and not ends[-1].name:
        list.__delitem__(ends, -1)


def drop_once(nodes: list[gs.Node], node: gs.Node) -> None:
    """Remove one mention of ``node`` from a tensor's list.

    It looks from both ends at once: whoever unlinks all readers of a tensor, in either order, finds each at an end.
    """
    last = len(nodes) - 1
    for index in range(last // 2 + 1):
        for place in (index, last - index):
            if nodes[place] is node:
                list.__delitem__(nodes, place)
                return
