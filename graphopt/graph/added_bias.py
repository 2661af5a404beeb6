"""The bias behind a matrix product: a constant that an Add, the product's only reader, adds to its last axis."""

from typing import Any, NamedTuple

import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.evaluate import evaluate
from graphopt.graph.view import GraphView, is_op


class AddedBias(NamedTuple):
    """An Add that brings the bias of a product.

    Attributes:
        node: The Add.
        slot: The input that the bias comes in on.
        values: The bias, one value for each channel along its last axis; of rank 0 where there is one channel.
    """

    node: gs.Node
    slot: int
    values: NDArray[Any]


def added_bias(view: GraphView, product: gs.Node, channels: int) -> AddedBias | None:
    """Return the bias of ``channels`` values that is added to a product and to nothing else; None if there is none.

    A scalar that all of several channels get is none: it has no place for a value of each.
    """
    out = product.outputs[0]
    readers = view.readers(out)
    if len(readers) != 1 or not is_op(readers[0], "Add") or view.is_output(out):
        return None
    slot = 1 if readers[0].inputs[0] is out else 0
    values = evaluate(view, readers[0].inputs[slot])
    if values is None or values.size != channels or values.shape[-1:] not in ((channels,), ()):
        return None
    return AddedBias(readers[0], slot, values)
