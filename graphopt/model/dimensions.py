"""Names of dimensions: which are no names, and which a model does not keep to.

No runtime enforces the name of a dimension. Equal names are believed to say equal sizes, unless they are placeholders,
stand twice in the shape of one input, or are known to be untrue.
"""

import re
from collections.abc import Collection

import onnx_graphsurgeon as gs

from graphopt.model.ir import Variable
from graphopt.model.model import Model

_WORDS = "none|null|nil|nan|n/?a|unk|unk__\\d+|unknown|undefined|unspecified|unnamed|any|dyn|dynamic|-?\\d+"
_QUALIFIED = "(unknown|undefined|any|dynamic|symbolic|free)[\\W_]?(dim|dimension|axis|size|shape)"
_PLACEHOLDER = re.compile(rf"[\W_]*({_WORDS}|{_QUALIFIED})?[\W_]*", re.IGNORECASE)
"""Words of exporters, in brackets or alone; or only blanks and marks such as ``?`` and ``*``."""


def is_placeholder(name: str) -> bool:
    """Whether an exporter writes this where it knows no name: ``?``, ``None``, ``-1``, ``*``, ``unk`` or blanks."""
    return _PLACEHOLDER.fullmatch(name) is not None


def named(name: str) -> str | None:
    """Return the name of a dimension, or None if it is a placeholder."""
    return None if is_placeholder(name) else name


def forget_doubtful_names(model: Model) -> None:
    """Forget names that stand twice in the shape of one input, for this input; the file keeps them.

    Some exporters give all dimensions of a tensor one name; where height and width are truly equal, little is lost.
    """
    for tensor in model.graph.inputs:
        shape = [] if tensor.shape is None else list(tensor.shape)
        doubtful = {dim for dim in shape if isinstance(dim, str) and shape.count(dim) > 1}
        if doubtful and isinstance(tensor, Variable):
            _forget(tensor, doubtful)


def without_names(model: Model, names: Collection[str]) -> Model:
    """Return the model, or a copy in which passes do not see the given names of dimensions; its file keeps them.

    Args:
        model: The model, which is not changed.
        names: Names that say nothing, since equally named axes can differ in size.
    """
    if not any(_shows(tensor, names) for graph in model.graphs() for tensor in _variables(graph)):
        return model
    copy = model.copy()
    copy.stored_bytes = model.stored_bytes
    for graph in copy.graphs():
        for tensor in _variables(graph):
            if _shows(tensor, names):
                _forget(tensor, names)
    return copy


def _forget(tensor: Variable, names: Collection[str]) -> None:
    """Drop names from the shape of a tensor; what its file declares of it holds as far as it did."""
    holds = tensor.declared == (tensor.dtype, tuple(tensor.shape))
    tensor.shape = [None if dim in names else dim for dim in tensor.shape]
    if holds:
        tensor.declared = (tensor.dtype, tuple(tensor.shape))


def _shows(tensor: gs.Tensor, names: Collection[str]) -> bool:
    return isinstance(tensor, Variable) and any(isinstance(dim, str) and dim in names for dim in tensor.shape or ())


def _variables(graph: gs.Graph) -> list[gs.Tensor]:
    """Return inputs, outputs and what nodes compute."""
    return [*graph.inputs, *graph.outputs, *(out for node in graph.nodes for out in node.outputs)]
