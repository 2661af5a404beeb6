"""Top-1 accuracy in the session that users open."""

from collections.abc import Callable, Iterator

import numpy as np

from graphopt.errors import DataError
from graphopt.model import Model
from graphopt.runtime.data import Data, Feeds
from graphopt.runtime.session import Session
from graphopt.runtime.signature import class_output, signature


def top1(model: Model, data: Data, opener: Callable[..., Session] = Session) -> float:
    """Return the share of samples whose highest class score is at the labelled class, from 0 to 1.

    The class scores are the first float output of at least two axes, one row for each sample; classes are its last
    axis. The session has default options; ``opener`` opens it.

    Raises:
        DataError: There are no labels, or the model has no output with one row of scores for each sample.
        GraphoptError: ONNX Runtime cannot load or run the model.
    """
    if data.labels is None:
        raise DataError("there are no labels to measure top-1 with")
    name = _scores(model)
    right = done = 0
    for guess in _guesses(opener(model, optimize=True), name, data):
        right += int(np.count_nonzero(guess == data.labels[done : done + guess.size]))
        done += guess.size
    return right / done


def require_scores(model: Model, feeds: Feeds, outputs: Feeds, samples: int) -> None:
    """Refuse labels for a model that does not give one row of class scores for each sample.

    Raises:
        DataError: The output that would hold class scores has another form.
    """
    _rows(_scores(model), feeds, outputs, samples)


def _scores(model: Model) -> str:
    """Return the name of the output that holds class scores."""
    name = class_output(signature(model))
    if name is None:
        raise DataError("labels: the model has no float output to take class scores from")
    return name


def _guesses(session: Session, name: str, data: Data) -> Iterator[np.ndarray]:
    """Yield the class with the highest score of each sample, batch by batch."""
    for feeds, count in zip(data.batches(), data.counts(), strict=True):
        rows = _rows(name, feeds, session.run(feeds), count)
        yield rows[:count].argmax(axis=1)


def _rows(name: str, feeds: Feeds, outputs: Feeds, samples: int) -> np.ndarray:
    """Return the scores, one row for each sample that was fed; a vector without batch axis is one row."""
    scores = np.atleast_1d(outputs[name])
    fed = {len(value) for value in feeds.values() if isinstance(value, np.ndarray) and value.ndim}
    size = fed.pop() if len(fed) == 1 else samples
    rows = scores.reshape(-1, scores.shape[-1])
    if len(rows) != size and not (samples == 1 and len(rows) == 1):
        raise DataError(
            f"labels: output {name!r} of shape {scores.shape} has {len(rows)} rows of class scores for {size} samples"
        )
    return rows
