"""Recipes: what is written is read back as the same passes."""

from pathlib import Path

import pytest

from graphopt import OptionError, create
from graphopt.recipe import parse_recipe, read_recipe, write_recipe
from graphopt.registry import discover, load

AMOUNT_REQUIRED = {"zero-channels": {"ratio": 0.3}, "zero-weights": {"ratio": 0.5}}


@pytest.mark.parametrize("name", sorted(discover()))
def test_round_trip_of_every_installed_pass_with_its_defaults(name: str) -> None:
    passes = [create(name, **AMOUNT_REQUIRED.get(name, {}))]
    assert parse_recipe(write_recipe(passes)) == passes


def test_round_trip_keeps_options_and_order(tmp_path: Path) -> None:
    passes = [create("prune-channels"), create("fold-constants", max_growth=12), create("quantize-weights")]
    (tmp_path / "r.toml").write_text(write_recipe(passes))
    assert read_recipe(tmp_path / "r.toml") == passes


def test_an_integer_serves_as_a_float() -> None:
    (read,) = parse_recipe('[[pass]]\nname = "reconstruct"\ndamping = 1')
    assert read == create("reconstruct", damping=1)


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        pytest.param("", "holds no", id="empty"),
        pytest.param("x = 1", "'x'", id="unknown key"),
        pytest.param("pass = 3", "tables", id="pass is a number"),
        pytest.param("[pass]\nname = 'a'", "tables", id="one plain table"),
        pytest.param("[[pass]]", "number 1", id="no name"),
        pytest.param("[[pass]]\nname = 'fold-batchnrm'", "did you mean", id="unknown pass"),
        pytest.param("[[pass]]\nname = 'reconstruct'\ndamping = 'a'", "damping", id="wrong type"),
        pytest.param("[[pass]]\nname = 'reconstruct'\ndamping = true", "damping", id="boolean for a number"),
        pytest.param("[[pass]]\nname = 'reconstruct'\ndamping = nan", "damping", id="not a number"),
    ],
)
def test_refusals_name_the_culprit(text: str, culprit: str) -> None:
    with pytest.raises(OptionError, match=culprit):
        parse_recipe(text)


def test_every_pass_is_described_and_named_like_its_file() -> None:
    for name, point in discover().items():
        kind = load(name)
        assert kind.name == name
        assert kind.__doc__
        if point.module.startswith("graphopt.passes"):
            assert point.module == "graphopt.passes." + name.replace("-", "_")
