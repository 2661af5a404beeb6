"""Runs two models side by side and judges the second by a contract."""

from collections.abc import Iterator

import numpy as np

from graphopt.contract import BitExact, Contract
from graphopt.errors import DataError
from graphopt.model import Model, to_proto
from graphopt.model.exporter import weight_bytes
from graphopt.numerics.compare import Comparer, Comparison
from graphopt.runtime.data import Data
from graphopt.runtime.second_look import second_look
from graphopt.runtime.session import IN_MEMORY, Session
from graphopt.runtime.signature import class_output, signature


def compare_models(
    reference: Model,
    candidate: Model,
    data: Data,
    contract: Contract,
    limit: int | None = None,
    *,
    optimize: tuple[bool, bool] = (False, False),
) -> Comparison:
    """Compare two models' outputs on the same inputs.

    A broken contract other than BitExact gets a second look, see ``second_look``, if the weights are at most 1 GB.

    Args:
        reference: The model to hold the other to.
        candidate: The model to judge.
        data: What to run on.
        contract: What must hold, for each output.
        limit: How many samples to run at most.
        optimize: Whether ONNX Runtime may optimize the reference and the candidate.

    Raises:
        GraphoptError: ONNX Runtime cannot load or run a model.
    """
    comparer = Comparer(contract)
    left = Session(reference, optimize=optimize[0])
    right = Session(candidate, optimize=optimize[1])
    for feeds in data.batches(limit):
        comparer.add(left.run(feeds), right.run(feeds))
    plain = comparer.result()
    large = max(weight_bytes(reference), weight_bytes(candidate)) > IN_MEMORY
    if plain.holds or isinstance(contract, BitExact) or large:
        return plain
    return second_look(plain, to_proto(reference), to_proto(candidate), data, contract, limit, optimize)


def top1(model: Model, data: Data) -> float:
    """Return the share of samples whose highest class score is at the labelled class, from 0 to 1.

    The class scores are the first float output of at least two axes; classes are its last axis. Optimizations are on.

    Raises:
        DataError: There are no labels, or the model has no output with one row of scores per label.
    """
    if data.labels is None:
        raise DataError("there are no labels to measure top-1 with")
    name = class_output(signature(model))
    if name is None:
        raise DataError("the model has no float output to take class scores from")
    session = Session(model, optimize=True)
    right = done = 0
    for guess in _guesses(session, name, data):
        labels = data.labels[done : done + guess.size]
        right += int(np.count_nonzero(guess[: labels.size] == labels))
        done += labels.size
    if done != data.labels.size:
        raise DataError(f"output {name!r} gives {done} rows of class scores for {data.labels.size} labels")
    return right / done


def _guesses(session: Session, name: str, data: Data) -> Iterator[np.ndarray]:
    """Yield the class with the highest score, batch by batch; a score vector without batch axis is one row."""
    for feeds in data.batches():
        scores = np.asarray(session.run(feeds)[name])
        yield np.argmax(scores.reshape(-1, scores.shape[-1]), axis=1)
