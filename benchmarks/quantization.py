"""Static and weights-only quantization beside onnxruntime.quantization, on the same calibration data, as a table.

    python benchmarks/quantization.py [--samples 64] [MODEL DATA]...

Each tool quantizes in a process of its own, so that time and memory are its alone: processor seconds from the imports
to the end, and the largest resident set of the whole process. Accuracy is top-1 on the whole test split; latency is
ONNX Runtime's on one thread with optimizations on, the median of runs taken in turn.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from graphopt.model import load
from graphopt.runtime.feeds import Data, load_data

HOME = Path(__file__).resolve().parent.parent / "models"
TOOLS = ("graphopt", "graphopt-mul", "onnxruntime")


def quantize_with_graphopt(source: str, target: str, data: Data, samples: int, passes: list[Any]) -> None:
    """Fold, then quantize, without the checks of the pipeline."""
    from graphopt.graph import GraphView
    from graphopt.model import raise_opset, save

    model = load(source)
    for each in passes:
        view = GraphView(model, calibration=data.calibration())
        if (wanted := each.required_opset(view)) > model.opset:
            model = raise_opset(model, wanted)
            view = GraphView(model, calibration=data.calibration())
        each.apply(view)
    save(model, target)


def quantize_with_onnxruntime(source: str, target: str, data: Data, samples: int) -> None:
    """Preprocess, then static QDQ, per channel, unsigned activations."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(single(data, samples))

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        ready = str(Path(folder, "ready.onnx"))
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def single(data: Data, samples: int) -> Iterator[dict[str, Any]]:
    """Yield calibration samples one by one."""
    left = samples
    for feeds in data.calibration().batches(samples):
        count = len(next(iter(feeds.values())))
        for index in range(min(count, left)):
            yield {name: values[index : index + 1] for name, values in feeds.items()}
        left -= count


def quantize(tool: str, source: str, target: str, npz: str, samples: int) -> None:
    """Run one tool in this process and print what it cost, as JSON."""
    import onnxruntime.quantization  # noqa: F401  both tools start from the same imports

    from graphopt import create

    data = load_data(npz, load(source))
    last = create("quantize-weights", representation="mul")
    if tool == "graphopt":
        last = create("quantize-activations", samples=samples)
    passes = [create("fold-batchnorm"), last]
    start = time.process_time()
    if tool == "onnxruntime":
        quantize_with_onnxruntime(source, target, data, samples)
    else:
        quantize_with_graphopt(source, target, data, samples, passes)
    print(json.dumps({"seconds": time.process_time() - start, "bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Return the largest resident set that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def session(path: str) -> ort.InferenceSession:
    """Open a model as a user would, on one thread."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def accuracy(path: str, data: Data) -> float:
    """Return top-1 in percent over all samples."""
    run, labels = session(path), data.labels
    assert labels is not None, "the data have no labels"
    found = [run.run(None, feeds)[0].argmax(axis=-1) for feeds in data.batches()]
    return float(100 * (np.concatenate(found) == labels).mean())


def latencies(paths: dict[str, str], data: Data, runs: int = 300) -> dict[str, float]:
    """Return the median time of one sample in milliseconds; the models take turns."""
    feeds = next(single(data, 1))
    sessions = {name: session(path) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(runs):
        for name, each in sessions.items():
            start = time.perf_counter()
            each.run(None, feeds)
            times[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def compare(source: str, npz: str, samples: int, show: Callable[[str], None]) -> None:
    """Quantize one model with every tool and show a line for each."""
    data = load_data(npz, load(source))
    with tempfile.TemporaryDirectory() as folder:
        paths, costs = {"float": source}, {"float": {"seconds": 0.0, "bytes": 0}}
        for tool in TOOLS:
            paths[tool] = str(Path(folder, f"{tool}.onnx"))
            command = [sys.executable, __file__, "--one", tool, source, paths[tool], npz, "--samples", str(samples)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            costs[tool] = json.loads(told.splitlines()[-1])
        spent = latencies(paths, data)
        for name, path in paths.items():
            size = Path(path).stat().st_size / Path(source).stat().st_size
            figures = f"{accuracy(path, data):.2f} | {spent[name]:.3f} | {size:.3f}"
            cost = f"{costs[name]['seconds']:.2f} | {costs[name]['bytes'] / 1e6:.0f}"
            show(f"| {Path(source).stem} | {name} | {samples} | {figures} | {cost} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="models and data, in turn")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        quantize(chosen.one, *chosen.files, chosen.samples)
        return
    files = chosen.files or [
        str(HOME / name)
        for each in ("fmnist_resnet14_bn", "fmnist_mobilenetv2s_bn")
        for name in (f"{each}.onnx", "fashion_mnist.npz")
    ]
    print("| model | tool | samples | top-1 % | ms | size | CPU seconds | peak MB |", flush=True)
    print("|---|---|---|---|---|---|---|---|")
    for source, npz in zip(files[::2], files[1::2], strict=True):
        compare(source, npz, chosen.samples, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
