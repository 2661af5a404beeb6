"""A model that nobody changes, and copies of it to work on."""

from functools import cached_property

from graphopt.graph import GraphView
from graphopt.graph.symbolic import Facts
from graphopt.model import Model, fingerprint
from graphopt.model.fingerprint import Fingerprint, outline


class Subject:
    """A model that nobody changes: its identity, what is known of its tensors, and copies of it to work on."""

    def __init__(self, model: Model, facts: Facts | None = None) -> None:
        """Keep ``model`` and what is known of its tensors already."""
        self.model = model
        self._facts = facts
        self._spare: GraphView | None = None

    @cached_property
    def facts(self) -> Facts:
        """Types, symbolic shapes and small integers of the model's tensors."""
        if self._facts is None:
            return Facts(self.model)
        self._facts.refresh()
        return self._facts

    @property
    def known_facts(self) -> Facts | None:
        """The same, if something is known already."""
        return None if self._facts is None and "facts" not in self.__dict__ else self.facts

    @cached_property
    def identity(self) -> Fingerprint:
        """What tells whether another model is the same."""
        return fingerprint(self.model)

    @cached_property
    def outline(self) -> int:
        """What equal models have in common, and others hardly ever; cheaper than the identity."""
        return outline(self.model)

    def equals(self, other: "Subject") -> bool:
        """Whether the two models are the same."""
        return self.outline == other.outline and self.identity == other.identity

    def take(self, with_facts: bool) -> tuple[Model, Facts | None]:
        """Return a copy to work on, which nobody else has, and what is known of its tensors if that is wanted."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare.model, spare.known_facts if with_facts else None
        copy = self.model.copy()
        return copy, self.facts.moved_to(copy) if with_facts else None

    def give_back(self, view: GraphView) -> None:
        """Take back a copy that has turned out to be unchanged, for the next pass."""
        self._spare = view
