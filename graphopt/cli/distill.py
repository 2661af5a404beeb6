"""The command ``graphopt distill``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from graphopt.cli.progress import progress_bar
from graphopt.cli.writing import require_no_weights, require_report, require_writable, write_json
from graphopt.distill.augmentation import Augmentation
from graphopt.distill.optimizer import METHODS
from graphopt.distill.schedules import SCHEDULES
from graphopt.distill.settings import VIEWS, Settings
from graphopt.distill.trainer import Outcome
from graphopt.distill.trainer import distill as train
from graphopt.errors import DataError, OptionError
from graphopt.model import load, save
from graphopt.proof.accuracy import top1
from graphopt.runtime.feeds import load_data

_PLAIN = Settings()
_Command = TypeVar("_Command", bound=Callable[..., Any])
_UNIT = click.FloatRange(0, 1)
_POSITIVE = click.FloatRange(min=0)


def _number(name: str, kind: Any, help: str) -> Callable[[_Command], _Command]:
    """Return an option for a number of ``Settings``, with its default."""
    flag = "--" + name.replace("_", "-")
    return click.option(flag, type=kind, default=getattr(_PLAIN, name), show_default=True, help=help)


_IMAGES = "[default for images: {}]"


def _view(name: str, kind: Any, help: str) -> Callable[[_Command], _Command]:
    """Return an option for a number of ``Augmentation``; whether it has a default depends on the data."""
    return click.option(f"--{name}", type=kind, help=f"{help}  {_IMAGES.format(getattr(VIEWS, name))}")


@click.command()
@click.argument("teacher")
@click.argument("student")
@click.argument("target")
@click.option("--data", metavar="FILE", required=True, help="What to learn from; its calibration part if it has one.")
@_number("epochs", click.IntRange(min=1), "How often to see all samples.  [default: as many as make 4000 steps]")
@_number("batch", click.IntRange(min=1), "Samples per step.")
@_number("rate", click.FloatRange(min=0, min_open=True), "The highest learning rate.")
@click.option(
    "--schedule", type=click.Choice(SCHEDULES), default=_PLAIN.schedule, show_default=True, help="Its course."
)
@_number("warmup", click.IntRange(min=0), "Steps over which the rate rises.  [default: a fortieth of all]")
@click.option(
    "--optimizer", type=click.Choice(METHODS), default=_PLAIN.optimizer, show_default=True, help="Whose steps."
)
@_number("average", click.FloatRange(0, 1, max_open=True), "Keep a running mean of the weights, e.g. 0.99; 0: none.")
@_number("temperature", click.FloatRange(min=0, min_open=True), "Softens the class probabilities.")
@_number("divergence", _POSITIVE, "Weight of the divergence from the teacher's class probabilities.")
@_number("labels", _POSITIVE, "Weight of the cross-entropy with the labels of the data.")
@_number("matching", _POSITIVE, "Weight of the features' squared errors.")
@click.option("--feature", "features", multiple=True, metavar="NAME", help="A tensor to match, also STUDENT=TEACHER.")
@_number("weight_decay", _POSITIVE, "Decoupled decay of weights.")
@_number("l2", _POSITIVE, "Weight of the squared weights.")
@_number("l1", _POSITIVE, "Threshold that brings single weights to zero.")
@_number("group_lasso", _POSITIVE, "Threshold that brings whole channels to zero, for prune-channels to cut.")
@click.option("--keep-zeros/--no-keep-zeros", default=True, show_default=True, help="Whether zero weights stay zero.")
@click.option("--train-norm", is_flag=True, help="BatchNormalization learns its statistics: for untrained students.")
@click.option("--flip/--no-flip", default=None, help=f"Mirror images, one in two.  {_IMAGES.format('flip')}")
@_view("shift", _UNIT, "Move images by up to this share.")
@_view("crop", click.FloatRange(0.1, 1), "The smallest cut-out.")
@_view("rotate", click.FloatRange(0, 180), "Degrees to turn images by.")
@_view("mix", _UNIT, "The share of images to blend with others.")
@_view("paste", _UNIT, "The share of images to paste a window of another into.")
@click.option("--no-views", is_flag=True, help="Leave images as they are.")
@_number("samples", click.IntRange(min=2), "Samples to use at most.")
@_number("held_out", click.FloatRange(0, 0.9), "The share of samples to judge by.")
@_number("patience", click.IntRange(min=0), "Epochs without improvement after which to stop; 0: never.")
@_number("seed", click.IntRange(min=0), "Seed of everything that is drawn.")
@_number("threads", click.IntRange(min=0), "Threads of ONNX Runtime; 0: its choice.")
@click.option("--checkpoint", metavar="FILE", help="Note after each epoch how far the training is.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint.")
@click.option("--report", metavar="FILE.json", help="Write the course of the training.")
def distill(
    teacher: str,
    student: str,
    target: str,
    data: str,
    flip: bool | None,
    shift: float | None,
    crop: float | None,
    rotate: float | None,
    mix: float | None,
    paste: float | None,
    no_views: bool,
    checkpoint: str | None,
    resume: bool,
    report: str | None,
    **values: Any,
) -> int:
    """Train STUDENT to answer as TEACHER does, and write it to TARGET.

    The student may be a pruned or quantized form of the teacher, or another network with the same inputs and outputs.
    No labels are needed. Needs the extra: pip install 'graphopt[distill]'.
    """
    if resume and checkpoint is None:
        raise OptionError("--resume needs --checkpoint FILE")
    read = {"data": data, "teacher": teacher, "student": student}
    require_writable(target, {"data": data, "checkpoint": checkpoint})
    if checkpoint is not None:
        require_writable(checkpoint, read)
    require_report(report, (".json",), {"target": target, "checkpoint": checkpoint, **read})
    views = {"flip": flip, "shift": shift, "crop": crop, "rotate": rotate, "mix": mix, "paste": paste}
    settings = Settings(augmentation=_views(views, no_views, bool(values["labels"])), **values)
    original, learner = load(teacher), load(student)
    require_no_weights((target, checkpoint, report), original, learner)
    feeds = load_data(data, learner)
    with progress_bar() as progress:
        outcome = train(
            original,
            learner,
            feeds,
            settings,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            resume=resume,
            progress=progress,
        )
    save(outcome.student, target)
    accuracy = None
    if feeds.labels is not None:
        try:
            accuracy = [top1(model, feeds) for model in (original, learner, outcome.student)]
        except DataError:
            accuracy = None
    _tell(outcome, accuracy, settings.held_out > 0)
    if report is not None:
        told = {"history": outcome.history, "best_epoch": outcome.best_epoch, "steps": outcome.steps, "top1": accuracy}
        write_json(report, told)
    return 0


def _views(given: dict[str, Any], none: bool, labels: bool) -> Augmentation | None:
    """Return how images are to be changed: as they usually are, but for what is given; None if nothing is."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if none and chosen:
        raise OptionError(f"--no-views and --{next(iter(chosen))} contradict each other")
    if none:
        return Augmentation()
    if labels:
        chosen = {"mix": 0.0, "paste": 0.0, **chosen}
    return replace(VIEWS, **chosen) if any(value is not None for value in given.values()) else None


def _tell(outcome: Outcome, accuracy: list[float] | None, held_out: bool) -> None:
    """Print what has come of it."""
    history, best = outcome.history, outcome.best_epoch
    if held_out:
        click.echo(f"held-out loss {history[0]:.4g} became {history[best]:.4g} in epoch {best} of {len(history) - 1}")
    else:
        click.echo(
            f"training loss {history[0]:.4g} in the first epoch became {history[-1]:.4g} in epoch {len(history)}"
        )
    if outcome.zero_groups:
        click.echo(f"{outcome.zero_groups} groups of channels are zero: prune-channels can cut them")
    if accuracy is not None:
        click.echo("top-1: teacher {:.2%}, student {:.2%} before, {:.2%} after".format(*accuracy))
