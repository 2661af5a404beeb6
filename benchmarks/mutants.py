"""Make one-line mutants of source files and report which of them no test notices.

    python benchmarks/mutants.py [--count N] [--seed N] [--jobs N] [--limit SECONDS] [--log FILE] [--equivalent FILE]
                                 SOURCES=TESTS...

SOURCES is a file or a glob such as 'graphopt/graph/channels/*.py'. TESTS is what pytest is called with to judge them:
files and options, separated by spaces. For example:

    python benchmarks/mutants.py --count 100 --log mutants.jsonl \
        'graphopt/graph/channels/*.py=tests/graph/test_channels.py tests/passes/test_prune_channels.py'

``--count`` mutants of each SOURCES are drawn with ``--seed``. Each job works in a copy of the checkout, which is never
edited itself; a copy holds the files that git tracks, and new ones that it does not ignore. The tests must pass there
without a mutant first. Then each mutant runs them until the first failure. A run that takes longer than ``--limit``
counts as killed; the default is four times what the unchanged code took, and ten seconds more.

With ``--log`` each outcome is a line of JSON in a file, and a second run with the same file goes on where the first
one stopped. Outcomes of sources or tests that have changed since are not used. ``--equivalent`` names a file of mutants
that compute the same: one a line, as the report prints them without the line number, and the reason behind a ``#``.
They are drawn and counted, but not run.

Mutants are: comparisons turned or moved by one, arithmetic and bit operators exchanged, ``and`` and ``or`` exchanged
or one side dropped, ``not`` and signs dropped, numbers one more and one less, True and False, minimum and maximum, any
and all, bounds of slices and ranges one more, one branch of a conditional expression, conditions of comprehensions
dropped, results replaced by None, guards (an ``if`` that ends in return, raise or continue) and other statements
without a result removed. Left out are annotations, docstrings, messages, decorators, imports and ``raise``.

The exit status is 1 if any mutant escapes, 2 if the tests fail without one.
"""

import argparse
import ast
import contextlib
import hashlib
import itertools
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
_NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}
_LEFT_OUT = (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.JoinedStr, ast.Global, ast.Nonlocal, ast.Pass)


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the text between two offsets is replaced.

    ``before`` and ``after`` are the lines that it touches, without indentation.
    """

    path: str
    start: int
    end: int
    text: str
    line: int
    before: str
    after: str

    def apply(self, source: str) -> str:
        """Return the changed source."""
        return source[: self.start] + self.text + source[self.end :]

    def __str__(self) -> str:
        """Return what a report prints, which is also how a file of equivalent mutants names it."""
        return f"{self.path}: {self.before}  ->  {self.after}"


class Maker:
    """Makes all mutants of one file."""

    def __init__(self, path: str, source: str) -> None:
        """Read a file."""
        self.path, self.source = path, source
        self.tree = ast.parse(source)
        self.plain = ast.dump(self.tree)
        self.lines = source.splitlines(keepends=True)
        self.offsets = [0]
        for line in self.lines:
            self.offsets.append(self.offsets[-1] + len(line))

    def mutants(self) -> list[Mutant]:
        """Return all mutants in the order of the file, some of which may be no change or no program, see ``counts``."""
        found = {(m.start, m.end, m.text): m for m in (self._mutant(*change) for change in self._changes(self.tree))}
        return [found[key] for key in sorted(found)]

    def counts(self, mutant: Mutant) -> bool:
        """Whether a mutant is a program, and another one."""
        try:
            return ast.dump(ast.parse(mutant.apply(self.source))) != self.plain
        except SyntaxError:
            return False

    def _mutant(self, node: ast.expr | ast.stmt, text: str) -> Mutant:
        start, end = self._span(node)
        changed = self.source[:start] + text + self.source[end:]
        first = self.offsets[node.lineno - 1]
        last = self.source.find("\n", end)
        before = " ".join(self.source[first:last].split())
        after = " ".join(changed[first : last + len(changed) - len(self.source)].split())
        return Mutant(self.path, start, end, text, node.lineno, before, after)

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Return where a node begins and ends in the text; the columns of ``ast`` count bytes."""

        def place(line: int, column: int) -> int:
            return self.offsets[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

        return place(node.lineno, node.col_offset), place(node.end_lineno or 0, node.end_col_offset or 0)

    def _changes(self, node: ast.AST, module: bool = True) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
        """Yield nodes with what to put in their place, all the way down."""
        if isinstance(node, _LEFT_OUT) or _is_text(node):
            return
        if isinstance(node, ast.stmt):
            yield from _statements(node)
        if isinstance(node, ast.expr):
            for text in _expressions(node):
                yield node, text if isinstance(node, ast.Slice) else f"({text})"
        inside = module and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
                continue
            if module and inside and isinstance(node, ast.Assign) and _is_type(node.value):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from self._changes(child, inside)


def _is_text(node: ast.AST) -> bool:
    """Whether a node is a docstring or an addition to a text."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return any(isinstance(side, ast.JoinedStr) or _is_string(side) for side in (node.left, node.right))
    return False


def _is_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_type(value: ast.expr) -> bool:
    """Whether what a module assigns is the name of a type, such as ``list[int | None]``."""
    return isinstance(value, ast.Subscript) or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr))


def _statements(node: ast.stmt) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Yield what statements can become."""
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield node, "return None"
    if (
        isinstance(node, ast.If)
        and not node.orelse
        and isinstance(node.body[-1], (ast.Return, ast.Raise, ast.Continue))
    ):
        yield node.test, "False"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield node, "pass"
    if isinstance(node, ast.AugAssign) and type(node.op) in _ARITHMETIC:
        changed = ast.AugAssign(node.target, _ARITHMETIC[type(node.op)](), node.value)
        yield node, ast.unparse(ast.fix_missing_locations(changed))
    if isinstance(node, (ast.Break, ast.Continue)):
        yield node, "pass"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _expressions(node: ast.expr) -> Iterator[str]:
    """Yield what expressions can become."""
    if isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for other in _COMPARISONS[type(op)]:
                ops = [*node.ops[:place], other(), *node.ops[place + 1 :]]
                yield ast.unparse(ast.Compare(node.left, ops, node.comparators))
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        yield ast.unparse(ast.BinOp(node.left, _ARITHMETIC[type(node.op)](), node.right))
    elif isinstance(node, ast.BoolOp):
        other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield ast.unparse(ast.BoolOp(other_op, node.values))
        for place in range(len(node.values)):
            yield ast.unparse(ast.BoolOp(node.op, [*node.values[:place], *node.values[place + 1 :]]))
    elif isinstance(node, ast.UnaryOp):
        yield ast.unparse(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield from (str(node.value + 1), str(node.value - 1))
    elif isinstance(node, ast.Slice):
        yield from _moved_bounds(node)
    elif isinstance(node, ast.IfExp):
        yield from (ast.unparse(node.body), ast.unparse(node.orelse))
    elif isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
        yield from _unfiltered(node)
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _moved_bounds(node: ast.Slice) -> Iterator[str]:
    """Yield a slice with a bound moved by one, where it is not a number, which is changed anyway."""
    for name in ("lower", "upper"):
        bound = getattr(node, name)
        if bound is not None and not isinstance(bound, (ast.Constant, ast.UnaryOp)):
            parts = {each: getattr(node, each) for each in ("lower", "upper", "step")}
            parts[name] = ast.BinOp(bound, ast.Add(), ast.Constant(1))
            yield ast.unparse(ast.Slice(**parts))


def _unfiltered(node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Iterator[str]:
    """Yield a comprehension without one of its conditions."""
    for outer, generator in enumerate(node.generators):
        for inner in range(len(generator.ifs)):
            ifs = [*generator.ifs[:inner], *generator.ifs[inner + 1 :]]
            changed = ast.comprehension(generator.target, generator.iter, ifs, generator.is_async)
            fields = dict(ast.iter_fields(node))
            fields["generators"] = [*node.generators[:outer], changed, *node.generators[outer + 1 :]]
            yield ast.unparse(type(node)(**fields))


def _calls(node: ast.Call) -> Iterator[str]:
    """Yield calls of the opposite function, and ranges that end one later."""
    if isinstance(node.func, ast.Name) and node.func.id in _NAMES:
        yield ast.unparse(ast.Call(ast.Name(_NAMES[node.func.id]), node.args, node.keywords))
    if isinstance(node.func, ast.Attribute) and node.func.attr in _NAMES:
        yield ast.unparse(ast.Call(ast.Attribute(node.func.value, _NAMES[node.func.attr]), node.args, node.keywords))
    if isinstance(node.func, ast.Name) and node.func.id == "range" and not isinstance(node.args[-1], ast.Constant):
        yield ast.unparse(
            ast.Call(node.func, [*node.args[:-1], ast.BinOp(node.args[-1], ast.Add(), ast.Constant(1))], [])
        )


@dataclass(frozen=True)
class Task:
    """A mutant and the tests that are to notice it."""

    mutant: Mutant
    tests: str
    key: str


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: "killed", "timed out", "escaped" or "equivalent"."""

    key: str
    path: str
    line: int
    mutant: str
    status: str
    seconds: float


def plan(target: str, count: int, seed: int) -> list[Task]:
    """Draw the mutants of one ``SOURCES=TESTS``."""
    pattern, _, tests = target.partition("=")
    paths = sorted(path for path in ROOT.glob(pattern) if path.suffix == ".py")
    if not paths or not tests.strip():
        raise SystemExit(f"{target!r} is not FILES=TESTS, or names no file")
    judges = hashlib.sha256(tests.encode())
    for word in tests.split():
        found = ROOT / word.partition("::")[0]
        for file in sorted(found.rglob("*.py")) if found.is_dir() else [found] if found.is_file() else []:
            judges.update(file.read_bytes())
    tasks = []
    for path in paths:
        maker = Maker(str(path.relative_to(ROOT)), path.read_text())
        state = hashlib.sha256(maker.source.encode()).hexdigest() + judges.hexdigest()
        for mutant in maker.mutants():
            key = hashlib.sha256(f"{mutant}{mutant.start}{state}".encode()).hexdigest()[:16]
            tasks.append((maker, Task(mutant, tests, key)))
    random.Random(seed).shuffle(tasks)
    drawn = (task for maker, task in tasks if maker.counts(task.mutant))
    return list(itertools.islice(drawn, count))


class Workshop:
    """A copy of the checkout in which one job tries one mutant after the other."""

    def __init__(self, folder: Path) -> None:
        """Copy the checkout to a folder."""
        self.folder = folder
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        if (folder / "passes").is_dir():  # a package that an installation maps into graphopt
            (folder / "graphopt" / "passes").symlink_to(folder / "passes", target_is_directory=True)

    def passes(self, tests: str, limit: float | None) -> bool | None:
        """Run tests until the first failure; return whether all passed, None if that took too long."""
        command = [sys.executable, "-m", "pytest", "-x", "-n0", "-q", "-p", "no:cacheprovider", *tests.split()]
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONHASHSEED": "0"}
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                return process.wait(limit) == 0
            except subprocess.TimeoutExpired:
                return None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def attempt(self, task: Task, limit: float) -> str:
        """Put a mutant in, run its tests, and put the source back."""
        path = self.folder / task.mutant.path
        source = path.read_text()
        try:
            self._write(path, task.mutant.apply(source))
            return {True: "escaped", False: "killed", None: "timed out"}[self.passes(task.tests, limit)]
        finally:
            self._write(path, source)

    def _write(self, path: Path, text: str) -> None:
        """Write a source; its compiled form goes, which is told from the source by whole seconds only."""
        path.write_text(text)
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()


def run(
    tasks: list[Task], jobs: int, limit: float | None, known: dict[str, Outcome], log: Path | None
) -> list[Outcome]:
    """Try the mutants of which nothing is known yet, and return the outcomes of all."""
    waiting: queue.Queue[Task] = queue.Queue()
    for task in tasks:
        if task.key not in known:
            waiting.put(task)
    print(f"{len(tasks)} mutants, {len(tasks) - waiting.qsize()} of them known already", flush=True)
    limits: dict[str, float] = {}
    lock = threading.Lock()

    def work(shop: Workshop) -> None:
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            begun = time.monotonic()
            status = shop.attempt(task, limits[task.tests])
            mutant = task.mutant
            outcome = Outcome(
                task.key, mutant.path, mutant.line, str(mutant), status, round(time.monotonic() - begun, 1)
            )
            with lock:
                known[task.key] = outcome
                if log is not None:
                    with log.open("a") as file:
                        file.write(json.dumps(asdict(outcome)) + "\n")
                done = len(tasks) - waiting.qsize()
                told = f"{mutant.path}:{mutant.line}: {mutant.before}  ->  {mutant.after}"
                print(f"[{done}/{len(tasks)}] {status} in {outcome.seconds} s  {told}", flush=True)

    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        shops = []
        for job in range(min(jobs, waiting.qsize())):
            (Path(folder) / str(job)).mkdir()
            shops.append(Workshop(Path(folder) / str(job)))
        for tests in dict.fromkeys(task.tests for task in tasks) if shops else ():
            begun = time.monotonic()
            if not shops[0].passes(tests, None):
                print(f"the tests fail without any mutant: {tests}", file=sys.stderr)
                raise SystemExit(2)
            seconds = time.monotonic() - begun
            limits[tests] = limit or 4 * seconds + 10
            print(f"{seconds:.1f} s for {tests}", flush=True)
        threads = [threading.Thread(target=work, args=(shop,)) for shop in shops]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [known[task.key] for task in tasks]


def report(outcomes: list[Outcome]) -> int:
    """Print a table by file and the mutants that escape; return the exit status."""
    print(f"\n{'file':52} mutants killed equivalent escaped")
    files = sorted({outcome.path for outcome in outcomes})
    for path in [*files, ""]:
        rows = [outcome.status for outcome in outcomes if path in ("", outcome.path)]
        killed, same, free = (
            rows.count("killed") + rows.count("timed out"),
            rows.count("equivalent"),
            rows.count("escaped"),
        )
        print(f"{path or 'all':52} {len(rows):7} {killed:6} {same:10} {free:7}")
    escaped = [outcome for outcome in outcomes if outcome.status == "escaped"]
    real = [outcome for outcome in outcomes if outcome.status != "equivalent"]
    print(f"\n{len(escaped)} of {len(real)} escape ({len(escaped) / max(len(real), 1):.1%}), equivalent ones left out")
    for outcome in sorted(escaped, key=lambda each: (each.path, each.line)):
        print(f"{outcome.path}:{outcome.line}: {outcome.mutant.partition(': ')[2]}")
    return int(bool(escaped))


def main() -> int:
    """Draw mutants, try them, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="SOURCES=TESTS")
    parser.add_argument("--count", type=int, default=100, help="mutants of each SOURCES")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, help="seconds for one mutant")
    parser.add_argument("--log", type=Path, help="outcomes, to go on from")
    parser.add_argument("--equivalent", type=Path, help="mutants that compute the same")
    arguments = parser.parse_args()
    tasks = [task for target in arguments.targets for task in plan(target, arguments.count, arguments.seed)]
    known: dict[str, Outcome] = {}
    if arguments.log is not None and arguments.log.exists():
        for line in arguments.log.read_text().splitlines():
            outcome = Outcome(**json.loads(line))
            known[outcome.key] = outcome
    if arguments.equivalent is not None:
        lines = arguments.equivalent.read_text().splitlines()
        same = {line.rpartition("#")[0].strip() for line in lines if "->" in line}
        for task in tasks:
            if str(task.mutant) in same:
                mutant = task.mutant
                known[task.key] = Outcome(task.key, mutant.path, mutant.line, str(mutant), "equivalent", 0.0)
    return report(run(tasks, arguments.jobs, arguments.limit, known, arguments.log))


if __name__ == "__main__":
    sys.exit(main())
