"""Let convolutions and poolings do the padding that a Pad does before them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import FloatExact, GraphView, SitePass, Skip
from graphopt.graph.constants import why_unknown
from graphopt.graph.symbolic.attributes import attribute

_NONNEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs")


@dataclass(frozen=True, kw_only=True)
class FusePads(SitePass):
    """Let convolutions and poolings do the padding that a Pad does before them.

    1. Pad by zeros, then Conv: its pads grow.
    2. Pad by zeros, then AveragePool: its pads grow, and it counts them.
    3. Pad by -Inf or the lowest number, or by zero where nothing is negative, then MaxPool: its pads grow.

    An implementation may then choose another algorithm, which sums in another order: outputs are equal up to rounding.

    Refused: other modes of padding, other or unknown values, negative or unknown amounts, batch or channels padded;
    auto_pad SAME, which depends on the padded size; a Pad that something else reads; poolings with ceil_mode, or whose
    windows could lie in the padding altogether.
    """

    name = "fuse-pads"
    contract = FloatExact(rtol=1e-5, atol=1e-6)
    keeps_facts = True

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield convolutions and poolings that follow a Pad."""
        for node in view.nodes("Conv", "AveragePool", "MaxPool"):
            if view.producer(node.inputs[0], "Pad") is not None:
                yield node

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Move the amounts of one Pad into the node behind it."""
        pad = view.producer(node.inputs[0], "Pad")
        if pad is None:
            raise Skip("nothing pads before it any more")
        view.require_private(node.inputs[0])
        view.require_chosen(pad)
        before, after = _spatial_amounts(view, pad)
        value = _pad_value(view, pad)
        space = len(before)
        mode = attribute(node, "auto_pad", "NOTSET")
        if mode not in ("NOTSET", "VALID"):
            raise Skip(f"auto_pad {mode} depends on the padded size")
        own = list(attribute(node, "pads", [])) if mode == "NOTSET" else []
        own = own or [0] * 2 * space
        if len(own) != 2 * space:
            raise Skip(f"pads {own} do not fit {space} spatial dimensions")
        pads = [a + b for a, b in zip(own, [*before, *after], strict=True)]
        if node.op == "Conv":
            _require(value == 0, f"pads by {value:g}, not by zero")
        else:
            _require_pooling(view, node, pad, value, own, pads)
        if node.op == "AveragePool":
            node.attrs["count_include_pad"] = 1
        node.attrs.pop("auto_pad", None)
        node.attrs["pads"] = pads
        view.edit.set_input(node, 0, pad.inputs[0])
        return f"pads {pads}"


def _require(condition: bool, reason: str) -> None:
    """Raise Skip with ``reason`` unless the condition holds."""
    if not condition:
        raise Skip(reason)


def _spatial_amounts(view: GraphView, pad: gs.Node) -> tuple[Sequence[int], Sequence[int]]:
    """Return how much a Pad adds before and after each spatial dimension."""
    _require(attribute(pad, "mode", "constant") == "constant", f"mode {attribute(pad, 'mode', '')!r} is not constant")
    amounts = attribute(pad, "pads", attribute(pad, "paddings", None))
    if amounts is None:
        array = view.array(pad.inputs[1]) if len(pad.inputs) > 1 else None
        if array is None:
            raise Skip("the amounts are not constant")
        amounts = [int(n) for n in array.reshape(-1)]
    rank = len(amounts) // 2
    begins, ends = list(amounts[:rank]), list(amounts[rank:])
    if len(pad.inputs) > 3 and pad.inputs[3].name:
        axes, shape = view.array(pad.inputs[3]), view.shape(pad.inputs[0])
        if axes is None or shape is None:
            raise Skip("the padded axes are not constant")
        places = [int(axis) % len(shape) for axis in axes.reshape(-1)]
        rows = (dict(zip(places, begins, strict=True)), dict(zip(places, ends, strict=True)))
        begins, ends = ([row.get(axis, 0) for axis in range(len(shape))] for row in rows)
    _require(len(begins) > 2, "there are no spatial dimensions")
    _require(min(begins + ends) >= 0, "a negative amount cuts off")
    _require(not any(begins[:2] + ends[:2]), "pads the batch or the channels")
    return begins[2:], ends[2:]


def _pad_value(view: GraphView, pad: gs.Node) -> float:
    """Return what a Pad fills with."""
    if len(pad.inputs) > 2 and pad.inputs[2].name:
        array = view.array(tensor := pad.inputs[2])
        if array is None or array.size != 1:
            raise Skip(f"the value {tensor.name!r} {why_unknown(tensor, view) or 'is not constant'}")
        return float(array.astype(np.float64).reshape(()))
    return float(attribute(pad, "value", 0.0))


def _require_pooling(
    view: GraphView, node: gs.Node, pad: gs.Node, value: float, own: Sequence[int], pads: Sequence[int]
) -> None:
    """Raise Skip unless a pooling's own padding does the same as the Pad before it."""
    kernel = attribute(node, "kernel_shape", [])
    _require(not attribute(node, "ceil_mode", 0), "ceil_mode lets windows reach beyond the padding")
    _require(all(n == 1 for n in attribute(node, "dilations", [1])), "dilated windows could skip over the data")
    _require(
        all(n < k for n, k in zip(pads, [*kernel, *kernel], strict=True)), "windows could lie in the padding alone"
    )
    if node.op == "AveragePool":
        _require(value == 0, f"pads by {value:g}, not by zero")
        counted = attribute(node, "count_include_pad", 0) or not any(own)
        _require(bool(counted), "it pads by itself without counting that")
        _require(view.opset >= 7, "count_include_pad needs opset 7")
        return
    _require(len([out for out in node.outputs if out.name]) == 1, "its indices count the padding")
    lowest = float(np.finfo(np.float32).min)
    if value > lowest and not (value == 0 and view.producer(pad.inputs[0], *_NONNEGATIVE)):
        raise Skip(f"pads by {value:g}, which could be the maximum")
