"""Which of the steps that write a weight more carefully a site takes."""

from collections.abc import Mapping

STEPS = ("form", "range", "blocks", "bits")
"""Other operators for the same values; the range of least error and a corrected bias; finer blocks; more bits."""


def taken(count: int, has: Mapping[str, bool]) -> frozenset[str]:
    """Return the steps among the first ``count`` that a weight has; if it lacks the last one, the next that it has too.

    Args:
        count: How many steps the pipeline asks for.
        has: For each of ``STEPS``, whether it would change what is written.
    """
    steps = {step for step in STEPS[:count] if has[step]}
    if count and not has[STEPS[min(count, len(STEPS)) - 1]]:
        steps.update([step for step in STEPS[count:] if has[step]][:1])
    return frozenset(steps)
