"""Models with operators that ONNX Runtime does not know, such as plugins of another runtime: what can be proved."""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from graphopt.model import Model, from_proto, to_proto
from graphopt.proof.discrete import bodies, captured
from graphopt.runtime.session import custom_operators

_DOMAINS = ("", "ai.onnx")
_RUNTIMES_OWN = ("ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft", "com.ms.internal.nhwc")


@dataclass(frozen=True)
class Unknown:
    """Operators that ONNX Runtime cannot run, and everything that depends on them.

    What goes into this part is compared instead of what comes out of it; the part itself has to stay as it is.

    Attributes:
        operators: Their types, as ``domain::Type`` where they have a domain.
        sites: The first outputs of all nodes of the part.
        structure: The part's nodes but for what they read from outside of it.
    """

    operators: tuple[str, ...]
    sites: frozenset[str]
    structure: tuple[bytes, ...]

    @classmethod
    def of(cls, model: Model) -> "Unknown | None":
        """Return what ONNX Runtime cannot run of a model; None if it knows every operator."""
        if custom_operators():
            return None
        known: set[tuple[str, str]] = set()
        strangers: dict[str, None] = {}
        for graph in model.graphs():
            for node in graph.nodes:
                pair = (str(node.domain or ""), str(node.op))
                if pair not in known:
                    known.add(pair)
                    if not _is_known(pair, model):
                        strangers["::".join(part for part in pair if part)] = None
        if not strangers:
            return None
        proto = to_proto(model, weights=False)
        part = _part(proto, strangers)
        return cls(
            tuple(strangers), frozenset(node.output[0] for node in part if node.output), tuple(_structure(proto, part))
        )

    def reason(self) -> str:
        """Return why a site of the part is left alone."""
        return f"lies behind {', '.join(self.operators)}, which ONNX Runtime does not know: nothing there can be proved"

    def note(self) -> str:
        """Return what the report says of it."""
        return (
            f"ONNX Runtime does not know {', '.join(self.operators)}: what goes into it was compared, what lies behind "
            "it was left as it was (--custom-ops names a library that has it)"
        )

    def runnable(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the part that ONNX Runtime can run, with what the rest reads as outputs."""
        part = _part(model, self.operators)
        inside = {id(node) for node in part}
        made = {name for node in part for name in node.output}
        result = onnx.ModelProto()
        result.CopyFrom(model)
        graph = result.graph
        for field in ("node", "output", "value_info"):
            graph.ClearField(field)
        graph.node.extend(node for node in model.graph.node if id(node) not in inside)
        graph.output.extend(info for info in model.graph.output if info.name not in made)
        for node in part:
            for slot, name in enumerate([*node.input, *captured(node)]):
                if name and name not in made:
                    probe = f"input {slot} of {node.op_type} {node.output[0] if node.output else ''!r}"
                    graph.node.add(op_type="Identity", input=[name], output=[probe])
                    graph.output.add(name=probe)
        used = {domain for node in graph.node for domain in (node.domain or "",)}
        kept = [each for each in model.opset_import if each.domain in (*used, *_DOMAINS) or model.functions]
        result.ClearField("opset_import")
        result.opset_import.extend(kept)
        return result

    def changed(self, candidate: onnx.ModelProto) -> str:
        """Say so if the part is not what it was."""
        same = tuple(_structure(candidate, _part(candidate, self.operators))) == self.structure
        return "" if same else f"what lies behind {', '.join(self.operators)} has changed, which cannot be proved"


def provable(model: Model) -> Model:
    """Return the part of a model that ONNX Runtime can run: the model itself where it knows every operator."""
    unknown = Unknown.of(model)
    return model if unknown is None else from_proto(unknown.runnable(to_proto(model)))


def _is_known(pair: tuple[str, str], model: Model) -> bool:
    """Whether ONNX Runtime may know an operator: a standard one, one of its own, or a local function."""
    domain, op = pair
    if any((str(f.rest.domain), str(f.rest.name)) == pair for f in model.functions):
        return True
    return domain in _RUNTIMES_OWN or (domain in _DOMAINS and onnx.defs.has(op, ""))


def _part(model: onnx.ModelProto, operators: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes of the main graph that are unknown, call or hold one that is, or depend on such a node."""
    names = set(operators)
    grown = True
    while grown:
        found = {
            "::".join(part for part in (function.domain, function.name) if part)
            for function in model.functions
            if any(_holds(node, names) for node in function.node)
        }
        grown = not found <= names
        names |= found
    part, made = [], set[str]()
    for node in model.graph.node:
        if _holds(node, names) or not made.isdisjoint((*node.input, *captured(node))):
            part.append(node)
            made.update(name for name in node.output if name)
    return part


def _holds(node: onnx.NodeProto, names: set[str]) -> bool:
    """Whether a node, or one in its bodies, is one of these operators."""
    own = "::".join(part for part in (node.domain, node.op_type) if part)
    return own in names or any(_holds(inner, names) for body in bodies(node) for inner in body.node)


def _structure(model: onnx.ModelProto, part: list[onnx.NodeProto]) -> Iterable[bytes]:
    """Yield each node of the part without the names that it reads from outside of it."""
    made = {name for node in part for name in node.output}
    outputs = [info.name for info in model.graph.output if info.name in made]
    for node in part:
        bare = onnx.NodeProto()
        bare.CopyFrom(node)
        bare.input[:] = [name if name in made else "" if not name else "outside" for name in node.input]
        bare.ClearField("metadata_props")
        yield bare.SerializeToString(deterministic=True)
    yield "\n".join(outputs).encode()
