"""Derivative rules that onnx-ad lacks: the weight gradients of grouped convolutions and of transposed ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from onnx import NodeProto, helper
from onnx_ad import UnsupportedOperator, rules

Attributes = dict[str, Any]


@contextmanager
def our_rules() -> Iterator[None]:
    """Put our reverse rules before onnx-ad's while the block runs."""
    before = dict(rules.REVERSE)
    rules.REVERSE.update(Conv=_reverse_conv, ConvTranspose=_reverse_conv_transpose)
    try:
        yield
    finally:
        rules.REVERSE.clear()
        rules.REVERSE.update(before)


_THEIR_CONV = rules.REVERSE["Conv"]
_THEIR_CONV_TRANSPOSE = rules.REVERSE["ConvTranspose"]


def _reverse_conv(ctx: Any, node: NodeProto, grads: list[str]) -> list[str | None]:
    """Conv: the weight's adjoint is ours, what is left is theirs."""
    weight = node.input[1]
    attributes = _attributes(ctx, node)
    wanted, ctx.wanted = ctx.wanted, {name for name in node.input if ctx.asked_for(name)} - {weight}
    contributions = list(_THEIR_CONV(ctx, node, grads))
    ctx.wanted = wanted
    if ctx.asked_for(weight):
        contributions[1] = _correlation(ctx, node, attributes, node.input[0], grads[0], node.output[0])
    return contributions


def _correlation(ctx: Any, node: NodeProto, attributes: Attributes, image: str, adjoint: str, primal: str) -> str:
    """Return the adjoint of a Conv weight [M, C / G, *kernel] by one convolution with G groups.

    With x as [C / G, G N, *sizes] and the output's adjoint as filters [M, N, *positions], output channel m of group g
    sees the N images of group g only: sum over n and positions of x times adjoint, which is the gradient. Strides and
    dilations change places.
    """
    groups, weight = attributes["group"], node.input[1]
    kernel, x, y = (_static(ctx, name) for name in (weight, image, primal))
    rank, samples = len(kernel) - 2, x[0]
    pads = attributes["pads"]
    sizes = [size + pads[i] + pads[rank + i] for i, size in enumerate(x[2:])]
    if any(pads):
        amounts = ctx.b.ints([0, 0, *pads[:rank], 0, 0, *pads[rank:]])
        image = ctx.b.op("Pad", [image, amounts], mode="constant", stem="padded")
    spatial = list(range(3, 3 + rank))
    image = ctx.b.op("Reshape", [image, ctx.b.ints([samples, groups, kernel[1], *sizes])])
    image = ctx.b.op("Transpose", [image], perm=[2, 1, 0, *spatial])
    image = ctx.b.op("Reshape", [image, ctx.b.ints([kernel[1], groups * samples, *sizes])])
    # The adjoint carries a trailing axis of seeds; each seed is a filter bank of its own: [M, seeds, N, *positions].
    full = ctx.full(adjoint, primal)
    filters = ctx.b.op("Transpose", [full], perm=[1, 2 + rank, 0, *range(2, 2 + rank)])
    filters = ctx.b.op("Reshape", [filters, ctx.b.ints([-1, samples, *y[2:]])])
    gradient = ctx.b.op(
        "Conv",
        [image, filters],
        group=groups,
        strides=attributes["dilations"],
        dilations=attributes["strides"],
        stem="a_weight",
    )
    axes = list(range(2, 2 + rank))
    gradient = ctx.b.op(
        "Slice", [gradient, ctx.b.ints([0] * rank), ctx.b.ints(list(kernel[2:])), ctx.b.ints(axes)], stem="cropped"
    )
    gradient = ctx.b.op("Reshape", [gradient, ctx.b.ints([kernel[1], kernel[0], -1, *kernel[2:]])])
    return str(ctx.b.op("Transpose", [gradient], perm=[1, 0, *spatial, 2], stem="a_conv_weight"))


def _reverse_conv_transpose(ctx: Any, node: NodeProto, grads: list[str]) -> list[str | None]:
    """ConvTranspose: its weight's adjoint is that of the Conv which goes the other way, input and output swapped."""
    weight = node.input[1]
    attributes = _attributes(ctx, node)
    if attributes["output_shape"]:
        raise UnsupportedOperator("ConvTranspose with output_shape is not differentiated")
    wanted, ctx.wanted = ctx.wanted, {name for name in node.input if ctx.asked_for(name)} - {weight}
    contributions = list(_THEIR_CONV_TRANSPOSE(ctx, node, grads))
    ctx.wanted = wanted
    if ctx.asked_for(weight):
        contributions[1] = _transposed_weight(ctx, node, attributes, grads[0])
    return contributions


def _transposed_weight(ctx: Any, node: NodeProto, attributes: Attributes, adjoint: str) -> str:
    """Return the adjoint of a ConvTranspose weight [C, M / G, *kernel].

    y = convtranspose(x, W) is the input-adjoint of x' = conv(y', W) with W as [C outputs, M / G inputs]: so dW is what
    the Conv rule gives with the adjoint of y for its image and x for its output's adjoint.
    """
    x, y, groups = node.input[0], node.output[0], attributes["group"]
    kernel, sizes, grid = (_static(ctx, name) for name in (node.input[1], y, x))
    rank, pads = len(kernel) - 2, attributes["pads"]
    padded = [size + pads[i] + pads[rank + i] for i, size in enumerate(sizes[2:])]
    # Seeds go into the batch of images: they share the filters, and are told apart in the channels of the result.
    image = ctx.b.op("Transpose", [ctx.full(adjoint, y)], perm=[2 + rank, *range(2 + rank)])
    amounts = ctx.b.ints([0, 0, 0, *pads[:rank], 0, 0, 0, *pads[rank:]])
    image = ctx.b.op("Pad", [image, amounts], mode="constant") if any(pads) else image
    image = ctx.b.op("Reshape", [image, ctx.b.ints([-1, sizes[0], groups, kernel[1], *padded])])
    image = ctx.b.op("Transpose", [image], perm=[0, 3, 2, 1, *range(4, 4 + rank)])
    image = ctx.b.op("Reshape", [image, ctx.b.ints([-1, groups * sizes[0], *padded])])
    filters = ctx.b.op("Transpose", [x], perm=[1, 0, *range(2, 2 + rank)])
    gradient = ctx.b.op(
        "Conv", [image, filters], group=groups, strides=attributes["dilations"], dilations=attributes["strides"]
    )
    axes = list(range(2, 2 + rank))
    gradient = ctx.b.op("Slice", [gradient, ctx.b.ints([0] * rank), ctx.b.ints(list(kernel[2:])), ctx.b.ints(axes)])
    gradient = ctx.b.op("Reshape", [gradient, ctx.b.ints([-1, kernel[1], grid[1], *kernel[2:]])])
    return str(ctx.b.op("Transpose", [gradient], perm=[2, 1, *range(3, 3 + rank), 0], stem="a_convt_weight"))


def _attributes(ctx: Any, node: NodeProto) -> Attributes:
    """Return a convolution's attributes with their defaults filled in."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise UnsupportedOperator(f"{node.op_type} with auto_pad {given['auto_pad'].decode()}")
    rank = ctx.rank(node.input[0]) - 2
    return {
        "group": given.get("group", 1),
        "strides": list(given.get("strides", [1] * rank)),
        "dilations": list(given.get("dilations", [1] * rank)),
        "pads": list(given.get("pads", [0] * 2 * rank)),
        "output_shape": list(given.get("output_shape", [])),
    }


def _static(ctx: Any, name: str) -> tuple[int, ...]:
    """Return a fully known shape."""
    shape = ctx.shapes.static(name)
    if shape is None:
        raise UnsupportedOperator(f"the shape of {name!r} is not known")
    return tuple(shape)
