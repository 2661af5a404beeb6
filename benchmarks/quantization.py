"""Static and weights-only quantization beside onnxruntime.quantization, on the same calibration data, as a table.

    python benchmarks/quantization.py [--samples 64] [--draws 8] [MODEL DATA]...

Each tool quantizes in a process of its own, so that time and memory are its alone: processor seconds from the imports
to the end, and the largest resident set of the whole process, the medians over the draws. A draw is a set of samples to
calibrate with: the calibration split's first, then samples drawn from the test split without their labels. One draw
proves little, quantized nets differ from float on some 30 of 10,000 images. So top-1 on the whole test split, the share
of samples on which a net says what float says, and the ratio of logits to their error are given for the first draw and
in the mean over all. Latency is ONNX Runtime's on one thread with optimizations on, the median of runs taken in turn.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from graphopt.model import load
from graphopt.runtime.data import ArrayData
from graphopt.runtime.feeds import Data, load_data

HOME = Path(__file__).resolve().parent.parent / "models"
TOOLS = ("graphopt", "graphopt-mul", "onnxruntime")
CALIBRATED = ("graphopt", "onnxruntime")
Array = NDArray[np.float64]


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


def drawn(data: Data, samples: int, draw: int) -> Data:
    """Return the data with another calibration split; draw 0 is the one that they have."""
    if not draw:
        return data
    assert isinstance(data, ArrayData)
    chosen = np.sort(np.random.default_rng(draw).choice(data.size, samples, replace=False))
    stored = {name: replace(each, values=each.values[chosen]) for name, each in data.stored.items()}
    return replace(data, split=replace(data, stored=stored, size=samples, labels=None))


def quantize(tool: str, source: str, target: str, npz: str, samples: int, draw: int) -> None:
    """Run one tool in this process and print what it cost, as JSON."""
    import onnxruntime.quantization  # noqa: F401  both tools start from the same imports

    from graphopt import create

    data = drawn(load_data(npz, load(source)), samples, draw)
    last = create("quantize-weights", representation="mul")
    if tool == "graphopt":
        last = create("quantize-activations", samples=samples)
    passes = [create("fold-batchnorm"), last]
    start = time.process_time()
    if tool == "onnxruntime":
        quantize_with_onnxruntime(source, target, data, samples)
    else:
        quantize_with_graphopt(source, target, data, samples, passes)
    print(json.dumps({"seconds": time.process_time() - start, "MB": peak_bytes() / 1e6}))


def peak_bytes() -> int:
    """Return the largest resident set that this process has had; getrusage counts what it was before exec, too."""
    told = Path("/proc/self/status").read_text()
    return 1024 * int(told.split("VmHWM:")[1].split()[0])


def session(path: str) -> ort.InferenceSession:
    """Open a model as a user would, on one thread."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def logits(path: str, data: Data) -> Array:
    """Return what a model says of every sample."""
    run = session(path)
    return np.concatenate([run.run(None, feeds)[0] for feeds in data.batches()]).astype(np.float64)


def judge(found: Array, right: Array, data: Data) -> dict[str, float]:
    """Return top-1 and the share of answers that are those of float, in percent, and the ratio to the error in dB."""
    answers = found.argmax(axis=-1)
    noise = max(float(np.square(found - right).sum()), 1e-300)
    return {
        "top-1": float(100 * (answers == data.labels).mean()),
        "as float": float(100 * (answers == right.argmax(axis=-1)).mean()),
        "dB": float(10 * np.log10(np.square(right).sum() / noise)),
    }


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


def compare(source: str, npz: str, samples: int, draws: int, show: Callable[[str], None]) -> None:
    """Quantize one model with every tool and show a line for each."""
    data = load_data(npz, load(source))
    assert data.labels is not None, "the data have no labels"
    right = logits(source, data)
    with tempfile.TemporaryDirectory() as folder:
        rows: dict[str, list[dict[str, float]]] = {"float": [judge(right, right, data)]}
        paths = {"float": source}
        for tool in TOOLS:
            rows[tool], paths[tool] = [], str(Path(folder, f"{tool}-0.onnx"))
            for draw in range(draws if tool in CALIBRATED else 1):
                path = str(Path(folder, f"{tool}-{draw}.onnx"))
                words = ["--one", tool, source, path, npz, "--samples", str(samples), "--draws", str(draw)]
                run = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
                rows[tool].append(json.loads(run.stdout.splitlines()[-1]) | judge(logits(path, data), right, data))
        spent = latencies(paths, data)
        for name, path in paths.items():
            size = Path(path).stat().st_size / Path(source).stat().st_size
            show(f"| {Path(source).stem} | {name} | {samples} | {line(rows[name])} | {spent[name]:.3f} | {size:.3f} |")


def line(rows: list[dict[str, float]]) -> str:
    """Return the figures of one tool, first draw and mean of all where they differ."""
    cells = []
    for name, digits in {"top-1": 2, "as float": 2, "dB": 1}.items():
        mean = statistics.mean(row[name] for row in rows)
        cells.append(f"{rows[0][name]:.{digits}f}" + (f" / {mean:.{digits}f}" if len(rows) > 1 else ""))
    if "seconds" in rows[0]:
        cells += [
            f"{statistics.median(row[name] for row in rows):.{n}f}" for name, n in {"seconds": 2, "MB": 1}.items()
        ]
    else:
        cells = [cells[0], "", "", "", ""]
    return " | ".join(cells)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="models and data, in turn")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        quantize(chosen.one, *chosen.files, chosen.samples, chosen.draws)
        return
    files = chosen.files or [
        str(HOME / name)
        for each in ("fmnist_resnet14_bn", "fmnist_mobilenetv2s_bn")
        for name in (f"{each}.onnx", "fashion_mnist.npz")
    ]
    print("| model | tool | samples | top-1 % | as float % | dB | CPU seconds | peak MB | ms | size |", flush=True)
    print("|---|---|---|---|---|---|---|---|---|---|")
    for source, npz in zip(files[::2], files[1::2], strict=True):
        compare(source, npz, chosen.samples, chosen.draws, lambda row: print(row, flush=True))


if __name__ == "__main__":
    main()
