"""A student as a function of its parameters: forwards, and backwards from the loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from graphopt.distill.batchnorm import MOMENTUM, by_batch
from graphopt.distill.gradients import Gradients, promote
from graphopt.distill.losses import CLASSES, TARGET, Objective, add_loss, cross_entropy_values, divergence_values
from graphopt.distill.parameters import find_parameters, stored_tensors, write_values
from graphopt.distill.samples import Samples
from graphopt.errors import ModelError
from graphopt.model import Model, from_proto, raise_opset, to_proto
from graphopt.runtime.session import Session
from graphopt.runtime.taps import cut

Array = NDArray[np.float32]
Targets = dict[str, NDArray[Any]]

OPSET = 17
"""The oldest opset that every derivative rule can write."""


class Student:
    """The model that learns.

    Attributes:
        parameters: What is trained.
        start: Their values at the start, flattened one after the other.
        buffers: The running statistics of BatchNormalization at the start, flattened; empty if they are not trained.
        frozen: Where the flattened parameters must stay.
        weights: Where they are weights of layers, as opposed to biases, scales and shifts.
    """

    def __init__(
        self, model: Model, objective: Objective, sample: Samples, *, keep_zeros: bool, train_norm: bool, threads: int
    ) -> None:
        """Prepare ``model`` for samples like ``sample``, whose size is that of a batch.

        Raises:
            ModelError: It has no parameters, or cannot be differentiated.
            MissingExtraError: onnx-ad is not installed.
        """
        self._model, self._objective = model, objective
        self._proto = to_proto(raise_opset(model, max(OPSET, model.opset)))
        self.parameters = find_parameters(self._proto, keep_zeros)
        self.start = np.concatenate([each.value.reshape(-1) for each in self.parameters])
        self.frozen = np.concatenate([each.frozen.reshape(-1) for each in self.parameters])
        self.weights = np.concatenate([np.full(each.value.size, each.is_weight) for each in self.parameters])
        self._offsets = np.cumsum([0] + [each.value.size for each in self.parameters])
        self._prepare(sample, train_norm, threads)

    def _prepare(self, sample: Samples, train_norm: bool, threads: int) -> None:
        """Build the two graphs."""
        names = [*([self._objective.logits] if self._objective.logits else []), *self._objective.features]
        backward = onnx.ModelProto()
        backward.CopyFrom(cut(self._proto, names))
        statistics = by_batch(backward) if train_norm else []
        self._measured = [each.measured for each in statistics]
        self._buffer_names = [each.stored for each in statistics]
        stored = stored_tensors(self._proto)
        kept = {name: onnx.numpy_helper.to_array(stored[name]) for name in self._buffer_names}
        self.buffers = np.concatenate([kept[n].reshape(-1) for n in self._buffer_names] or [np.zeros(0)]).astype(
            np.float32
        )
        self._buffer_sizes = [kept[name].size for name in self._buffer_names]
        forward = promote(cut(self._proto, names), {**self._values(self.start), **kept})
        self._forward = Session(forward, threads=threads)
        add_loss(backward, self._objective)
        used = {name for node in backward.graph.node for name in node.input}
        self._trained = [each for each in self.parameters if each.name in used]
        values = self._values(self.start)
        backward = promote(backward, values)
        outputs = self._run_forward(sample, values, kept)
        targets = {TARGET + name: outputs[name] for name in names}
        if self._objective.logits and self._objective.labels:
            targets[CLASSES] = np.zeros(outputs[self._objective.logits].shape, np.float32)
        feeds = {**sample.inputs, **values, **targets}
        fed = {info.name for info in backward.graph.input}
        wanted = [each.name for each in self._trained]
        self._gradients = Gradients(
            backward, {n: v for n, v in feeds.items() if n in fed}, wanted, extra=self._measured, threads=threads
        )

    def views(self, flat: Array) -> dict[str, Array]:
        """Return the parameters by name, as views into their flattened form."""
        ends = zip(self.parameters, self._offsets, self._offsets[1:], strict=False)
        return {each.name: flat[begin:end].reshape(each.value.shape) for each, begin, end in ends}

    def _values(self, flat: Array) -> dict[str, Array]:
        """Return what the model computes with: quantized weights rounded (the straight-through estimator)."""
        views = self.views(flat)
        return {
            each.name: np.ascontiguousarray(
                views[each.name] if each.grid is None else each.grid.rounded(views[each.name])
            )
            for each in self.parameters
        }

    def gradient(self, flat: Array, samples: Samples, targets: Targets) -> tuple[float, Array, Array]:
        """Return the loss on one batch, the gradient, flattened, and the statistics of the batch."""
        feeds = {**samples.inputs, **self._values(flat), **{TARGET + name: value for name, value in targets.items()}}
        if self._objective.logits and self._objective.labels:
            feeds[CLASSES] = one_hot(samples.labels, targets[self._objective.logits].shape)
        loss, found, extra = self._gradients(feeds)
        parts = [found[each.name] if each.name in found else np.zeros_like(each.value) for each in self.parameters]
        flat_gradient = np.concatenate([part.reshape(-1) for part in parts])
        measured = np.concatenate([extra[name].reshape(-1) for name in self._measured] or [np.zeros(0)])
        return loss, flat_gradient.astype(np.float32, copy=False), measured.astype(np.float32)

    def loss(self, flat: Array, buffers: Array, samples: Samples, targets: Targets, batch: int) -> float:
        """Return the objective on any number of samples, forwards only."""
        values, kept = self._values(flat), self._split_buffers(buffers)
        parts = [self._run_forward(chunk, values, kept) for chunk in samples.chunks(batch)]
        given = {name: np.concatenate([part[name] for part in parts])[: samples.size] for name in targets}
        objective, total = self._objective, 0.0
        if objective.logits:
            logits = given[objective.logits]
            total += objective.divergence * divergence_values(logits, targets[objective.logits], objective.temperature)
            if objective.labels and samples.labels is not None:
                total += objective.labels * cross_entropy_values(logits, samples.labels)
        for name, power in objective.features.items():
            error = float(np.square(given[name].astype(np.float64) - targets[name]).mean())
            total += objective.matching * error / ((power or 1.0) * len(objective.features))
        return total

    def moved_buffers(self, buffers: Array, measured: Array) -> Array:
        """Return running statistics a step closer to those of a batch."""
        return buffers + np.float32(MOMENTUM) * (measured - buffers)

    def written(self, flat: Array, buffers: Array) -> Model:
        """Return the model with these parameters stored, in the form that it came in."""
        views = self.views(flat)
        values: dict[str, NDArray[Any]] = {}
        for each in self.parameters:
            name = each.name if each.grid is None else each.grid.stored
            values[name] = views[each.name] if each.grid is None else each.grid.levels(views[each.name])
        proto = to_proto(self._model)
        write_values(proto, {**values, **self._split_buffers(buffers)})
        return from_proto(proto, path=self._model.path)

    def _split_buffers(self, buffers: Array) -> dict[str, Array]:
        ends = np.cumsum([0, *self._buffer_sizes])
        return {n: buffers[a:b] for n, a, b in zip(self._buffer_names, ends, ends[1:], strict=False)}

    def _run_forward(self, samples: Samples, values: Targets, kept: Targets) -> Targets:
        return self._forward.run({**samples.inputs, **values, **kept})


def one_hot(labels: NDArray[np.int64] | None, shape: Sequence[int]) -> Array:
    """Return labels as rows of the class scores' shape, [samples, classes].

    Raises:
        ModelError: There are no labels, or they do not fit that shape.
    """
    if labels is None or len(shape) != 2 or labels.max() >= shape[1]:
        raise ModelError(f"class scores of shape {list(shape)} do not fit the labels")
    rows = np.zeros(shape, np.float32)
    rows[np.arange(len(labels)), labels] = 1
    return rows
