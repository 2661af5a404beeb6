"""Small tensors of which some elements are known: the sizes that exporters compute with in the graph."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Values:
    """A small tensor of which some elements are known; of the others, some are the size that a name stands for."""

    array: NDArray[Any]
    known: NDArray[np.bool_]

    def names(self, symbols: "Symbols") -> list[str | None]:
        """Return the symbolic size that each element is, None for any other."""
        elements = zip(self.array.ravel().tolist(), self.known.ravel().tolist(), strict=True)
        return [None if known else symbols.name(value) for value, known in elements]


class Symbols:
    """Codes for symbolic sizes, so that arrays of integers can carry them where elements only move."""

    def __init__(self) -> None:
        """Know no name yet."""
        self._codes: dict[str, int] = {}
        self._names: list[str] = []

    def code(self, name: str) -> int:
        """Return the code of a name."""
        if name not in self._codes:
            self._codes[name] = -(2**30) - len(self._names)
            self._names.append(name)
        return self._codes[name]

    def name(self, code: int) -> str | None:
        """Return the name that a code stands for, None for anything else."""
        index = -(2**30) - int(code)
        return self._names[index] if 0 <= index < len(self._names) else None
