"""Where a training stands, in one file that is written whole or not at all."""

import json
import os
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import OptionError

Array = NDArray[np.float32]


@dataclass
class State:
    """Everything that the next step depends on, and the best weights so far.

    Attributes:
        weights: All parameters, flattened one after the other.
        first: Adam's mean of gradients.
        second: Adam's mean of squared gradients.
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
