"""The ways in which inputs are drawn, the most natural first."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from graphopt.numerics.tally import is_float_type
from graphopt.runtime.signature import TensorInfo

IMAGE_SIZES = (64, 96, 128, 224, 256, 32, 299, 320, 512, 640, 28, 16)
WAVE_SIZES = (4000, 5600, 16000, 24000, 512, 1600, 32000, 48000, 8000, 160000)
SEQUENCE_SIZES = (8, 12, 32, 128, 512, 16, 64, 4000, 16000, 4, 3, 2, 1, 256, 10, 100)
BATCHES = (2, 1, 3, 4, 8)
STYLES = ("plain", "unit", "small", "wide")

_WAVE = re.compile(r"wave|audio|samples|signal|speech|pcm|(^|_)time(_|$)|^wav", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """One way to draw.

    Attributes:
        batch: The size of batch axes.
        length: The size of the other dynamic axes.
        widen: Added to the last axis of images, so that height and width differ.
        style: "plain": normal floats, free integers below 10; "unit": floats from 0 to 1, integers 0 or 1; "small":
            floats close to 1, integers 1; "wide": normal floats times 5, free integers below 100; "open": as "plain",
            and nothing is masked.
        no_past: Whether axes of the past, of decoders with a cache, are empty.
        apart: The classes of axes (see ``Axes``) whose axes get sizes of their own.
        descending: Whether the first of these is the longest, not the shortest.
    """

    batch: int
    length: int
    widen: int = 0
    style: str = "plain"
    no_past: bool = False
    apart: frozenset[str] = frozenset()
    descending: bool = False


def is_image(info: TensorInfo) -> bool:
    """Whether an input looks like images or volumes whose height and width are free."""
    shape = info.shape or ()
    return is_float_type(info.dtype) and len(shape) >= 4 and sum(not isinstance(dim, int) for dim in shape[1:]) >= 2


def is_wave(info: TensorInfo) -> bool:
    """Whether an input looks like sound, sample by sample: by its name or its last axis's, and no further features."""
    shape = info.shape or ()
    alone = len(shape) in (1, 2) or (len(shape) == 3 and isinstance(shape[1], int) and shape[1] <= 2)
    if not (is_float_type(info.dtype) and alone) or isinstance(shape[-1], int):
        return False
    return bool(_WAVE.search(info.name) or (isinstance(shape[-1], str) and _WAVE.search(shape[-1])))


def lengths(infos: Iterable[TensorInfo]) -> tuple[int, ...]:
    """Return sizes for the dynamic axes that are no batch, the most likely first."""
    infos = list(infos)
    if any(map(is_image, infos)):
        return IMAGE_SIZES
    return WAVE_SIZES if any(map(is_wave, infos)) else SEQUENCE_SIZES


def longest(infos: Iterable[TensorInfo]) -> int:
    """Return how long an input is made in search of outputs that say something; 0 if no length is free.

    Long rows of numbers cost little, and may be sound; other inputs may meet layers whose cost is quadratic.
    """
    free = [info for info in infos if any(not isinstance(dim, int) for dim in (info.shape or (None, None))[1:])]
    if any(map(is_image, free)):
        return 256
    rows = all(is_float_type(info.dtype) and len(info.shape or ()) <= 2 for info in free)
    return 0 if not free else 16000 if rows or any(map(is_wave, free)) else 512


def first_plans(sizes: tuple[int, ...], widen: int, has_past: bool) -> Iterator[Plan]:
    """Yield plans until one runs."""
    yield Plan(2, sizes[0])
    yield Plan(1, sizes[1], widen=widen)
    if has_past:
        yield Plan(2, sizes[0], no_past=True)
        yield Plan(1, sizes[1], no_past=True)
    for style in STYLES:
        for batch in (1, 2) if style != "plain" else BATCHES:
            for length in sizes if batch < 3 else sizes[:2]:
                if (batch, length, style) != (2, sizes[0], "plain"):
                    yield Plan(batch, length, style=style)


def fixed_plans() -> Iterator[Plan]:
    """Yield plans for a model without dynamic axes until one runs."""
    for style in STYLES:
        yield Plan(1, 8, style=style)


def telling_plans(plan: Plan, longest: int) -> Iterator[Plan]:
    """Yield other plans, up to a length, for a model whose outputs say nothing on inputs drawn by ``plan``."""
    yield replace(plan, style="open")
    if plan.length < longest:
        yield replace(plan, length=min(8 * plan.length, longest))
    yield replace(plan, style="wide")
    if plan.length < longest:
        yield replace(plan, length=longest, style="wide")
    yield replace(plan, style="unit" if plan.style != "unit" else "plain")


def further_plans(plan: Plan, sizes: tuple[int, ...], widen: int) -> Iterator[Plan]:
    """Yield plans of other sizes than those of ``plan``, which runs."""
    others = [size for size in sizes if size != plan.length]
    for batch in dict.fromkeys((1, plan.batch)):
        for length in others[:2]:
            yield replace(plan, batch=batch, length=length, widen=widen)
    for batch in dict.fromkeys((plan.batch, *BATCHES)):
        for length in sizes if batch < 3 else sizes[:2]:
            if (batch, length) != (plan.batch, plan.length):
                yield replace(plan, batch=batch, length=length)
