"""Measures what a proved run of graphopt costs on given models: time, CPU time and peak anonymous memory.

    python benchmarks/proving.py MODEL... [--graphopt PATH] [--data] [--json FILE] [-- PASS OPTIONS]

Each run is a whole process, ``graphopt optimize MODEL RESULT PASS OPTIONS``, with ``quantize-weights`` where nothing
follows ``--``. Runs go one behind the other. Memory is that of anonymous pages (``RssAnon``), which the system cannot
drop and read again from a file, summed over the process and all that it starts, every 20 ms; the peak that the kernel
keeps (``VmHWM``) counts mapped files too. Only Linux has these figures.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

INTERVAL = 0.02


@dataclass(frozen=True)
class Proof:
    """One run: seconds, peak bytes of anonymous memory, bytes of the model before and after, and what was said."""

    model: str
    call: str
    seconds: float
    cpu_seconds: float
    anonymous: int
    before: int
    after: int
    status: int
    verdict: str


class Tree:
    """A process that leads a session, and all that it started."""

    def __init__(self, leader: int) -> None:
        """Take the process's id."""
        self.leader = leader
        self.others: set[str] = set()

    def processes(self) -> Iterator[int]:
        """Yield the ids of those that run now."""
        for name in os.listdir("/proc"):
            if not name.isdigit() or name in self.others:
                continue
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[3]) == self.leader:
                yield int(name)
            else:
                self.others.add(name)


def anonymous(process: int) -> int:
    """Return the anonymous memory of a process in bytes, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def size(model: Path) -> int:
    """Return the bytes of a model, with those of the external data beside it (files named after it)."""
    return sum(file.stat().st_size for file in model.parent.glob(f"{model.name}*"))


def verdict(output: str) -> str:
    """Return what graphopt reports: its first error, else the check of the whole run, else its last line."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("graphopt: ")]
    checks = [line for line in lines if line.startswith("check ")]
    return (errors or checks or lines[-1:] or ["nothing"])[0]


def prove(graphopt: str, model: Path, call: list[str], data: Path | None, log: Path | None) -> Proof:
    """Run graphopt once on a model and measure it."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.onnx"
        command = [graphopt, "optimize", str(model), str(target), *(["--data", str(data)] if data else []), *call]
        with (Path(folder) / "output").open("w+") as output:
            start, before, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            tree = Tree(process.pid)
            while process.poll() is None:
                peak = max(peak, sum(map(anonymous, tree.processes())))
                time.sleep(INTERVAL)
            seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            output.seek(0)
            said = output.read()
        if log:
            with log.open("a") as kept:
                kept.write(f"$ {' '.join(command)}\n{said}\n")
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        name = model.parent.name if model.name == "model.onnx" else model.stem
        result = size(target) if target.exists() else 0
        said = verdict(said)
        return Proof(name, " ".join(call), seconds, spent, peak, size(model), result, process.returncode, said)


def main() -> None:
    """Print one row per model and, with ``--json``, write every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model files")
    parser.add_argument("--graphopt", default="graphopt", help="the command to measure (graphopt)")
    parser.add_argument("--data", action="store_true", help="prove on the data.npz beside each model")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    parser.add_argument("--log", type=Path, help="a file to append what graphopt prints to")
    arguments, call = sys.argv[1:], ["quantize-weights"]
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, call = arguments[:cut], arguments[cut + 1 :]
    options = parser.parse_args(arguments)
    print("| model | MB before, after | seconds | CPU seconds | peak anonymous MB | exit | what it says |")
    print("|---|---|---|---|---|---|---|")
    proofs = []
    for model in options.models:
        data = model.parent / "data.npz" if options.data else None
        proof = prove(options.graphopt, model, call, data, options.log)
        proofs.append(asdict(proof))
        print(
            f"| {proof.model} | {proof.before / 1e6:.1f}, {proof.after / 1e6:.1f} | {proof.seconds:.1f} "
            f"| {proof.cpu_seconds:.1f} | {proof.anonymous / 1e6:.0f} | {proof.status} | {proof.verdict} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(proofs, indent=1))


if __name__ == "__main__":
    main()
