"""Outputs of a model, batch by batch, kept for as long as something is compared with them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from graphopt.runtime.data import Feeds
from graphopt.runtime.store import Store


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
            yield {name: self.store.read(value) for name, value in batch.items()}

    def forget(self) -> None:
        """Drop everything."""
        for batch in self._batches:
            for value in batch.values():
                self.store.forget(value)
        self._batches.clear()
