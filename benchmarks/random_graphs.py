"""Draws random graphs, runs every pass over each of them, and judges the results with plain ONNX Runtime.

    python benchmarks/random_graphs.py [--count 200] [--seed 0] [--jobs 2] [--only NAME...] [--show] [--save FOLDER]

A graph hangs on its seed alone: ``--seed 17 --count 1 --show`` draws that graph again and prints it. Each pass runs
without graphopt's own proof, and on a share of the graphs with it. Source and result then run at three sizes of the
free axes, overridable initializers fed other values, in a session without optimizations and in one with default
options. What an exact pass makes must be equal within the rounding that it promises; what a lossy one makes must load
and have the same types and shapes, and no new NaN or Inf where no operator of the graph makes one of finite numbers.
What breaks in a session with default options alone, where ONNX Runtime fuses wrongly now and then, must be found by
graphopt's own proof. Besides, what graphopt claims of shapes and small integers must be so.
"""

import argparse
import functools
import gc
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import onnx
from drawing.claims import wrong_claims
from drawing.forms import Drawn, draw_model
from drawing.judge import DEFAULT_SESSION, Judge, UnusableError
from onnx import printer

import graphopt
from graphopt.base import Pass
from graphopt.contract import Contract, Lossy, total_contract
from graphopt.model import Model, from_proto, to_proto
from graphopt.pipeline import Pipeline
from graphopt.presets import PRESETS, preset_passes
from graphopt.registry import create
from graphopt.runtime.batches import from_batches
from graphopt.trial import CRASHED

FORMS = (mutations.nameless, mutations.in_constant_nodes, mutations.behind_identity, mutations.in_function)

CLAIMS = "claims on shapes"
"""What is looked at beside the passes: what they all build on."""

NORMAL = "would not make the file smaller"
"""The one failure that says nothing against a pass."""

PROVED = 0.01
"""The share of runs that are made with graphopt's own proof too."""

Step = tuple[str, dict[str, Any]]
SETTINGS: dict[str, list[list[Step]]] = {
    "fold-batchnorm": [[("fold-batchnorm", {})]],
    "fold-affine": [[("fold-affine", {})], [("fold-affine", {"norms": False})]],
    "prune-channels": [
        [("prune-channels", {"multiple": 1})],
        [("zero-channels", {"ratio": 0.3}), ("prune-channels", {"multiple": 1})],
        [("zero-channels", {"ratio": 0.5, "criterion": "random"}), ("prune-channels", {"multiple": 1})],
    ],
    "equalize-channels": [[("equalize-channels", {})]],
    "fuse-operators": [[("fuse-operators", {})]],
    "fold-constants": [
        [("fold-constants", {})],
        [("fold-constants", {"allowance": 1 << 20})],
        [("quantize-weights", {"representation": "mul"}), ("fold-constants", {})],
    ],
    "eliminate-noops": [[("eliminate-noops", {})], [("quantize-activations", {}), ("eliminate-noops", {})]],
    "merge-duplicates": [[("merge-duplicates", {})], [("quantize-weights", {}), ("merge-duplicates", {})]],
    "drop-records": [[("drop-records", {})]],
    "eliminate-dead": [[("eliminate-dead", {})]],
    "fuse-pads": [[("fuse-pads", {})]],
    "inline-functions": [[("inline-functions", {})]],
    "freeze-initializers": [[("freeze-initializers", {}), ("fold-constants", {}), ("fold-batchnorm", {})]],
    "zero-channels": [
        [("zero-channels", {"ratio": 0.3, "scope": "global"})],
        [("zero-channels", {"ratio": 0.5, "criterion": "activation"})],
    ],
    "zero-weights": [[("zero-weights", {"ratio": 0.5})], [("zero-weights", {"pattern": "2:4"})]],
    "reconstruct": [[("zero-weights", {"ratio": 0.3}), ("reconstruct", {})]],
    "quantize-weights": [
        [("quantize-weights", {})],
        [("quantize-weights", {"dtype": "uint4", "symmetric": False, "block_size": 16})],
        [("quantize-weights", {"representation": "mul", "tables": "all"})],
        [("quantize-weights", {"rounding": "gptq", "bias_correction": True})],
    ],
    "quantize-activations": [
        [("quantize-activations", {})],
        [("quantize-activations", {"target": "generic", "range": "mse"})],
    ],
}
"""What is run, by name: one of several lists of passes with their options."""


@functools.cache
def chains() -> tuple[tuple[str, bool, list[list[Pass]]], ...]:
    """Return what is run: a name, whether it is repeated until nothing changes, and lists of passes to choose from."""
    single = [
        (name, False, [[create(each, **options) for each, options in steps] for steps in settings])
        for name, settings in SETTINGS.items()
    ]
    presets = [(name, *preset_passes(name)) for name in PRESETS]
    return (*single, *((f"preset {name}", repeated, [passes]) for name, passes, repeated in presets))


def findings(seed: int, only: Sequence[str], tally: Counter[str]) -> list[str]:
    """Draw one graph, run everything on it, and say what is wrong."""
    tally["drawn"] += 1
    try:
        drawn = draw_model(seed, FORMS)
        onnx.checker.check_model(drawn.proto, full_check=True)
        judge = Judge(drawn)
    except (UnusableError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return []
    tally["graphs"] += 1
    rng = np.random.default_rng([seed, 1])
    source = from_proto(drawn.proto)
    found = [f"{CLAIMS}: {wrong}"] if (not only or CLAIMS in only) and (wrong := wrong_claims(drawn)) else []
    for name, repeated, settings in chains():
        passes, proved = settings[int(rng.integers(len(settings)))], bool(rng.random() < PROVED)
        for check in (False, True) if proved else (False,):
            if only and name not in only:
                continue
            tally[f"{name}: {'proved' if check else 'runs'}"] += 1
            try:
                problem = _proved(drawn, judge, passes, repeated) if check else ""
                if not check:
                    sites, problem = _alone(source, drawn, judge, passes, repeated)
                    tally[f"{name}: sites"] += sites
                    if problem.startswith(DEFAULT_SESSION):  # ONNX Runtime fuses in many ways: is it proved away?
                        tally[f"{name}: fused otherwise"] += 1
                        problem = _proved(drawn, judge, passes, repeated)
            except Exception as error:  # whatever it is, it is what this looks for
                problem = f"raised {type(error).__name__}: {' '.join(str(error).split())[:500]}"
            if problem:
                found.append(f"{name}{', proved' if check else ''}: {problem}")
    return found


def _promise(passes: Sequence[Pass]) -> tuple[Contract, bool]:
    """Return what passes promise in all, and whether they make constants of what callers could feed."""
    return total_contract([each.contract for each in passes]), any(each.freezes for each in passes)


def _alone(source: Model, drawn: Drawn, judge: Judge, passes: list[Pass], repeated: int) -> tuple[int, str]:
    """Run passes without any proof; return how many sites were rewritten, and what is wrong, or nothing.

    An exact pass behind lossy ones is held to what these have made.
    """
    lossy = isinstance(_promise(passes)[0], Lossy)
    data = from_batches(list(drawn.feeds), source) if lossy else None
    if lossy and not isinstance(passes[-1].contract, Lossy):
        source = Pipeline(passes[:-1], data, None, keep_going=True).run(source).after.model
        proto = to_proto(source)
        drawn, passes = Drawn(proto, drawn.feeds, drawn.overrides), passes[-1:]
        judge = Judge(drawn)
    run = Pipeline(passes, data, None, keep_going=True, repeated=repeated).run(source)
    sites = sum(len(each.result.rewritten) for each in run.reports)
    failures = [f"{each.name}: {each.failure}" for each in run.reports if each.failure and NORMAL not in each.failure]
    if failures or not sites:
        return sites, "; ".join(failures)
    return sites, judge.problem(to_proto(run.after.model), *_promise(passes))


def _proved(drawn: Drawn, judge: Judge, passes: list[Pass], repeated: int) -> str:
    """Run passes as users do, and return what is wrong; an exact pass must then have nothing to confess."""
    lossy = isinstance(_promise(passes)[0], Lossy)
    data = list(drawn.feeds) if lossy else None
    result = graphopt.optimize(drawn.proto, passes, data, keep_going=True, fixed_point=repeated, latency=False)
    told = [each for each in result.report.passes if each.failure and NORMAL not in each.failure]
    failures = [f"{each.name}: {each.failure}" for each in told if not lossy or CRASHED in each.failure]
    return "; ".join(failures) or judge.problem(result.model, *_promise(passes))


def work(connection: Connection, seeds: list[int], only: list[str]) -> None:
    """Do seeds one after the other and send what comes of each."""
    warnings.simplefilter("ignore")
    gc.disable()  # graphs are cycles throughout: once for each seed is enough
    for seed in seeds:
        connection.send((seed, None, {}))
        tally: Counter[str] = Counter()
        connection.send((seed, findings(seed, only, tally), dict(tally)))
        gc.collect()
    connection.close()


def run(seeds: list[int], jobs: int, only: list[str]) -> Iterator[tuple[int, list[str], dict[str, int]]]:
    """Yield what comes of each seed, computed in ``jobs`` processes; one that dies is a finding, and is begun anew."""
    context = multiprocessing.get_context("spawn")
    waiting: dict[Connection, list[int]] = {}

    def begin(part: list[int]) -> None:
        here, there = context.Pipe(duplex=False)
        context.Process(target=work, args=(there, part, only), daemon=True).start()
        there.close()
        waiting[here] = part

    for job in range(jobs):
        begin(seeds[job::jobs])
    while waiting:
        for connection in wait(list(waiting)):
            assert isinstance(connection, Connection)
            try:
                seed, found, tally = connection.recv()
            except EOFError:
                rest = waiting.pop(connection)
                if rest:
                    yield rest[0], ["the process died"], {}
                    begin(rest[1:])
                continue
            if found is not None:
                waiting[connection].remove(seed)
                yield seed, found, tally


def main() -> int:
    """Run the command; return 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--show", action="store_true", help="print the graphs themselves")
    parser.add_argument("--save", type=Path, help="write the graphs of failing seeds into this folder")
    arguments = parser.parse_args()
    begin, failed = time.monotonic(), 0
    total: Counter[str] = Counter()
    for seed, found, tally in run(
        list(range(arguments.seed, arguments.seed + arguments.count)), arguments.jobs, arguments.only
    ):
        total.update(tally)
        if total["graphs"] % 250 == 0:
            print(f"{total['graphs']} graphs, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        failed += bool(found)
        for each in found:
            print(f"seed {seed}: {each}", flush=True)
        if found or arguments.show:
            proto = draw_model(seed, FORMS).proto
            print(f"    python benchmarks/random_graphs.py --seed {seed} --count 1 --show")
            if arguments.save:
                arguments.save.mkdir(parents=True, exist_ok=True)
                onnx.save(proto, arguments.save / f"{seed}.onnx")
            if arguments.show:
                print(printer.to_text(proto), flush=True)
    for key, count in sorted(total.items()):
        print(f"{key:48} {count}")
    print(f"{failed} of {total['graphs']} graphs failed, in {time.monotonic() - begin:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
