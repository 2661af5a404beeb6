"""The losses that a student is trained with, as ONNX nodes behind its outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from graphopt.distill.gradients import LOSS

TARGET = "loss/target/"
CLASSES = "loss/classes"


@dataclass(frozen=True)
class Objective:
    """What is minimized: a weighted sum of terms, each a mean over the batch.

    Attributes:
        logits: The student's tensor of class scores before any softmax; None without classes.
        temperature: T of the softened softmax; the divergence is multiplied by T squared (Hinton et al. 2015).
        divergence: Weight of KL(teacher || student) of the softened class probabilities.
        labels: Weight of the cross-entropy with one-hot classes.
        features: The student's tensors to be matched, each with the power of the teacher's (its mean square).
        matching: Weight of the features' mean squared errors, each relative to its power, averaged over features.
    """

    logits: str | None = None
    temperature: float = 4.0
    divergence: float = 1.0
    labels: float = 0.0
    features: Mapping[str, float] = field(default_factory=dict)
    matching: float = 1.0


class LossBuilder:
    """Adds nodes to a graph, each output with a name of its own under ``loss/``."""

    def __init__(self, proto: onnx.ModelProto, part: str = "term") -> None:
        """Build behind ``proto``, which is changed; builders of one graph differ in ``part``."""
        self._graph, self._part, self._count = proto.graph, part, 0
        self._opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return its output."""
        self._count += 1
        name = f"loss/{self._part}/{op}_{self._count}"
        self._graph.node.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, value: NDArray[Any] | float) -> str:
        """Add an initializer, float32 if a plain number is given."""
        self._count += 1
        name = f"loss/{self._part}/constant_{self._count}"
        array = value if isinstance(value, np.ndarray) else np.float32(value)
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def input(self, name: str) -> str:
        """Add a float32 input of unknown shape."""
        self._graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        return name

    def mean(self, value: str, axes: list[int] | None = None, keepdims: int = 0) -> str:
        """Add a ReduceMean, over everything if no axes are named."""
        if axes is None:
            return self.node("ReduceMean", value, keepdims=keepdims)
        if self._opset >= 18:
            return self.node("ReduceMean", value, self.constant(np.asarray(axes, np.int64)), keepdims=keepdims)
        return self.node("ReduceMean", value, axes=axes, keepdims=keepdims)

    def last_sum(self, value: str) -> str:
        """Add a sum over the last axis."""
        return self.node("ReduceSum", value, self.constant(np.asarray([-1], np.int64)), keepdims=0)


def add_loss(proto: onnx.ModelProto, objective: Objective) -> list[str]:
    """Add the objective behind a student, in place, as its only output.

    Returns:
        The names of the new inputs: ``loss/target/<tensor>`` for what the teacher gives, ``loss/classes`` (one-hot).
    """
    build = LossBuilder(proto)
    terms, fed = [], []
    if objective.logits is not None and objective.divergence:
        fed.append(build.input(TARGET + objective.logits))
        terms.append((objective.divergence, divergence(build, objective.logits, fed[-1], objective.temperature)))
    if objective.logits is not None and objective.labels:
        fed.append(build.input(CLASSES))
        terms.append((objective.labels, cross_entropy(build, objective.logits, fed[-1])))
    for name, power in objective.features.items():
        if not objective.matching:
            continue
        fed.append(TARGET + name)
        if name != objective.logits or not objective.divergence:
            build.input(TARGET + name)
        weight = objective.matching / (len(objective.features) * (power or 1.0))
        terms.append((weight, squared_error(build, name, TARGET + name)))
    weighted = [build.node("Mul", term, build.constant(weight)) for weight, term in terms]
    total = weighted[0] if len(weighted) == 1 else build.node("Sum", *weighted)
    proto.graph.node.append(helper.make_node("Identity", [total], [LOSS]))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info(LOSS, TensorProto.FLOAT, []))
    return list(dict.fromkeys(fed))


def divergence(build: LossBuilder, student: str, teacher: str, temperature: float) -> str:
    """Add T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over all rows."""
    cooled = build.constant(1.0 / temperature)
    theirs = build.node("LogSoftmax", build.node("Mul", teacher, cooled), axis=-1)
    ours = build.node("LogSoftmax", build.node("Mul", student, cooled), axis=-1)
    pointwise = build.node("Mul", build.node("Exp", theirs), build.node("Sub", theirs, ours))
    return build.node("Mul", build.mean(build.last_sum(pointwise)), build.constant(temperature**2))


def cross_entropy(build: LossBuilder, student: str, classes: str) -> str:
    """Add the mean over all rows of minus the log-probability of the right class."""
    chosen = build.node("Mul", build.node("LogSoftmax", student, axis=-1), classes)
    return build.node("Neg", build.mean(build.last_sum(chosen)))


def squared_error(build: LossBuilder, student: str, teacher: str) -> str:
    """Add the mean squared difference."""
    difference = build.node("Sub", student, teacher)
    return build.mean(build.node("Mul", difference, difference))


def divergence_values(student: NDArray[Any], teacher: NDArray[Any], temperature: float) -> float:
    """Return what ``divergence`` computes, in float64."""
    ours, theirs = (_log_softmax(np.asarray(each, np.float64) / temperature) for each in (student, teacher))
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=-1).mean() * temperature**2)


def cross_entropy_values(student: NDArray[Any], classes: NDArray[np.int64]) -> float:
    """Return the mean of minus the log-probability of the right class, in float64."""
    rows = _log_softmax(np.asarray(student, np.float64))
    return float(-np.take_along_axis(rows, classes[:, None], axis=-1).mean())


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
