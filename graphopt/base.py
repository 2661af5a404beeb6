"""The base classes of passes: frozen dataclasses whose fields are their options."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import onnx_graphsurgeon as gs

from graphopt.choice import Choice, Override
from graphopt.contract import Contract
from graphopt.errors import OptionError
from graphopt.graph import GraphView
from graphopt.graph.left_out import LeftOut
from graphopt.options import Kind, check_option, check_patterns, common_option, is_common, options
from graphopt.result import PassResult, Rewritten, Skip, Skipped

_OVERRIDDEN = "overridden sites"


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

    ``only``, ``skip`` and ``override`` are options of every pass, see ``Choice``; what they leave out is in
    ``view.vetoes``. Sites with options of their own are done by a further run of the pass. A pass that cannot do its
    sites apart names in ``sitewise`` the options that it asks ``at`` for, site by site, and runs once.
    """

    name: ClassVar[str]
    contract: ClassVar[Contract]
    compresses: ClassVar[bool] = False
    keeps_facts: ClassVar[bool] = False
    demotions: ClassVar[tuple[str, ...]] = ()
    accounts: ClassVar[Literal["", "weights", "operators"]] = ""
    freezes: ClassVar[bool] = False
    sitewise: ClassVar[tuple[str, ...]] = ()

    only: tuple[str, ...] = common_option(
        "Rewrite no other sites than those that match: a site, node or initializer, or op:Conv; * and ? stand for any "
        "text and any letter. Repeatable."
    )
    skip: tuple[str, ...] = common_option("Leave out the sites that match; patterns as in --only. Repeatable.")
    override: tuple[Override, ...] = common_option("Other values of options for some sites.")
    part: int = dataclasses.field(default=0, repr=False, metadata={"hidden": True})

    @property
    def fits(self) -> bool:
        """Whether the pass, with these options, fits values to the data that it is given."""
        return False

    def __post_init__(self) -> None:
        """Check every option against its declared type, choices and range.

        Raises:
            OptionError: An option has a value that its declaration does not allow.
        """
        for field, hint in options(type(self)):
            try:
                if not is_common(field):
                    check_option(field, hint, self._as_tuple(field.name, Kind.of(hint).repeated))
                elif field.name != "override":
                    check_patterns(self._as_tuple(field.name, True, alone=True))
                elif not self.part:
                    object.__setattr__(self, "override", tuple(self._overrides()))
            except OptionError as error:
                raise OptionError(f"{self.name}: --{field.name.replace('_', '-')}: {error}") from error

    def _as_tuple(self, name: str, repeated: bool, alone: bool = False) -> Any:
        """Return what an option holds; a list, which is what files have, becomes a tuple, and so does a text alone."""
        value = getattr(self, name)
        if repeated and (isinstance(value, list) or (alone and isinstance(value, str))):
            value = (value,) if isinstance(value, str) else tuple(value)
            object.__setattr__(self, name, value)
        return value

    # -- choosing sites ------------------------------------------------------------------------------------------------

    def _has_common(self, name: str) -> bool:
        """Whether an option is the one that every pass has: a third party's pass may have its own of that name."""
        return any(field.name == name and is_common(field) for field in dataclasses.fields(self))

    def _overrides(self) -> Iterator[Override]:
        """Yield the overrides, each tried.

        Raises:
            OptionError: One is no table, or gives an option that it cannot give.
        """
        given: Any = self.override
        allowed = self.sitewise or tuple(field.name for field, _ in options(type(self)) if not is_common(field))
        for number, each in enumerate(given if isinstance(given, list | tuple) else (given,), 1):
            try:
                found = Override.of(each)
                if unknown := [key for key, _ in found.values if key not in allowed]:
                    known = ", ".join(allowed) or "none"
                    raise OptionError(f"{unknown[0]!r} cannot be given for sites (options: {known})")
                check_patterns(found.sites)
                tried = dataclasses.replace(self, override=(found,), part=1, **dict(found.values))
            except OptionError as error:
                raise OptionError(f"number {number}: {str(error).removeprefix(f'{self.name}: ')}") from error
            yield Override(found.sites, tuple((key, getattr(tried, key)) for key, _ in found.values))

    def stages(self) -> "tuple[Pass, ...]":
        """Return the runs that the pass takes: one, and one more for each set of sites with options of its own."""
        if self.sitewise or self.part or not self._has_common("override"):
            return (self,)
        parts = (
            dataclasses.replace(self, part=number, **dict(each.values)) for number, each in enumerate(self.override, 1)
        )
        return (self, *parts)

    @property
    def choice(self) -> Choice:
        """The sites that this run of the pass may rewrite."""
        only = self.only if self._has_common("only") else ()
        skip = self.skip if self._has_common("skip") else ()
        if self.sitewise or not self._has_common("override") or not self.override:
            return Choice(only, skip)
        part = self.override[self.part - 1].sites if self.part else ()
        others = tuple(pattern for each in self.override[self.part :] for pattern in each.sites)
        return Choice(only, skip, part, others)

    def at(self, view: GraphView, site: str) -> Self:
        """Return the pass with the options of one site, for a pass with ``sitewise`` options; the last that fits."""
        if _OVERRIDDEN not in view.memory:
            view.memory[_OVERRIDDEN] = [set(Choice(skip=each.sites).left_out(view).reasons) for each in self.override]
        matching = [each for each, sites in zip(self.override, view.memory[_OVERRIDDEN], strict=True) if site in sites]
        return dataclasses.replace(self, override=(), **dict(matching[-1].values)) if matching else self

    def prepare(self, view: GraphView) -> None:
        """Leave out of ``view`` what the options say, once."""
        if view.left_out is None:
            found = self.choice.left_out(view)
            view.left_out = found
            view.vetoes = {**view.vetoes, **found.reasons}

    # -- running -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def run(self, view: GraphView) -> PassResult:
        """Rewrite the graph behind ``view``, honouring ``view.vetoes``, and tell of every site."""

    def required_opset(self, view: GraphView) -> int:
        """Return the lowest opset that the pass needs on this model; the pipeline raises the model to it first."""
        return 0

    def apply(self, view: GraphView) -> PassResult:
        """Run the pass and settle its edits, so that the graph is sorted and free of removed nodes."""
        self.prepare(view)
        result = self.run(view)
        if result.rewritten or view.edit.is_unsettled:
            view.edit.settle()
        notes = (view.left_out or LeftOut()).notes(self.name, result)
        return dataclasses.replace(result, notes=(*result.notes, *notes)) if notes else result


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
            view.forget_shapes(facts=not self.keeps_facts)

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


def narrowed(each: Pass, only: Sequence[str], skip: Sequence[str]) -> Pass:
    """Return a pass that leaves out more sites: what it has of its own and what is given here must both permit one.

    Raises:
        OptionError: A third party's pass has another option of that name, or a pattern is none.
    """
    for name, patterns in (("only", only), ("skip", skip)):
        if patterns and not each._has_common(name):
            raise OptionError(f"{each.name}: has an option {name!r} of its own, its sites cannot be chosen by it")
    if only and each.only:
        raise OptionError(f"{each.name}: sites are chosen by --only for the run and for the pass, give one")
    if only:
        each = dataclasses.replace(each, only=tuple(only))
    return dataclasses.replace(each, skip=(*each.skip, *skip)) if skip else each
