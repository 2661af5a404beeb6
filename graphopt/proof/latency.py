"""How long two models take in the session that users open, and where the second takes longer."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import onnx_graphsurgeon as gs

from graphopt.errors import GraphoptError
from graphopt.model import Model, fingerprint
from graphopt.model.exporter import weight_bytes
from graphopt.proof.profile import node_times
from graphopt.proof.timing import (
    NOISE,
    NOISE_ALONE,
    SECONDS_AGAIN,
    SECONDS_CLEAR,
    run_times,
    timed_feeds,
    unrest,
)
from graphopt.report.report import Latency
from graphopt.runtime.data import Data, Feeds
from graphopt.runtime.memory import give_back
from graphopt.runtime.session import Session

NOISE_MS = 0.003
"""What the clock and the call add to the noise of a run."""

PROFILED = 1 << 28
"""Sites are not looked for in models with more bytes of weights."""

PAIRED = 1 << 25
"""Models with more bytes of weights are run one behind the other instead of in turn: one session is open at a time."""

PAIRS = 2
"""One that seems slower is only called so if it is slower in each of so many further pairs of sessions."""

SITES = 5

Opener = Callable[..., Session]
Times = dict[tuple[str, str], float]
Known = Callable[[Model], float | None]


def latency(
    before: Model, after: Model, data: Data, opener: Opener = Session, known: Known = lambda model: None
) -> Latency:
    """Time both models on one sample, on one thread, with ONNX Runtime's default options.

    The time is that of the thread, which other work on the machine does not count to, and the least of several runs.

    Args:
        before: The source.
        after: The result.
        data: Where the sample comes from.
        opener: Opens a session on a model, with the options of ``Session``.
        known: Gives the time of a model that was measured already, in ms.

    Raises:
        GraphoptError: ONNX Runtime cannot load or run a model.
    """
    feeds, samples = timed_feeds(data)
    if fingerprint(before) == fingerprint(after):
        same = known(before) or _alone(opener, before, feeds, SECONDS_CLEAR)
        return Latency(same, same, samples, NOISE_MS / max(same, 1e-9), same=True)
    large = max(weight_bytes(before), weight_bytes(after)) > PAIRED
    if large:
        first, second = (known(model) or _alone(opener, model, feeds, SECONDS_CLEAR) for model in (before, after))
        noise = NOISE_ALONE
    else:
        first, second, noise = _in_turn(opener, before, after, feeds)
    for _ in range(PAIRS):  # or something else ran beside one of them
        if not Latency(first, second, samples, noise).slower:
            break
        if large:
            first = _alone(opener, before, feeds, SECONDS_AGAIN)
            second = _alone(opener, after, feeds, SECONDS_AGAIN, enough=first * (1 + noise))
        else:
            first, second, noise = _in_turn(opener, before, after, feeds)
    found = Latency(first, second, samples, noise + NOISE_MS / max(first, 1e-9))
    stored = _stored_as_integers(after)
    if (not found.slower and not stored) or max(weight_bytes(before), weight_bytes(after)) > PROFILED:
        return found
    try:
        spent = node_times(after, feeds)
        unfused = tuple(site for site, op in spent if op == "DequantizeLinear" and site in stored)
        return replace(found, unfused=unfused, sites=_sites(node_times(before, feeds), spent) if found.slower else ())
    except (GraphoptError, OSError, ValueError):  # a profile that cannot be had takes nothing from the times
        return found


def _in_turn(opener: Opener, before: Model, after: Model, feeds: Feeds) -> tuple[float, float, float]:
    """Return the least times of two models that run in turn, in ms, and the share by which equal ones differ."""
    times = run_times([opener(model, optimize=True, threads=1) for model in (before, after)], feeds)
    return min(times[0]), min(times[1]), max(NOISE, *map(unrest, times))


def _alone(opener: Opener, model: Model, feeds: Feeds, seconds: float, enough: float = 0.0) -> float:
    """Return the least time of one run of a model whose session is released at once, in ms."""
    times = run_times([opener(model, optimize=True, threads=1)], feeds, seconds=seconds, enough=enough)[0]
    give_back()
    return min(times)


def _sites(old: Times, new: Times) -> tuple[tuple[str, str, float], ...]:
    """Return the nodes of the operators on which the second model spends more than the first, the dearest first."""
    gained: dict[str, float] = defaultdict(float)
    for sign, times in ((-1, old), (1, new)):
        for (_, op), spent in times.items():
            gained[op] += sign * spent
    dear = [(site, op, spent) for (site, op), spent in new.items() if gained[op] > 0 and site]
    return tuple(sorted(dear, key=lambda each: -each[2])[:SITES])


def _stored_as_integers(model: Model) -> set[str]:
    """Return the outputs of every DequantizeLinear of a constant in the main graph."""
    nodes = (node for node in model.graph.nodes if node.op == "DequantizeLinear")
    return {str(node.outputs[0].name) for node in nodes if isinstance(node.inputs[0], gs.Constant)}
