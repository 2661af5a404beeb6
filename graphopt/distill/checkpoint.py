"""Where a training stands, in one file that is written whole or not at all."""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphopt.distill.samples import Samples
from graphopt.distill.settings import Settings
from graphopt.errors import OptionError
from graphopt.model import Model, to_proto

Array = NDArray[np.float32]


@dataclass
class State:
    """Everything that the next step depends on, and the best weights so far.

    Attributes:
        weights: All parameters, flattened one after the other.
        first: See ``Moments``.
        second: See ``Moments``.
        curvature: See ``Moments``.
        average: The running mean of the weights; empty if there is none.
        buffers: The running statistics of BatchNormalization, likewise flattened.
        best: The weights with the lowest held-out loss.
        best_buffers: The buffers that belong to them.
        step: How many steps are done.
        epoch: How many epochs are done.
        best_epoch: The epoch of the best weights; 0 is the start.
        best_loss: Their held-out loss.
        history: The held-out loss after each epoch, that of the start first.
    """

    weights: Array
    first: Array
    second: Array
    curvature: Array
    average: Array
    buffers: Array
    best: Array
    best_buffers: Array
    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    history: list[float] = field(default_factory=list)


def save_state(path: Path, state: State, fingerprint: str) -> None:
    """Write a checkpoint.

    Raises:
        OptionError: The file cannot be written.
    """
    arrays = {each.name: getattr(state, each.name) for each in fields(state)}
    numbers = {name: value for name, value in arrays.items() if not isinstance(value, np.ndarray)}
    arrays = {name: value for name, value in arrays.items() if isinstance(value, np.ndarray)}
    told = np.asarray(json.dumps({"fingerprint": fingerprint, **numbers}))
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "wb") as file:
            np.savez(file, told=told, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OptionError(f"{path}: the checkpoint cannot be written: {error.strerror or error}") from error


def load_state(path: Path, fingerprint: str) -> State:
    """Read a checkpoint.

    Raises:
        OptionError: It is unreadable, or belongs to a training with other models, data or settings.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            told = json.loads(str(archive["told"]))
            arrays = {name: archive[name] for name in archive.files if name != "told"}
        found = told.pop("fingerprint")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise OptionError(f"{path}: is not a readable checkpoint ({' '.join(str(error).split())})") from error
    if found != fingerprint:
        raise OptionError(f"{path}: belongs to a training with other models, data or settings")
    return State(**arrays, **told)


def fingerprint(models: Iterable[Model], samples: Samples, settings: Settings) -> str:
    """Return a hash of all that a training depends on."""
    digest = hashlib.sha256(repr(settings).encode())
    for model in models:
        digest.update(to_proto(model).SerializeToString(deterministic=True))
    for name, value in samples.inputs.items():
        digest.update(name.encode() + np.ascontiguousarray(value).tobytes())
    if settings.labels and samples.labels is not None:
        digest.update(np.ascontiguousarray(samples.labels).tobytes())
    return digest.hexdigest()
