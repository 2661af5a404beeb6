"""Arrays that are kept for later, in memory or in files."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

IN_MEMORY = 1 << 27
"""All that a store keeps takes up to this many bytes of memory; further arrays go to files."""


@dataclass
class Store:
    """The room that kept arrays share.

    Attributes:
        nbytes: How many bytes of memory they take.
    """

    nbytes: int = 0
    _folder: "tempfile.TemporaryDirectory[str] | None" = None
    _files: int = 0

    def keep(self, value: Any) -> Any:
        """Return what to hold for a value: itself, or the file that it went to."""
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            return value
        if self.nbytes + value.nbytes <= IN_MEMORY:
            self.nbytes += value.nbytes
            return value.copy()  # an array of ONNX Runtime's keeps all memory of its session
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="graphopt-kept-", ignore_cleanup_errors=True)
        self._files += 1
        path = Path(self._folder.name, f"{self._files}.npy")
        np.save(path, value)
        return path

    def read(self, value: Any) -> Any:
        """Return a value that is held."""
        return np.load(value, mmap_mode="r") if isinstance(value, Path) else value

    def forget(self, value: Any) -> None:
        """Give back what a held value takes."""
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            self.nbytes -= value.nbytes
        elif isinstance(value, Path):
            value.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
