"""Layers with weights and windows: convolutions, matrix products, pooling, recurrent layers, tables."""

import numpy as np

from drawing.drawer import Drawer, Shape, Tensor, layer
from drawing.elementwise import normalized, scaled, unary


def is_image(each: Tensor) -> bool:
    """Whether a tensor has channels of a known number and one or two axes behind them."""
    return each.rank in (3, 4) and each.known(1)


def wide(each: Tensor) -> bool:
    """Whether a tensor is an image whose free axes are those of an input, so large enough for a window."""
    return is_image(each) and all((isinstance(dim, int) and dim >= 4) or str(dim)[0] in "HWL" for dim in each.shape[2:])


def behind(d: Drawer, source: Tensor, channels: int, same: bool) -> Shape:
    """Return the shape behind a window: as before, or with sizes that nothing is known of."""
    return (source.shape[0], channels, *(source.shape[2:] if same else (d.fresh() for _ in source.shape[2:])))


def packed(d: Drawer, *shape: int, axis: int = 0) -> str:
    """Draw a weight, or one that is stored as integers in front of a DequantizeLinear."""
    if d.opset < 13 or d.depth or not d.chance(0.08):
        return d.weight(*shape)
    stored = d.constant(d.rng.integers(-127, 128, shape), np.int8)
    scale = d.constant(d.rng.uniform(0.002, 0.01, shape[axis]), np.float32)
    zero = d.constant(np.zeros(shape[axis]), np.int8)
    return d.op("DequantizeLinear", [stored, scale, *([zero] if d.chance(0.6) else [])], shape, axis=axis).name


@layer()
def conv(d: Drawer) -> None:
    if source := d.pick(wide):
        axes, size = source.rank - 2, source.size(1)
        outs, kernel, same = d.below(9, 2), 3, d.chance(0.7)
        attrs = {"pads": [1] * 2 * axes} if same else {"strides": [2] * axes, "pads": [1] * 2 * axes}
        if d.chance(0.1):
            attrs, same = {"auto_pad": "SAME_UPPER"}, True
        inputs = [source, packed(d, outs, size, *(kernel,) * axes), *([d.row(outs)] if d.chance(0.6) else [])]
        made = d.op("Conv", inputs, behind(d, source, outs, same), **attrs)
        if d.chance(0.3):
            variance = d.constant(d.rng.uniform(0.3, 2, outs), np.float32)
            made = d.op("BatchNormalization", [made, d.row(outs), d.row(outs), d.row(outs), variance], made.shape)
        d.keep(d.op("Relu", [made], made.shape) if d.chance(0.4) else made)


@layer()
def block(d: Drawer) -> None:
    """Convolutions in a row as networks have them: padded, normalized, activated, with a scale or a shift between."""
    source = d.pick(wide)
    for _ in range(d.below(4, 2) if source else 0):
        assert source is not None
        axes, size, outs = source.rank - 2, source.size(1), d.below(9, 2)
        before, attrs = source, {"pads": [1] * 2 * axes}
        shape = behind(d, before, outs, True)
        if d.chance(0.25):
            source, attrs = around(d, source), {}
        kind, group = d.among("Conv", "Conv", "Conv", "ConvTranspose", "depthwise"), 1
        if kind == "depthwise":
            kind, group, outs, shape = "Conv", size, size, behind(d, before, size, True)
        if kind == "ConvTranspose":
            attrs = {} if d.chance(0.3) else attrs
            shape = behind(d, before, outs, bool(attrs))
        sizes = (size, outs) if kind == "ConvTranspose" else (outs, size // group)
        made = d.op(
            kind,
            [source, d.weight(*sizes, *(3,) * axes), *([d.row(outs)] if d.chance(0.5) else [])],
            shape,
            group=group,
            **attrs,
        )
        for _ in range(d.below(3)):
            made = d.among(normalized, scaled, normalized)(d, made)
        if d.chance(0.7):
            made = d.op(d.among("Relu", "Relu", "LeakyRelu", "Sigmoid"), [made], made.shape)
        d.keep(made)
        source = made if wide(made) else None
        if source is None:
            return


def around(d: Drawer, source: Tensor) -> Tensor:
    """Put a border of one around an image."""
    axes, size = source.rank - 2, [dim + 2 if isinstance(dim, int) else d.fresh() for dim in source.shape[2:]]
    pads, shape = [0, 0, *[1] * axes] * 2, (*source.shape[:2], *size)
    if d.opset < 11:
        return d.op("Pad", [source], shape, pads=pads)
    return d.op("Pad", [source, d.ints(*pads)], shape)


@layer()
def perceptron(d: Drawer) -> None:
    """Two matrix products with an activation between."""
    if source := d.pick(lambda each: each.rank >= 2 and each.known(-1)):
        middle, outs = d.below(10, 3), d.below(10, 2)
        made = d.op("MatMul", [source, d.weight(source.size(-1), middle)], (*source.shape[:-1], middle))
        made = d.op("Add", [made, d.row(middle)], made.shape) if d.chance(0.7) else made
        made = unary(d, made) if d.chance(0.5) else d.op("Relu", [made], made.shape)
        d.add("MatMul", [made, d.weight(middle, outs)], (*source.shape[:-1], outs))


@layer()
def conv_of_a_point(d: Drawer) -> None:
    if source := d.pick(is_image):
        outs, ones = d.below(9, 2), (1,) * (source.rank - 2)
        inputs = [source, packed(d, outs, source.size(1), *ones), *([d.row(outs)] if d.chance(0.6) else [])]
        d.add("Conv", inputs, (source.shape[0], outs, *source.shape[2:]))


@layer()
def depthwise(d: Drawer) -> None:
    if source := d.pick(wide):
        axes, size, times = source.rank - 2, source.size(1), d.among(1, 1, 2)
        inputs = [source, d.weight(size * times, 1, *(3,) * axes), *([d.row(size * times)] if d.chance(0.5) else [])]
        d.add("Conv", inputs, behind(d, source, size * times, True), group=size, pads=[1] * 2 * axes)


@layer()
def grouped(d: Drawer) -> None:
    if source := d.pick(lambda each: is_image(each) and each.size(1) % 2 == 0):
        outs = 2 * d.below(4, 1)
        weight = d.weight(outs, source.size(1) // 2, *(1,) * (source.rank - 2))
        d.add("Conv", [source, weight], (source.shape[0], outs, *source.shape[2:]), group=2)


@layer()
def transposed(d: Drawer) -> None:
    if source := d.pick(wide):
        axes, size = source.rank - 2, source.size(1)
        group = 2 if size % 2 == 0 and d.chance(0.3) else 1
        outs, same = d.below(5, 1), d.chance(0.5)
        attrs = {"pads": [1] * 2 * axes} if same else {"strides": [2] * axes, "output_padding": [1] * axes}
        bias = [d.row(outs * group)] if d.chance(0.5) else []
        inputs = [source, d.weight(size, outs, *(3,) * axes), *bias]
        d.add("ConvTranspose", inputs, behind(d, source, outs * group, same), group=group, **attrs)


@layer()
def gemm(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank == 2 and each.known(1)):
        outs, size = d.below(10, 2), source.size(1)
        turned = d.chance(0.5)
        weight = packed(d, *((outs, size) if turned else (size, outs)), axis=0 if turned else 1)
        bias = (
            [d.among(d.row, lambda n: d.weight(1, n), lambda _: d.scalar(0.3))(outs)]
            if d.opset < 11 or d.chance(0.7)
            else []
        )
        attrs = {"alpha": 0.5, "beta": 2.0} if d.chance(0.2) else {}
        d.add("Gemm", [source, weight, *bias], (source.shape[0], outs), transB=int(turned), **attrs)


@layer()
def matmul(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2 and each.known(-1)):
        outs = d.below(10, 2)
        made = d.op("MatMul", [source, packed(d, source.size(-1), outs, axis=1)], (*source.shape[:-1], outs))
        d.keep(d.op("Add", [made, d.row(outs)][:: d.among(1, -1)], made.shape) if d.chance(0.6) else made)


@layer()
def attention(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank == 3 and each.known(2)):
        size, width = source.size(2), d.among(4, 6)
        parts = [d.op("MatMul", [source, d.weight(size, width)], (*source.shape[:2], width)) for _ in range(3)]
        turned = d.op("Transpose", [parts[1]], (source.shape[0], width, source.shape[1]), perm=[0, 2, 1])
        square = (source.shape[0], source.shape[1], source.shape[1])
        scores = d.op("Mul", [d.op("MatMul", [parts[0], turned], square), d.scalar(0.5)], square)
        shares = d.op("Softmax", [scores], square, axis=2)
        d.add("MatMul", [shares, parts[2]], (*source.shape[:2], width))


@layer(12)
def einsum(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank == 3 and each.known(2)):
        outs = d.below(6, 2)
        d.add("Einsum", [source, d.weight(source.size(2), outs)], (*source.shape[:2], outs), equation="abc,cd->abd")


@layer()
def pooled(d: Drawer) -> None:
    if source := d.pick(wide):
        axes, same = source.rank - 2, d.chance(0.6)
        kind = d.among("MaxPool", "AveragePool")
        attrs: dict[str, object] = {"pads": [1] * 2 * axes} if same else {"strides": [2] * axes}
        if kind == "AveragePool" and d.chance(0.4):
            attrs["count_include_pad"] = 1
        if d.opset >= 10 and not same and d.chance(0.3):
            attrs["ceil_mode"] = 1
        d.add(kind, [source], behind(d, source, source.size(1), same), kernel_shape=[3 if same else 2] * axes, **attrs)


@layer()
def averaged(d: Drawer) -> None:
    if source := d.pick(is_image):
        shape = (*source.shape[:2], *(1,) * (source.rank - 2))
        made = d.op(d.among("GlobalAveragePool", "GlobalMaxPool"), [source], shape)
        if d.chance(0.5):
            made = d.op("Flatten", [made], source.shape[:2], axis=1)
        elif d.chance(0.5):
            made = d.op("Mul", [d.op("Sigmoid", [made], shape), source], source.shape)
        d.keep(made)


@layer()
def recurrent(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank == 3 and each.known(2)):
        kind, gates, units, ways = *d.among(("LSTM", 4), ("GRU", 3), ("RNN", 1)), d.among(3, 5), d.among(1, 1, 2)
        attrs = {"direction": "bidirectional"} if ways == 2 else {"direction": d.among("forward", "reverse")}
        if kind == "GRU" and d.chance(0.5):
            attrs["linear_before_reset"] = 1
        rows = d.op("Transpose", [source], (source.shape[1], source.shape[0], source.shape[2]), perm=[1, 0, 2])
        inputs = [rows, d.weight(ways, gates * units, source.size(2), dead=False)]
        inputs += [d.weight(ways, gates * units, units, dead=False)]
        inputs += [d.weight(ways, 2 * gates * units, dead=False)] if d.chance(0.6) else []
        whole, last = d.name("t"), d.name("t")
        d.node(kind, inputs, [whole, last], hidden_size=units, **attrs)
        state = Tensor(last, (ways, source.shape[0], units))
        d.keep(d.axed("Squeeze", state, [0], state.shape[1:]) if ways == 1 else state)
        if d.chance(0.7):
            every = d.op(
                "Transpose", [Tensor(whole, ())], (source.shape[0], source.shape[1], ways, units), perm=[2, 0, 1, 3]
            )
            d.add("Reshape", [every, d.ints(0, 0, -1)], (*source.shape[:2], ways * units))


@layer()
def table(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank <= 2 and each.name in d.limits, "int64"):
        width = d.below(9, 3)
        d.add("Gather", [d.weight(d.limits[source.name], width), source], (*source.shape, width))
