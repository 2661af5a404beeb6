"""Measure zero-channels and prune-channels: reach, MACs, latency, time of the passes, and whether the cut is exact.

``python benchmarks/pruning.py FOLDER_OR_MODEL... --ratio 0.5`` prints one row per model. The difference is the largest
one between the zeroed and the pruned model's outputs on generated inputs, over the output's spread, with ONNX Runtime's
optimizations off; latency is the median of one run on one thread, optimizations on, and of one sample where the model
leaves the batch size open.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from graphopt.runtime.latency import median_latencies

import graphopt
from graphopt.graph.channels import Channels
from graphopt.graph.channels.cost import Cost
from graphopt.model import Model, load
from graphopt.proof.proof import compare_models
from graphopt.report.metrics import measure
from graphopt.runtime.feeds import Data, generate

TARGETS = {
    "resnet18": 0.73,
    "resnet50": 0.72,
    "mobilenet_v2": 0.65,
    "mobilenet_v3_small": 0.64,
    "densenet121": 0.71,
    "efficientnet_b0": 0.67,
    "squeezenet1_1": 0.64,
    "regnet_y_400mf": 0.72,
    "googlenet": 0.70,
    "mnasnet1_0": 0.66,
    "vgg11_bn": 0.73,
    "convnext_tiny": 0.48,
    "shufflenet_v2": 0.60,
}
"""Share of parameters that the best known tool takes out when asked for half of the channels of every layer."""


@dataclass(frozen=True)
class Row:
    """What became of one model."""

    model: str
    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    latency_ms: tuple[float, float] | None
    seconds: tuple[float, float]
    difference: float
    survivors: int

    @property
    def reach(self) -> float:
        """The share of parameters that went."""
        return 1 - self.parameters[1] / self.parameters[0]

    def __str__(self) -> str:
        target = next((share for name, share in TARGETS.items() if self.model.startswith(name)), None)
        cells = [
            f"{self.model:38}",
            f"{self.reach:6.1%}",
            f"{'' if target is None else f'{target:.0%}':>6}",
            f"{'?' if self.macs is None else f'{1 - self.macs[1] / self.macs[0]:.1%}':>6}",
            f"{'' if self.latency_ms is None else '{:.1f} -> {:.1f}'.format(*self.latency_ms):>16}",
            f"{self.seconds[0]:6.1f}",
            f"{self.seconds[1]:6.1f}",
            f"{self.difference:8.1e}",
            f"{self.survivors:4}",
        ]
        return "  ".join(cells)


def count_macs(model: Model) -> int | None:
    """Return the multiply-accumulates of a model; None if a size that they hang on is not known."""
    cost = Cost.of(Channels.analyze(graphopt.GraphView(model)))
    return None if cost.unknown else cost.macs(cost.gone([]))


def prune(name: str, model: Model, data: Data, zeroing: graphopt.Pass, latency: bool) -> Row:
    """Zero and prune a model, and measure."""
    original = model.copy()
    before = measure(model).parameters, count_macs(model)
    start = time.perf_counter()
    zeroing.apply(graphopt.GraphView(model, calibration=data))
    zeroed, middle = model.copy(), time.perf_counter()
    result = graphopt.create("prune-channels").apply(graphopt.GraphView(model))
    seconds = middle - start, time.perf_counter() - middle
    exact = compare_models(zeroed, model, data, graphopt.FloatExact(rtol=1e-4, atol=1e-5), 1)
    after = measure(model).parameters, count_macs(model)
    return Row(
        name,
        (before[0], after[0]),
        None if before[1] is None or after[1] is None else (before[1], after[1]),
        median_latencies(original, model, data) if latency else None,
        seconds,
        exact.max_rel if exact.holds else math.inf,
        len(result.skipped),
    )


def main() -> None:
    """Print one row per model and, with ``--json``, write every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model files, or folders of them")
    parser.add_argument("--criterion", default="l1")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--scope", default="uniform", choices=["uniform", "global"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asked = {"criterion": options.criterion, "ratio": options.ratio, "scope": options.scope, "seed": options.seed}
    zeroing = graphopt.create("zero-channels", **asked)
    print(f"{'model':38}  params  target   MACs      latency ms    zero s prune s  difference  left")
    rows = []
    for source in [
        file for path in options.models for file in (sorted(path.glob("*.onnx")) if path.is_dir() else [path])
    ]:
        model = load(source)
        rows.append(prune(source.stem, model, generate(model), zeroing, not options.no_latency))
        print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
