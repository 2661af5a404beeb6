"""What the nodes of a model cost in a session with default options."""

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path

from graphopt.model import Model
from graphopt.runtime.data import Feeds
from graphopt.runtime.session import Session

RUNS = 4


def node_times(model: Model, feeds: Feeds) -> dict[tuple[str, str], float]:
    """Return the ms that each node takes, by the name of its first output and its operator, fused ones by their own.

    Raises:
        GraphoptError: ONNX Runtime cannot load or run the model.
    """
    named = model.copy()
    for node in named.graph.nodes:
        node.name = next((str(each.name) for each in node.outputs if each.name), "")
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        session = Session(named, optimize=True, threads=1, profile=Path(folder, "run"))
        for _ in range(RUNS):
            session.run(feeds)
        events = json.loads(session.end_profiling().read_text())
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            name = re.sub(r"_kernel_time$", "", event["name"])
            times[name, str(event["args"].get("op_name", ""))].append(event["dur"] / 1e3)
    return {key: min(spent) for key, spent in times.items()}
