"""What there is to know of a model while its opset is raised."""

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper

from graphopt.errors import ModelError
from graphopt.model.exporter import to_proto
from graphopt.model.inference import with_inferred_shapes
from graphopt.model.model import Model
from graphopt.model.names import Names


class Raise:
    """What adapters need to know of the model, inferred when first asked for, and how they make constants."""

    def __init__(self, original: Model) -> None:
        """Answer for ``original``, which stays as it is while a copy of it is raised."""
        self._original = original
        self._names = Names(original)
        self._types: dict[str, onnx.TypeProto.Tensor | None] | None = None
        self._given = {tensor.name for graph in original.graphs() for tensor in graph.outputs}
        self._overridable = {tensor.name for tensor in original.overridable()}
        self.in_function = False

    def fresh(self, stem: str) -> str:
        """Return a tensor name that is not in use."""
        return self._names.fresh(stem)

    def constant(self, node: gs.Node, what: str, values: NDArray[Any]) -> gs.Constant:
        """Return a new constant for ``node``."""
        return gs.Constant(self.fresh(f"{node.outputs[0].name}_{what}"), values)

    def integers(self, node: gs.Node, what: str, values: Any) -> gs.Constant:
        """Return a new int64 constant for ``node``."""
        return self.constant(node, what, np.asarray(values, dtype=np.int64))

    def is_used(self, tensor: gs.Tensor) -> bool:
        """Whether anything reads a tensor or gives it out."""
        return bool(tensor.name) and (bool(tensor.outputs) or tensor.name in self._given)

    def values(self, tensor: gs.Tensor) -> NDArray[Any] | None:
        """Return the values of an initializer or of a Constant node, None if they can differ from run to run."""
        if len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant":
            tensor = tensor.inputs[0].attrs.get("value")
        if not isinstance(tensor, gs.Constant) or tensor.name in self._overridable:
            return None
        values: NDArray[Any] = tensor._values if isinstance(tensor._values, np.ndarray) else tensor._values.load()
        return values

    def rank(self, tensor: gs.Tensor) -> int | None:
        """Return the rank of a tensor, None if it is unknown."""
        if isinstance(tensor, gs.Constant):
            return len(tensor.shape)
        kind = self._type(tensor)
        return len(kind.shape.dim) if kind is not None and kind.HasField("shape") else None

    def dtype(self, tensor: gs.Tensor) -> Any:
        """Return the element type of a tensor.

        Raises:
            ModelError: It is unknown.
        """
        if isinstance(tensor, gs.Constant):
            return np.dtype(tensor.dtype)
        kind = self._type(tensor)
        if kind is None or not kind.elem_type:
            raise ModelError(f"the element type of {tensor.name!r} is unknown")
        return np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))

    def _type(self, tensor: gs.Tensor) -> onnx.TypeProto.Tensor | None:
        """Return the inferred type of a tensor; within a function, whose types depend on the call, there is none."""
        if self._types is None:
            self._types = _inferred_types(self._original)
        return None if self.in_function else self._types.get(tensor.name)


def _inferred_types(model: Model) -> dict[str, onnx.TypeProto.Tensor | None]:
    """Return the type of every tensor that inference can name; None where branches use one name for several."""
    skeleton = with_inferred_shapes(to_proto(model, weights=False))
    types: dict[str, onnx.TypeProto.Tensor | None] = {}
    waiting = [skeleton.graph]
    while waiting:
        graph = waiting.pop()
        for info in {info.name: info for info in (*graph.input, *graph.output, *graph.value_info)}.values():
            if info.type.HasField("tensor_type"):
                known = types.setdefault(info.name, info.type.tensor_type)
                types[info.name] = known if known == info.type.tensor_type else None
        waiting += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return types
