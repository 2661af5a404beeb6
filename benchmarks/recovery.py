"""What each method of recovery brings back on Fashion-MNIST: the tables of docs/recovery.md.

python benchmarks/recovery.py [--only SECTION ...] [--figures docs/recovery.json]
python benchmarks/recovery.py --print docs/recovery.json
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from graphopt import GraphView, create, load
from graphopt.distill.settings import Settings
from graphopt.distill.trainer import distill
from graphopt.model import Model, from_proto, to_proto
from graphopt.proof.accuracy import top1
from graphopt.report import measure
from graphopt.runtime.feeds import Data, load_data

MODELS = Path(__file__).parent.parent / "models"
NETS = {"resnet": "fmnist_resnet14_bn.onnx", "mobilenet": "fmnist_mobilenetv2s_bn.onnx"}


class Bench:
    """One network, its data, and the passes run on it alone, without the pipeline's checks."""

    def __init__(self, net: str, threads: int) -> None:
        """Load one of ``NETS``."""
        self.teacher = load(MODELS / NETS[net])
        self.data: Data = load_data(MODELS / "fashion_mnist.npz", self.teacher)
        self.folded = self.run(self.teacher, "fold-batchnorm")
        self.threads = threads

    def run(self, model: Model, *passes: str, **options: Any) -> Model:
        """Run passes on a copy; the options are the first one's."""
        result = model.copy()
        for name in passes:
            create(name, **options).apply(GraphView(result, None, self.data.calibration(), self.teacher))
            options = {}
        return result

    def zeroed(self, criterion: str, ratio: float) -> Model:
        """Return the folded network with channels zeroed."""
        return self.run(self.folded, "zero-channels", criterion=criterion, ratio=ratio)

    def taught(self, student: Model, epochs: int | None, **settings: Any) -> Model:
        """Distill from the folded original into a student, as ``graphopt distill`` does."""
        chosen = Settings(epochs=epochs, threads=self.threads, **settings)
        return distill(self.folded, student, self.data, chosen).student

    def accuracy(self, model: Model) -> float:
        """Return top-1 on the 10,000 test images, in percent."""
        return round(100 * top1(model, self.data), 2)


def pruning(bench: Bench, epochs: int | None, say: Callable[[str, Any], None]) -> None:
    """Half of the channels removed by l1."""
    say("teacher", bench.accuracy(bench.teacher))
    student = bench.zeroed("l1", 0.5)
    say("nothing", bench.accuracy(student))
    say("bias", bench.accuracy(bench.run(student, "reconstruct", method="bias")))
    started = time.perf_counter()
    rebuilt = bench.run(student, "reconstruct")
    say("reconstruct, seconds", round(time.perf_counter() - started, 1))
    say("reconstruct", bench.accuracy(rebuilt))
    cut = bench.run(rebuilt, "prune-channels")
    say("parameters", [measure(bench.teacher).parameters, measure(cut).parameters])
    if epochs == 0:
        return
    started = time.perf_counter()
    say("reconstruct and distill", bench.accuracy(bench.taught(cut, epochs)))
    say("distill, seconds", round(time.perf_counter() - started, 1))
    bare = bench.run(student, "prune-channels")
    say("distill", bench.accuracy(bench.taught(bare, epochs)))


def lowbit(bench: Bench, epochs: int | None, say: Callable[[str, Any], None]) -> None:
    """Weights of 2, 3 and 4 bits per channel; 3 bits are held in int4."""
    for kind in ("int2", "int3", "int4"):
        ways: dict[str, dict[str, Any]] = {
            "nearest": {"range": "mse"},
            "gptq": {"range": "mse", "rounding": "gptq"},
            "gptq and bias": {"range": "mse", "rounding": "gptq", "bias_correction": True},
        }
        for name, options in ways.items():
            model = bench.run(
                raised(bench.folded, 25 if kind == "int2" else 21), "quantize-weights", dtype=kind, **options
            )
            say(f"{kind}, {name}", bench.accuracy(model))
        if epochs != 0:
            course = (epochs, 1e-3) if kind == "int2" else (epochs or 64, 3e-4)
            say(f"{kind}, distill", bench.accuracy(bench.taught(model, course[0], rate=course[1])))


def stranger(bench: Bench, epochs: int | None, say: Callable[[str, Any], None]) -> None:
    """A MobileNet with drawn weights learns from this network."""
    proto = to_proto(load(MODELS / NETS["mobilenet"]))
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        shape = tuple(tensor.dims)
        if len(shape) >= 2:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
            tensor.raw_data = values.astype(np.float32).tobytes()
        elif tensor.data_type == TensorProto.FLOAT:
            tensor.raw_data = np.zeros(shape, np.float32).tobytes()
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization":
            for name, value in zip(node.input[1:], (1.0, 0.0, 0.0, 1.0), strict=True):
                tensor = next(each for each in proto.graph.initializer if each.name == name)
                tensor.raw_data = np.full(tuple(tensor.dims), value, np.float32).tobytes()
    student = from_proto(proto)
    say("teacher", bench.accuracy(bench.teacher))
    say("start", bench.accuracy(student))
    say("taught", bench.accuracy(bench.taught(student, epochs, train_norm=True, rate=5e-3)))


def raised(model: Model, opset: int) -> Model:
    from graphopt.model import raise_opset

    return raise_opset(model, opset)


SECTIONS = {"pruning": pruning, "lowbit": lowbit, "stranger": stranger}


def table(figures: dict[str, Any]) -> str:
    """Return all figures as Markdown tables."""
    lines = []
    for section, values in figures.items():
        lines += [f"**{section}**", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in values.items()), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(SECTIONS), choices=list(SECTIONS))
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--epochs", type=int, help="instead of the default's 4000 steps; 0: nothing is distilled")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--print", dest="shown", type=Path)
    chosen = parser.parse_args()
    if chosen.shown:
        print(table(json.loads(chosen.shown.read_text())))
        return
    kept = chosen.figures is not None and chosen.figures.exists()
    figures: dict[str, Any] = json.loads(chosen.figures.read_text()) if kept else {}
    for section in chosen.only:
        for net in [net for net in chosen.nets if section != "stranger" or net == "resnet"]:
            values: dict[str, Any] = {"epochs": chosen.epochs}

            def say(key: str, value: Any, values: dict[str, Any] = values, title: str = f"{section}/{net}") -> None:
                values[key] = value
                figures[title] = values
                print(f"{title}: {key}: {value}", flush=True)
                if chosen.figures is not None:
                    chosen.figures.write_text(json.dumps(figures, indent=1) + "\n")

            SECTIONS[section](Bench(net, chosen.threads), chosen.epochs, say)


if __name__ == "__main__":
    main()
