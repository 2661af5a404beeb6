"""Quantizes models weights-only (two forms) and statically, and runs every result in three runtimes, as a table.

    python benchmarks/quantization_zoo.py [--reference-mb 6] MODEL...

A cell is the file's share of the original and the ratio of the outputs to their error in decibels, taken with ONNX
Runtime's optimizations off, on inputs that are generated: noise, so the figures say that a model runs and how far it
moved, not what it is worth. "all" ran: ONNX Runtime with optimizations off and on, OpenVINO and, for files of up to
``--reference-mb``, ONNX's ReferenceEvaluator. A runtime that does not run the original either is left out, and named.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import openvino
from onnx.reference import ReferenceEvaluator

import graphopt
from graphopt.contract import Lossy
from graphopt.model import load, save
from graphopt.numerics.compare import Comparer
from graphopt.runtime.feeds import Data, Feeds, generate
from graphopt.runtime.session import Session

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "dq": ("quantize-weights", {}),
    "mul": ("quantize-weights", {"representation": "mul"}),
    "static": ("quantize-activations", {"samples": 8}),
}


def quantize(source: str, target: Path, variant: str, data: Data) -> None:
    """Fold BatchNormalization and quantize, without the checks of the pipeline: what breaks must show."""
    name, options = VARIANTS[variant]
    passes = [graphopt.create("fold-batchnorm"), graphopt.create(name, **options)]
    result = graphopt.optimize(source, passes, data, check=False)
    if not result.ok:
        raise RuntimeError("; ".join(result.report.failures))
    save(result.optimized, target)


def run_openvino(path: Path, feeds: Feeds) -> None:
    """Run a model in OpenVINO."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_NUM_THREADS": 1})
    compiled([feeds[port.get_any_name()] for port in compiled.inputs])


def run_reference(path: Path, feeds: Feeds) -> None:
    """Run a model in ONNX's own evaluator."""
    with np.errstate(all="ignore"):
        ReferenceEvaluator(str(path)).run(None, feeds)


RUNTIMES: dict[str, Callable[[Path, Feeds], object]] = {
    "ONNX Runtime": lambda path, feeds: Session(path, optimize=False, threads=1).run(feeds),
    "ONNX Runtime optimized": lambda path, feeds: Session(path, optimize=True, threads=1).run(feeds),
    "OpenVINO": run_openvino,
    "ReferenceEvaluator": run_reference,
}


def failure(runtime: str, path: Path, feeds: Feeds) -> str:
    """Say how a runtime fails on a model."""
    try:
        RUNTIMES[runtime](path, feeds)
    except Exception as error:  # whatever a runtime raises is a finding
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def sqnr(source: Path, target: Path, data: Data) -> str:
    """Return the whole net's ratio of signal to error, least over its outputs."""
    comparer = Comparer(Lossy(0))
    before, after = Session(source, threads=1), Session(target, threads=1)
    for feeds in data.batches(2):
        comparer.add(before.run(feeds), after.run(feeds))
    found = comparer.result().sqnr_db
    return "exact" if found is None else f"{found:.1f}"


def judge(source: str, folder: Path, reference_bytes: float) -> tuple[str, list[str]]:
    """Return a model's line of the table, and what failed."""
    data = generate(load(source))
    feeds = next(data.batches(1))
    small = Path(source).stat().st_size <= reference_bytes
    runtimes = [each for each in RUNTIMES if small or each != "ReferenceEvaluator"]
    unable = [each for each in runtimes if failure(each, Path(source), feeds)]
    cells, problems = [], []
    for variant in VARIANTS:
        target = folder / f"{variant}.onnx"
        try:
            quantize(source, target, variant, data)
            onnx.checker.check_model(str(target), full_check=True)
            share = target.stat().st_size / Path(source).stat().st_size
            cells.append(f"{share:.3f} | {sqnr(Path(source), target, data)}")
        except Exception as error:  # whatever fails on one model must not end the table
            cells.append("fails | ")
            problems.append(f"{variant}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        for runtime in runtimes:
            if runtime not in unable and (problem := failure(runtime, target, feeds)):
                problems.append(f"{variant}, {runtime}: {problem}")
    ran = "no: see below" if problems else "all" if small else "all but the reference"
    ran += "".join(f"; {each} does not run the original" for each in unable)
    return f"| {Path(source).stem} | {' | '.join(cells)} | {ran} |", problems


def main() -> int:
    """Read the command line; status 1 if a result does not run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--reference-mb", type=float, default=6.0)
    chosen = parser.parse_args()
    bad = 0
    print(
        "| model | dq: size | dB | mul: size | dB | static: size | dB | ran |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for source in chosen.models:
        with tempfile.TemporaryDirectory() as folder:
            line, problems = judge(source, Path(folder), chosen.reference_mb * 1e6)
        print(line, flush=True)
        for text in problems:
            print(f"    {text}", file=sys.stderr, flush=True)
        bad += bool(problems)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
