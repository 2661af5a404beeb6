"""What rounding costs each of several models, by the ratio to the output's power and by the ratio to its spread.

    python benchmarks/rulers.py [--data FILE|beside] [--ways int8 ...] MODEL...

For each model BatchNormalization is folded, then each way of quantizing is run without a check, and both models run in
ONNX Runtime with its optimizations off on up to 128 samples. Columns, in dB, of the worst float output:

- power: ``10 log10(sum r^2 / sum (r - c)^2)``, computed here with numpy;
- spread: the same with the mean of the output taken off r in the signal, computed here with numpy;
- worst part: what graphopt judges (``graphopt.numerics.parts``), and which part it is;
- agree: the share of samples with the highest score at the same class, where there is one row of scores a sample.

Without ``--data`` inputs are generated; ``--data beside`` takes the data.npz beside each model.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from graphopt.contract import Lossy
from graphopt.errors import GraphoptError
from graphopt.model import load
from graphopt.pipeline import Pipeline
from graphopt.proof.proof import Proof
from graphopt.registry import create
from graphopt.runtime.feeds import generate, load_data

SAMPLES = 128
WAYS = {
    "int8": ("quantize-weights", {}),
    "int4": ("quantize-weights", {"dtype": "int4", "granularity": "block"}),
    "int3": ("quantize-weights", {"dtype": "int3", "granularity": "block"}),
    "int2": ("quantize-weights", {"dtype": "int2", "granularity": "block"}),
    "static": ("quantize-activations", {}),
}


def measure(path: str, data: str | None, way: str) -> str:
    """Return one row of the table."""
    model = load(path)
    place = str(Path(path).with_name("data.npz")) if data == "beside" else data
    feeds = generate(model) if place is None else load_data(place, model)
    name, options = WAYS[way]
    with Proof.opened(model, feeds) as proof:
        run = Pipeline([create("fold-batchnorm"), create(name, **options)], proof.data, None).run(proof.source)
        result = proof.compare(proof.source, run.after.model, Lossy(-math.inf), SAMPLES)
        sides = [list(proof.outputs(each, SAMPLES).read()) for each in (proof.source, run.after.model)]
    power, spread = [], []
    for output, value in sides[0][0].items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
            r, c = (np.concatenate([np.ravel(batch[output]) for batch in side]).astype("f8") for side in sides)
            noise = np.square(r - c).sum()
            if noise:
                power.append(10 * math.log10(max(np.square(r).sum(), 1e-300) / noise))
                spread.append(10 * math.log10(max(r.size * r.var(), 1e-300) / noise))
    figures = [min(each, default=math.inf) for each in (power, spread)]
    figures.append(math.inf if result.sqnr_db is None else result.sqnr_db)
    agree = "" if result.agreement is None else f"{result.agreement:.1%}"
    where = result.where.partition(", ")[2] or "whole"
    label = Path(path).parent.name if data == "beside" else Path(path).stem
    return f"| {label} | {way} | " + " | ".join(f"{each:.1f}" for each in figures) + f" | {where} | {agree} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["int8", "static"])
    options = parser.parse_args()
    print("| model | way | power | spread | worst part | which | agree |\n|---|---|---|---|---|---|---|")
    for path in options.models:
        for way in options.ways:
            try:
                print(measure(path, options.data, way), flush=True)
            except GraphoptError as error:
                print(f"| {Path(path).stem} | {way} | {error} |", flush=True)


if __name__ == "__main__":
    main()
