"""Whether the body of a local function means at the place of a call what it means to the runtime that calls it."""

import onnx

from graphopt.graph.view import GraphView
from graphopt.model.adapters import ADAPTERS
from graphopt.model.functions import called, full_name, functions, identity, within
from graphopt.model.ir import Graph
from graphopt.model.opset import OLDEST
from graphopt.result import Skip

_KERNEL_DOMAINS = ("com.microsoft", "com.ms")


def require_no_kernel(function: Graph) -> None:
    """Raise Skip if a runtime may compute calls of a function by other means than its body.

    ONNX Runtime prefers an operator that it knows to a local function of the same name.
    """
    domain, name, _ = identity(function)
    known = onnx.defs.has(name, "" if domain == "ai.onnx" else domain)
    if known or any(domain == each or domain.startswith(f"{each}.") for each in _KERNEL_DOMAINS):
        raise Skip(f"runtimes may have a kernel of their own for {full_name(function)}")


def require_opsets(view: GraphView, function: Graph) -> dict[str, int]:
    """Return the operator sets that the model has to import for a body to be at home in its main graph.

    ONNX Runtime computes bodies by the operator sets that the model imports, and onnx's checker refuses a model where
    that makes a difference.

    Raises:
        Skip: An operator of the body means something else, or may, in the model's version of its operator set.
    """
    own, main = (_versions(imports) for imports in (function.import_domains, view.model.header.opset_import))
    local = functions(view.model)
    missing: dict[str, int] = {}
    for node in (node for graph in within(function) for node in graph.nodes):
        domain = _domain(node.domain)
        before, now = own.get(domain, 1), main.get(domain)
        if now is None:
            missing[domain] = before
        elif before != now and called(node) not in local and not _means_the_same(domain, node.op, before, now):
            label = domain or "ai.onnx"
            raise Skip(f"its {node.op} is of {label} {before}, the model imports {label} {now}")
    return missing


def _means_the_same(domain: str, op: str, before: int, now: int) -> bool:
    """Whether a node of one version of an operator set is the same in another."""
    try:
        old, new = (onnx.defs.get_schema(op, version, domain) for version in (before, now))
    except onnx.defs.SchemaError:
        return False
    if old.since_version == new.since_version:
        return True
    changes = any((op, version) in ADAPTERS for version in range(before + 1, now + 1))
    return not domain and OLDEST <= before < now and not changes and not new.deprecated


def _versions(imports: list[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {_domain(entry.domain): entry.version for entry in imports}


def _domain(name: str | None) -> str:
    return "" if name in (None, "ai.onnx") else str(name)
