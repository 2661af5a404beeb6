"""Parameters of layers: constants in a form that is the same for all exporters, and how to replace them.

It does not matter whether one is an initializer or a Constant node, stored transposed, moved or cast on its way to the
layer, or behind DequantizeLinear.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.constants import cast, default_values
from graphopt.graph.dequantize import is_dequantized
from graphopt.graph.evaluate import evaluate, move
from graphopt.graph.view import GraphView, is_op
from graphopt.graph.weights import is_float
from graphopt.numerics.grouping import aligned
from graphopt.result import Skip

Array = NDArray[Any]
Arrange = Callable[[Array], Array]

_MOVES = ("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice")
_QUANTIZED = ("DequantizeLinear", "QuantizeLinear")


class DefaultsView(GraphView):
    """A view for which initializers that the caller can override are constants too."""

    def array(self, tensor: gs.Tensor) -> NDArray[np.generic] | None:
        """Return the values of an initializer or Constant node in its own type, read-only; None for anything else."""
        return default_values(tensor)


@dataclass(frozen=True, eq=False)
class Parameter:
    """A constant that a layer reads in one role.

    Attributes:
        node: Who reads it.
        slot: Where.
        role: As what.
        shape: Of its values in the common form.
        arrange: Brings what the node reads into the common form.
        free: The axes of the common form that a narrower layer has less of.
        turned: Whether the common form is the transpose of what is read.
    """

    node: gs.Node
    slot: int
    role: str
    shape: tuple[int, ...]
    arrange: Arrange
    free: tuple[int, ...]
    turned: bool = False

    @property
    def tensor(self) -> gs.Tensor:
        """What the node reads."""
        return self.node.inputs[self.slot]

    @property
    def chain(self) -> list[gs.Tensor]:
        """The tensor that stores it, if it is only moved or dequantized on its way, and those up to the reader."""
        found = [self.tensor]
        while (tensor := found[0]).inputs and is_op(tensor.inputs[0], *_MOVES, *_QUANTIZED):
            if tensor is not tensor.inputs[0].outputs[0]:
                break
            found.insert(0, tensor.inputs[0].inputs[0])
        return found

    @property
    def names(self) -> list[str]:
        """The names of these tensors, that of the stored one first."""
        return [str(tensor.name) for tensor in self.chain]

    @property
    def name(self) -> str:
        """The name of the tensor that stores it."""
        return self.names[0]


def read(view: GraphView, parameter: Parameter) -> Array:
    """Return its values in the common form, read-only or new."""
    values = values_of(view, parameter.tensor)
    assert values is not None
    return parameter.arrange(values)


def storage(view: GraphView, parameter: Parameter) -> gs.Tensor | None:
    """Return the tensor that stores it; None if it is computed from constants otherwise than by moving one.

    Raises:
        Skip: It is quantized, or holds integers.
    """
    tensor = parameter.tensor
    while not isinstance(tensor, gs.Constant) and (node := view.producer(tensor)) is not None:
        if is_op(node, "Constant"):
            break
        if not is_op(node, *_MOVES) or tensor is not node.outputs[0]:
            if is_dequantized(view, tensor):
                raise Skip("is quantized, only floats can be replaced")
            return None
        tensor = node.inputs[0]
    values = default_values(tensor)
    if values is None or not is_float(values.dtype):
        raise Skip(f"holds {'no plain' if values is None else values.dtype} values, only floats can be replaced")
    return tensor


def write(view: GraphView, parameter: Parameter, values: Array) -> None:
    """Store values that are given in the common form, for all who read the tensor.

    Raises:
        Skip: They overflow the type, or the tensor is quantized; nothing has been changed then.
    """
    tensor = storage(view, parameter)
    if tensor is None:
        write_own(view, parameter, values)
        return
    old = default_values(tensor)
    assert old is not None
    places = np.arange(old.size).reshape(old.shape)
    chain: list[gs.Node] = []
    between = parameter.tensor
    while between is not tensor:
        chain.insert(0, between.inputs[0])
        between = between.inputs[0].inputs[0]
    for node in chain:
        if not is_op(node, "Cast", "Identity"):
            given = [evaluate(view, each) for each in node.inputs[1:]]
            moved = move(node, [places, *[each for each in given if each is not None]])
            assert moved is not None
            places = moved
    new = np.array(old)
    new.reshape(-1)[parameter.arrange(places).reshape(-1)] = cast(values, old.dtype, parameter.name).reshape(-1)
    if isinstance(tensor, gs.Constant):
        tensor._values = new
    else:
        tensor.inputs[0].attrs = {"value": gs.Constant(str(tensor.name), new)}


def write_own(view: GraphView, parameter: Parameter, values: Array) -> None:
    """Give the reader of a parameter a tensor of its own with these values; other readers keep theirs.

    Raises:
        Skip: See ``write``.
    """
    storage(view, parameter)
    seen = values_of(view, parameter.tensor)
    assert seen is not None
    new = np.array(seen)
    places = parameter.arrange(np.arange(new.size).reshape(new.shape))
    new.reshape(-1)[places.reshape(-1)] = cast(values, new.dtype, parameter.name).reshape(-1)
    view.edit.set_values(parameter.node, parameter.slot, new, dtype=new.dtype)


def values_of(view: GraphView, tensor: gs.Tensor, depth: int = 0) -> Array | None:
    """Return the values of a constant, or of a weight that is stored quantized, in float64 then."""
    values = evaluate(view, tensor)
    node = view.producer(tensor)
    if values is not None or node is None or depth > 8 or tensor is not node.outputs[0]:
        return values
    if is_op(node, "DequantizeLinear"):
        if (before := view.producer(node.inputs[0], "QuantizeLinear")) is not None:
            return values_of(view, before.inputs[0], depth + 1)
        parts = [evaluate(view, each) for each in node.inputs if each.name]
        known = [part.astype(np.float64) for part in parts if part is not None]
        return _dequantized(node, *known) if len(known) == len(parts) else None
    if is_op(node, "Mul", "Sub"):
        left, right = (values_of(view, each, depth + 1) for each in node.inputs)
        if left is None or right is None:
            return None
        wide = left.astype(np.float64), right.astype(np.float64)
        return np.asarray(wide[0] * wide[1] if node.op == "Mul" else wide[0] - wide[1])
    if is_op(node, *_MOVES) and (first := values_of(view, node.inputs[0], depth + 1)) is not None:
        others = [evaluate(view, each) for each in node.inputs[1:]]
        given = [other for other in others if other is not None]
        return move(node, [first, *given]) if len(given) == len(others) else None
    return None


def _dequantized(node: gs.Node, levels: Array, scale: Array, zero: Array | None = None) -> Array:
    """Return (levels - zero) * scale, by tensor, axis or block."""
    axis, block = node.attrs.get("axis", 1), node.attrs.get("block_size", 0)
    parts = [aligned(part, levels.shape, axis, block) for part in (scale, zero) if part is not None]
    return np.asarray((levels - (parts[1] if len(parts) > 1 else 0.0)) * parts[0])
