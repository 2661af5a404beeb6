"""The training itself: batches, Adam, penalties, early stop on a held-out part, best weights kept."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphopt.distill.augmentation import Augmentation
from graphopt.distill.checkpoint import State, load_state, save_state
from graphopt.distill.losses import Objective
from graphopt.distill.regularization import channel_slices, shrink_groups, soft_threshold
from graphopt.distill.samples import Samples, collect, fixed_batch, split
from graphopt.distill.schedules import Schedule, learning_rate
from graphopt.distill.student import Array, Student
from graphopt.distill.teacher import Teacher, class_scores, feature_pairs
from graphopt.errors import DataError, OptionError
from graphopt.model import Model, to_proto
from graphopt.runtime.feeds import Data

BETA1, BETA2, EPSILON = np.float32(0.9), np.float32(0.999), np.float32(1e-8)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a student is trained.

    Attributes:
        epochs: How often it sees all samples, at most.
        batch: Samples per step.
        rate: The highest learning rate (Adam, Kingma and Ba 2015).
        schedule: How the rate changes.
        warmup: Steps over which it rises.
        temperature: See ``Objective``.
        divergence: Weight of the divergence from the teacher's class probabilities.
        labels: Weight of the cross-entropy with the data's labels.
        matching: Weight of the features.
        features: Tensors to be matched, ``NAME`` or ``STUDENT=TEACHER``; without class scores, all outputs are.
        weight_decay: Decoupled decay of weights (Loshchilov and Hutter 2019).
        l2: Weight of the sum of squared weights.
        l1: Threshold of the soft thresholding of weights, per unit of learning rate.
        group_lasso: The same for whole groups of channels; prune-channels can cut those that become zero.
        keep_zeros: Whether zero weights stay zero.
        train_norm: Whether BatchNormalization uses the statistics of the batch and learns them.
        augmentation: How images are changed.
        samples: How many samples are used, at most.
        held_out: The share of samples to judge by.
        patience: Epochs without improvement after which training ends.
        seed: Of the split, the order and the augmentation.
        threads: For ONNX Runtime; 0 leaves the choice to it.
    """

    epochs: int = 40
    batch: int = 64
    rate: float = 2e-3
    schedule: Schedule = "cosine"
    warmup: int = 0
    temperature: float = 4.0
    divergence: float = 1.0
    labels: float = 0.0
    matching: float = 1.0
    features: tuple[str, ...] = ()
    weight_decay: float = 0.0
    l2: float = 0.0
    l1: float = 0.0
    group_lasso: float = 0.0
    keep_zeros: bool = True
    train_norm: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    samples: int = 4096
    held_out: float = 0.2
    patience: int = 10
    seed: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a training gives.

    Attributes:
        student: The student with the best weights (with l1 or group lasso, the last ones, which are the sparsest).
        history: The held-out loss at the start and after each epoch; that of the training samples if none are held out.
        best_epoch: The epoch that the weights are from; 0 is the start.
        steps: How many steps were made.
        zero_groups: How many groups of channels the group lasso has brought to zero.
    """

    student: Model
    history: tuple[float, ...]
    best_epoch: int
    steps: int
    zero_groups: int = 0


def silent(step: str, done: int, total: int) -> None:
    """Take no notice of progress."""


def distill(
    teacher: Model,
    student: Model,
    data: Data,
    settings: Settings | None = None,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Train ``student`` to answer as ``teacher`` does (Hinton et al. 2015).

    Args:
        teacher: The original.
        student: Any model with the same inputs and the outputs to be matched; it is not changed.
        data: What to learn from: its calibration part if it has one.
        settings: How.
        checkpoint: Where to note after each epoch how far the training is.
        resume: Whether to go on from the checkpoint, if there is one; the result is the same, bit by bit.
        progress: Is told of each epoch.

    Raises:
        ModelError: A model does not fit the task.
        DataError: The data do not.
        OptionError: The checkpoint does not.
        MissingExtraError: onnx-ad is not installed.
    """
    return _Training(teacher, student, data, settings or Settings(), progress).run(checkpoint, resume)


class _Training:
    def __init__(self, teacher: Model, student: Model, data: Data, settings: Settings, progress: Progress) -> None:
        self.settings, self.progress = settings, progress
        samples = collect(data.calibration(), settings.samples)
        if settings.labels and samples.labels is None:
            raise DataError("there are no labels for the cross-entropy")
        if settings.labels and settings.augmentation.mix:
            raise OptionError("labels do not hold for mixed images")
        self.train, self.held = split(samples, settings.held_out, settings.seed)
        fixed = fixed_batch(student) or fixed_batch(teacher)
        self.micro = fixed or min(settings.batch, self.train.size)
        self.batch = max(self.micro, min(settings.batch, self.train.size) // self.micro * self.micro)
        first = next(self.train.chunks(self.micro))
        logits = class_scores(student), class_scores(teacher)
        features = feature_pairs(student, teacher, settings.features, both := None not in logits)
        pairs = {**({str(logits[0]): str(logits[1])} if both else {}), **features}
        self.teacher = Teacher(teacher, student, pairs, first, settings.threads)
        powers = self.teacher.powers(self.train, self.micro, list(features))
        objective = Objective(
            logits[0] if both else None,
            settings.temperature,
            settings.divergence,
            settings.labels,
            powers,
            settings.matching,
        )
        self.student = Student(
            student,
            objective,
            first,
            keep_zeros=settings.keep_zeros,
            train_norm=settings.train_norm,
            threads=settings.threads,
        )
        self.groups = channel_slices(student, self.student.parameters) if settings.group_lasso else []
        if settings.group_lasso and not self.groups:
            raise OptionError("group lasso: the student has no group of channels that could be cut")
        self.fingerprint = _fingerprint(teacher, student, samples, settings)

    def run(self, checkpoint: Path | None, resume: bool) -> Outcome:
        """Train from the start or from the checkpoint."""
        settings, student = self.settings, self.student
        if resume and checkpoint is not None and checkpoint.exists():
            state = load_state(checkpoint, self.fingerprint)
        else:
            start, nought = student.start, np.zeros_like(student.start)
            state = State(start.copy(), nought, nought.copy(), student.buffers, start.copy(), student.buffers.copy())
        fixed = not settings.augmentation.active
        self._train_targets = self.teacher.targets(self.train, self.micro) if fixed else None
        self._held_targets = self.teacher.targets(self.held, self.micro) if self.held else {}
        if not state.history and self.held:
            state.best_loss = self._judge(state)
            state.history = [state.best_loss]
        zeros = 0
        while state.epoch < settings.epochs and not self._stalled(state):
            told = f"loss {state.history[-1]:.4g}" if state.history else "loss"
            self.progress(f"epoch {state.epoch + 1}, {told}", state.epoch, settings.epochs)
            mean, zeros = self._epoch(state)
            state.epoch += 1
            loss = self._judge(state) if self.held else mean
            state.history.append(loss)
            if loss < state.best_loss or not self.held or self._sparse:
                state.best, state.best_buffers = state.weights.copy(), state.buffers.copy()
                state.best_loss, state.best_epoch = loss, state.epoch
            if checkpoint is not None:
                save_state(checkpoint, state, self.fingerprint)
        model = student.written(state.best, state.best_buffers)
        return Outcome(model, tuple(state.history), state.best_epoch, state.step, zeros)

    @property
    def _sparse(self) -> bool:
        return bool(self.settings.l1 or self.settings.group_lasso)

    def _stalled(self, state: State) -> bool:
        """Whether nothing has become better for too long."""
        return bool(self.held) and not self._sparse and state.epoch - state.best_epoch >= self.settings.patience

    def _judge(self, state: State) -> float:
        """Return the held-out loss."""
        assert self.held is not None
        return self.student.loss(state.weights, state.buffers, self.held, self._held_targets, self.micro)

    def _epoch(self, state: State) -> tuple[float, int]:
        """See every sample once, but for a rest smaller than a batch; return the mean loss and the zero groups."""
        settings = self.settings
        order = np.random.default_rng([settings.seed, 1, state.epoch]).permutation(self.train.size)
        count = self.train.size // self.batch
        losses, zeros = [], 0
        for index in range(count):
            loss, gradient = self._gradient(state, order[index * self.batch : (index + 1) * self.batch])
            losses.append(loss)
            rate = learning_rate(settings.schedule, settings.rate, state.step, settings.epochs * count, settings.warmup)
            zeros = self._update(state, gradient, rate)
        return float(np.mean(losses)), zeros

    def _gradient(self, state: State, chosen: NDArray[np.int64]) -> tuple[float, Array]:
        """Return loss and gradient on one batch, put together from as many as the model takes at a time."""
        pieces = np.split(chosen, len(chosen) // self.micro)
        total, gradient = 0.0, np.zeros_like(state.weights)
        for number, piece in enumerate(pieces):
            samples = self.train.take(piece)
            if self._train_targets is None:
                rng = np.random.default_rng([self.settings.seed, 2, state.step, number])
                samples = _augmented(samples, self.settings.augmentation, rng)
                targets = self.teacher.targets(samples, self.micro)
            else:
                targets = {name: value[piece] for name, value in self._train_targets.items()}
            loss, part, measured = self.student.gradient(state.weights, samples, targets)
            state.buffers = self.student.moved_buffers(state.buffers, measured)
            total += loss / len(pieces)
            gradient += part / np.float32(len(pieces))
        return total, gradient

    def _update(self, state: State, gradient: Array, rate: float) -> int:
        """Make one step of Adam, then of the penalties; return how many groups are zero."""
        settings, student = self.settings, self.student
        if settings.l2:
            gradient = gradient + np.where(student.weights, np.float32(2 * settings.l2) * state.weights, np.float32(0))
        state.step += 1
        state.first += (1 - BETA1) * (gradient - state.first)
        state.second += (1 - BETA2) * (gradient * gradient - state.second)
        first = state.first / np.float32(1 - float(BETA1) ** state.step)
        second = state.second / np.float32(1 - float(BETA2) ** state.step)
        moved = first / (np.sqrt(second) + EPSILON)
        if settings.weight_decay:
            moved = moved + np.where(student.weights, np.float32(settings.weight_decay) * state.weights, np.float32(0))
        state.weights -= np.float32(rate) * moved
        if settings.l1:
            shrunk = state.weights[student.weights]
            soft_threshold(shrunk, rate * settings.l1)
            state.weights[student.weights] = shrunk
        zeros = 0
        if self.groups:
            zeros = shrink_groups(student.views(state.weights), self.groups, rate * settings.group_lasso)
        np.copyto(state.weights, student.start, where=student.frozen)
        return zeros


def _augmented(samples: Samples, augmentation: Augmentation, rng: np.random.Generator) -> Samples:
    """Return samples with their images changed, all images of a sample alike if there are several."""
    seed = int(rng.integers(2**32))
    inputs = {
        name: augmentation.apply(value, np.random.default_rng(seed))
        if value.ndim == 4 and value.dtype.kind == "f"
        else value
        for name, value in samples.inputs.items()
    }
    return Samples(inputs, samples.labels)


def _fingerprint(teacher: Model, student: Model, samples: Samples, settings: Settings) -> str:
    """Return a hash of all that a training depends on."""
    digest = hashlib.sha256(repr(settings).encode())
    for model in (teacher, student):
        digest.update(to_proto(model).SerializeToString(deterministic=True))
    for name, value in samples.inputs.items():
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
