"""The base classes of passes: frozen dataclasses whose fields are their options."""

import dataclasses
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import onnx_graphsurgeon as gs

from graphopt.contract import Contract
from graphopt.errors import OptionError
from graphopt.graph import GraphView
from graphopt.result import PassResult, Rewritten, Skip, Skipped


def option(default: Any, help: str, *, minimum: float | None = None, maximum: float | None = None) -> Any:
    """Declare an option of a pass: a dataclass field with its help text and, for numbers, its inclusive range."""
    return dataclasses.field(default=default, metadata={"help": help, "minimum": minimum, "maximum": maximum})


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """A rewrite of the whole graph.

    ``name`` is the command, the entry point and, with underscores, the file. ``contract`` is what the pipeline holds
    the pass to. ``compresses`` says that the pass is asked for to make the file smaller, so that doing nothing is a
    failure. ``keeps_facts`` says that no tensor that stays changes its type, its shape or, if it holds integers, its
    content: then what one pass has found out about tensors serves the next.

    ``demotions`` names the steps, from the cheapest to the dearest, by which a lossy pass can write a site more
    carefully: "form" (other operators, the same values), then what costs more and loses less, such as "range",
    "blocks" and "bits". ``view.demotions`` says how many of them a site has to take; a step that a site does not have
    changes nothing. Behind the last step a site is left as it was.

    ``accounts`` says which places the engine adds to the report where the pass has no word for them: "weights" for each
    layer and each constant of over 1% of the file, "operators" for layers of operators that graphopt does not know.

    ``freezes`` says that the pass makes constants of initializers that a caller could override, on purpose.
    """

    name: ClassVar[str]
    contract: ClassVar[Contract]
    compresses: ClassVar[bool] = False
    keeps_facts: ClassVar[bool] = False
    demotions: ClassVar[tuple[str, ...]] = ()
    accounts: ClassVar[Literal["", "weights", "operators"]] = ""
    freezes: ClassVar[bool] = False

    @property
    def fits(self) -> bool:
        """Whether the pass, with these options, fits values to the data that it is given."""
        return False

    def __post_init__(self) -> None:
        """Check every option against its declared type, choices and range.

        Raises:
            OptionError: An option has a value that its declaration does not allow.
        """
        for field, kind in options(type(self)):
            _check_option(f"{self.name}: --{field.name.replace('_', '-')}", field, kind, getattr(self, field.name))

    @abstractmethod
    def run(self, view: GraphView) -> PassResult:
        """Rewrite the graph behind ``view``, honouring ``view.vetoes``, and tell of every site."""

    def required_opset(self, view: GraphView) -> int:
        """Return the lowest opset that the pass needs on this model; the pipeline raises the model to it first."""
        return 0

    def apply(self, view: GraphView) -> PassResult:
        """Run the pass and settle its edits, so that the graph is sorted and free of removed nodes."""
        result = self.run(view)
        if result.rewritten or view.edit.is_unsettled:
            view.edit.settle()
        return result


class SitePass(Pass):
    """A local rewrite: the base class walks the sites and turns Skip into data.

    ``repeats`` says that one rewrite can open the way to another: then it walks until nothing more is rewritten.
    """

    repeats: ClassVar[bool] = False

    @abstractmethod
    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield the nodes that the pass has something to say about."""

    @abstractmethod
    def rewrite(self, view: GraphView, node: gs.Node) -> str | None:
        """Rewrite one site; may return a detail for the report.

        Raises:
            Skip: The site cannot be rewritten; raised before the first mutation.
        """

    def run(self, view: GraphView) -> PassResult:
        """Rewrite site by site; a site that an earlier rewrite removed is passed over."""
        rewritten: list[Rewritten] = []
        while True:
            found, skipped = self._sweep(view)
            rewritten += found
            if not found or not self.repeats:
                return PassResult(tuple(rewritten), tuple(skipped))
            view.edit.settle()  # what nothing reads any more is in nobody's way
            view.forget_shapes()

    def _sweep(self, view: GraphView) -> tuple[list[Rewritten], list[Skipped]]:
        """Go over all sites once."""
        rewritten: list[Rewritten] = []
        skipped: list[Skipped] = []
        for node in list(self.sites(view)):
            if view.edit.is_removed(node):
                continue
            site = view.site(node)
            try:
                view.require_permitted(site)
                rewritten.append(Rewritten(site, self.rewrite(view, node) or ""))
            except Skip as reason:
                skipped.append(Skipped(site, str(reason)))
            except Exception as error:  # goes on its way, only with the site on it
                error.add_note(f"at site {site!r}")
                raise
        return rewritten, skipped


def options(kind: type[Pass]) -> list[tuple["dataclasses.Field[Any]", Any]]:
    """Return the options of a pass class: its dataclass fields with their resolved types."""
    hints = get_type_hints(kind)
    return [(field, hints[field.name]) for field in dataclasses.fields(kind)]


def option_values(each: Pass) -> dict[str, object]:
    """Return a pass's options by name."""
    return {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}


def _check_option(label: str, field: "dataclasses.Field[Any]", kind: Any, value: Any) -> None:
    """Raise OptionError unless ``value`` is of type ``kind`` and within the field's range."""
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return
        kind = next(arm for arm in get_args(kind) if arm is not type(None))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise OptionError(f"{label}: {value!r} is not one of {', '.join(map(str, get_args(kind)))}")
        return
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not all(isinstance(item, get_args(kind)[0]) for item in value):
            raise OptionError(f"{label}: {value!r} is not a list of {get_args(kind)[0].__name__}")
        return
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise OptionError(f"{label}: {value!r} is not a {kind.__name__}")
    low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
        raise OptionError(f"{label}: {value!r} is out of range, it must be {bounds}")
