"""How long two models take, measured in turn so that a busy machine slows both alike."""

import statistics
import time

from graphopt.model import Model
from graphopt.runtime.feeds import Data
from graphopt.runtime.session import Session

ROUNDS = 15
SECONDS = 10.0


def median_latencies(before: Model, after: Model, data: Data, *, rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the median time of one run of each model, in ms, on one thread, optimizations on.

    Both run the same first batch of the data, in turn; the first run of each is not counted.

    Args:
        before: The one model.
        after: The other.
        data: Where the batch comes from.
        rounds: How many runs of each count, at most; after ``SECONDS`` no further round begins, but three are run in
            any case.

    Raises:
        GraphoptError: ONNX Runtime cannot load or run a model.
    """
    feeds = next(data.batches())
    sessions = [Session(model, optimize=True, threads=1) for model in (before, after)]
    for session in sessions:
        session.run(feeds)
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begin > SECONDS:
            break
        for session, spent in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(feeds)
            spent.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])
