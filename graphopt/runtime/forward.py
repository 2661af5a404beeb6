"""Runs a model on data up to one tensor after the other, each time from where it has been before."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx

from graphopt.model import Model, to_proto
from graphopt.runtime.feeds import Data
from graphopt.runtime.store import Store
from graphopt.runtime.taps import Taps, reads

Tensors = dict[str, Any]


class Forward:
    """A model whose tensors are asked for from the front to the back.

    A request runs what lies between the one before and its own tensors, so that asking for all layers in order costs
    about as much as running the model once. What the rest of the model reads of the part in front, the cut, is kept for
    each batch. The part in front of what was asked for last may not change; what lies behind it may. What was asked for
    out of order, or is not to be kept (sequences, types that numpy lacks), is run from the start.
    """

    def __init__(self, model: Model, data: Data, samples: int) -> None:
        """Run ``model`` on ``data``, on so many samples at most."""
        self.model, self._data, self._samples = model, data, samples
        self._store = Store()
        self._proto: onnx.ModelProto | None = None
        self._front: frozenset[str] = frozenset()
        self._given: list[onnx.ValueInfoProto] = []
        self._kept: list[Tensors] = []

    def first(self, names: Sequence[str]) -> Tensors:
        """Return tensors on the first batch, of the model as it is since the last request for all batches."""
        return next(self._run(self._as_proto(), names))

    def batches(self, names: Sequence[str], upto: str) -> Iterator[Tensors]:
        """Yield tensors on each batch; the next request, when this is through, begins at what computes ``upto``.

        Raises:
            GraphoptError: ONNX Runtime cannot run the model.
        """
        proto = self._as_proto()
        self._proto = None  # from now on the model may change
        front, wanted = _cut_before(proto, upto)
        fresh: list[Tensors] = []
        given: list[onnx.ValueInfoProto] = []
        try:
            for found in self._run(proto, [*names, *wanted]):
                if not fresh:
                    given = [_declared(name, found[name]) for name in wanted if _can_be_kept(found[name])]
                if len(given) == len(wanted):
                    fresh.append({name: self._store.keep(found[name]) for name in wanted})
                yield {name: found[name] for name in names}
            if fresh:
                fresh, self._kept = self._kept, fresh
                self._front, self._given = front, given
        finally:  # what is kept no longer, or was not read to the end
            self._forget(fresh)

    def _run(self, proto: onnx.ModelProto, names: Sequence[str]) -> Iterator[Tensors]:
        """Yield tensors on each batch, from what is kept or from the start."""
        given = self._given if self._reaches(proto, names) else []
        kept = self._kept if given else []
        taps = Taps(self.model, names, form=lambda: proto, given=given)
        for index, feeds in enumerate(self._data.batches(self._samples)):
            yield taps.run({**feeds, **self._read(kept[index])} if kept else feeds)

    def _as_proto(self) -> onnx.ModelProto:
        """Return the model, made into a proto once between two requests for all batches."""
        self._proto = self._proto or to_proto(self.model)
        return self._proto

    def close(self) -> None:
        """Remove what is kept."""
        self._forget(self._kept)
        self._proto, self._kept, self._given, self._front = None, [], [], frozenset()
        self._store.close()

    def _reaches(self, proto: onnx.ModelProto, names: Sequence[str]) -> bool:
        """Whether the tensors can be computed from what is kept."""
        if not self._kept:
            return False
        known = {info.name for info in self._given}
        producer = {name: node for node in proto.graph.node for name in node.output if name}
        varies = _varying(proto)
        waiting, seen = list(names), set(names)
        while waiting:
            name = waiting.pop()
            if name in known or name not in producer:
                continue
            if name in self._front and name in varies:
                return False
            fresh = [each for each in reads(producer[name]) if each and each not in seen]
            seen.update(fresh)
            waiting += fresh
        return True

    def _read(self, kept: Tensors) -> Tensors:
        """Return what is kept of a batch."""
        return {name: self._store.read(value) for name, value in kept.items()}

    def _forget(self, kept: list[Tensors]) -> None:
        """Give back what is kept of all batches."""
        for value in (value for batch in kept for value in batch.values()):
            self._store.forget(value)


def _cut_before(proto: onnx.ModelProto, name: str) -> tuple[frozenset[str], list[str]]:
    """Return what lies in front of the node that computes ``name``, and what of it is read from there on.

    What follows from constants alone is computed where it is read.
    """
    nodes, varies = proto.graph.node, _varying(proto)
    at = next((index for index, node in enumerate(nodes) if name in node.output), len(nodes))
    front = frozenset(output for node in nodes[:at] for output in node.output if output)
    behind = {each for node in nodes[at:] for each in reads(node)}
    return front, [each for node in nodes[:at] for each in node.output if each in behind and each in varies]


def _varying(proto: onnx.ModelProto) -> set[str]:
    """Return the tensors of the main graph that depend on its inputs."""
    varies = {info.name for info in proto.graph.input}
    for node in proto.graph.node:
        if not varies.isdisjoint(reads(node)):
            varies.update(output for output in node.output if output)
    return varies


def _can_be_kept(value: Any) -> bool:
    """Whether a value can be fed again."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _declared(name: str, value: np.ndarray[Any, Any]) -> onnx.ValueInfoProto:
    """Return the declaration of an input that takes values like this one, of any size."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim)
