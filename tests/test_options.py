"""Options that a pass author may declare: each form in words, in recipes and in Python, or refused by name."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any, Literal

import onnx_graphsurgeon as gs
import pytest

from graphopt import BitExact, GraphView, OptionError, SitePass, Skip, option, registry
from graphopt.cli.chain import split_passes
from graphopt.cli.optimize import optimize
from graphopt.recipe import parse_recipe, write_recipe


class Still(SitePass):
    """Does nothing."""

    name = "still"
    contract = BitExact()

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield every node."""
        yield from view.nodes()

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Leave it."""
        raise Skip("is left alone")


@dataclass(frozen=True, kw_only=True)
class Forms(Still):
    """Does nothing, with options of every form."""

    name = "forms"

    bits: Literal[4, 8] = option(8, "Numbers to choose from.")
    size: Literal["auto", 32] | None = option(None, "A word or a number.")
    names: tuple[str, ...] | None = option(None, "Names, or none.")
    sizes: tuple[int, ...] = option((), "Numbers.", minimum=1)
    kinds: tuple[Literal["a", "b"], ...] = option(("a",), "Words to choose from.")
    maybe: bool | None = option(None, "Yes, no or neither.")
    rates: tuple[float, ...] = field(default_factory=lambda: (0.5,), metadata={"help": "With a default factory."})
    Upper: str = option("x", "A name in capitals.")


@dataclass(frozen=True, kw_only=True)
class Required(Still):
    """Has an option without a default."""

    name = "required"
    how: str


@dataclass(frozen=True, kw_only=True)
class Mapped(Still):
    """Has an option that nobody can write down."""

    name = "mapped"
    table: dict[str, int] = field(default_factory=dict)


class Bare(Still):
    """Is no dataclass."""

    name = "bare"
    gain: int = option(1, "A number.")


@dataclass(frozen=True, kw_only=True)
class Alias(Still):
    """Is registered under another name."""

    name = "other"


@dataclass(frozen=True, kw_only=True)
class Picky(Still):
    """Has a check that fails in its own way."""

    name = "picky"
    gain: int = option(1, "A number.")

    def __post_init__(self) -> None:
        """Refuse one number."""
        super().__post_init__()
        if self.gain == 3:
            raise ValueError("three is too many")


@dataclass(frozen=True, kw_only=True)
class OwnSkip(Still):
    """Has an option of its own that is called as one that every pass has."""

    name = "own-skip"
    skip: int = option(0, "How many to skip.")  # type: ignore[assignment]


KINDS = {"forms": Forms, "required": Required, "mapped": Mapped, "bare": Bare, "alias": Alias, "picky": Picky}
KINDS["own-skip"] = OwnSkip


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install these passes."""
    points = {name: EntryPoint(name, f"{__name__}:{kind.__name__}", registry.GROUP) for name, kind in KINDS.items()}
    monkeypatch.setattr(registry, "discover", lambda: points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: KINDS[self.name])


def typed(*words: str) -> Any:
    return split_passes(optimize, ["a", "b", *words])[1][0]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (["--bits", "4"], {"bits": 4}),
        (["--size", "32"], {"size": 32}),
        (["--size", "auto"], {"size": "auto"}),
        (["--names", "a", "--names", "b"], {"names": ("a", "b")}),
        (["--sizes", "2", "--sizes=3"], {"sizes": (2, 3)}),
        (["--kinds", "b"], {"kinds": ("b",)}),
        (["--maybe"], {"maybe": True}),
        (["--no-maybe"], {"maybe": False}),
        (["--rates", "0.25"], {"rates": (0.25,)}),
        (["--Upper", "y"], {"Upper": "y"}),
    ],
)
def test_every_form_is_the_same_in_words_in_recipes_and_in_python(words: list[str], values: dict[str, Any]) -> None:
    created = registry.create("forms", **values)
    assert typed("forms", *words) == created
    assert parse_recipe(write_recipe([created])) == [created]
    assert {name: getattr(created, name) for name in values} == values


@pytest.mark.parametrize(
    ("values", "culprit"),
    [
        ({"bits": "8"}, "'8' is not one of 4, 8"),
        ({"bits": True}, "True is not one of 4, 8"),
        ({"bits": 8.0}, "8.0 is not one of 4, 8"),
        ({"sizes": [0]}, "0 is out of range"),
        ({"sizes": ["a"]}, "is not a list of int"),
        ({"kinds": ["c"]}, "is not a list of a, b"),
        ({"names": "a"}, "'a' is not a list of str"),
        ({"maybe": 1}, "1 is not a bool"),
    ],
)
def test_values_that_do_not_fit(values: dict[str, Any], culprit: str) -> None:
    with pytest.raises(OptionError) as raised:
        registry.create("forms", **values)
    assert culprit in str(raised.value)


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("required", "its option 'how' has no default"),
        ("mapped", "its option 'table' is of type dict"),
        ("bare", "not decorated with @dataclass"),
        ("alias", "has another name, 'other'"),
    ],
)
def test_declarations_that_cannot_be_used_are_refused_when_the_pass_is_loaded(name: str, culprit: str) -> None:
    with pytest.raises(OptionError, match=f"^pass '{name}': ") as raised:
        typed(name)
    assert culprit in str(raised.value)


def test_what_an_authors_own_check_raises_is_one_error() -> None:
    assert typed("picky", "--gain", "2") == Picky(gain=2)
    with pytest.raises(OptionError, match="picky: cannot be created: ValueError: three is too many"):
        typed("picky", "--gain", "3")


def test_an_authors_own_option_stays_the_authors() -> None:
    assert typed("own-skip", "--skip", "3") == OwnSkip(skip=3)
    assert OwnSkip(skip=3).choice.takes_all
    assert typed("own-skip", "--only", "a").choice.only == ("a",)
