"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Is told of each step: its text, how many are done, and of how many."""


def silent(step: str, done: int, total: int) -> None:
    """Show no progress."""
