"""Optimizes real architectures and runs every result wherever ONNX runs; prints a line for each, status 1 on a failure.

    python tests/zoo/run.py [--no-reference] [NAME ...] [-- PASS ...]     # no NAME: all; no PASS: the three by default
    python tests/zoo/run.py -- zero-channels:criterion=random,ratio=0.3 prune-channels      # options, in TOML's values

A result has to hold its contract, contain only operators of the default domain, and run in ONNX Runtime with
optimizations on and off, in onnx's ReferenceEvaluator (``--no-reference`` leaves it out: it is slow) and in OpenVINO,
with the same outputs. What does not run the original either is only told. A detection model's outputs are not compared
between runtimes: a rounding error changes choices. OpenVINO runs in its accuracy mode, else it quantizes activations
in front of 8-bit weights; ONNX Runtime's fusions do likewise, so with optimizations on only a ratio is asked for.
"""

import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import openvino
from onnx.reference import ReferenceEvaluator
from rehydrate import names, rehydrate

import graphopt
from graphopt.contract import Contract, Lossy
from graphopt.numerics.compare import Comparer
from graphopt.report import Report
from graphopt.runtime.feeds import Feeds, generate
from graphopt.runtime.session import Session

SAME = Lossy(50)
"""What two runtimes may differ by on one model: drawn weights can blow rounding errors up to a thousandth."""

FUSED = Lossy(30)
"""What ONNX Runtime may lose with its optimizations on."""

CHOOSING = ("ssdlite320_mobilenet_v3_op17",)


def run_reference(path: Path, feeds: Feeds) -> Feeds:
    """Run a model in onnx's own evaluator."""
    evaluator = ReferenceEvaluator(str(path))
    with np.errstate(all="ignore"):
        values = evaluator.run(None, feeds)
    return dict(zip(evaluator.output_names, values, strict=True))


def run_openvino(path: Path, feeds: Feeds) -> Feeds:
    """Run a model in OpenVINO."""
    core = openvino.Core()
    settings = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": 2}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    values = compiled([feeds[port.get_any_name()] for port in compiled.inputs])
    names_ = [info.name for info in onnx.load(path, load_external_data=False).graph.output]
    return {name: values[port] for name, port in zip(names_, compiled.outputs, strict=True)}


def run_optimized(path: Path, feeds: Feeds) -> Feeds:
    """Run a model in ONNX Runtime, optimizations on."""
    return Session(path, optimize=True).run(feeds)


RUNTIMES: dict[str, tuple[Callable[[Path, Feeds], Feeds], Contract]] = {
    "ONNX Runtime, optimized": (run_optimized, FUSED),
    "OpenVINO": (run_openvino, SAME),
    "ReferenceEvaluator": (run_reference, SAME),
}


def disagreement(runtime: str, path: Path, feeds: Feeds) -> str:
    """Say how a runtime fails on a model or gives other outputs than ONNX Runtime without optimizations."""
    run, contract = RUNTIMES[runtime]
    expected = Session(path).run(feeds)
    try:
        actual = run(path, feeds)
    except Exception as error:  # whatever a runtime raises is a finding
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if path.stem in CHOOSING:
        return ""
    comparer = Comparer(contract)
    comparer.add(expected, {key: np.asarray(value).astype(expected[key].dtype) for key, value in actual.items()})
    return comparer.result().problem


def judge(
    name: str, folder: Path, passes: list[graphopt.Pass] | None, reference: bool
) -> tuple[list[str], list[str], str]:
    """Optimize one architecture; return what is wrong with the result, what is worth telling, and a line of figures."""
    start = time.perf_counter()
    original, path = folder / "original" / f"{name}.onnx", folder / f"{name}.onnx"
    original.parent.mkdir()
    onnx.save(rehydrate(name), original)
    result = graphopt.optimize(original, passes)
    seconds = time.perf_counter() - start
    graphopt.save(result.optimized, path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    wrong, told = list(result.report.failures), []
    wrong += [f"domain {entry.domain!r}" for entry in proto.opset_import if entry.domain not in ("", "ai.onnx")]
    feeds = next(generate(result.optimized).batches(1))
    for runtime in RUNTIMES:
        if runtime == "ReferenceEvaluator" and not reference:
            continue
        if problem := disagreement(runtime, path, feeds):
            same = disagreement(runtime, original, feeds)
            (told if same else wrong).append(f"{runtime}: {problem}" + (f" (the original: {same})" if same else ""))
    return wrong, told, figures(result.report) + f", {seconds:.0f} s"


def create(word: str) -> graphopt.Pass:
    """Create a pass from ``name:option=value,option=value``; a value that is no TOML is a text."""
    name, _, settings = word.partition(":")
    options = {}
    for pair in filter(None, settings.split(",")):
        key, _, value = pair.partition("=")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = value
    return graphopt.create(name, **options)


def figures(report: Report) -> str:
    """Return a report's figures in one line."""
    before, after, check = report.before, report.after, report.check
    counts = ", ".join(
        f"{each.name} {len(each.result.rewritten)}/{len(each.result.skipped)}"
        + (f" moved {each.check.max_rel:.1g}" if each.check and not each.check.contract.startswith("lossy") else "")
        for each in report.passes
    )
    sqnr = "exact" if check is None or check.sqnr_db is None else f"{check.sqnr_db:.1f} dB"
    sizes = f"{after.parameters / before.parameters:.3f} of parameters, {after.bytes / before.bytes:.3f} of bytes"
    return f"{sizes}, {sqnr}, rewritten/skipped {counts}"


def main() -> int:
    """Run the architectures that the command line names."""
    words = sys.argv[1:]
    passes = [create(word) for word in words[words.index("--") + 1 :]] if "--" in words else None
    words = words[: words.index("--")] if "--" in words else words
    reference = "--no-reference" not in words
    chosen = [word for word in words if word != "--no-reference"] or names()
    bad = 0
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            wrong, told, line = judge(name, Path(folder), passes, reference)
        print(f"{'FAIL' if wrong else 'ok  '} {name}: {line}", flush=True)
        for text in [*wrong, *(f"told: {each}" for each in told)]:
            print(f"     {text}", flush=True)
        bad += bool(wrong)
    print(f"{len(chosen) - bad} of {len(chosen)} hold")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
