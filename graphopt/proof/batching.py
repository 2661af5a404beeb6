"""How many samples to run at a time: as many as leaves the memory that a run takes within bounds."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from graphopt.model import Model
from graphopt.runtime.data import Data, Feeds, one_at_a_time
from graphopt.runtime.session import Session

ACTIVATION_BYTES = 1 << 26
"""About so many bytes of activations are alive in one run."""

_ALIVE = 2
"""So many times what the largest node reads and writes is alive at once, more or less."""


def first_run(opener: Callable[..., Session], model: Model, data: Data) -> tuple[Data, Feeds, Feeds]:
    """Run a model on one sample, or on the first batch where the number of samples is not free.

    Args:
        opener: Opens a session on the model, with the options of ``Session``.
        model: The model.
        data: What to run on.

    Returns:
        The data in batches of a size that fits (a power of two), what was fed, and what came out.

    Raises:
        GraphoptError: ONNX Runtime cannot load or run the model.
    """
    single = one_at_a_time(data)
    if single is None:
        feeds = next(data.batches(1))
        return data, feeds, opener(model).run(feeds)
    feeds = next(single.batches(1))
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        session = opener(model, profile=Path(folder, "run"))
        outputs = session.run(feeds)
        largest = _largest_node(session.end_profiling())
    most = max(1, min(data.at_once, ACTIVATION_BYTES // max(1, _ALIVE * largest)))
    return replace(single, batch=1 << (most.bit_length() - 1)), feeds, outputs


def _largest_node(profile: Path) -> int:
    """Return the most bytes that one node read and wrote, weights not counted."""
    arguments = [event.get("args", {}) for event in json.loads(profile.read_text()) if event.get("cat") == "Node"]
    return max((int(a.get("activation_size", 0)) + int(a.get("output_size", 0)) for a in arguments), default=0)
