"""Outputs of a model, batch by batch, kept for as long as something is compared with them."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.runtime.data import Feeds

IN_MEMORY = 1 << 27
"""All kept outputs together take up to this many bytes of memory; further ones go to files."""


@dataclass
class Store:
    """The room that kept outputs share.

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
            self._folder = tempfile.TemporaryDirectory(prefix="graphopt-outputs-")
        self._files += 1
        path = Path(self._folder.name, f"{self._files}.npy")
        np.save(path, value)
        return path

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


@dataclass
class Outputs:
    """One model's outputs on the first batches of the data.

    Attributes:
        owner: The model; held so that no other gets its identity.
        store: Where values are kept.
    """

    owner: Any
    store: Store
    _batches: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        """Return how many batches are known."""
        return len(self._batches)

    def append(self, values: Feeds) -> None:
        """Keep the outputs of one batch more."""
        self._batches.append({name: self.store.keep(value) for name, value in values.items()})

    def read(self) -> Iterator[Feeds]:
        """Yield the outputs of one batch after the other."""
        for batch in self._batches:
            yield {
                name: np.load(value, mmap_mode="r") if isinstance(value, Path) else value
                for name, value in batch.items()
            }

    def forget(self) -> None:
        """Drop everything."""
        for batch in self._batches:
            for value in batch.values():
                self.store.forget(value)
        self._batches.clear()
