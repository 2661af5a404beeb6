"""What a pass costs grows with the graph, not with its square: Python calls are counted, which no machine changes.

``python benchmarks/growth.py`` measures seconds and memory of larger graphs.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from graphopt import optimize
from graphopt.model import Model, from_proto
from graphopt.registry import create

SMALL, LARGE = 160, 320
KINDS = ("layers", "wide", "joined", "branches", "popped", "sizes", "folded", "equal")
PASSES = (
    "eliminate-dead",
    "eliminate-noops",
    "equalize-channels",
    "fold-affine",
    "fold-batchnorm",
    "fold-constants",
    "freeze-initializers",
    "fuse-pads",
    "inline-functions",
    "merge-duplicates",
    "prune-channels",
    "quantize-activations",
    "quantize-weights",
    "zero-channels",
    "zero-weights",
)
OPTIONS: dict[str, dict[str, Any]] = {"zero-channels": {"ratio": 0.25}, "zero-weights": {"pattern": "2:4"}}
MOST = 3.0
"""Twice the graph may take so many times the calls: a square would be 4."""


def calls(subject: Model, name: str) -> int:
    """Return how many calls one pass takes, without those of a run that does nothing."""
    counted = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        optimize(subject, [create(name, **OPTIONS.get(name, {}))], check=False)
    finally:
        sys.setprofile(before)
    return counted


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_graph_takes_about_twice_the_calls(kind: str, benchmark: Callable[[str], ModuleType]) -> None:
    build = benchmark("growth").KINDS[kind]
    small, large = from_proto(build(SMALL)), from_proto(build(LARGE))
    grown = {}
    for name in PASSES:
        calls(from_proto(build(10)), name)  # what is imported or cached at its first use is not counted
        grown[name] = calls(large, name) / calls(small, name)
    assert {name: ratio for name, ratio in grown.items() if ratio > MOST} == {}
