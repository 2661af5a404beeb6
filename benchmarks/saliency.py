"""How well each criterion tells what can go: top-1 on Fashion-MNIST by share zeroed, without any recovery and with.

python benchmarks/saliency.py [--only channels reconstructed weights] [--nets resnet mobilenet] [--figures FILE.json]
python benchmarks/saliency.py --only --figures FILE.json --plot docs/saliency.svg --print

The 512 calibration samples of ``activation``, ``gradient`` and ``taylor`` are those that the test leaves; their labels
are used. ``random`` is the mean of ``SEEDS``, with the least and the most of them.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphopt import GraphView, create, load
from graphopt.model import Model
from graphopt.proof.accuracy import top1
from graphopt.runtime.feeds import Data, load_data

MODELS = Path(__file__).parent.parent / "models"
NETS = {"resnet": "fmnist_resnet14_bn.onnx", "mobilenet": "fmnist_mobilenetv2s_bn.onnx"}
SEEDS = range(5)
WAYS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "channels": (("l1", "l2", "activation", "gradient", "taylor", "random"), (0.1, 0.2, 0.3, 0.5, 0.7)),
    "reconstructed": (("l1", "l2", "activation", "gradient", "taylor", "random"), (0.5,)),
    "weights": (("magnitude", "gradient", "taylor"), (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)),
}
"""What is zeroed (channels, then ``reconstruct``; single weights), with the criteria and ratios."""

COLOURS = ("#4269d0", "#97bbf5", "#efb118", "#ff725c", "#3ca951", "#9498a0")

Say = Callable[[str, Any], None]


class Bench:
    """One network with its BatchNormalization folded, and its data."""

    def __init__(self, net: str) -> None:
        """Load one of ``NETS``."""
        self.teacher = load(MODELS / NETS[net])
        self.data: Data = load_data(MODELS / "fashion_mnist.npz", self.teacher)
        self.folded = self.run(self.teacher, "fold-batchnorm")

    def run(self, model: Model, name: str, **options: Any) -> Model:
        """Run a pass on a copy, without the pipeline's checks."""
        result = model.copy()
        create(name, **options).apply(GraphView(result, None, self.data.calibration(), self.teacher))
        return result

    def accuracy(self, what: str, **options: Any) -> float:
        """Return top-1 on the 10,000 test images, in percent, of what a pass leaves."""
        zeroed = self.run(self.folded, "zero-weights" if what == "weights" else "zero-channels", **options)
        left = self.run(zeroed, "reconstruct") if what == "reconstructed" else zeroed
        return round(100 * top1(left, self.data), 2)


def measure(bench: Bench, what: str, scopes: tuple[str, ...], say: Say) -> None:
    """Measure every criterion at every ratio."""
    criteria, ratios = WAYS[what]
    say("nothing zeroed", round(100 * top1(bench.folded, bench.data), 2))
    for scope in scopes:
        for criterion in criteria:
            for ratio in ratios:
                options = {"criterion": criterion, "ratio": ratio, "scope": scope}
                seeds = [{"seed": seed} for seed in SEEDS] if criterion == "random" else [{}]
                found = [bench.accuracy(what, **options, **seed) for seed in seeds]
                mean = round(sum(found) / len(found), 2)
                say(f"{criterion}, {scope}, {ratio:.0%}", mean if len(found) == 1 else [mean, min(found), max(found)])


def plot(figures: dict[str, Any]) -> str:
    """Return the curves of zero-channels, uniform scope, as SVG."""
    criteria, ratios = WAYS["channels"]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="760" height="330" font-family="sans-serif" font-size="12">'
    ]
    parts.append('<rect width="760" height="330" fill="white"/>')
    for place, net in enumerate(NETS):
        values = figures[f"channels/{net}"]
        left, width, top, height = 60 + 380 * place, 290, 40, 220
        parts.append(f'<text x="{left}" y="24" font-weight="bold">{net}: top-1 by share of channels zeroed</text>')
        for percent in range(0, 101, 20):
            y = top + height * (1 - percent / 100)
            parts.append(f'<path d="M{left} {y:.0f}h{width}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{percent}%</text>')
        across = {ratio: left + width * ratio / 0.75 for ratio in (0.0, *ratios)}
        for ratio, x in across.items():
            parts.append(f'<text x="{x:.0f}" y="{top + height + 18}" text-anchor="middle">{ratio:.0%}</text>')
        for criterion, colour in zip(criteria, COLOURS, strict=True):
            found = [values["nothing zeroed"], *(values[f"{criterion}, uniform, {ratio:.0%}"] for ratio in ratios)]
            spans = [value if isinstance(value, list) else [value] * 3 for value in found]
            heights = [[top + height * (1 - each / 100) for each in span] for span in spans]
            line = " ".join(f"{x:.0f},{y[0]:.1f}" for x, y in zip(across.values(), heights, strict=True))
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            for x, (_, low, high) in zip(across.values(), heights, strict=True):
                if low != high:
                    parts.append(f'<path d="M{x:.0f} {high:.1f}V{low:.1f}" stroke="{colour}" stroke-width="4"/>')
    for index, (criterion, colour) in enumerate(zip(criteria, COLOURS, strict=True)):
        x = 60 + 115 * index
        parts.append(f'<path d="M{x} 306h24" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 30}" y="310">{criterion}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def table(values: dict[str, Any]) -> str:
    """Return the figures of one network as a Markdown table: criteria by ratios."""
    rows: dict[str, list[str]] = {}
    ratios: dict[str, None] = {}
    for key, value in values.items():
        if key.count(",") == 2:
            criterion, scope, ratio = key.split(", ")
            ratios[ratio] = None
            shown = f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})" if isinstance(value, list) else f"{value:.2f}"
            rows.setdefault(f"{criterion}, {scope}", []).append(shown)
    lines = [f"| | {' | '.join(ratios)} |", "|---|" + "---|" * len(ratios)]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--scopes", nargs="*", default=["uniform"], choices=["uniform", "global"])
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--print", dest="shown", action="store_true")
    chosen = parser.parse_args()
    kept = chosen.figures is not None and chosen.figures.exists()
    figures: dict[str, Any] = json.loads(chosen.figures.read_text()) if kept else {}
    for what, net in [(what, net) for what in chosen.only for net in chosen.nets]:
        values: dict[str, Any] = figures.setdefault(f"{what}/{net}", {})

        def say(key: str, value: Any, values: dict[str, Any] = values, title: str = f"{what}/{net}") -> None:
            values[key] = value
            print(f"{title}: {key}: {value}", flush=True)
            if chosen.figures is not None:
                chosen.figures.write_text(json.dumps(figures, indent=1) + "\n")

        measure(Bench(net), what, tuple(chosen.scopes), say)
    if chosen.plot is not None:
        chosen.plot.write_text(plot(figures))
    if chosen.shown:
        print("\n\n".join(f"**{title}**\n\n{table(values)}" for title, values in figures.items()))


if __name__ == "__main__":
    main()
