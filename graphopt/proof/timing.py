"""The least time that sessions take for one run, in turn."""

import time

from graphopt.runtime.data import Data, Feeds, ListData, one_at_a_time
from graphopt.runtime.session import Session

SECONDS = 1.0
SECONDS_CLEAR = 0.1
"""Each model is run for about so long; the shorter time where the second is clearly no slower."""

ROUNDS = 200

CLEAR = 0.02
"""A second model that is slower by no more than this is clearly not slower."""


def timed_feeds(data: Data) -> tuple[Feeds, int]:
    """Return what models are timed on, as few samples as there are at a time, and how many these are."""
    chosen = one_at_a_time(data) or data
    some = chosen.size if isinstance(chosen, ListData) else 1
    return min(zip(chosen.batches(some), chosen.counts(some), strict=True), key=lambda each: each[1])


def least_times(
    sessions: list[Session], feeds: Feeds, *, warm: bool = False, seconds: float = SECONDS_CLEAR
) -> list[float]:
    """Return the least time of one run of each session, in ms; they run in turn.

    Args:
        sessions: What to time.
        feeds: What to run on.
        warm: Whether they have run already; else the first run of each does not count.
        seconds: How long to go on if the last one is clearly no slower than the first, for each session.
    """
    least = [float("inf")] * len(sessions)
    for session in () if warm else sessions:
        session.run(feeds)
    begin = time.perf_counter()
    for done in range(ROUNDS):
        spent = time.perf_counter() - begin
        clear = least[-1] <= least[0] * (1 + CLEAR)
        if done >= 2 and spent > (seconds if clear else SECONDS) * len(sessions):
            break
        for index, session in enumerate(sessions):
            start = time.thread_time()
            session.run(feeds)
            least[index] = min(least[index], (time.thread_time() - start) * 1e3)
    return least
