"""Measure graph clean-up beside onnxsim, onnxslim, onnxscript's optimizer and ONNX Runtime's basic level.

Every figure is a whole process, import and file reading and writing included. The peers live in an environment of their
own, made with ``python -m venv PEERS && PEERS/bin/pip install onnxsim==0.8.1 onnxslim==0.1.98 onnxscript==0.7.2
onnxruntime``; then ``python benchmarks/cleanup.py FOLDER --peers PEERS/bin/python``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OURS = ("graphopt", "graphopt checked")
PEERS = {
    "onnxsim": "import onnxsim,onnx,sys; m,_=onnxsim.simplify(onnx.load(sys.argv[1])); onnx.save(m,sys.argv[2])",
    "onnxslim": "import onnxslim,sys; onnxslim.slim(sys.argv[1],sys.argv[2])",
    "onnxscript": (
        "import onnx,sys,onnxscript.optimizer as o,onnxscript.rewriter as r; "
        "onnx.save(r.rewrite(o.optimize(onnx.load(sys.argv[1]))),sys.argv[2])"
    ),
    "ort basic": (
        "import sys,onnxruntime as r; s=r.SessionOptions(); s.log_severity_level=3; "
        "s.graph_optimization_level=r.GraphOptimizationLevel.ORT_ENABLE_BASIC; "
        "s.optimized_model_filepath=sys.argv[2]; r.InferenceSession(sys.argv[1],s,['CPUExecutionProvider'])"
    ),
}


AT_RUN_TIME = """
import onnx, onnxruntime as r, sys, tempfile
s = r.SessionOptions()
s.log_severity_level = 4
with tempfile.TemporaryDirectory() as folder:
    s.optimized_model_filepath = f"{folder}/optimized.onnx"
    s.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
    s.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    r.InferenceSession(sys.argv[1], s, ["CPUExecutionProvider"])
    onnx.save(onnx.load(s.optimized_model_filepath, load_external_data=False), sys.argv[2])
"""


COUNT = """
import onnx, sys
def count(nodes):
    bodies = [a.g.node for node in nodes for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return sum(node.op_type != "Constant" for node in nodes) + sum(map(count, bodies))
model = onnx.load(sys.argv[1], load_external_data=False)
print(count(model.graph.node) + sum(count(function.node) for function in model.functions))
"""


@dataclass(frozen=True)
class Run:
    """One tool on one model: nodes of the result (None if there is none), time, peak memory, file size.

    ``nodes`` are those in the file, ``run`` those that ONNX Runtime runs of it with default options.
    """

    nodes: int | None
    run: int | None
    seconds: float
    cpu_seconds: float
    megabytes: float
    size: int


def count_nodes(path: Path) -> int:
    """Count nodes, those of subgraphs and functions included and Constant nodes left out.

    In a process of its own: a process's peak memory is inherited by those it starts, so this one stays small.
    """
    return int(subprocess.run([sys.executable, "-c", COUNT, path], check=True, capture_output=True).stdout)


def count_at_run_time(path: Path) -> int | None:
    """Count the nodes that are left after ONNX Runtime's default optimizations; None if it does not load the model."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as dump:
        done = subprocess.run([sys.executable, "-c", AT_RUN_TIME, path, dump.name], capture_output=True)
        return count_nodes(Path(dump.name)) if done.returncode == 0 else None


def measure(command: Sequence[str], target: Path, bytecode: Path) -> Run:
    """Run a process; return what it wrote and what it took.

    Python keeps the bytecode of every tool in the folder ``bytecode``, so that none is compiled anew in each run.
    """
    target.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = kept | {"PYTHONPYCACHEPREFIX": str(bytecode)}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    wrote = target.exists() and process.returncode == 0
    return Run(
        count_nodes(target) if wrote else None,
        count_at_run_time(target) if wrote else None,
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / 1024,
        target.stat().st_size if wrote else 0,
    )


def command(tool: str, peers: str, source: Path, target: Path) -> list[str]:
    """Return the command line that cleans ``source`` into ``target`` with ``tool``."""
    if tool in PEERS:
        return [peers, "-c", PEERS[tool], str(source), str(target)]
    call = [sys.executable, "-m", "graphopt", "optimize", str(source), str(target), "--preset", "clean"]
    return call + ([] if tool == "graphopt checked" else ["--no-check"])


def main() -> None:
    """Print one row per model and, with ``--json``, write every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model files, or folders of them")
    parser.add_argument("--peers", help="the Python that the peers are installed in; without it, graphopt alone")
    parser.add_argument("--tools", nargs="*", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--repeat", type=int, default=1, help="take the best of so many runs, by CPU time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tools = [tool for tool in options.tools if options.peers or tool not in PEERS]
    sources = [file for path in options.models for file in (sorted(path.glob("*.onnx")) if path.is_dir() else [path])]
    table: dict[str, dict[str, dict[str, float | int | None]]] = {}
    print("nodes in the file / at run time / seconds / CPU seconds / MB  ", " | ".join(tools))
    with tempfile.TemporaryDirectory() as folder:
        target, bytecode = Path(folder) / "clean.onnx", Path(folder) / "bytecode"
        for tool in tools:  # not counted: it fills the bytecode and the page cache
            measure(command(tool, options.peers or "", sources[0], target), target, bytecode)
        for source in sources:
            before, run_before = count_nodes(source), count_at_run_time(source)
            runs = {}
            for tool in tools:
                call = command(tool, options.peers or "", source, target)
                runs[tool] = min(
                    (measure(call, target, bytecode) for _ in range(options.repeat)), key=lambda run: run.cpu_seconds
                )
            cells = [
                f"{run.nodes} / {run.run} / {run.seconds:.2f} / {run.cpu_seconds:.2f} / {run.megabytes:.0f}"
                for run in runs.values()
            ]
            print(f"{source.stem} {before} / {run_before} -> ", " | ".join(cells), flush=True)
            original = {"nodes": before, "run": run_before}
            table[source.stem] = {"before": original} | {tool: vars(run) for tool, run in runs.items()}
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
