"""Shows how the time and memory of every pass grow with the size of a graph.

    python benchmarks/growth.py [--sizes 1000 2000 4000] [--passes NAME...] [--kinds NAME...]

Each row is a kind of graph and a pass, each run a process of its own without a check: CPU seconds and peak MB at each
size, both without what loading and saving the same model take; then the growth from the last size but one to the
last: 2 is linear where the size doubles. What takes less than 0.2 seconds is not called growth.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LEAST = 0.2

RUN = """
import resource, sys
import graphopt
from graphopt.registry import create
name, path = sys.argv[1:]
if name != "none":
    options = {"zero-channels": {"ratio": 0.25}, "zero-weights": {"pattern": "2:4"}}.get(name, {})
    graphopt.optimize(graphopt.load(path), [create(name, **options)], check=False)
else:
    graphopt.optimize(graphopt.load(path), [], check=False)
use = resource.getrusage(resource.RUSAGE_SELF)
print(use.ru_utime + use.ru_stime, use.ru_maxrss / 1024)
"""


class Graph:
    """A graph in the making, with inputs of shape [N, 8, L]."""

    def __init__(self, *inputs: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.inputs = inputs or ("x",)
        self._rng = np.random.default_rng(0)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Add an initializer and return its name."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def draw(self, *shape: int) -> str:
        """Add a drawn weight."""
        return self.constant(self._rng.standard_normal(shape).astype(np.float32))

    def model(self, output: str) -> onnx.ModelProto:
        """Return the whole as a model that gives out one tensor."""
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8, "L"]) for name in self.inputs]
        stored = [numpy_helper.from_array(value, name) for name, value in self.weights.items()]
        info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", inputs, [info], stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layers(size: int) -> onnx.ModelProto:
    """Conv, BatchNormalization and Relu, one behind the other; a shortcut over each."""
    graph, x = Graph(), "x"
    for _ in range(size // 4):
        y = graph.add("Conv", x, graph.draw(8, 8, 1), graph.draw(8))
        ones = [graph.constant(np.full(8, value, np.float32)) for value in (1.5, 0.5, 0.1, 2.0)]
        x = graph.add("Add", x, graph.add("Relu", graph.add("BatchNormalization", y, *ones)))
    return graph.model(x)


def wide(size: int) -> onnx.ModelProto:
    """Many layers that read one tensor, added up."""
    graph = Graph()
    total = graph.add("Relu", "x")
    for _ in range(size // 2):
        total = graph.add("Add", total, graph.add("Conv", "x", graph.draw(8, 8, 1)))
    return graph.model(total)


def concats(size: int) -> onnx.ModelProto:
    """A dense block: each layer reads all before it, joined."""
    graph, x = Graph(), "x"
    for index in range(size // 2):
        y = graph.add("Conv", x, graph.draw(2, 8 + 2 * index, 1)) if index < 200 else graph.add("Relu", x)
        x = graph.add("Concat", x, y, axis=1) if index < 200 else y
    return graph.model(x)


def joined(size: int) -> onnx.ModelProto:
    """One Concat of many layers, in two levels."""
    graph = Graph()
    parts = [graph.add("Conv", "x", graph.draw(2, 8, 1)) for _ in range(size // 2)]
    groups = [graph.add("Concat", *parts[start : start + 8], axis=1) for start in range(0, len(parts), 8)]
    return graph.model(graph.add("Concat", *groups, axis=1))


def branches(size: int) -> onnx.ModelProto:
    """Ifs whose condition is known, with weights of their own in the branches."""
    graph, x = Graph(), "x"
    known = graph.constant(np.bool_(True))
    for index in range(size // 5):
        weight = numpy_helper.from_array(np.full(1, 0.5, np.float32), f"k{index}")
        bodies = [
            helper.make_graph(
                [helper.make_node("Mul", [x, weight.name], ["m"]), helper.make_node(op, ["m"], ["r"])],
                "body",
                [],
                [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
                [weight],
            )
            for op in ("Relu", "Abs")
        ]
        x = graph.add("If", known, then_branch=bodies[0], else_branch=bodies[1])
    return graph.model(x)


def popped(size: int) -> onnx.ModelProto:
    """A loop as exporters unroll it: each step takes the first entry, and goes on with the rest."""
    graph, x, total = Graph(), "x", ""
    zero, one, end, axis = (graph.constant(np.array(value)) for value in (0, [1], [1 << 40], [2]))
    for _ in range(size // 3):
        first = graph.add("Gather", x, zero, axis=2)
        total = graph.add("Add", total, first) if total else first
        x = graph.add("Slice", x, one, end, axis)
    return graph.model(total)


def sizes(size: int) -> onnx.ModelProto:
    """Sizes computed from sizes: products and sums that a polynomial would expand."""
    graph, x = Graph(), "x"
    two, zero = graph.constant(np.array([2])), graph.constant(np.array([0]))
    shape = graph.add("Shape", x)
    length = graph.add("Slice", shape, two, graph.constant(np.array([3])))
    total = length
    for _ in range(size // 4):
        total = graph.add("Add", graph.add("Mul", total, total), length)
        total = graph.add("Div", total, graph.add("Max", total, two))
    return graph.model(graph.add("Add", x, graph.add("Cast", graph.add("Mul", total, zero), to=TensorProto.FLOAT)))


def folded(size: int) -> onnx.ModelProto:
    """Arithmetic on constants, and Identities, Transposes and Reshapes that cancel."""
    graph, x = Graph(), "x"
    start = graph.draw(8, 1)
    for _ in range(size // 5):
        start = graph.add("Mul", start, graph.constant(np.float32(1.01)))
        there = graph.add("Transpose", graph.add("Identity", x), perm=[0, 2, 1])
        x = graph.add("Relu", graph.add("Transpose", there, perm=[0, 2, 1]))
    return graph.model(graph.add("Add", x, start))


def equal(size: int) -> onnx.ModelProto:
    """Equal layers with equal weights stored again and again."""
    graph, total = Graph(), "x"
    value = np.random.default_rng(0).standard_normal((8, 8, 1)).astype(np.float32)
    for _ in range(size // 3):
        y = graph.add("Conv", "x", graph.constant(value))
        total = graph.add("Add", total, graph.add("Relu", y))
    return graph.model(total)


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    each.__name__: each for each in (layers, wide, concats, joined, branches, popped, sizes, folded, equal)
}


def measure(name: str, path: Path) -> tuple[float, float]:
    """Run one pass in a process of its own and return CPU seconds and peak MB; infinite if it fails."""
    done = subprocess.run([sys.executable, "-c", RUN, name, str(path)], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return float("inf"), float("inf")
    seconds, peak = map(float, done.stdout.split()[-2:])
    return seconds, peak


def main() -> None:
    from graphopt.registry import discover

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--passes", nargs="+")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("| graph | pass | " + " | ".join(f"{size} nodes" for size in options.sizes) + " | growth |")
    print("|---|---|" + "---|" * (len(options.sizes) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            paths = {size: Path(folder, f"{kind}_{size}.onnx") for size in options.sizes}
            for size, path in paths.items():
                onnx.save(KINDS[kind](size), path)
            empty = {size: measure("none", path) for size, path in paths.items()}
            for name in options.passes or discover():
                own = {
                    size: [a - b for a, b in zip(measure(name, p), empty[size], strict=True)]
                    for size, p in paths.items()
                }
                last, before = (max(own[size][0], 0.0) for size in (options.sizes[-1], options.sizes[-2]))
                growth = f"{last / max(before, LEAST / 2):.1f}" if last > LEAST else ""
                cells = " | ".join(f"{max(0, seconds):.2f} s, {max(0, peak):.0f} MB" for seconds, peak in own.values())
                print(f"| {kind} | {name} | {cells} | {growth} |", flush=True)


if __name__ == "__main__":
    main()
