"""Measure loading and saving: memory and time on big models beside onnx and onnx-ir, cost per node on long chains.

Usage:
    python benchmarks/model_io.py memory [--folder DIR] [--scale 1.0]
    python benchmarks/model_io.py chains [--nodes 1000 10000 100000]

Needs onnx-ir for ``memory``. Every measurement runs in a process of its own; memory is the peak of its anonymous
memory (RssAnon), sampled from outside every 5 ms; what is mapped from files can be dropped by the system any time.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphopt.graph import GraphView
from graphopt.model import Model, load, save
from graphopt.model.order import sort_nodes

SIDE = 5000


# -- memory ------------------------------------------------------------------------------------------------------------


def write_chain_of_matmul(path: Path, count: int, side: int, external: bool) -> None:
    """Write ``count`` MatMul of side x side drawn weights, one after the other."""
    nodes, weights = [], []
    for index in range(count):
        nodes.append(helper.make_node("MatMul", [f"t{index}", f"w{index}"], [f"t{index + 1}"], f"n{index}"))
        weights.append(TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[side, side]))
    value = helper.make_tensor_value_info
    ends = [value("t0", TensorProto.FLOAT, ["n", side])], [value(f"t{count}", TensorProto.FLOAT, ["n", side])]
    model = helper.make_model(helper.make_graph(nodes, "chain", *ends, weights), ir_version=10)
    model.opset_import[0].version = 21
    generator = np.random.default_rng(0)
    if not external:
        for weight in model.graph.initializer:
            weight.raw_data = generator.standard_normal((side, side), dtype=np.float32).tobytes()
        path.write_bytes(model.SerializeToString())
        return
    size = side * side * 4
    with path.with_name(path.name + ".data").open("wb") as file:
        for index, weight in enumerate(model.graph.initializer):
            file.write(generator.standard_normal((side, side), dtype=np.float32).tobytes())
            weight.data_location = TensorProto.EXTERNAL
            entries = (("location", path.name + ".data"), ("offset", index * size), ("length", size))
            for key, text in entries:
                weight.external_data.add(key=key, value=str(text))
    path.write_bytes(model.SerializeToString())


def with_onnx(source: str, target: str, external: bool) -> None:
    """Load and save with plain onnx."""
    model = onnx.load(source)
    onnx.save(model, target, save_as_external_data=external, location=Path(target).name + ".data")


def with_onnx_ir(source: str, target: str, external: bool) -> None:
    """Load and save with onnx-ir."""
    import onnx_ir

    model = onnx_ir.load(source)
    onnx_ir.save(model, target, external_data=Path(target).name + ".data" if external else None)


def with_graphopt(source: str, target: str, external: bool) -> None:
    """Load and save with graphopt."""
    save(load(source), target, "always" if external else "never")


def quantized_by_hand(source: str, target: str, external: bool) -> None:
    """Load with graphopt, turn every weight into int8 and a scale per column, save."""
    model = load(source)
    edit = GraphView(model).edit
    for node in list(model.graph.nodes):
        weight = node.inputs[1]._values.load()
        scale = np.maximum(np.abs(weight).max(axis=0), 1e-9) / np.float32(127)
        rounded = np.empty(weight.shape, np.int8)
        for row in range(0, len(weight), 256):
            rounded[row : row + 256] = np.rint(weight[row : row + 256] / scale)
        inputs = [edit.constant(f"{node.name}_q", rounded), edit.constant(f"{node.name}_s", scale)]
        edit.set_input(node, 1, edit.add_node(node, "DequantizeLinear", inputs, attrs={"axis": 1}).outputs[0])
    edit.settle()
    save(model, target, "always" if external else "never")


def quantized_by_the_pass(source: str, target: str, external: bool) -> None:
    """Load with graphopt, run quantize-weights, save."""
    from graphopt.registry import create

    model = load(source)
    create("quantize-weights").apply(GraphView(model))
    save(model, target, "always" if external else "never")


WAYS: dict[str, Callable[[str, str, bool], None]] = {
    "onnx": with_onnx,
    "onnx-ir": with_onnx_ir,
    "graphopt": with_graphopt,
    "graphopt, all weights to int8": quantized_by_hand,
    "graphopt, quantize-weights": quantized_by_the_pass,
}


def anonymous_memory(pid: int) -> float:
    """Return the anonymous memory of a process in MB, 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0.0)


def measure(way: str, source: Path, target: Path, external: bool) -> tuple[float, float]:
    """Run one way in a process of its own; return seconds (without imports) and the peak in MB."""
    command = [sys.executable, __file__, "child", way, str(source), str(target), str(int(external))]
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            peak = max(peak, anonymous_memory(child.pid))
            time.sleep(0.005)
        assert child.stdout is not None
        text = child.stdout.read()
    if child.returncode:
        raise SystemExit(f"{way} failed")
    return float(text), peak


def memory(folder: Path, scale: float) -> None:
    """Print time and memory of each way on a big external and a big inline model."""
    side = int(SIDE * scale**0.5)
    for label, count, external in (("external", 30, True), ("inline", 15, False)):
        source = folder / f"{label}.onnx"
        write_chain_of_matmul(source, count, side, external)
        size = sum(file.stat().st_size for file in folder.glob(f"{label}.onnx*"))
        print(f"\n{label}: {count} MatMul of {side}x{side}, {size / 2**20:.0f} MB")
        print(f"{'':32} {'s':>7} {'peak MB':>9} {'result MB':>10}")
        for way in WAYS:
            for file in folder.glob("target.onnx*"):
                file.unlink()
            seconds, peak = measure(way, source, folder / "target.onnx", external)
            result = sum(file.stat().st_size for file in folder.glob("target.onnx*"))
            print(f"{way:32} {seconds:7.1f} {peak:9.0f} {result / 2**20:10.0f}", flush=True)
        for file in folder.glob("*.onnx*"):
            file.unlink()


# -- chains ------------------------------------------------------------------------------------------------------------


def write_chain(path: Path, count: int) -> None:
    """Write a chain of Relu and Add with declared shapes."""
    model = onnx.ModelProto(ir_version=10)
    model.opset_import.add(version=17)
    value = helper.make_tensor_value_info
    model.graph.name = "chain"
    model.graph.input.append(value("t0", TensorProto.FLOAT, [4]))
    model.graph.output.append(value(f"t{count}", TensorProto.FLOAT, [4]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    for index in range(count):
        operands = [f"t{index}", "w"] if index % 2 else [f"t{index}"]
        kind = "Add" if index % 2 else "Relu"
        model.graph.node.add(op_type=kind, input=operands, output=[f"t{index + 1}"], name=f"n{index}")
        model.graph.value_info.append(value(f"t{index}", TensorProto.FLOAT, [4])) if index else None
    path.write_bytes(model.SerializeToString())


def timed(work: Callable[[], object]) -> float:
    """Return the CPU seconds of the fastest of three runs."""
    best = float("inf")
    for _ in range(3):
        gc.collect()
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def remove_half(model: Model) -> None:
    """Remove every Relu."""
    view = GraphView(model)
    for node in list(view.nodes("Relu")):
        view.edit.bypass(node)
    view.edit.settle()


def chains(sizes: list[int]) -> None:
    """Print the cost per node of each step at several sizes."""
    print("CPU microseconds per node")
    print(f"{'nodes':>8}", *(f"{step:>7}" for step in ("load", "copy", "sort", "remove", "save", "all")))
    with tempfile.TemporaryDirectory() as folder:
        for count in sizes:
            path = Path(folder) / "chain.onnx"
            write_chain(path, count)
            model = load(path)
            reversed_model = model.copy()
            copies = [model.copy() for _ in range(3)]

            def sort(scrambled: Model = reversed_model) -> None:
                scrambled.graph.nodes.reverse()
                sort_nodes(scrambled.graph)

            steps = [
                timed(lambda path=path: load(path)),
                timed(model.copy),
                timed(sort),
                timed(lambda copies=copies: remove_half(copies.pop())),
                timed(lambda model=model, path=path: save(model, path.with_name("target.onnx"))),
            ]
            print(f"{count:8}", *(f"{step / count * 1e6:7.1f}" for step in [*steps, sum(steps)]), flush=True)


def main() -> None:
    """Run one of the measurements."""
    if sys.argv[1:2] == ["child"]:
        way, source, target, external = sys.argv[2:]
        if way == "onnx-ir":
            import onnx_ir  # noqa: F401 # its import is not what is measured
        start = time.perf_counter()
        WAYS[way](source, target, external == "1")
        print(time.perf_counter() - start)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "chains"])
    parser.add_argument("--folder", type=Path, default=None, help="where the big models go")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the big models")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    if options.what == "memory":
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            memory(Path(folder), options.scale)
    else:
        chains(options.nodes)


if __name__ == "__main__":
    main()
