"""What the user's choice of sites leaves out of one graph, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphopt.result import PassResult


@dataclass(frozen=True)
class LeftOut:
    """What a choice leaves out of one graph.

    Attributes:
        reasons: Why, by site, initializer or function.
        matches: For each pattern the option that it was given by, and what it matches.
    """

    reasons: Mapping[str, str] = field(default_factory=dict)
    matches: tuple[tuple[str, str, frozenset[str]], ...] = ()

    def notes(self, name: str, result: PassResult) -> tuple[str, ...]:
        """Say in a line each which patterns match nothing in the model, or no site of the pass."""
        if not self.matches:
            return ()
        sites = {each.site for each in result.rewritten} | {each.site for each in result.skipped}
        told = {each.reason for each in result.skipped}
        notes = []
        for option, pattern, found in self.matches:
            if not found:
                notes.append(f"{name}: {option} {pattern} matches no site, node, initializer or operator of the model")
            elif not found & sites and not any(f"{option} {pattern}" in reason for reason in told):
                notes.append(f"{name}: {option} {pattern} matches no site that {name} reports")
        return tuple(dict.fromkeys(notes))
