"""Holds what graphopt knows of shapes and small integers to what ONNX Runtime computes."""

from typing import Any

import onnx

from drawing.forms import Drawn
from drawing.judge import run_plain
from graphopt.graph.symbolic import Facts
from graphopt.model import from_proto


def wrong_claims(drawn: Drawn) -> str:
    """Return the first claim on a tensor of the main graph that does not hold, or nothing.

    A number must be the number. Two things that are said by one expression must have one value in a run.
    """
    model = from_proto(drawn.proto)
    facts = Facts(model)
    claims = {out.name: facts.of(out) for node in model.graph.nodes for out in node.outputs if out.name}
    shaped = {name: fact for name, fact in claims.items() if fact.shape is not None and fact.type}
    proto = onnx.ModelProto.FromString(drawn.proto.SerializeToString())
    given = {each.name for each in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shaped if name not in given)
    for number, outputs in enumerate(run_plain(proto, list(drawn.feeds))):
        meanings: dict[str, tuple[int, str]] = {}
        pairs: list[tuple[str, Any, int]] = []
        for name, fact in shaped.items():
            if len(fact.shape or ()) != outputs[name].ndim:
                return f"call {number}, {name!r}: has rank {outputs[name].ndim}, not that of {fact.shape}"
            pairs += [(name, claim, size) for claim, size in zip(fact.shape or (), outputs[name].shape, strict=True)]
            if fact.value is not None:
                held = zip(fact.value.reshape(-1).tolist(), outputs[name].reshape(-1).tolist(), strict=True)
                pairs += [(name, claim, int(entry)) for claim, entry in held if claim is not None]
        for name, claim, actual in pairs:
            known, source = meanings.setdefault(str(claim), (actual, name))
            if (isinstance(claim, int) and int(claim) != actual) or known != actual:
                return f"call {number}, {name!r}: {claim} is {actual}, not {known} as in {source!r}"
    return ""
