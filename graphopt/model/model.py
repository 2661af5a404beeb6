"""A loaded model: its graph in onnx-graphsurgeon's classes and everything else that the file said."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs


@dataclass(eq=False)
class Model:
    """One model: the main graph, and a header proto with all that is not graph."""

    graph: gs.Graph
    header: onnx.ModelProto
    path: Path | None = None
    repairs: tuple[str, ...] = ()

    @property
    def opset(self) -> int:
        """The version of the default operator domain; 1 if none is imported."""
        return next((o.version for o in self.header.opset_import if o.domain in ("", "ai.onnx")), 1)

    def graphs(self) -> Iterator[gs.Graph]:
        """Yield the main graph, function bodies and every subgraph below them, outer before inner."""
        waiting = [self.graph]
        while waiting:
            graph = waiting.pop()
            yield graph
            waiting += [v for node in graph.nodes for v in node.attrs.values() if isinstance(v, gs.Graph)]

    def overridable(self) -> list[gs.Tensor]:
        """Return the initializers that a caller can override: listed as inputs too, from IR version 4 on."""
        return list(self.graph._init_inputs) if self.header.ir_version >= 4 else []

    def names(self) -> set[str]:
        """Return every tensor and node name in use."""
        used: set[str] = set()
        for graph in self.graphs():
            used |= {tensor.name for tensor in [*graph.inputs, *graph.outputs, *graph._home]}
            for node in graph.nodes:
                used |= {node.name, *(t.name for t in node.inputs), *(t.name for t in node.outputs)}
        return used

    def drop_unused_constants(self) -> None:
        """Forget initializers that a pass has left without readers; those that were unused in the file stay."""
        for graph in self.graphs():
            given = {id(tensor) for tensor in [*graph.outputs, *graph._init_inputs]}
            graph._home[:] = [t for t in graph._home if t.outputs or id(t) in given or id(t) in graph._spare]

    def copy(self) -> "Model":
        """Return a structural copy that shares every weight."""
        from graphopt.model.exporter import to_proto
        from graphopt.model.importer import from_proto

        return from_proto(to_proto(self), path=self.path)
