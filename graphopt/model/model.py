"""A loaded model: its graph in onnx-graphsurgeon's classes and everything else that the file said."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from graphopt.model.copy import copy_graphs
from graphopt.model.ir import Graph


@dataclass(eq=False)
class Model:
    """One model.

    Attributes:
        graph: The main graph.
        header: A proto with all that is neither graph nor function: versions, metadata, training info.
        path: The file that it was loaded from.
        repairs: What loading had to put right, one sentence each.
        functions: The bodies of local functions.
        stored_bytes: What the model takes on disk, external data included; None if it comes from no file.
        data_files: The files of external data that it was loaded from, links followed.
    """

    graph: Graph
    header: onnx.ModelProto
    path: Path | None = None
    repairs: tuple[str, ...] = ()
    functions: list[Graph] = field(default_factory=list)
    stored_bytes: int | None = None
    data_files: tuple[Path, ...] = ()

    @property
    def opset(self) -> int:
        """The version of the default operator domain; 1 if none is imported."""
        return next((o.version for o in self.header.opset_import if o.domain in ("", "ai.onnx")), 1)

    def graphs(self) -> Iterator[gs.Graph]:
        """Yield the main graph, function bodies and every subgraph below them, outer before inner."""
        waiting = [*reversed(self.functions), self.graph]
        while waiting:
            graph = waiting.pop()
            yield graph
            waiting += reversed(subgraphs(graph))

    def constants(self) -> Iterator[gs.Constant]:
        """Yield every initializer and every tensor attribute."""
        self.adopt_constants()
        for graph in self.graphs():
            yield from graph.initializers
            for node in graph.nodes:
                yield from (value for value in node.attrs.values() if isinstance(value, gs.Constant))

    def overridable(self) -> list[gs.Tensor]:
        """Return the initializers that a caller can override: listed as inputs too, from IR version 4 on."""
        if self.header.ir_version < 4:
            return []
        owned = {id(constant) for constant in self.graph.initializers}
        return [tensor for _, tensor in self.graph.input_infos if id(tensor) in owned]

    def names(self) -> set[str]:
        """Return every tensor and node name in use."""
        used: set[str] = set()
        for graph in self.graphs():
            used |= {tensor.name for tensor in [*graph.inputs, *graph.outputs, *graph.initializers]}
            for node in graph.nodes:
                used |= {node.name, *(t.name for t in node.inputs), *(t.name for t in node.outputs)}
        return used

    def adopt_constants(self) -> None:
        """Give every constant that a pass has made to a graph: the innermost one that all its readers can see.

        A constant that its owner's readers no longer can see moves likewise. Up to IR version 3 an initializer has to
        be an input, which a subgraph cannot have more of, so there the main graph owns it.
        """
        chains = self._chains()
        owner = {id(constant): chain[-1] for chain in chains for constant in chain[-1].initializers}
        homeless: dict[int, gs.Constant] = {}
        for chain in chains:
            visible = {id(outer) for outer in chain}
            homeless |= {id(t): t for t in _constants_read(chain[-1]) if id(owner.get(id(t))) not in visible}
        if not homeless:
            return
        common: dict[int, list[gs.Graph]] = {}
        for chain in chains:
            for key in {id(tensor) for tensor in _constants_read(chain[-1])} & homeless.keys():
                common[key] = [a for a, b in zip(common.get(key, chain), chain, strict=False) if a is b]
        moved = [owner[key] for key in homeless if key in owner]
        for home in {id(graph): graph for graph in moved}.values():
            home.initializers[:] = [constant for constant in home.initializers if id(constant) not in homeless]
        for key, constant in homeless.items():
            top = self.header.ir_version < 4 or not common[key]
            (self.graph if top else common[key][-1]).initializers.append(constant)

    def _chains(self) -> list[list[gs.Graph]]:
        """Return every graph, as ``graphs`` yields them, at the end of those that it lies in, the outermost first."""
        found, waiting = [], [[graph] for graph in [*reversed(self.functions), self.graph]]
        while waiting:
            chain = waiting.pop()
            found.append(chain)
            waiting += [[*chain, inner] for inner in reversed(subgraphs(chain[-1]))]
        return found

    def drop_unused_constants(self) -> None:
        """Forget initializers that a pass has left without readers; those that were unused in the file stay.

        Before IR version 4 every initializer is listed as an input too, which nobody can feed: that goes as well.
        """
        for graph in self.graphs():
            if self.header.ir_version < 4:
                graph.input_infos[:] = [
                    (info, t)
                    for info, t in graph.input_infos
                    if not isinstance(t, gs.Constant) or t.outputs or id(t) in graph.unused
                ]
            given = {id(tensor) for tensor in graph.outputs} | {id(tensor) for _, tensor in graph.input_infos}
            graph.initializers[:] = [
                t for t in graph.initializers if t.outputs or id(t) in given or id(t) in graph.unused
            ]

    def copy(self) -> "Model":
        """Return a structural copy that shares every weight and every proto that the model was read from."""
        self.adopt_constants()
        header = onnx.ModelProto()
        header.CopyFrom(self.header)
        graph, *functions = copy_graphs([self.graph, *self.functions])
        return Model(graph, header, self.path, self.repairs, functions, data_files=self.data_files)


def _constants_read(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Yield what a graph's own nodes read, or it gives out, of constants."""
    for tensor in itertools.chain(graph.outputs, *(node.inputs for node in graph.nodes)):
        if isinstance(tensor, gs.Constant):
            yield tensor


def subgraphs(graph: gs.Graph) -> list[gs.Graph]:
    """Return the graphs that nodes of ``graph`` have as attributes, in order."""
    found = []
    for node in graph.nodes:  # walked over often: plain loops are the fastest
        if node.attrs:
            for value in node.attrs.values():
                if isinstance(value, gs.Graph):
                    found.append(value)
    return found
