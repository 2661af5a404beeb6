"""The sessions of a run: opened when they are needed, and kept open, or in a file, where they will be needed again."""

import tempfile
from pathlib import Path

import onnx

from graphopt.model import Model
from graphopt.model.exporter import weight_bytes
from graphopt.model.save import save
from graphopt.runtime.session import Session, is_mapped, threads_for_samples

KEPT_OPEN = 1 << 25
"""Default sessions on one thread of the source and of one other model stay open, to be timed, up to this many bytes."""

KEPT_IN_FILE = 1 << 30
"""The file that the latest model went to its session by is kept for the next one, up to this many bytes."""


class Sessions:
    """Opens models.

    Whether weights go by way of a file follows from the model that the run began with, whatever the size of others:
    ONNX Runtime's kernels are to round alike.
    """

    def __init__(self, source: Model, few_samples: bool) -> None:
        """Serve what is made of ``source``; few samples at a time are worth fewer threads."""
        self._threads = threads_for_samples(source) if few_samples else 0
        self._mapped = is_mapped(source)
        self._open: dict[int, tuple[Model, Session]] = {}
        self._written: tuple[Model, Path] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def open(
        self,
        model: Model,
        keep: Model,
        runnable: onnx.ModelProto | None,
        *,
        optimize: bool,
        threads: int | None,
        profile: Path | None,
    ) -> Session:
        """Open a model, or what is runnable of it; the options are those of ``Session``.

        Args:
            model: The model; while it is kept, nobody may change it.
            keep: The model whose default session stays open besides the latest one.
            runnable: What to open in place of the model, if that does not run as a whole.
            optimize: Whether ONNX Runtime may rewrite the graph.
            threads: Threads per operator; as many as the samples are worth if None.
            profile: Where to write the times of nodes.

        Raises:
            GraphoptError: ONNX Runtime cannot load it.
        """
        usual = optimize and threads == 1 and profile is None
        if usual and id(model) in self._open:
            return self._open[id(model)][1]
        known = runnable or (self._file(model) if self._mapped and weight_bytes(model) <= KEPT_IN_FILE else model)
        chosen = self._threads if threads is None else threads
        session = Session(known, optimize=optimize, threads=chosen, profile=profile, mapped=self._mapped)
        if usual and weight_bytes(model) <= KEPT_OPEN:
            for other in [key for key in self._open if key != id(keep)][:1]:
                del self._open[other]
            self._open[id(model)] = model, session
        return session

    def is_open(self, model: Model) -> bool:
        """Whether a default session of a model is kept open."""
        return id(model) in self._open

    def _file(self, model: Model) -> Path:
        """Return the file that a model is in, written if it is not the latest one."""
        if self._written is None or self._written[0] is not model:
            self._remove()
            self._folder = tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True)
            path = Path(self._folder.name, "model.onnx")
            save(model, path, "always", durable=False)
            self._written = model, path
        return self._written[1]

    def _remove(self) -> None:
        """Remove the file."""
        self._written = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def close(self) -> None:
        """Release all."""
        self._open.clear()
        self._remove()
