"""Keep the channel counts of convolutions divisible by what the blocked kernels of runtimes need.

ONNX Runtime computes 2-D convolutions in blocks of 8 (AVX) or 16 channels (AVX-512). What a convolution reads must be
divisible by 4 for that, and is padded to whole blocks; an ungrouped one reads fewer channels than a block as they are.
With several channels per group, those of each group must be whole blocks. Other counts take a path that was 1.2 to 3.2
times as slow where it was measured. What a convolution writes is padded at no cost.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.graph.channels.analysis import Channels
from graphopt.graph.channels.convolution import Layout
from graphopt.graph.channels.facts import Mask
from graphopt.graph.channels.labels import Label
from graphopt.graph.channels.storage import label_of
from graphopt.graph.view import is_op

MULTIPLE = 4
"""The default of prune-channels: what padding makes whole blocks of."""

_SMALL, _LARGE = 8, 16
"""The sizes of blocks."""


@dataclass(frozen=True, eq=False)
class _Width:
    """Channels that a convolution counts.

    Attributes:
        label: Their labels.
        multiple: What their count is to stay divisible by.
        useful: What the count must be divisible by for a kernel to profit.
        floor: A count of this or more does not fall below it.
        direct: Smaller counts than this need not be divisible.
    """

    label: Label
    multiple: int
    useful: int
    floor: int = 0
    direct: int = 0

    def missing(self, gone: Mask) -> int:
        """Return how many labels too many are to go; where all go, none are."""
        size = len(self.label)
        stay = size - int(gone[self.label].sum())
        step = math.gcd(size, self.multiple)
        if stay in (0, size) or step % self.useful:
            return 0
        least = max(stay, self.floor if size >= self.floor else 0)
        return 0 if stay == least < self.direct else -(-least // step) * step - stay


def cuttable(channels: Channels, gone: Mask, multiple: int, order: Sequence[int] = ()) -> Mask:
    """Return what can go: what ``keep_multiples`` permits, without what costs more than it saves then.

    ``gone`` has been through ``channels.worth``. ``channels.dear`` then names what that takes out now too.
    """
    reasons = dict(channels.dear)
    while not np.array_equal(left := keep_multiples(channels, gone, multiple, order), gone):
        gone = channels.worth(left)
        reasons |= channels.dear
    channels.dear = reasons
    return gone


def keep_multiples(channels: Channels, gone: Mask, multiple: int, order: Sequence[int] = ()) -> Mask:
    """Return what can go so that 2-D convolutions keep their blocked kernels.

    What a convolution reads stays divisible by its greatest common divisor with ``multiple``, if 4 divides that. Of 16
    channels or more that a 1x1 or depthwise convolution reads, at least 16 stay. Fewer than 8 that an ungrouped one
    reads need not be divisible. In a grouped convolution, the count of each group stays divisible by 8 or 16 if it was.
    As many groups of labels as that takes do not go.

    Args:
        channels: The analysis.
        gone: Which labels are to go, whole groups.
        multiple: What counts stay divisible by; 1 changes nothing.
        order: Groups in the order in which they go. Those that stay are taken from its end, the last channel first
            among those that it does not name.
    """
    if multiple == 1 or not gone.any():
        return gone
    gone = gone.copy()
    rank = np.arange(len(gone)) - len(gone)
    rank[list(order)] = np.arange(len(order))
    widths = list(_widths(channels, multiple))
    settled = False
    while not settled:
        settled = True
        for width in widths:
            if missing := width.missing(gone):
                gone &= ~np.isin(channels.root, _last(channels.root[width.label[gone[width.label]]], rank, missing))
                settled = False
    return gone


def _last(roots: Label, rank: NDArray[np.int64], count: int) -> Label:
    """Return the groups of the highest rank that have ``count`` labels or more together."""
    groups, sizes = np.unique(roots, return_counts=True)
    falling = np.argsort(-rank[groups], kind="stable")
    before = np.cumsum(sizes[falling]) - sizes[falling]
    return np.asarray(groups[falling][before < count])


def _widths(channels: Channels, multiple: int) -> Iterator[_Width]:
    """Yield the channels that each 2-D convolution reads; of a grouped one, those that each group reads and writes."""
    facts, labels = channels.facts, channels.labels
    for node in facts.program:
        layout = Layout.of(node, facts) if is_op(node, "Conv") and facts.rank(node.inputs[1]) == 4 else None
        if layout is None:
            continue
        ins, outs = label_of(node, 0, 1, labels), labels.variables.get(id(node.outputs[0]), [None, None])[1]
        if layout.group > 1 and not layout.depthwise:
            sides = (side.reshape(layout.group, -1) for side in (ins, outs) if side is not None)
            yield from (_Width(row, max(multiple, _LARGE), _SMALL) for rows in sides for row in rows)
        elif ins is not None:
            floor = _LARGE if layout.depthwise or layout.pointwise else 0
            yield _Width(ins, multiple, MULTIPLE, floor, 0 if layout.depthwise else _SMALL)
