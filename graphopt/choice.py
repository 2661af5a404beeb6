"""Which sites a pass may rewrite: patterns of names and operators, matched on the graph before the pass runs."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.errors import OptionError
from graphopt.graph.borders import Borders
from graphopt.graph.left_out import LeftOut
from graphopt.graph.view import GraphView
from graphopt.model import Model

_OPERATOR = "op:"
_PATTERNS_NAMED = 3


@dataclass(frozen=True)
class Override:
    """Other values of a pass's options for some of its sites.

    Attributes:
        sites: Patterns of the sites.
        values: The options by name.
    """

    sites: tuple[str, ...]
    values: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, given: "Override | Mapping[str, Any]") -> "Override":
        """Take an override as a recipe has it: ``sites`` and, beside it, the options.

        Raises:
            OptionError: It is no such table.
        """
        if isinstance(given, Override):
            return given
        if not isinstance(given, Mapping):
            raise OptionError(f"{given!r} is not a table of sites and options")
        sites = given.get("sites")
        listed = (sites,) if isinstance(sites, str) else sites
        if not isinstance(listed, list | tuple) or not listed or not all(isinstance(each, str) for each in listed):
            raise OptionError(f"'sites' must be a list of patterns, not {sites!r}")
        values = {str(key).replace("-", "_"): value for key, value in given.items() if key != "sites"}
        if not values:
            raise OptionError(f"it gives {', '.join(listed)} no option")
        return cls(tuple(listed), tuple(values.items()))

    def as_dict(self) -> dict[str, Any]:
        """Return it in the form that ``of`` takes."""
        return {"sites": list(self.sites), **dict(self.values)}


@dataclass(frozen=True)
class Choice:
    """The sites that one run of a pass may rewrite.

    A pattern is a site (any output of a node), the name of a node, of an initializer (then it means the layers that
    read it) or of a local function, or ``op:`` and an operator; ``*``, ``?`` and ``[...]`` as in file names. What holds
    for a node holds for the bodies below it. A site that a pass has renamed is still found by its node's name.

    Attributes:
        only: Patterns of which one must match; empty if none needs to.
        skip: Patterns of which none may match.
        part: Patterns of the sites that this run of the pass is for; empty if it is for all.
        others: Patterns of the sites that another run of the pass, with other options, is for.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    part: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def takes_all(self) -> bool:
        """Whether nothing is left out."""
        return not (self.only or self.skip or self.part or self.others)

    def left_out(self, view: GraphView) -> LeftOut:
        """Match the patterns; the model is that before the pass."""
        if self.takes_all:
            return LeftOut()
        names = _Names(view)
        found = {pattern: names.matching(pattern) for pattern in (*self.only, *self.skip, *self.part, *self.others)}
        reasons: dict[str, str] = {}
        for patterns, told in ((self.only, "left out by --only"), (self.part, "is no site of override")):
            if patterns:
                chosen = set[str]().union(*(found[pattern] for pattern in patterns))
                reasons |= {site: f"{told} {_named(patterns)}" for site in names.sites if site not in chosen}
        for patterns, told in ((self.others, "left to override"), (self.skip, "left out by --skip")):
            for pattern in reversed(patterns):
                reasons |= dict.fromkeys(found[pattern], f"{told} {pattern}")
        asked = [("--only", pattern) for pattern in self.only] + [("--skip", pattern) for pattern in self.skip]
        asked += [("override", pattern) for pattern in self.part]
        return LeftOut(reasons, tuple((option, pattern, found[pattern]) for option, pattern in asked))


def _named(patterns: Sequence[str]) -> str:
    more = len(patterns) - _PATTERNS_NAMED
    return ", ".join(patterns[:_PATTERNS_NAMED]) + (f" and {more} more" if more > 0 else "")


class _Names:
    """What the nodes, initializers and functions of a model can be called by."""

    def __init__(self, view: GraphView) -> None:
        self._view, self._original = view, view.original
        model: Model = view.model
        self._nodes: list[tuple[gs.Node, int | str]] = []
        self._place: dict[int, int] = {}
        self._functions = {str(function.name) for function in model.functions}
        for root in (model.graph, *model.functions):
            self._add(root, -1 if root is model.graph else str(root.name))
        self._stored = {
            str(tensor.name): tensor
            for graph in model.graphs()
            for tensor in (*graph.initializers, *(t for n in graph.nodes for t in n.inputs))
            if isinstance(tensor, gs.Constant) and tensor.name
        }
        self._stored |= {str(n.outputs[0].name): n.outputs[0] for n, _ in self._nodes if n.op == "Constant"}
        self._before: list[tuple[tuple[str, ...], str, tuple[str, ...]]] | None = None
        self._borders = Borders(model)
        self._constant = self._computed_from_constants()

    @property
    def sites(self) -> Iterator[str]:
        """Everything that a pass can call a site: nodes by their first outputs, initializers, functions."""
        yield from (self._view.site(node) for node, _ in self._nodes)
        yield from self._stored
        yield from self._functions

    def matching(self, pattern: str) -> frozenset[str]:
        """Return the sites that a pattern means."""
        means = re.compile(translate(pattern)).match

        def fits(names: Iterable[str]) -> bool:
            return any(name and (name == pattern or means(name)) for name in names)

        named = [tensor for name, tensor in self._stored.items() if fits((name,))]
        functions = {name for name in self._functions if fits((name,))}
        nodes = set(self._by_operator(pattern.removeprefix(_OPERATOR)) if pattern.startswith(_OPERATOR) else ())
        nodes |= {id(node) for node, _ in self._nodes if fits((str(node.name or ""), *_outputs(node)))}
        renamed, weights = self._renamed(fits)
        nodes |= {id(node) for node, _ in self._nodes if str(node.name) in renamed}
        named += [self._stored[name] for name in weights if name in self._stored]
        inside = self._with_bodies(nodes, functions)
        found = {self._view.site(node) for node in inside} | functions | {str(tensor.name) for tensor in named}
        found |= {str(tensor.name) for node in inside for tensor in node.inputs if str(tensor.name) in self._stored}
        return frozenset(found | {self._view.site(node) for node in self._with_bodies(self._readers(named), set())})

    def _add(self, graph: gs.Graph, parent: int | str) -> None:
        """Note the nodes of a graph and of all below it, outer before inner."""
        waiting = [(graph, parent)]
        while waiting:
            graph, parent = waiting.pop()
            for node in graph.nodes:
                self._place[id(node)] = len(self._nodes)
                self._nodes.append((node, parent))
                inner = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
                waiting += [(body, self._place[id(node)]) for body in inner]

    def _with_bodies(self, nodes: set[int], functions: set[str]) -> list[gs.Node]:
        """Return these nodes, those of these functions, and all in bodies below them."""
        taken: list[bool] = []
        for node, parent in self._nodes:
            above = parent in functions if isinstance(parent, str) else parent >= 0 and taken[parent]
            taken.append(above or id(node) in nodes)
        return [node for (node, _), take in zip(self._nodes, taken, strict=True) if take]

    def _by_operator(self, pattern: str) -> Iterator[int]:
        """Yield the nodes of an operator, given as Type, domain.Type or domain::Type."""
        means = re.compile(translate(pattern)).match
        for node, _ in self._nodes:
            domain, op = str(node.domain or "ai.onnx"), str(node.op)
            if any(map(means, (op, f"{domain}.{op}", f"{domain}::{op}"))):
                yield id(node)

    def _renamed(self, fits: Any) -> tuple[set[str], set[str]]:
        """Return what else nodes are known by whose outputs in the original model fit: their names, or their weights.

        A pass that gives a layer another node's output, as folding does, changes its site, but not its name.
        """
        if self._before is None:
            nodes = [node for graph in self._original.graphs() for node in graph.nodes]
            count: dict[str, int] = {}
            for node in nodes:
                count[str(node.name)] = count.get(str(node.name), 0) + 1
            self._before = [
                (
                    tuple(_outputs(node)),
                    str(node.name) if node.name and count[str(node.name)] == 1 else "",
                    tuple(str(t.name) for t in node.inputs if isinstance(t, gs.Constant) and len(t.outputs) == 1),
                )
                for node in nodes
            ]
        found = [(name, weights) for outputs, name, weights in self._before if fits(outputs)]
        return {name for name, _ in found if name}, {each for name, held in found if not name for each in held}

    def _readers(self, tensors: Iterable[gs.Tensor]) -> set[int]:
        """Return the nodes that read these constants, also moved, computed from or handed on to a body."""
        found: set[int] = set()
        waiting, seen = list(tensors), set[int]()
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            for node in tensor.outputs:
                slots = [slot for slot, each in enumerate(node.inputs) if each is tensor]
                inside = [each for slot in slots for each in self._borders.inside(node, slot)]
                waiting += inside
                if not inside and not any(isinstance(value, gs.Graph) for value in node.attrs.values()):
                    found.add(id(node))
                    waiting += [out for out in node.outputs if id(out) in self._constant]
        return found

    def _computed_from_constants(self) -> set[int]:
        """Return the tensors that nodes compute from constants alone."""
        found: set[int] = set()
        for node, _ in self._nodes:
            if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
                continue
            inputs = [tensor for tensor in node.inputs if tensor.name]
            if all(isinstance(tensor, gs.Constant) or id(tensor) in found for tensor in inputs) and (
                inputs or node.op == "Constant"
            ):
                found |= {id(out) for out in node.outputs}
        return found


def _outputs(node: gs.Node) -> Iterator[str]:
    return (str(out.name) for out in node.outputs if out.name)
