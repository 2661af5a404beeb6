"""A cheap structural identity of a model, to tell that a pass has changed nothing."""

from typing import Any

from onnx import TensorProto

from graphopt.model.exporter import write_model
from graphopt.model.model import Model
from graphopt.model.weights import MappedValues
from graphopt.model.wire import marker


class Fingerprint:
    """The skeleton of a model and the identity of its weights; it keeps those alive, so that none is mistaken."""

    def __init__(self, skeleton: bytes, weights: tuple[Any, ...]) -> None:
        """Remember ``skeleton`` and ``weights``."""
        self._skeleton = skeleton
        self._weights = weights

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Fingerprint)
            and self._skeleton == other._skeleton
            and len(self._weights) == len(other._weights)
            and all(a is b for a, b in zip(self._weights, other._weights, strict=True))
        )

    def __hash__(self) -> int:
        return hash((self._skeleton, tuple(map(id, self._weights))))


def fingerprint(model: Model) -> Fingerprint:
    """Return an identity: equal ones mean equal models; of unequal ones a weight may still have equal values.

    Weights of 1 KB and more count as the same if they are the same object, or still equal what the file had.
    """
    weights: list[Any] = []

    def place(tensor: TensorProto, data: Any) -> None:
        tensor.raw_data = marker(len(weights))
        weights.append(data if isinstance(data, MappedValues) else _owner(data))

    skeleton = write_model(model, place).SerializeToString(deterministic=True)
    return Fingerprint(skeleton, tuple(weights))


def _owner(raw: Any) -> Any:
    """Return the array whose memory raw bytes are, or the bytes themselves."""
    while isinstance(raw, memoryview):
        raw = raw.obj
    while getattr(raw, "base", None) is not None:
        raw = raw.base
    return raw
