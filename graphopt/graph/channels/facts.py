"""What the analysis knows of a program: its order, shapes, small integer values, uniform channels, needed channels."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.channels.values import Symbols, Values
from graphopt.graph.constants import constant_of, fixed_constant, fixed_tensor, read_values
from graphopt.graph.evaluate import evaluate
from graphopt.graph.shapes import Shape
from graphopt.graph.view import GraphView
from graphopt.model.order import bodies

Mask = NDArray[np.bool_]
Vector = NDArray[np.float64]
SMALL = 4096


class Facts:
    """Facts about tensors, found in one walk forwards and one walk backwards.

    *Uniform* channels: along an axis, the indices at which a tensor holds one known value all over (NaN: not known).
    *Needed* channels: along an axis, the indices that some reader makes use of.
    """

    def __init__(self, view: GraphView) -> None:
        """Lay out the nodes of ``view``, bodies before the nodes that own them."""
        self.view = view
        self.program = list(_flatten(view))
        self.symbols = Symbols()
        self._shapes: dict[int, Shape] = {}
        self._values: dict[int, Values] = {}
        self._uniform: dict[int, dict[int, Vector]] = {}
        self._needed: dict[int, dict[int, Mask]] = {}
        self._constant: dict[int, bool] = {}
        self._arrays: dict[int, NDArray[np.generic]] = {}
        self.memory: dict[tuple[int, str], Any] = {}
        functions = [each for each in view.model.functions if (each.opset or view.opset) == view.opset]
        self._arguments = {id(tensor) for function in functions for tensor in function.inputs}

    # -- shapes and constants ------------------------------------------------------------------------------------------

    def shape(self, tensor: gs.Tensor) -> Shape:
        """Return the best known shape."""
        if id(tensor) in self._shapes:
            return self._shapes[id(tensor)]
        if self.is_constant(tensor) and not isinstance(tensor, gs.Constant):
            source = constant_of(tensor)
            if source is not None:
                return tuple(source.shape)
            if not is_vague(shape := self.view.shape(tensor)):
                return shape
            array = self.array(tensor)
            return None if array is None else array.shape
        if id(tensor) in self._arguments and self.view.shape(tensor) is None:
            return self._shape_in_calls(tensor)
        return self.view.shape(tensor)

    def _shape_in_calls(self, tensor: gs.Tensor) -> Shape:
        """Return what the shapes have in common that a local function is called with."""
        shapes = [self.shape(given) for given in self.view.borders.outside(tensor)]
        if not shapes or shapes[0] is None or any(each is None or len(each) != len(shapes[0]) for each in shapes):
            return None
        columns = zip(*(each for each in shapes if each is not None), strict=True)
        return tuple(sizes[0] if isinstance(sizes[0], int) and len(set(sizes)) == 1 else None for sizes in columns)

    def rank(self, tensor: gs.Tensor) -> int | None:
        """Return the rank, or None if it is unknown."""
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def dim(self, tensor: gs.Tensor, axis: int) -> int | None:
        """Return the size of one axis, or None if it is not a known number."""
        shape = self.shape(tensor)
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        size = shape[axis]
        return size if isinstance(size, int) else None

    def is_constant(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor's values are stored in the model, or computed from stored ones by moving and casting.

        What the caller can override is not constant, see ``fixed_tensor``.
        """
        if id(tensor) not in self._constant:
            stored = self._is_fixed(tensor) or (self._may_compute(tensor) and evaluate(self.view, tensor) is not None)
            self._constant[id(tensor)] = bool(tensor.name) and stored
        return self._constant[id(tensor)]

    def _is_fixed(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is stored and nobody can change it."""
        return fixed_tensor(tensor, self.view) is not None

    def _may_compute(self, tensor: gs.Tensor) -> bool:
        """Whether all that a tensor is computed from is constant, as far as the walk has come."""
        if not tensor.inputs:
            return False
        node = tensor.inputs[0]
        sources = node.inputs[:1] if node.op == "CastLike" else node.inputs
        return bool(
            node.op in ("Shape", "ConstantOfShape")
            or all(self._constant.get(id(t), self._is_fixed(t)) for t in sources)
        )

    def array(self, tensor: gs.Tensor) -> NDArray[np.generic] | None:
        """Return the values of a constant that nobody can change; small ones are remembered."""
        if id(tensor) in self._arrays:
            return self._arrays[id(tensor)]
        attribute = isinstance(tensor, gs.Constant) and not tensor.name
        if not attribute and not self.is_constant(tensor):
            return None
        source = fixed_constant(tensor, self.view)
        array = evaluate(self.view, tensor) if source is None else read_values(source)
        if array is not None and array.size <= SMALL:
            self._arrays[id(tensor)] = array
        return array

    def kind(self, tensor: gs.Tensor) -> str:
        """Return the kind of a constant's element type as numpy has it; low-precision floats are "V"."""
        source = constant_of(tensor)
        if source is None:
            array = self.array(tensor)
            return "O" if array is None else array.dtype.kind
        return "O" if source.dtype is None else np.dtype(source.dtype).kind

    def is_computed(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is known to be the same whatever the model's inputs are."""
        values = self._values.get(id(tensor))
        return self.is_constant(tensor) or (values is not None and bool(values.known.all()))

    def values(self, tensor: gs.Tensor) -> Values | None:
        """Return what is known of the elements of a small tensor, of integers above all."""
        if id(tensor) not in self._values and tensor.name and self.is_constant(tensor):  # noqa: SIM102
            if (shape := self.shape(tensor)) is not None and np.prod([d for d in shape if isinstance(d, int)]) <= SMALL:
                array = self.array(tensor)
                if array is not None and (array.dtype.kind in "iub" or (array.dtype.kind == "f" and array.size <= 64)):
                    self._values[id(tensor)] = Values(array, np.ones(array.shape, dtype=bool))
        return self._values.get(id(tensor))

    def integers(self, tensor: gs.Tensor) -> list[int] | None:
        """Return the elements of a small integer tensor if all are known."""
        values = self.values(tensor)
        if values is None or not values.known.all() or values.array.dtype.kind not in "iub":
            return None
        return [int(value) for value in values.array.ravel()]

    def learn_shape(self, tensor: gs.Tensor, shape: Shape) -> None:
        """Record a shape; where it and the model-wide one differ, numbers count more than names."""
        if tensor.name and shape is not None:
            self._shapes[id(tensor)] = _sharper(shape, self.view.shape(tensor))

    def learn_values(self, tensor: gs.Tensor, values: Values) -> None:
        """Record what is known of the elements of a small tensor."""
        self._values[id(tensor)] = values
        if values.array.dtype.kind == "f" and values.known.all():
            self._learn_uniform(tensor, values.array)

    # -- uniform channels ----------------------------------------------------------------------------------------------

    def learn(self, tensor: gs.Tensor, axis: int, values: Vector | None) -> None:
        """Record the uniform channels along one axis; NaN where there is none."""
        rank = self.rank(tensor)
        if values is None or rank is None or not tensor.name:
            return
        values = np.where(np.isfinite(values), values, np.nan)
        if not np.isnan(values).all() and self.dim(tensor, axis) == len(values):
            self._uniform.setdefault(id(tensor), {})[axis % rank] = values

    def _learn_uniform(self, tensor: gs.Tensor, array: NDArray[np.generic]) -> None:
        """Record the uniform channels of a tensor whose elements are all known."""
        for axis, size in enumerate(array.shape if array.size else ()):
            flat = np.moveaxis(array, axis, 0).reshape(size, -1).astype(np.float64)
            self.learn(tensor, axis, np.where(flat.min(axis=1) == flat.max(axis=1), flat[:, 0], np.nan))

    def known_axes(self, tensor: gs.Tensor) -> dict[int, Vector]:
        """Return the axes of a variable along which some channel is uniform."""
        return self._uniform.get(id(tensor), {})

    def uniform(self, tensor: gs.Tensor, axis: int) -> Vector | None:
        """Return the uniform channels of a variable or constant along an axis; None if there is none."""
        rank = self.rank(tensor)
        if rank is None or not -rank <= axis < rank:
            return None
        axis %= rank
        if not self.is_constant(tensor):
            return self.known_axes(tensor).get(axis)
        if axis not in self._uniform.setdefault(id(tensor), {}):
            array = self.array(tensor)
            if array is None or array.dtype.kind == "c" or not array.size:
                return None
            flat = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
            low, high = flat.min(axis=1), flat.max(axis=1)
            self._uniform[id(tensor)][axis] = np.where(low == high, low.astype(np.float64), np.nan)
        return self._uniform[id(tensor)][axis]

    def scalar(self, tensor: gs.Tensor) -> float:
        """Return the one value that a constant holds all over; NaN if there is none."""
        array = self.array(tensor)
        if array is None and (values := self.values(tensor)) is not None and values.known.all():
            array = values.array
        if array is None or not array.size or array.dtype.kind == "c":
            return float("nan")
        low, high = array.min(), array.max()
        return float(low) if low == high else float("nan")

    # -- needed channels -----------------------------------------------------------------------------------------------

    def need(self, tensor: gs.Tensor, masks: dict[int, Mask] | None = None) -> None:
        """Record that a reader needs a tensor: all of it, except where a mask along an axis is False."""
        if not tensor.name:
            return
        masks = {axis: mask for axis, mask in (masks or {}).items() if not mask.all()}
        if any(not mask.any() for mask in masks.values()):
            return
        if id(tensor) not in self._needed:
            self._needed[id(tensor)] = masks
            return
        old = self._needed[id(tensor)]
        self._needed[id(tensor)] = {axis: old[axis] | masks[axis] for axis in old.keys() & masks.keys()}

    def need_inputs(self, node: gs.Node, masks: dict[int, Mask]) -> None:
        """Record that a node needs its first input, except where a mask is False, and all of the others."""
        self.need(node.inputs[0], masks)
        for tensor in node.inputs[1:]:
            self.need(tensor)

    def is_needed(self, tensor: gs.Tensor) -> bool:
        """Whether any reader needs anything of a tensor."""
        return id(tensor) in self._needed

    def needed_axes(self, tensor: gs.Tensor) -> dict[int, Mask]:
        """Return the axes of a needed tensor along which some channel is not needed."""
        return self._needed.get(id(tensor), {})

    def broadcast_needs(self, tensor: gs.Tensor, out: gs.Tensor) -> dict[int, Mask]:
        """Return what is needed of an operand that is broadcast into ``out``, axes counted from the end."""
        rank, own = self.rank(out), self.rank(tensor)
        if rank is None or own is None:
            return {}
        pairs = ((axis - rank + own, mask) for axis, mask in self.needed_axes(out).items())
        return {axis: mask for axis, mask in pairs if axis >= 0 and self.dim(tensor, axis) == len(mask)}

    def needed(self, tensor: gs.Tensor, axis: int) -> Mask:
        """Return which indices along an axis of known size are needed."""
        rank, size = self.rank(tensor) or 0, self.dim(tensor, axis) or 0
        if not self.is_needed(tensor):
            return np.zeros(size, dtype=bool)
        mask = self.needed_axes(tensor).get(axis % rank)
        return np.ones(size, dtype=bool) if mask is None else mask


def _flatten(view: GraphView) -> Iterator[gs.Node]:
    """Yield every node in an order in which what it reads comes first; bodies come before their owners."""
    nested = {id(body) for graph in view.graphs() for node in graph.nodes for body in bodies(node)}
    for root in [graph for graph in view.graphs() if id(graph) not in nested]:
        stack: list[tuple[Iterator[gs.Node], gs.Node | None]] = [(iter(list(root.nodes)), None)]
        while stack:
            nodes, owner = stack[-1]
            node = next(nodes, None)
            if node is None:
                stack.pop()
                if owner is not None:
                    yield owner
                continue
            if view.edit.is_removed(node):
                continue
            if inner := bodies(node):
                stack.append((iter([n for body in inner for n in body.nodes]), node))
            else:
                yield node


def is_vague(shape: Shape) -> bool:
    """Whether a shape leaves anything open."""
    return shape is None or any(not isinstance(size, int) for size in shape)


def _sharper(found: Shape, declared: Shape) -> Shape:
    """Take the number where either shape has one."""
    if found is None or declared is None or len(found) != len(declared):
        return found if found is not None else declared
    return tuple(b if isinstance(b, int) else a if a is not None else b for a, b in zip(found, declared, strict=True))
