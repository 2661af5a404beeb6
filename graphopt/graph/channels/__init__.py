"""Channel analysis: what is dead, what must be cut together, and the cut itself.

The analysis is dataflow over the whole program, with one small transfer function per operator in a table that a plugin
extends with ``register``. Four walks:

1. *forward*: which channels hold one known value all over (``Facts.uniform``), by evaluating the operators themselves;
2. *backward*: which channels anything reads (``Facts.needed``); a contraction does without noughts and without known
   values that fold into its bias;
3. *couple*: which indices of which axes can only go together, as labels born in constants (``Labels``);
4. *cut*: once it is known what goes, attributes, shape constants and biases follow; labelled constants are sliced.

An operator that is not in the table makes everything that it reads needed and fixed. Known values are trusted to meet
finite numbers only: nought times anything is nought.

How a pass uses it::

    channels = Channels.analyze(view)
    for group in channel_groups(channels):      # coupled channels, in a fixed order
        group.site                              # the layer that first feeds it, e.g. "/layer1/Conv_output_0"
        group.blocked                           # why it can never be cut ("'y' is an output of the model"), or None
        group.removable                         # prune-channels would remove it as it is
        for part in group.makers():             # the weights that feed or scale it: noughts there make it removable
            part.node, part.slot, part.axis, part.indices, part.role
        for part in group.weights: ...          # all its weights, also those that read it on ("reads") or sit "aside"
        for part in group.tensors:              # the computed tensors that carry it: part.tensor, .axis, .indices
            ...
    zero(channels, chosen_groups, view.edit)    # zeroing a group = noughts in all that makes it
    gone = channels.removable(view.vetoes)      # a mask over labels; groups that do nothing
    channels.cut(gone).apply(view.edit)         # cutting = taking those slices out everywhere

Weights are seen per use (node and input slot): a weight that two layers share is two uses, and is copied on write.
"""

from graphopt.graph.channels import (  # noqa: F401  importing them fills the table
    blocks,
    contraction,
    convolution,
    elementwise,
    gathering,
    joining,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    reshaping,
    sizes,
    spreading,
)
from graphopt.graph.channels.analysis import Channels
from graphopt.graph.channels.cutting import Cut
from graphopt.graph.channels.facts import Facts
from graphopt.graph.channels.groups import ChannelGroup, TensorSlice, WeightSlice, channel_groups, zero
from graphopt.graph.channels.labels import Labels, Use
from graphopt.graph.channels.table import TABLE, Transfer, register, transfer_of

__all__ = [
    "TABLE",
    "ChannelGroup",
    "Channels",
    "Cut",
    "Facts",
    "Labels",
    "TensorSlice",
    "Transfer",
    "Use",
    "WeightSlice",
    "channel_groups",
    "register",
    "transfer_of",
    "zero",
]
