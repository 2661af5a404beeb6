"""The times that sessions take for one run, in turn."""

import time
from collections.abc import Sequence

from graphopt.runtime.data import Data, Feeds, ListData, one_at_a_time
from graphopt.runtime.session import Session

SECONDS = 1.0
SECONDS_CLEAR = 0.1
"""Each model is run for about so long; the shorter time where the second is clearly no slower."""

SECONDS_AGAIN = 0.3
"""A model that is timed alone, and seems slower than another was, is run for about so long."""

NOISE = 0.05
NOISE_ALONE = 0.1
"""Models that are not run in turn differ by more. Both are the least that is assumed: a busy machine adds to them."""

ROUNDS = 200

CLEAR = 0.02
"""A second model that is slower by no more than this is clearly not slower."""


def timed_feeds(data: Data) -> tuple[Feeds, int]:
    """Return what models are timed on, as few samples as there are at a time, and how many these are."""
    chosen = one_at_a_time(data) or data
    some = chosen.size if isinstance(chosen, ListData) else 1
    return min(zip(chosen.batches(some), chosen.counts(some), strict=True), key=lambda each: each[1])


def unrest(times: Sequence[float]) -> float:
    """Return the share by which the least of every other run differs from the least of the rest.

    Both halves time the same session on the same feeds, so what sets them apart is the machine alone.
    """
    first, second = (min(times[start::2], default=float("inf")) for start in (0, 1))
    return max(first, second) / max(min(first, second), 1e-9) - 1 if len(times) > 1 else 0.0


def run_times(
    sessions: list[Session],
    feeds: Feeds,
    *,
    earlier: Sequence[float] | None = None,
    seconds: float = SECONDS_CLEAR,
    enough: float = 0.0,
) -> list[list[float]]:
    """Return the times of single runs of each session, in ms; they run in turn.

    Args:
        sessions: What to time.
        feeds: What to run on.
        earlier: What runs on the same took of the only session, which has run before; None if none has: then the first
            run of each does not count.
        seconds: How long to go on if the last one is clearly no slower than the first, for each session.
        enough: A time, in ms; once the last one has taken no more, it is not run on.
    """
    times = [list(earlier or ()) for _ in sessions]
    for session in sessions if earlier is None else ():
        session.run(feeds)
    begin = time.perf_counter()
    for done in range(len(earlier or ()), ROUNDS):
        spent = time.perf_counter() - begin
        if done >= 2:
            least, clear = min(times[-1]), min(times[-1]) <= min(times[0]) * (1 + CLEAR)
            if least <= enough or spent > (seconds if clear else SECONDS) * len(sessions):
                break
        for index, session in enumerate(sessions):
            times[index].append(timed_run(session, feeds)[1])
    return times


def timed_run(session: Session, feeds: Feeds) -> tuple[Feeds, float]:
    """Run once, and return the outputs and the time that this thread took, in ms."""
    start = time.thread_time()
    outputs = session.run(feeds)
    return outputs, (time.thread_time() - start) * 1e3
