"""Names of a model's tensors and nodes: new ones, and how many bear one."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import onnx_graphsurgeon as gs

from graphopt.model.model import Model

Named: TypeAlias = "gs.Tensor | gs.Node"


class Names:
    """The names of a model's tensors and nodes; they are collected when they are first asked for."""

    def __init__(self, model: Model | set[str]) -> None:
        """Find names for ``model``, or beside the names that are given."""
        self._model = model
        self._used: set[str] | None = None
        self._numbers: dict[str, int] = {}
        self._bearers: Counter[tuple[bool, str]] | None = None

    def fresh(self, stem: str) -> str:
        """Return ``stem``, or the first ``stem_N``, that no tensor or node of the model uses; it is then taken."""
        if self._used is None:
            self._used = self._model.names() if isinstance(self._model, Model) else set(self._model)
        name, count = stem, self._numbers.get(stem, 0)
        while name in self._used or not name:
            count += 1
            name = f"{stem}_{count}"
        self._numbers[stem] = count
        self._used.add(name)
        return name

    def bearers(self, thing: Named) -> int:
        """Return how many tensors (or nodes, if it is one) of the model have the name of ``thing``, itself included."""
        return self._counted()[_key(thing)]

    def add(self, things: Iterable[Named]) -> None:
        """Count things that have come to the model."""
        self._counted().update(map(_key, things))

    def drop(self, things: Iterable[Named]) -> None:
        """No longer count things that have left the model."""
        self._counted().subtract(map(_key, things))

    def rename(self, thing: Named) -> None:
        """Give a thing that is counted a name that nothing else has."""
        self.drop([thing])
        thing.name = self.fresh(thing.name)
        self.add([thing])

    def recount(self) -> None:
        """Count anew when a count is next asked for."""
        self._bearers = None

    def _counted(self) -> "Counter[tuple[bool, str]]":
        if self._bearers is None:
            assert isinstance(self._model, Model)
            things = {id(thing): thing for graph in self._model.graphs() for thing in declared(graph)}
            self._bearers = Counter(map(_key, things.values()))
        return self._bearers


def declared(graph: gs.Graph) -> Iterator[Named]:
    """Yield what a graph gives names to, without its subgraphs: nodes and tensors, some of them twice."""
    yield from graph.inputs
    yield from graph.outputs
    yield from graph.initializers
    for node in graph.nodes:
        yield node
        yield from node.outputs


def _key(thing: Named) -> tuple[bool, str]:
    return isinstance(thing, gs.Node), str(thing.name)
