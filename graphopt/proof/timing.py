"""The least time that sessions take for one run, in turn."""

import time

from graphopt.runtime.data import Feeds
from graphopt.runtime.session import Session

SECONDS = 1.0
SECONDS_CLEAR = 0.2
"""Each model is run for about so long; the shorter time where the second is clearly no slower."""

ROUNDS = 200

CLEAR = 0.02
"""A second model that is slower by no more than this is clearly not slower."""


def least_times(sessions: list[Session], feeds: Feeds) -> list[float]:
    """Return the least time of one run of each session, in ms; they run in turn, and the first run does not count."""
    least = [float("inf")] * len(sessions)
    for session in sessions:
        session.run(feeds)
    begin = time.perf_counter()
    for done in range(ROUNDS):
        spent = time.perf_counter() - begin
        clear = least[-1] <= least[0] * (1 + CLEAR)
        if done >= 2 and spent > (SECONDS_CLEAR if clear else SECONDS) * len(sessions):
            break
        for index, session in enumerate(sessions):
            start = time.thread_time()
            session.run(feeds)
            least[index] = min(least[index], (time.thread_time() - start) * 1e3)
    return least
