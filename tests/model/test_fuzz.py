"""Broken models are loaded or refused with one line, never anything else; the long run is a command.

``python benchmarks/round_trips.py fuzz --count 20000`` runs the same on more models.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from graphopt.errors import ModelError
from graphopt.model import from_proto, load, save

COUNT = 600


@pytest.fixture(scope="module")
def round_trips(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    """The benchmark that has the mutations."""
    return benchmark("round_trips")


def test_mutated_models(round_trips: ModuleType, tmp_path: Path) -> None:
    sources = [p.read_bytes() for p in sorted(Path(onnx.__file__).parent.rglob("*.onnx")) if p.stat().st_size < 5000]
    assert len(sources) > 20
    loaded = 0
    for seed in range(COUNT):
        (tmp_path / "broken.onnx").write_bytes(round_trips.mutate(sources[seed % len(sources)], seed))
        try:
            save(load(tmp_path / "broken.onnx"), tmp_path / "again.onnx")
            loaded += 1
        except ModelError as error:
            if "\n" in str(error):
                pytest.fail(f"mutate(sources[{seed} % {len(sources)}], {seed}) gives more than one line: {error}")
        except Exception as error:  # any other kind is what this looks for
            pytest.fail(f"mutate(sources[{seed} % {len(sources)}], {seed}) raised {type(error).__name__}: {error}")
    assert 0 < loaded < COUNT


def test_the_same_seed_gives_the_same_bytes(round_trips: ModuleType) -> None:
    data = bytes(range(256))
    assert round_trips.mutate(data, 7) == round_trips.mutate(data, 7) != round_trips.mutate(data, 8)


def test_a_chain_of_the_benchmark_is_a_model(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    costs = benchmark("model_io")
    costs.write_chain(tmp_path / "chain.onnx", 10)
    onnx.checker.check_model(tmp_path / "chain.onnx", full_check=True)
    model = from_proto(onnx.load(tmp_path / "chain.onnx"))
    costs.remove_half(model)
    assert [node.op for node in model.graph.nodes] == ["Add"] * 5
