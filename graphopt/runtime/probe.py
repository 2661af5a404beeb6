"""Tries inputs on a model in another process: a crash of ONNX Runtime there is a refusal here."""

import contextlib
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from graphopt.errors import GraphoptError
from graphopt.model import Model, save
from graphopt.model.exporter import weight_bytes
from graphopt.runtime.data import Feeds
from graphopt.runtime.probe_worker import read_message, write_message
from graphopt.runtime.session import custom_operators, is_mapped, one_line, threads_for_samples

LOAD_SECONDS = 600
RUN_SECONDS = 120
MOST_FAULTS = 12
"""After so many crashes no more inputs are tried."""
MOST_TIMEOUTS = 2

_LEAST_MEMORY = 1 << 32


@dataclass(frozen=True)
class Seen:
    """What one run showed of one output.

    Attributes:
        name: The output.
        kind: "float"; "other" for integers and booleans; "" where there is nothing to compare.
        finite: Whether an element is neither NaN nor infinite.
        nan: Whether an element is NaN.
        varies: Whether its elements differ.
        moved: Whether its rows, along the first axis, differ; None if it has fewer than two.
        mark: Shapes, the size of a difference that counts, and numbers that differ if any element does.
    """

    name: str
    kind: str
    finite: bool
    nan: bool
    varies: bool
    moved: bool | None
    mark: list[Any]

    def differs(self, other: "Seen") -> bool:
        """Whether the two runs gave different values of one shape."""
        if not self.mark or not other.mark or self.mark[0] != other.mark[0]:
            return False
        close = max(self.mark[1], other.mark[1])
        return any(abs(a - b) > close for a, b in zip(self.mark[2:], other.mark[2:], strict=True))


@dataclass(frozen=True)
class Answer:
    """What one run showed.

    Attributes:
        number: Of the run.
        outputs: What each output showed.
    """

    number: int
    outputs: tuple[Seen, ...]


class Probe:
    """A model in a process that may crash; a context manager.

    The process ends with this one. It imports numpy and ONNX Runtime only, loads the model once, with graph
    optimizations off, and is started again after a crash.
    """

    def __init__(self, model: Model) -> None:
        """Write the model to a temporary file and load it in another process.

        Raises:
            GraphoptError: ONNX Runtime cannot load the model, or there is no room for it.
        """
        if importlib.util.find_spec("onnxruntime") is None:
            raise GraphoptError("onnxruntime is not installed")
        self._folder = tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._faults = self._timeouts = self._runs = 0
        try:
            path = Path(self._folder.name, "model.onnx")
            save(model, path, "always" if is_mapped(model) else "auto", durable=False)
            self._order = {
                "path": sys.path,
                "model": str(path),
                "mapped": is_mapped(model),
                "threads": threads_for_samples(model),
                "libraries": custom_operators(),
                "bytes": max(_LEAST_MEMORY, 2 * weight_bytes(model), _physical_memory()),
            }
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def run(self, feeds: Feeds) -> Answer:
        """Run once, as a ``Session`` without optimizations does on as many threads as few samples are worth.

        Raises:
            GraphoptError: ONNX Runtime cannot run the model on these inputs, crashes, takes over ``RUN_SECONDS``, or
                has crashed too often to be tried again.
        """
        if self._process is None:
            if self._faults >= MOST_FAULTS or self._timeouts >= MOST_TIMEOUTS:
                raise GraphoptError("ONNX Runtime crashes again and again")
            self._start()
        self._runs += 1
        answer = json.loads(self._ask((self._runs, feeds), RUN_SECONDS, "on these inputs"))
        if "error" in answer:
            raise GraphoptError(f"ONNX Runtime cannot run the model: {one_line(RuntimeError(answer['error']))}")
        return Answer(self._runs, tuple(Seen(**each) for each in answer["outputs"]))

    def values(self, answer: Answer) -> Feeds | None:
        """Return all outputs of a run; None where they are not kept: they are too large, or the process has crashed."""
        if self._process is None:
            return None
        try:
            told = self._ask((answer.number, None), RUN_SECONDS, "as it gives its outputs")
        except GraphoptError:
            return None
        return cast("Feeds | None", pickle.loads(told))

    def close(self) -> None:
        """End the process and remove its file."""
        self._end()
        self._folder.cleanup()

    def _start(self) -> None:
        """Start the process and load the model in it."""
        script = str(Path(__file__).with_name("probe_worker.py"))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy's own threads, of which it makes no use
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise GraphoptError(f"cannot start a process to try inputs in: {error.strerror or error}") from error
        answer = json.loads(self._ask(self._order, LOAD_SECONDS, "while it loads the model"))
        if "error" in answer:
            raise GraphoptError(f"ONNX Runtime cannot load the model: {one_line(RuntimeError(answer['error']))}")

    def _ask(self, message: Any, seconds: float, when: str) -> bytes:
        """Send a message and wait for the answer.

        Raises:
            GraphoptError: The process ends before it answers, or takes too long.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise GraphoptError("the process to try inputs in has ended")
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            write_message(process.stdin, pickle.dumps(message, protocol=5))
            answer = read_message(process.stdout)
        except OSError:  # it is gone before it has read everything
            answer = None
        finally:
            timer.cancel()
        if answer is not None:
            return answer
        status = self._end()
        if late.is_set():
            self._timeouts += 1
            raise GraphoptError(f"ONNX Runtime takes over {seconds:g} seconds {when}")
        self._faults += 1
        raise GraphoptError(f"ONNX Runtime crashes {when} ({_death(status)})")

    def _end(self) -> int:
        """End the process, if it runs, and return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not sent yet cannot be sent any more
                    stream.close()
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _death(status: int) -> str:
    """Return in words how a process ended."""
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return f"exit status {status & 0xFFFFFFFF:#x}" if status > 255 else f"exit status {status}"


def _physical_memory() -> int:
    """Return the bytes of memory that the machine has; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
