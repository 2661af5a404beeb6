"""Derivative rules that onnx-ad lacks or that cost less: weight gradients of all convolutions, and Clip's."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from onnx import NodeProto, helper
from onnx_ad import UnsupportedOperator, rules

Attributes = dict[str, Any]

UNFOLDED = 1 << 23
"""Up to this many numbers, a convolution's image is unfolded for one large matrix product."""
PLACES = 49
"""Up to this many places in a kernel, a depthwise convolution is taken apart into them."""


@contextmanager
def our_rules() -> Iterator[None]:
    """Put our reverse rules before onnx-ad's while the block runs."""
    before = dict(rules.REVERSE)
    rules.REVERSE.update(Conv=_reverse_conv, ConvTranspose=_reverse_conv_transpose, Clip=_reverse_clip)
    try:
        yield
    finally:
        rules.REVERSE.clear()
        rules.REVERSE.update(before)


_THEIR_CONV = rules.REVERSE["Conv"]
_THEIR_CONV_TRANSPOSE = rules.REVERSE["ConvTranspose"]
_THEIR_CLIP = rules.REVERSE["Clip"]


def _reverse_conv(ctx: Any, node: NodeProto, grads: list[str]) -> list[str | None]:
    """Conv: the weight's adjoint is ours, what is left is theirs."""
    weight = node.input[1]
    attributes = _attributes(ctx, node)
    wanted, ctx.wanted = ctx.wanted, {name for name in node.input if ctx.asked_for(name)} - {weight}
    contributions = list(_THEIR_CONV(ctx, node, grads))
    ctx.wanted = wanted
    if ctx.asked_for(weight):
        rule = _weight_rule(ctx, node, attributes["group"])
        contributions[1] = rule(ctx, node, attributes, node.input[0], grads[0], node.output[0])
    return contributions


def _weight_rule(ctx: Any, node: NodeProto, groups: int) -> Callable[..., str]:
    """Return the rule for a Conv weight's adjoint that costs ONNX Runtime least."""
    kernel, y = _static(ctx, node.input[1]), _static(ctx, node.output[0])
    if kernel[0] == groups and kernel[1] == 1 and math.prod(kernel[2:]) <= PLACES:
        return _depthwise
    if groups == 1 and math.prod(kernel[1:]) * y[0] * math.prod(y[2:]) <= UNFOLDED:
        return _product
    return _correlation


def _depthwise(ctx: Any, node: NodeProto, attributes: Attributes, image: str, adjoint: str, primal: str) -> str:
    """Return the adjoint of a depthwise Conv weight [C, 1, *kernel], one place in the kernel after the other."""
    kernel, y = _static(ctx, node.input[1]), _static(ctx, primal)
    given = ctx.b.op("Reshape", [ctx.full(adjoint, primal), ctx.b.ints(list(y))])
    sums = []
    for window in _windows(ctx, attributes, image, kernel, y):
        product = ctx.b.op("Mul", [window, given])
        total = ctx.reduce_sum(product, [0, *range(2, len(y))], keepdims=0)
        sums.append(ctx.b.op("Reshape", [total, ctx.b.ints([-1, 1])]))
    joined = ctx.b.op("Concat", sums, axis=1) if len(sums) > 1 else sums[0]
    return str(ctx.b.op("Reshape", [joined, ctx.b.ints([*kernel, 1])], stem="a_conv_weight"))


def _product(ctx: Any, node: NodeProto, attributes: Attributes, image: str, adjoint: str, primal: str) -> str:
    """Return the adjoint of a Conv weight [M, C, *kernel] by one matrix product, for a single seed.

    Each place in the kernel sees its own window of the image: the windows, [places C, N positions], times the output's
    adjoint, [M, N positions]. ONNX Runtime needs half the time for that of what ``_correlation`` takes.
    """
    kernel, x, y = (_static(ctx, name) for name in (node.input[1], image, primal))
    rank = len(kernel) - 2
    windows = _windows(ctx, attributes, image, kernel, y, transposed=True)
    unfolded = ctx.b.op("Concat", windows, axis=0, stem="unfolded") if len(windows) > 1 else windows[0]
    unfolded = ctx.b.op("Reshape", [unfolded, ctx.b.ints([len(windows) * x[1], -1])])
    # With the positions in one axis, ONNX Runtime moves whole images; several seeds would fail in the product.
    filters = ctx.b.op("Reshape", [ctx.full(adjoint, primal), ctx.b.ints([y[0], y[1], -1])])
    filters = ctx.b.op("Reshape", [ctx.b.op("Transpose", [filters], perm=[1, 0, 2]), ctx.b.ints([y[1], -1])])
    gradient = ctx.b.op("Gemm", [filters, unfolded], transB=1, stem="a_weight")
    gradient = ctx.b.op("Reshape", [gradient, ctx.b.ints([y[1], *kernel[2:], x[1], 1])])
    return str(ctx.b.op("Transpose", [gradient], perm=[0, 1 + rank, *range(1, 1 + rank), 2 + rank], stem="a_conv"))


def _windows(
    ctx: Any,
    attributes: Attributes,
    image: str,
    kernel: tuple[int, ...],
    y: tuple[int, ...],
    transposed: bool = False,
) -> list[str]:
    """Return what each place in the kernel sees of the image, [N, C, *positions] or with the first axes swapped."""
    rank, pads, strides = len(kernel) - 2, attributes["pads"], attributes["strides"]
    if any(pads):
        amounts = ctx.b.ints([0, 0, *pads[:rank], 0, 0, *pads[rank:]])
        image = ctx.b.op("Pad", [image, amounts], mode="constant", stem="padded")
    if transposed:
        image = ctx.b.op("Transpose", [image], perm=[1, 0, *range(2, 2 + rank)])
    axes, windows = ctx.b.ints(list(range(2, 2 + rank))), []
    for place in itertools.product(*(range(size) for size in kernel[2:])):
        begin = [at * dilation for at, dilation in zip(place, attributes["dilations"], strict=True)]
        end = [b + (count - 1) * step + 1 for b, count, step in zip(begin, y[2:], strides, strict=True)]
        bounds = [ctx.b.ints(begin), ctx.b.ints(end), axes, ctx.b.ints(strides)]
        windows.append(ctx.b.op("Slice", [image, *bounds], stem="window"))
    return windows


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


def _reverse_clip(ctx: Any, node: NodeProto, grads: list[str]) -> list[str | None]:
    """Clip: what comes out as it went in passes; theirs runs Where, which is many times slower."""
    if any(name and ctx.asked_for(name) for name in node.input[1:]):
        return list(_THEIR_CLIP(ctx, node, grads))
    same = ctx.b.op("Equal", [node.output[0], node.input[0]], stem="inside")
    mask = ctx.b.op("CastLike", [same, node.input[0]], stem="inside")
    return [ctx.b.op("Mul", [grads[0], ctx.lift(mask)], stem="a_clip"), *[None] * (len(node.input) - 1)]


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
