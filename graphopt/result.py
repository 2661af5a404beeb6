"""What a pass did, as data: every site that it looked at is rewritten or skipped with a reason."""

from dataclasses import dataclass


class Skip(Exception):  # noqa: N818
    """Raised by a rewrite, before its first mutation, with the reason that names the culprit."""


@dataclass(frozen=True)
class Rewritten:
    """A site that was rewritten; a site's identity is its first output's name.

    Attributes:
        site: Its identity.
        detail: What was done to it.
        nbytes: How many bytes what was written for it takes in the file; None where the pass does not say.
    """

    site: str
    detail: str = ""
    nbytes: int | None = None


@dataclass(frozen=True)
class Skipped:
    """A site that was left as it was, and why."""

    site: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """All sites of one run of one pass, and what a reader should know besides, a line each."""

    rewritten: tuple[Rewritten, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
