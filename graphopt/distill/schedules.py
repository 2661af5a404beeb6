"""Learning rates over the course of a training."""

import math
from typing import Literal, get_args

Schedule = Literal["constant", "step", "exponential", "cosine"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)

DECAY = 0.01
"""What is left of the rate at the end of the exponential schedule, and after the last two drops of the step one."""


def learning_rate(schedule: Schedule, peak: float, step: int, total: int, warmup: int = 0) -> float:
    """Return the rate of one step.

    After a linear rise over ``warmup`` steps: constant; step (a tenth after half of the rest, a hundredth after three
    quarters); exponential (down to a hundredth); cosine (down to zero at ``total``, Loshchilov and Hutter 2017).

    Args:
        schedule: Which one.
        peak: The highest rate.
        step: From 0.
        total: How many steps there are.
        warmup: How many of them rise.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "exponential":
        return peak * math.exp(math.log(DECAY) * done)
    if schedule == "step":
        return peak * (1.0 if done < 0.5 else math.sqrt(DECAY) if done < 0.75 else DECAY)
    return peak
