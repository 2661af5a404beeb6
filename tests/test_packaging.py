"""The package as it is installed: nothing left out, nothing leaked, dependencies flowing one way."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# What a folder or module of the engine may import, from the bottom up; see "Where things live" in docs/design.md.
LAYERS = [
    {"errors", "contract", "result", "progress"},
    {"model", "numerics"},
    {"graph"},
    {"runtime"},
    {"options", "choice", "base", "registry"},
    {"report"},
    {"proof"},
    {"bisect", "demote", "subject", "trial", "pipeline", "verdict", "judged"},
    {"distill", "transfer"},
    {"recipe", "presets", "arguments", "api", "testing"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def test_every_package_folder_is_listed() -> None:
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("graphopt/**/__init__.py")}
    folders |= {Path("graphopt") / path.parent.relative_to(ROOT) for path in ROOT.glob("passes/**/__init__.py")}
    expected = {".".join(folder.parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_every_pass_file_is_registered() -> None:
    points = PROJECT["project"]["entry-points"]["graphopt.passes"]
    files = {path.stem for path in ROOT.glob("passes/*.py")} - {"__init__"}
    files |= {path.parent.name for path in ROOT.glob("passes/*/__init__.py")}
    assert {point.partition(":")[0].rpartition(".")[2] for point in points.values()} == files
    assert {name.replace("-", "_") for name in points} == files


def test_every_pass_has_its_tests() -> None:
    paths = {*ROOT.glob("passes/*.py")} - {ROOT / "passes" / "__init__.py"}
    for name in {path.stem for path in paths} | {path.parent.name for path in ROOT.glob("passes/*/__init__.py")}:
        tests = ROOT / "tests" / "passes"
        assert (tests / f"test_{name}.py").exists() or (tests / name).is_dir(), name


def imports(path: Path) -> set[str]:
    """Return every module that a file imports at run time; what stands under TYPE_CHECKING does not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_every_part_of_the_engine_has_its_layer() -> None:
    parts = {path.relative_to(ROOT / "graphopt").parts[0].removesuffix(".py") for path in ROOT.glob("graphopt/**/*.py")}
    assert parts == {*RANK, "__init__"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("graphopt/**/*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_imports_downwards_and_no_pass(path: Path) -> None:
    own = path.relative_to(ROOT / "graphopt").parts[0].removesuffix(".py")
    assert not any(name.startswith("graphopt.passes") for name in imports(path))
    for name in imports(path):
        parts = name.split(".")
        if own in RANK and parts[0] == "graphopt" and len(parts) > 1 and parts[1] in RANK:
            assert RANK[parts[1]] <= RANK[own], f"{path.name} imports {name}, which lies above it"


def test_no_two_files_import_each_other_in_a_circle() -> None:
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("graphopt/**/*.py")}
    files = {name: path for name, path in files.items() if not name.endswith("__init__")}
    left = {name: imports(path) & files.keys() - {name} for name, path in files.items()}
    while leaves := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left, f"in or above a circle: {sorted(left)}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("passes/**/*.py")), ids=lambda path: path.name)
def test_a_pass_imports_no_other_pass_and_nothing_above_the_base(path: Path) -> None:
    for name in imports(path):
        assert not name.startswith(("graphopt.passes", "passes"))
        assert name.split(".")[:2] not in [["graphopt", part] for part in ("pipeline", "api", "cli", "trial", "report")]


def test_the_readme_lists_every_pass_and_no_other() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert {line.split("`")[1] for line in rows} == set(PROJECT["project"]["entry-points"]["graphopt.passes"])


def test_the_readme_prints_exactly_two_set_up_commands() -> None:
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    pip install ")]
    assert len(lines) == 2


def test_a_checkout_that_python_stands_in_has_its_passes(tmp_path: Path) -> None:
    for name in ("graphopt", "passes"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    point = PROJECT["project"]["entry-points"]["graphopt.passes"]["fold-batchnorm"]
    module, _, kind = point.partition(":")
    # What an editable installation adds to the import system is taken out: it would find the passes by itself.
    script = f"""import sys
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in repr(each).lower()]
import graphopt, importlib
found = importlib.import_module({module!r})
print(graphopt.__file__, found.__file__, getattr(found, {kind!r}).name, sep="\\n")"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    package, home, name = done.stdout.split("\n")[:3]
    assert Path(package).parents[1] == Path(home).parents[1] == tmp_path.resolve()
    assert name == "fold-batchnorm"
