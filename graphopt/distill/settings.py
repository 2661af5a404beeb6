"""How a student is trained: every knob, with defaults that are meant to be used."""

import math
from dataclasses import dataclass, replace

from graphopt.distill.augmentation import Augmentation, is_image, looks_like_image
from graphopt.distill.optimizer import Method
from graphopt.distill.samples import Samples
from graphopt.distill.schedules import Schedule
from graphopt.errors import OptionError

STEPS = 4000
"""As many steps are made if no number of epochs is given."""
WARMUP = 40
"""One step in so many is warm-up if no number is given."""
VIEWS = Augmentation(flip=True, shift=0.04, mix=0.7)
"""How images are changed if nothing is said: nothing that blurs them, which the teacher has not seen."""


@dataclass(frozen=True)
class Settings:
    """How a student is trained.

    Attributes:
        epochs: How often it sees all samples, at most; None for as many as make 4000 steps.
        batch: Samples per step.
        rate: The highest learning rate.
        optimizer: SOAP or Adam, see ``Optimizer``.
        schedule: How the rate changes.
        warmup: Steps over which it rises; None for a fortieth of all, and at least 20 or a quarter.
        average: How slowly the running mean of the weights moves, which is what is kept (Polyak and Juditsky 1992); 0
            for the weights themselves.
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
        augmentation: How images are changed; None for ``VIEWS``, if there are any.
        samples: How many samples are used, at most.
        held_out: The share of samples to judge by.
        patience: Epochs without improvement after which training ends; 0 for never.
        seed: Of the split, the order and the augmentation.
        threads: For ONNX Runtime; 0 leaves the choice to it.
    """

    epochs: int | None = None
    batch: int = 32
    rate: float = 3e-3
    optimizer: Method = "soap"
    schedule: Schedule = "cosine"
    warmup: int | None = None
    average: float = 0.0
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
    augmentation: Augmentation | None = None
    samples: int = 4096
    held_out: float = 0.05
    patience: int = 0
    seed: int = 0
    threads: int = 0

    def course(self, per_epoch: int) -> tuple[int, int]:
        """Return the number of epochs and of steps that warm up, from the steps in an epoch."""
        epochs = math.ceil(STEPS / per_epoch) if self.epochs is None else self.epochs
        total = epochs * per_epoch
        # SOAP's first eigenbases are of a few batches: a short course needs as much of a warm-up as it can spare.
        warmup = max(total // WARMUP, min(20, total // 4)) if self.warmup is None else self.warmup
        return epochs, warmup

    def views(self, samples: Samples) -> Augmentation:
        """Return how the images among ``samples`` are changed.

        Raises:
            OptionError: There is no image to change, or labels would not hold.
        """
        if self.augmentation is None:
            shown = any(looks_like_image(value) for value in samples.inputs.values())
            views = replace(VIEWS, mix=0.0, paste=0.0) if self.labels else VIEWS
            return views if shown else Augmentation()
        if self.augmentation.active and not any(is_image(value) for value in samples.inputs.values()):
            told = ", ".join(f"{name} {value.dtype.name}{list(value.shape)}" for name, value in samples.inputs.items())
            raise OptionError(f"only float images [N, C, H, W] can be changed, and no input is one ({told})")
        if self.augmentation.joins and self.labels:
            raise OptionError("labels do not hold for mixed images")
        return self.augmentation
