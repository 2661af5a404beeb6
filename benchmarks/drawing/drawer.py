"""The graph that is being drawn: tensors with their shapes, constants, names and the operators to choose from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Dim = int | str
Shape = tuple[Dim, ...]
Array = NDArray[Any]

NAMES = ("?", "-1", "0", "None", "a b", "x/y:0", "é", "w0_1", "[x]", "*")
"""What tensors are called now and then, beside ordinary names."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph; a dimension is a number, the name of a free axis, or a name of its own if unknown."""

    name: str
    shape: Shape
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    def known(self, axis: int) -> bool:
        """Whether a dimension is a number, and not zero."""
        if not -self.rank <= axis < self.rank:
            return False
        dim = self.shape[axis]
        return isinstance(dim, int) and dim > 0

    def size(self, axis: int) -> int:
        """Return a dimension that is a number."""
        value = self.shape[axis]
        assert isinstance(value, int)
        return value


Layer = Callable[["Drawer"], None]
LAYERS: dict[str, tuple[int, Layer]] = {}
"""What a graph is made of: the first opset that has it, and the function that adds it, by name."""


def layer(since: int = 7) -> Callable[[Layer], Layer]:
    """Register a function that adds a layer to a drawer; it may add nothing where no tensor fits."""

    def register(function: Layer) -> Layer:
        LAYERS[function.__name__] = since, function
        return function

    return register


@dataclass
class Drawer:
    """A graph and the random numbers that it is drawn with.

    Attributes:
        rng: The only source of chance.
        opset: The version of ONNX's operators.
        nodes: The nodes of the graph or body that is being drawn.
        stored: Initializers of the main graph.
        overridable: Names of initializers that callers may feed.
        pool: Tensors that layers can read.
        inputs: The graph's inputs.
        limits: The first value that an input of integers must not reach.
    """

    rng: np.random.Generator
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    overridable: list[str] = field(default_factory=list)
    pool: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    depth: int = 0
    count: int = 0
    arrays: dict[str, Array] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    # -- chance --------------------------------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        """Whether something happens that does so in this share of cases."""
        return bool(self.rng.random() < share)

    def among(self, *values: Any) -> Any:
        """Choose one of the values."""
        return values[int(self.rng.integers(len(values)))]

    def below(self, end: int, start: int = 0) -> int:
        """Choose a number of [start, end)."""
        return int(self.rng.integers(start, end))

    # -- tensors -------------------------------------------------------------------------------------------------------

    def pick(self, fits: Callable[[Tensor], bool] = lambda _: True, dtype: str = "float32") -> Tensor | None:
        """Choose a tensor, a late one rather than an early one; None if none fits."""
        found = [each for each in self.pool if each.dtype == dtype and fits(each)]
        if not found:
            return None
        return found[-1 - min(int(self.rng.geometric(0.35)) - 1, len(found) - 1)]

    def fresh(self) -> str:
        """Return a dimension that nothing is known of."""
        self.count += 1
        return f"?{self.count}"

    def name(self, stem: str) -> str:
        """Return a name that nothing has yet, an odd one now and then."""
        odd = [each for each in NAMES if each not in self.taken]
        name = self.among(*odd) if odd and self.chance(0.03) else f"{stem}{len(self.taken)}"
        self.taken.add(name)
        return name

    def node(self, kind: str, inputs: Sequence["Tensor | str"], outputs: Sequence[str], **attrs: Any) -> onnx.NodeProto:
        """Add a node, without a name now and then."""
        names = [each if isinstance(each, str) else each.name for each in inputs]
        own = self.among("", self.name("n"))
        made = helper.make_node(kind, names, outputs, name=own, **attrs)
        if self.chance(0.05):
            made.doc_string = "said twice"
        self.nodes.append(made)
        return made

    def op(
        self, kind: str, inputs: Sequence["Tensor | str"], shape: Shape, dtype: str = "float32", **attrs: Any
    ) -> Tensor:
        """Add a node of one output, which later layers may read only if it is put into ``pool``."""
        made = Tensor(self.name("t"), shape, dtype)
        self.node(kind, inputs, [made.name], **attrs)
        return made

    def add(
        self, kind: str, inputs: Sequence["Tensor | str"], shape: Shape, dtype: str = "float32", **attrs: Any
    ) -> None:
        """Add a node of one output that later layers may read."""
        self.keep(self.op(kind, inputs, shape, dtype, **attrs))

    def keep(self, tensor: Tensor) -> None:
        """Let later layers read a tensor, behind an Identity or two now and then."""
        while self.chance(0.06):
            tensor = self.op("Identity", [tensor], tensor.shape, tensor.dtype)
        self.pool.append(tensor)

    # -- constants -----------------------------------------------------------------------------------------------------

    def constant(self, values: Any, dtype: Any = None) -> str:
        """Store a constant: an initializer or a Constant node, behind an Identity now and then."""
        array = np.asarray(values, dtype)
        name = self.name("w")
        self.arrays[name] = array
        if self.depth == 0 and (self.opset < 9 or self.chance(0.8)):
            self.stored.append(numpy_helper.from_array(array, name))
        else:
            self.node("Constant", [], [name], value=numpy_helper.from_array(array))
        if self.chance(0.04):
            return self.op("Identity", [name], array.shape, str(array.dtype)).name
        return name

    def ints(self, *values: int) -> str:
        """Store int64 numbers of one axis."""
        return self.constant(values, np.int64)

    def weight(self, *shape: int, scale: float | None = None, dead: bool = True) -> str:
        """Draw a weight: shared with another layer, overridable, or with rows or columns of zeros now and then."""
        same = [each.name for each in self.stored if tuple(each.dims) == shape and each.data_type == 1]
        if same and self.depth == 0 and self.chance(0.15):
            return str(self.among(*same))
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = self.rng.standard_normal(shape) * (scale if scale is not None else 1.0 / np.sqrt(max(fan, 1)))
        for axis in range(min(2, len(shape)) if dead else 0):
            if self.chance(0.2):
                values[(slice(None),) * axis + (self.rng.random(shape[axis]) < self.among(0.3, 0.6),)] = 0
        if self.chance(0.04) and dead:
            values[...] = self.among(0.0, 1.0)
        name = self.constant(values, np.float32)
        if self.stored and self.stored[-1].name == name and self.chance(0.04):
            self.overridable.append(name)
        return name

    def row(self, size: int) -> str:
        """Draw a vector, of zeros now and then."""
        return self.constant(np.zeros(size), np.float32) if self.chance(0.15) else self.weight(size, scale=0.5)

    def scalar(self, value: float, dtype: Any = np.float32) -> str:
        """Store one number, with one axis or none."""
        return self.constant([value] if self.chance(0.2) and dtype == np.float32 else value, dtype)

    # -- operators that were written in another way in earlier opsets --------------------------------------------------

    def axed(self, kind: str, source: Tensor, axes: Sequence[int], shape: Shape, **attrs: Any) -> Tensor:
        """Add a Squeeze, Unsqueeze or reduction, whose axes are an attribute or an input."""
        since = 13 if kind in ("Squeeze", "Unsqueeze", "ReduceSum") else 18
        if self.opset >= since:
            return self.op(kind, [source, self.ints(*axes)], shape, source.dtype, **attrs)
        return self.op(kind, [source], shape, source.dtype, axes=list(axes), **attrs)

    def cut(self, source: Tensor, axis: int, start: int, end: int, step: int, size: Dim) -> Tensor:
        """Add a Slice of one axis."""
        shape = tuple(size if each == axis else dim for each, dim in enumerate(source.shape))
        if self.opset < 10:
            return self.op("Slice", [source], shape, source.dtype, axes=[axis], starts=[start], ends=[end])
        kind = np.int32 if max(abs(start), abs(end)) < 2**31 and self.chance(0.3) else np.int64
        bounds = [self.constant([each], kind) for each in (start, end)]
        place = axis - source.rank if self.chance(0.3) else axis
        extra = [self.constant([place], kind), self.constant([step], kind)]
        return self.op("Slice", [source, *bounds, *extra], shape, source.dtype)
