"""How much the loss depends on each weight: a measure of what can be pruned."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graphopt.distill.losses import Objective
from graphopt.distill.samples import Samples, collect, fixed_batch
from graphopt.distill.student import Student
from graphopt.distill.teacher import class_scores
from graphopt.errors import ModelError
from graphopt.model import Model
from graphopt.runtime.feeds import Data
from graphopt.runtime.taps import Taps

Criterion = Literal["gradient", "taylor"]


def gradient_saliency(
    model: Model, data: Data, criterion: Criterion = "gradient", *, limit: int = 256, threads: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Return, for each weight, the mean over samples of how much the loss of one sample depends on it.

    The loss is the cross-entropy with the label of the sample or, without labels, with the class that the model itself
    finds likeliest; the divergence from the model's own answers would not do, its gradient is exactly zero. Gradients
    are taken sample by sample: those of a batch cancel each other.

    Args:
        model: The model, which is not changed.
        data: What to measure on: its calibration part if it has one.
        criterion: "gradient": the mean of |dL/dw|; "taylor": of |w dL/dw| (Molchanov et al. 2017).
        limit: How many samples to use, at most.
        threads: For ONNX Runtime; 0 leaves the choice to it.

    Returns:
        An array of each weight's shape by the name of the tensor that stores it, biases and scales included.

    Raises:
        ModelError: The model has no class scores, or cannot be differentiated.
        DataError: The data are generated.
        MissingExtraError: onnx-ad is not installed.
    """
    scores = class_scores(model)
    if scores is None:
        raise ModelError("gradient saliency needs a model that gives class scores [N, classes]")
    samples = collect(data.calibration(), limit)
    student, batch = _differentiable(model, scores, samples, threads)
    taps = Taps(model, [scores], threads)
    total = np.zeros(student.start.size)
    for chunk in samples.chunks(batch):
        found = taps.run(chunk.inputs)[scores]
        labels = chunk.labels if chunk.labels is not None else np.argmax(found, axis=-1)
        _, gradient, _ = student.gradient(student.start, Samples(chunk.inputs, labels), {scores: found})
        total += np.abs(gradient.astype(np.float64))
    total /= -(-samples.size // batch)
    if criterion == "taylor":
        total *= np.abs(student.start.astype(np.float64))
    ends = np.cumsum([each.value.size for each in student.parameters])
    parts = np.split(total, ends[:-1])
    return {each.name: part.reshape(each.value.shape) for each, part in zip(student.parameters, parts, strict=True)}


def _differentiable(model: Model, scores: str, samples: Samples, threads: int) -> tuple[Student, int]:
    """Return the model as a function of its weights, one sample at a time unless it insists on more."""
    fixed = fixed_batch(model) or 1
    objective = Objective(scores, divergence=0.0, labels=1.0)
    return Student(
        model, objective, next(samples.chunks(fixed)), keep_zeros=False, train_norm=False, threads=threads
    ), fixed
