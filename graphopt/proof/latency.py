"""How long two models take in the session that users open, and where the second takes longer."""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from graphopt.errors import GraphoptError
from graphopt.model import Model, to_proto
from graphopt.model.exporter import weight_bytes
from graphopt.proof.timing import least_times
from graphopt.report.report import Latency
from graphopt.runtime.data import ArrayData, Data, Feeds
from graphopt.runtime.memory import give_back
from graphopt.runtime.session import Session

NOISE = 0.05
NOISE_ALONE = 0.1
"""Models that are not run in turn differ by more."""

NOISE_MS = 0.003
"""What the clock and the call add to the noise of a run."""

PROFILED = 1 << 28
"""Sites are not looked for in models with more bytes of weights."""

PAIRED = 1 << 25
"""Models with more bytes of weights are run one behind the other instead of in turn: one session is open at a time."""

SITES = 5

Opener = Callable[..., Session]
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
    free = isinstance(data, ArrayData) and data.batch > 1 and not data.fixed
    single = replace(data, batch=1) if isinstance(data, ArrayData) and free else data
    feeds, samples = next(single.batches(1)), next(single.counts(1))
    if max(weight_bytes(before), weight_bytes(after)) > PAIRED:
        first, second = (known(model) or _alone(opener, model, feeds) for model in (before, after))
        noise = NOISE_ALONE
    else:
        first, second = least_times([opener(model, optimize=True, threads=1) for model in (before, after)], feeds)
        noise = NOISE
    found = Latency(first, second, samples, noise + NOISE_MS / max(first, 1e-9))
    return replace(found, sites=_sites(before, after, feeds)) if found.slower else found


def _alone(opener: Opener, model: Model, feeds: Feeds) -> float:
    """Return the least time of one run of a model whose session is released at once, in ms."""
    least = least_times([opener(model, optimize=True, threads=1)], feeds)[0]
    give_back()
    return least


def _sites(before: Model, after: Model, feeds: Feeds) -> tuple[tuple[str, str, float], ...]:
    """Return the nodes of the operators on which the second model spends more than the first, the dearest first."""
    if max(weight_bytes(before), weight_bytes(after)) > PROFILED:
        return ()
    try:
        old, new = _profile(before, feeds), _profile(after, feeds)
    except (GraphoptError, OSError, ValueError):
        return ()
    gained: dict[str, float] = defaultdict(float)
    for sign, times in ((-1, old), (1, new)):
        for (_, op), spent in times.items():
            gained[op] += sign * spent
    dear = [(site, op, spent) for (site, op), spent in new.items() if gained[op] > 0 and site]
    return tuple(sorted(dear, key=lambda each: -each[2])[:SITES])


def _profile(model: Model, feeds: Feeds) -> dict[tuple[str, str], float]:
    """Return the ms that each node takes, by the name of its first output and its operator, fused ones by their own."""
    proto = to_proto(model)
    for node in proto.graph.node:
        node.name = next((name for name in node.output if name), "")
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        session = Session(proto, optimize=True, threads=1, profile=Path(folder, "run"))
        for _ in range(4):
            session.run(feeds)
        events = json.loads(session.end_profiling().read_text())
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            name = re.sub(r"_kernel_time$", "", event["name"])
            times[name, str(event["args"].get("op_name", ""))].append(event["dur"] / 1e3)
    return {key: min(spent) for key, spent in times.items()}
