"""The only surgery on graphs: every change a pass makes goes through here, linear in what it touches."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike, NDArray

from graphopt.graph.constants import cast, dtype_of
from graphopt.graph.shapes import refresh_shapes
from graphopt.model import Model
from graphopt.model.links import drop_once, keep, link_input, link_output, unlink
from graphopt.model.names import Names
from graphopt.model.order import bodies, sort_nodes
from graphopt.result import Skip


class Edit:
    """Mutations of one model during one pass run.

    Nodes that are removed or added stay unsettled until ``settle``, which drops and sorts in one sweep; until then
    removed nodes are flagged, and the view does not show them.
    """

    def __init__(self, model: Model) -> None:
        """Edit ``model`` in place."""
        self._model = model
        self._removed: dict[int, gs.Node] = {}
        self._home: dict[int, gs.Graph] = {}
        self.names = Names(model)
        self._stale: dict[int, gs.Node] = {}
        self._unread: list[gs.Tensor] = []
        self._copies: dict[int, tuple[gs.Constant, list[tuple[gs.Graph, gs.Constant]]]] = {}
        self._index()

    def _index(self) -> None:
        """Remember which graph each node lives in and which tensors the graphs take in and give out."""
        graphs = list(self._model.graphs())
        self._home = {id(node): graph for graph in graphs for node in graph.nodes}
        self._outputs = {id(tensor): tensor for graph in graphs for tensor in graph.outputs}
        self._inputs = {id(tensor): tensor for graph in graphs for tensor in graph.inputs}
        self._inputs |= {id(tensor): tensor for tensor in self._model.overridable()}

    # -- questions -----------------------------------------------------------------------------------------------------

    def is_removed(self, node: gs.Node) -> bool:
        """Whether this run has removed ``node``."""
        return id(node) in self._removed

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether any graph gives ``tensor`` out."""
        return id(tensor) in self._outputs

    def is_input(self, tensor: gs.Tensor) -> bool:
        """Whether any graph takes ``tensor`` in."""
        return id(tensor) in self._inputs

    def graph_of(self, node: gs.Node) -> gs.Graph:
        """Return the graph, main or nested, that ``node`` lives in."""
        return self._home[id(node)]

    # -- making --------------------------------------------------------------------------------------------------------

    def fresh_name(self, stem: str) -> str:
        """Return ``stem``, or the first ``stem_N``, that no tensor or node of the model uses; it is then taken."""
        return self.names.fresh(stem)

    def constant(self, stem: str, values: NDArray[Any]) -> gs.Constant:
        """Return a new initializer; it will belong to the innermost graph that all its readers can see."""
        return gs.Constant(self.fresh_name(stem), np.asarray(values, order="C"))

    def variable(self, stem: str, like: gs.Tensor | None = None) -> gs.Variable:
        """Return a new tensor without producer, of the type (not the shape) of ``like``."""
        return gs.Variable(self.fresh_name(stem), dtype=None if like is None else like.dtype)

    def add_node(
        self,
        near: gs.Node,
        op: str,
        inputs: Sequence[gs.Tensor],
        outputs: Sequence[gs.Tensor] | None = None,
        attrs: dict[str, Any] | None = None,
    ) -> gs.Node:
        """Add a default-domain node to the graph that ``near`` lives in; a fresh output is made if none is given.

        ``settle`` puts it in topological order.
        """
        graph = self.graph_of(near)
        outs = [self.variable(f"{near.outputs[0].name}_{op}")] if outputs is None else list(outputs)
        name = self.fresh_name(f"{outs[0].name}_{op}")
        for out in outs:  # a node that this one stands in for no longer produces it
            keep(out.inputs, lambda old: not self.is_removed(old))
        node = gs.Node(op, name, dict(attrs or {}), list(inputs), outs)
        graph.nodes.append(node)
        self._home[id(node)] = graph
        return node

    # -- wiring --------------------------------------------------------------------------------------------------------

    def set_input(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Make ``node`` read ``tensor`` in slot ``index``, adding empty slots before it if need be."""
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        old = node.inputs[index]
        if isinstance(old, gs.Constant) and isinstance(tensor, gs.Constant) and list(old.shape) != list(tensor.shape):
            self.forget_shapes(node)
        self._unread.append(link_input(node, index, tensor))

    def replace_uses(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Make every node that reads ``old`` read ``new`` instead; graph outputs are not touched."""
        for node in {id(node): node for node in old.outputs}.values():
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    list.__setitem__(node.inputs, index, new)
                    list.append(new.outputs, node)
        list.clear(old.outputs)

    def set_output(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Make ``node`` produce ``tensor`` in slot ``index`` in place of what it produced there."""
        link_output(node, index, tensor)

    def set_values(self, node: gs.Node, index: int, values: ArrayLike, *, dtype: Any = None) -> None:
        """Give ``node`` its own constant in slot ``index``, cast once to the type of what is there (or to ``dtype``).

        The constant keeps its name if nothing else reads it; otherwise the others keep theirs (copy on write). Readers
        that get the same values in place of the same constant go on sharing.

        Raises:
            Skip: The values overflow the type.
        """
        old = node.inputs[index] if index < len(node.inputs) else None
        if old is not None and not old.name:
            old = None
        kind = dtype if dtype is not None else dtype_of(old)
        array = cast(values, kind, "" if old is None else str(old.name))
        alone = old is not None and isinstance(old, gs.Constant) and self._only_reader(old, node)
        if not isinstance(old, gs.Constant) or list(old.shape) != list(array.shape) or array.dtype.kind == "i":
            self.forget_shapes(node)
        copy = self._equal_copy(old, node, array)
        if copy is not None:
            self.set_input(node, index, copy)
            return
        if alone and old is not None:
            old._values = array
            return
        stem = str(old.name) if old is not None else f"{node.outputs[0].name}_{'weight' if index == 1 else 'bias'}"
        new = self.constant(stem, array)
        if isinstance(old, gs.Constant):
            self._copies.setdefault(id(old), (old, []))[1].append((self.graph_of(node), new))
        self.set_input(node, index, new)

    def replace_weights(self, node: gs.Node, weight: ArrayLike, bias: ArrayLike) -> None:
        """Give a Conv, ConvTranspose or Gemm new weights (slot 1) and bias (slot 2, added if absent).

        Raises:
            Skip: The values overflow the type of the weight; nothing has been changed then.
        """
        kind = dtype_of(node.inputs[1])
        cast(weight, kind, str(node.inputs[1].name)), cast(bias, kind, "bias")
        self.set_values(node, 1, weight, dtype=kind)
        self.set_values(node, 2, bias, dtype=kind)

    # -- removing ------------------------------------------------------------------------------------------------------

    def splice_out(self, node: gs.Node, keep: gs.Tensor) -> None:
        """Remove ``node``; what produced its first input now produces ``keep``. Its other readers are the caller's."""
        before = node.inputs[0].inputs[0]
        index = next(i for i, tensor in enumerate(before.outputs) if tensor is node.inputs[0])
        self.remove([node])
        self.set_output(before, index, keep)

    def bypass(self, node: gs.Node) -> None:
        """Remove ``node``; whatever read its first output reads its first input, and output names stay.

        Where its output is a graph output, the producer of its input takes that name over if it can; otherwise an
        Identity stays.

        Raises:
            Skip: Something reads another output of the node; nothing has been changed then.
        """
        source, out = node.inputs[0], node.outputs[0]
        for extra in node.outputs[1:]:
            if extra.name and (self.is_output(extra) or any(not self.is_removed(reader) for reader in extra.outputs)):
                raise Skip(f"{extra.name!r}, another output of the node, is used")
        if not self.is_output(out):
            self.remove([node])
            self.replace_uses(out, source)
            return
        same_graph = source.inputs and self._home.get(id(source.inputs[0])) is self.graph_of(node)
        if same_graph and not self.is_output(source) and not self.is_input(source):
            shared = any(reader is not node for reader in source.outputs)
            self.splice_out(node, out)
            if shared:
                self.replace_uses(source, out)
            return
        node.op, node.domain, node.attrs = "Identity", None, {}
        for extra in list(node.inputs)[1:]:
            drop_once(extra.outputs, node)
        for extra in list(node.outputs)[1:]:
            drop_once(extra.inputs, node)
        list.__setitem__(node.inputs, slice(None), [source])
        list.__setitem__(node.outputs, slice(None), [out])

    def move_out(self, node: gs.Node, body: gs.Graph) -> list[gs.Node]:
        """Remove ``node``, but move the nodes of its subgraph ``body`` to the graph that it lives in; return them.

        Their names and what ``node`` gave out are the caller's business.
        """
        graph, moved = self.graph_of(node), list(body.nodes)
        body.nodes[:] = []
        graph.nodes.extend(moved)
        self._home |= {id(inner): graph for inner in moved}
        self.remove([node])
        return moved

    def replace_node(self, node: gs.Node, nodes: Sequence[gs.Node]) -> None:
        """Remove ``node`` and put new nodes, which have its outputs already, into the graph that it lives in."""
        graph = self.graph_of(node)
        graph.nodes.extend(nodes)
        self._home |= {id(new): graph for new in nodes}
        waiting = [body for new in nodes for body in bodies(new)]
        while waiting:
            body = waiting.pop()
            self._home |= {id(inner): body for inner in body.nodes}
            self._outputs |= {id(tensor): tensor for tensor in body.outputs}
            self._inputs |= {id(tensor): tensor for tensor in body.inputs}
            waiting += [each for inner in body.nodes for each in bodies(inner)]
        self.remove([node])

    def drop_result(self, node: gs.Node, index: int, index_in_bodies: int) -> None:
        """Let a node with subgraphs no longer give out the result in a slot, nor its subgraphs what stands for it."""
        out = node.outputs[index]
        list.__delitem__(node.outputs, index)
        drop_once(out.inputs, node)
        for body in bodies(node):
            given = body.outputs.pop(index_in_bodies)
            self._unread.append(given)
            own = [place for place, (_, tensor) in enumerate(body.output_infos) if tensor is given]
            for place in own[:1]:
                del body.output_infos[place]

    def remove(self, nodes: Iterable[gs.Node]) -> None:
        """Flag nodes, and those in their subgraphs, as removed; ``settle`` unlinks them."""
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            self._removed[id(node)] = node
            waiting += [inner for body in bodies(node) for inner in body.nodes]

    # -- shapes --------------------------------------------------------------------------------------------------------

    def forget_shapes(self, *nodes: gs.Node) -> None:
        """Note that what these nodes compute changes shape: ``settle`` drops what the file declares downstream.

        Replacing a constant by one of another shape notes it by itself; a pass calls this where it changes shapes in
        other ways, by attributes for instance. Without nodes, all that is computed in the model is meant.
        """
        for node in nodes or (node for graph in self._model.graphs() for node in graph.nodes):
            self._stale[id(node)] = node

    # -- the end -------------------------------------------------------------------------------------------------------

    @property
    def is_unsettled(self) -> bool:
        """Whether nodes are flagged as removed, or inputs replaced, or shapes forgotten, since the last settling."""
        return bool(self._removed or self._unread or self._stale)

    def settle(self) -> None:
        """Drop removed nodes and what only they read, sort every graph stably, infer changed shapes anew."""
        self._remove_unread()
        graphs = list(self._model.graphs())
        if self._removed:
            unlink(self._removed)
            for graph in graphs:
                graph.nodes[:] = [node for node in graph.nodes if id(node) not in self._removed]
        for graph in graphs:
            sort_nodes(graph)
        self._model.adopt_constants()
        self._model.drop_unused_constants()
        if stale := [node for node in self._stale.values() if not self.is_removed(node)]:
            refresh_shapes(self._model, stale)
        self._removed, self._stale = {}, {}
        self.names.recount()
        self._index()

    # -- inner ---------------------------------------------------------------------------------------------------------

    def _remove_unread(self) -> None:
        """Flag nodes too whose outputs this run's edits have left without a reader; those with subgraphs stay."""
        ends = [*self._unread, *(tensor for node in self._removed.values() for tensor in node.inputs)]
        waiting = list({id(tensor): tensor for tensor in ends}.values())
        self._unread = []
        readers: dict[int, int] = {}

        def is_read(tensor: gs.Tensor) -> bool:
            if id(tensor) not in readers:
                readers[id(tensor)] = sum(not self.is_removed(reader) for reader in tensor.outputs)
            return self.is_output(tensor) or readers[id(tensor)] > 0

        while waiting:
            for node in waiting.pop().inputs:
                if not self.is_removed(node) and not bodies(node) and not any(map(is_read, node.outputs)):
                    self.remove([node])
                    waiting += node.inputs
                    for tensor in node.inputs:
                        if id(tensor) in readers:
                            readers[id(tensor)] -= 1

    def _equal_copy(self, old: gs.Tensor | None, node: gs.Node, array: NDArray[Any]) -> gs.Constant | None:
        """Return what another reader of ``old`` in the same graph got in its place, if it holds just ``array``."""
        graph = self.graph_of(node)
        for home, copy in self._copies.get(id(old), (old, []))[1]:
            values = copy.values
            alike = home is graph and values.dtype == array.dtype and values.shape == array.shape
            if alike and values.tobytes() == array.tobytes():
                return copy
        return None

    def _only_reader(self, tensor: gs.Tensor, node: gs.Node) -> bool:
        """Whether one slot of ``node`` is the only use of ``tensor`` in the model."""
        readers = list(itertools.islice((reader for reader in tensor.outputs if not self.is_removed(reader)), 2))
        return len(readers) == 1 and readers[0] is node and not self.is_output(tensor) and not self.is_input(tensor)
