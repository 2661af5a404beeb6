"""Runs a model on inputs in a process of its own, so that a crash of ONNX Runtime ends this process and no other.

It is started as a script by ``graphopt.runtime.probe``, which speaks with it over stdin and stdout: each message is its
length (8 bytes, little-endian), then its content. What comes in is pickled, what goes out is JSON. The first message
names the model, each further one holds the number and the inputs of one run, or asks for the outputs of an earlier run
by its number: that answer is pickled.
"""

import contextlib
import json
import os
import pickle
import queue
import sys
import threading
from typing import IO, Any

_SAME = 1e-6
"""Differences below this share of the largest value are rounding."""

_KEPT = 1 << 26
"""Outputs of this many bytes are kept, those of the latest runs."""


def read_message(stream: IO[bytes]) -> bytes | None:
    """Return the next message; None at the end of the stream."""
    head = stream.read(8)
    size = int.from_bytes(head, "little")
    content = stream.read(size) if len(head) == 8 else b""
    return content if len(head) == 8 and len(content) == size else None


def write_message(stream: IO[bytes], content: bytes) -> None:
    """Write one message."""
    stream.write(len(content).to_bytes(8, "little"))
    stream.write(content)
    stream.flush()


def _serve() -> None:
    """Load the model and run it on whatever comes in, until stdin is closed: that is when the parent is gone."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints goes nowhere
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(waiting,), daemon=True).start()
    order = pickle.loads(waiting.get())
    sys.path[:] = order["path"]
    _limit_memory(order["bytes"])
    try:
        session, settings = _session(order)
    except Exception as error:  # its exceptions have no common base but this
        write_message(answers, json.dumps({"error": str(error)}).encode())
        return
    names = [each.name for each in session.get_outputs()]
    write_message(answers, b"{}")
    kept: dict[int, tuple[int, list[Any]]] = {}
    while True:
        number, feeds = pickle.loads(waiting.get())
        if feeds is None:
            earlier = dict(zip(names, kept[number][1], strict=True)) if number in kept else None
            write_message(answers, pickle.dumps(earlier, protocol=5))
            continue
        try:
            values = session.run(names, feeds, settings)
            answer: dict[str, Any] = {"outputs": [_seen(*each) for each in zip(names, values, strict=True)]}
            kept[number] = sum(each.nbytes for value in values for each in _arrays(value)), values
            while sum(size for size, _ in kept.values()) > _KEPT:
                del kept[min(kept)]
            del values
        except Exception as error:
            answer = {"error": str(error)}
        del feeds
        write_message(answers, json.dumps(answer).encode())


def _listen(waiting: "queue.SimpleQueue[bytes]") -> None:
    """Hand on what comes in, and end the process when nothing can come any more, whatever else it is doing."""
    while (message := read_message(sys.stdin.buffer)) is not None:
        waiting.put(message)
    os._exit(0)


def _limit_memory(most: int) -> None:
    """Let allocations fail, and let the system end this process rather than another, where memory runs out."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "linux":
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (most if hard < 0 else min(most, hard), hard))
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")


def _session(order: dict[str, Any]) -> tuple[Any, Any]:
    """Load the model with graph optimizations off."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = order["threads"]
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if order["mapped"]:
        settings.add_session_config_entry("session.disable_prepacking", "1")
        settings.enable_cpu_mem_arena = False
    for library in order["libraries"]:
        settings.register_custom_ops_library(library)
    run = ort.RunOptions()
    run.log_severity_level = 4
    return ort.InferenceSession(order["model"], settings, providers=["CPUExecutionProvider"]), run


def _seen(name: str, value: Any) -> dict[str, Any]:
    """Return what there is to know of one output."""
    import numpy as np

    arrays = _arrays(value)
    is_float = any(each.dtype.kind in "fV" for each in arrays)
    kept = [each for each in arrays if each.size and each.dtype.kind in ("fV" if is_float else "biu")]
    if not kept:
        return {"name": name, "kind": "", "finite": True, "nan": False, "varies": False, "moved": None, "mark": []}
    shapes = [list(each.shape) for each in arrays]
    numbers = [each.astype(np.float64) for each in kept]
    flat = np.concatenate([each.reshape(-1) for each in numbers])
    finite = np.where(np.isfinite(flat), flat, 0.0)
    low, high = float(finite.min()), float(finite.max())
    close = _SAME * max(abs(low), abs(high))
    waves = np.cos(np.arange(finite.size) % 10007)
    return {
        "name": name,
        "kind": "float" if is_float else "other",
        "finite": bool(np.isfinite(flat).any()),
        "nan": bool(np.isnan(flat).any()),
        "varies": high - low > close,
        "moved": _moved(numbers[0], close) if len(arrays) == 1 and numbers[0].ndim else None,
        "mark": [shapes, close, low, high, float(finite.mean()), float(finite @ waves) / finite.size],
    }


def _moved(values: Any, close: float) -> bool | None:
    """Whether rows of an output differ from its first; None if there is only one."""
    import numpy as np

    if len(values) < 2:
        return None
    known = np.where(np.isfinite(values), values, 0.0)
    return bool((np.abs(known[1:] - known[:1]) > close).any())


def _arrays(value: Any) -> list[Any]:
    """Return the arrays in an output: a tensor, a sequence, a map of single numbers, or None for an empty optional."""
    import numpy as np

    if value is None or isinstance(value, str):
        return []
    if isinstance(value, dict):
        return _arrays(list(value.values()))
    if isinstance(value, list):
        return [array for each in value for array in _arrays(each)]
    return [np.asarray(value)]


if __name__ == "__main__":
    _serve()
