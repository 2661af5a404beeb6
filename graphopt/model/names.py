"""New names beside those that a model has."""

from graphopt.model.model import Model


class Names:
    """The names of a model's tensors and nodes; they are collected when the first new one is asked for."""

    def __init__(self, model: Model | set[str]) -> None:
        """Find names for ``model``, or beside the names that are given."""
        self._model = model
        self._used: set[str] | None = None
        self._counts: dict[str, int] = {}

    def fresh(self, stem: str) -> str:
        """Return ``stem``, or the first ``stem_N``, that no tensor or node of the model uses; it is then taken."""
        if self._used is None:
            self._used = self._model.names() if isinstance(self._model, Model) else set(self._model)
        name, count = stem, self._counts.get(stem, 0)
        while name in self._used or not name:
            count += 1
            name = f"{stem}_{count}"
        self._counts[stem] = count
        self._used.add(name)
        return name
