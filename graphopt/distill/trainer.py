"""The training itself: batches, steps, penalties, early stop on a held-out part, best weights kept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphopt.distill.augmentation import Augmentation, is_image
from graphopt.distill.checkpoint import State, fingerprint, load_state, save_state
from graphopt.distill.losses import Objective
from graphopt.distill.optimizer import Moments, Optimizer
from graphopt.distill.regularization import channel_slices, shrink_groups, soft_threshold
from graphopt.distill.samples import Samples, collect, fixed_batch, split
from graphopt.distill.schedules import learning_rate
from graphopt.distill.settings import Settings
from graphopt.distill.student import Array, Student
from graphopt.distill.teacher import Teacher, class_scores, feature_pairs
from graphopt.errors import DataError, ModelError, OptionError
from graphopt.model import Model
from graphopt.progress import Progress, silent
from graphopt.runtime.feeds import Data

LARGEST_GRADIENT = 1e15
"""Beyond this, its squares and their means are not safe in float32."""


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
        self.views = settings.views(samples)
        self.train, self.held = split(samples, settings.held_out, settings.seed)
        fixed = fixed_batch(student) or fixed_batch(teacher)
        self.micro = fixed or min(settings.batch, self.train.size)
        self.batch = max(self.micro, min(settings.batch, self.train.size) // self.micro * self.micro)
        self.per_epoch = max(1, self.train.size // self.batch)
        self.epochs, self.warmup = settings.course(self.per_epoch)
        first = next(self.train.chunks(self.micro))
        logits = class_scores(student), class_scores(teacher)
        features = feature_pairs(student, teacher, settings.features, both := None not in logits)
        pairs = {**({str(logits[0]): str(logits[1])} if both else {}), **features}
        self.teacher = Teacher(teacher, student, pairs, first, settings.threads)
        objective = Objective(
            logits[0] if both else None,
            settings.temperature,
            settings.divergence,
            settings.labels,
            self.teacher.powers(self.train, self.micro, list(features)),
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
        self.optimizer = Optimizer(settings.optimizer, self.student.parameters)
        self.groups = channel_slices(student, self.student.parameters) if settings.group_lasso else []
        if settings.group_lasso and not self.groups:
            raise OptionError("group lasso: the student has no group of channels that could be cut")
        self.fingerprint = fingerprint((teacher, student), samples, settings)

    def run(self, checkpoint: Path | None, resume: bool) -> Outcome:
        """Train from the start or from the checkpoint."""
        student = self.student
        if resume and checkpoint is not None and checkpoint.exists():
            state = load_state(checkpoint, self.fingerprint)
        else:
            state = self._beginning()
        self._train_targets = None if self.views.active else self.teacher.targets(self.train, self.micro)
        self._held_targets = self.teacher.targets(self.held, self.micro) if self.held else {}
        if not state.history and self.held:
            state.best_loss = self._judge(state)
            state.history = [state.best_loss]
        zeros = 0
        while state.epoch < self.epochs and not self._stalled(state):
            told = f"loss {state.history[-1]:.4g}" if state.history else "loss"
            self.progress(f"epoch {state.epoch + 1}, {told}", state.epoch, self.epochs)
            mean, zeros = self._epoch(state)
            state.epoch += 1
            loss = self._judge(state) if self.held else mean
            state.history.append(loss)
            if loss < state.best_loss or not self.held or self._sparse:
                state.best, state.best_buffers = self._kept(state).copy(), state.buffers.copy()
                state.best_loss, state.best_epoch = loss, state.epoch
            if checkpoint is not None:
                save_state(checkpoint, state, self.fingerprint)
        model = student.written(state.best, state.best_buffers)
        return Outcome(model, tuple(state.history), state.best_epoch, state.step, zeros)

    def _beginning(self) -> State:
        """Return where a training starts."""
        start, buffers, moments = self.student.start, self.student.buffers, self.optimizer.start()
        return State(
            start.copy(),
            moments.first,
            moments.second,
            moments.curvature,
            start.copy() if self.settings.average else start[:0],
            buffers,
            start.copy(),
            buffers.copy(),
        )

    def _kept(self, state: State) -> Array:
        """Return the weights that are judged and kept: the running mean, if there is one."""
        return state.average if self.settings.average and not self._sparse else state.weights

    @property
    def _sparse(self) -> bool:
        return bool(self.settings.l1 or self.settings.group_lasso)

    def _stalled(self, state: State) -> bool:
        """Whether nothing has become better for too long."""
        patient = not self.settings.patience or not self.held or self._sparse
        return not patient and state.epoch - state.best_epoch >= self.settings.patience

    def _judge(self, state: State) -> float:
        """Return the held-out loss."""
        assert self.held is not None
        return self.student.loss(self._kept(state), state.buffers, self.held, self._held_targets, self.micro)

    def _epoch(self, state: State) -> tuple[float, int]:
        """See every sample once, but for a rest smaller than a batch; return the mean loss and the zero groups."""
        settings = self.settings
        order = np.random.default_rng([settings.seed, 1, state.epoch]).permutation(self.train.size)
        losses, zeros, total = [], 0, self.epochs * self.per_epoch
        for index in range(self.per_epoch):
            loss, gradient = self._gradient(state, order[index * self.batch : (index + 1) * self.batch])
            if not (np.isfinite(loss) and np.abs(gradient).max() < LARGEST_GRADIENT):
                raise ModelError(f"the training diverges: no finite gradient in step {state.step + 1} (a lower rate?)")
            losses.append(loss)
            rate = learning_rate(settings.schedule, settings.rate, state.step, total, self.warmup)
            zeros = self._update(state, gradient, rate)
        return float(np.mean(losses)), zeros

    def _gradient(self, state: State, chosen: NDArray[np.int64]) -> tuple[float, Array]:
        """Return loss and gradient on one batch, put together from as many as the model takes at a time."""
        samples = self.train.take(chosen)
        if self._train_targets is None:
            samples = _augmented(samples, self.views, np.random.default_rng([self.settings.seed, 2, state.step]))
            targets = self.teacher.targets(samples, self.micro)
        else:
            targets = {name: value[chosen] for name, value in self._train_targets.items()}
        pieces = np.split(np.arange(samples.size), samples.size // self.micro)
        total, gradient = 0.0, np.zeros_like(state.weights)
        for piece in pieces:
            wanted = {name: value[piece] for name, value in targets.items()}
            loss, part, measured = self.student.gradient(state.weights, samples.take(piece), wanted)
            state.buffers = self.student.moved_buffers(state.buffers, measured)
            total += loss / len(pieces)
            gradient += part / np.float32(len(pieces))
        return total, gradient

    def _update(self, state: State, gradient: Array, rate: float) -> int:
        """Make one step, then the penalties'; return how many groups are zero."""
        settings, student = self.settings, self.student
        if settings.l2:
            gradient = gradient + np.where(student.weights, np.float32(2 * settings.l2) * state.weights, np.float32(0))
        gradient = np.where(student.frozen, np.float32(0), gradient)
        state.step += 1
        moved = self.optimizer.direction(Moments(state.first, state.second, state.curvature), gradient, state.step)
        if settings.weight_decay:
            moved += np.where(student.weights, np.float32(settings.weight_decay) * state.weights, np.float32(0))
        state.weights -= np.float32(rate) * moved
        if settings.l1:
            shrunk = state.weights[student.weights]
            soft_threshold(shrunk, rate * settings.l1)
            state.weights[student.weights] = shrunk
        zeros = 0
        if self.groups:
            zeros = shrink_groups(student.views(state.weights), self.groups, rate * settings.group_lasso)
        np.copyto(state.weights, student.start, where=student.frozen)
        if settings.average:
            # Early on the mean is over fewer steps, so that the start does not stay in it.
            share = max(1 - settings.average, 9 / (state.step + 9))
            state.average += np.float32(share) * (state.weights - state.average)
        return zeros


def _augmented(samples: Samples, views: Augmentation, rng: np.random.Generator) -> Samples:
    """Return samples with their images changed, all images of a sample alike if there are several."""
    seed = int(rng.integers(2**32))
    inputs = {
        name: views.apply(value, np.random.default_rng(seed)) if is_image(value) else value
        for name, value in samples.inputs.items()
    }
    return Samples(inputs, samples.labels)
