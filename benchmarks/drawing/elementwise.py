"""Layers that work element by element, and those that normalize."""

import numpy as np

from drawing.drawer import Drawer, Tensor, layer

UNARY = {
    7: (
        "Relu",
        "Sigmoid",
        "Tanh",
        "Abs",
        "Neg",
        "Softplus",
        "Softsign",
        "Elu",
        "LeakyRelu",
        "Selu",
        "HardSigmoid",
        "Atan",
    ),
    9: ("Erf", "Sinh"),
    14: ("HardSwish",),
    18: ("Mish",),
    20: ("Gelu",),
}
ATTRIBUTES = {
    "Elu": {"alpha": 0.7},
    "LeakyRelu": {"alpha": 0.3},
    "Selu": {"alpha": 1.5, "gamma": 0.9},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
}


def beside(d: Drawer, source: Tensor) -> str:
    """Draw a constant that broadcasts to a tensor without making it larger: a number, one axis, or several."""
    axes = [axis for axis in range(source.rank) if source.known(axis)]
    way = d.below(4)
    if way == 0 or not axes:
        return d.scalar(d.among(0.0, 1.0, -1.0, 0.5, 2.0)) if source.rank else d.constant(0.5, np.float32)
    kept = [d.among(*axes)] if way < 3 else axes
    if way == 2 and source.known(-1):
        return d.weight(source.size(-1), scale=0.7)
    return d.weight(*(source.size(axis) if axis in kept else 1 for axis in range(min(kept), source.rank)), scale=0.7)


def step(d: Drawer, source: Tensor) -> Tensor:
    """Add one operator whose output has the type and shape of its float input."""
    ways = [unary, unary, scaled, scaled, clipped, nothing]
    if source.rank >= 2 and source.known(1):
        ways += [normalized, pointwise]
    return ways[d.below(len(ways))](d, source)


def unary(d: Drawer, source: Tensor) -> Tensor:
    """Add an activation."""
    kind = d.among(*(kind for since, kinds in UNARY.items() if since <= d.opset for kind in kinds))
    attrs = ATTRIBUTES.get(kind, {}) if d.chance(0.6) else {}
    return d.op(kind, [source], source.shape, **attrs)


def scaled(d: Drawer, source: Tensor) -> Tensor:
    """Add a Mul, Add, Sub or Div with a constant on either side."""
    kind = d.among("Mul", "Mul", "Add", "Add", "Sub", "Div")
    if kind == "Div":
        return d.op(kind, [source, d.scalar(d.among(2.0, 0.7, -1.5))], source.shape)
    pair = [source, beside(d, source)]
    return d.op(kind, pair[:: d.among(1, 1, -1)], source.shape)


def clipped(d: Drawer, source: Tensor) -> Tensor:
    """Add a Clip, one of whose bounds may be missing."""
    low, high = d.among(-1.0, 0.0, None), d.among(6.0, 1.5, None)
    if d.opset < 11:
        attrs = {key: value for key, value in (("min", low), ("max", high)) if value is not None}
        return d.op("Clip", [source], source.shape, **attrs)
    bounds = ["" if value is None else d.constant(value, np.float32) for value in (low, high)]
    while bounds and not bounds[-1]:
        bounds.pop()
    return d.op("Clip", [source, *bounds], source.shape)


def nothing(d: Drawer, source: Tensor) -> Tensor:
    """Add something that leaves every value as it is, or nearly so."""
    way = d.below(5)
    if way == 0:
        return d.op("Dropout", [source], source.shape)
    if way == 1:
        return d.op("Cast", [d.op("Cast", [source], source.shape, "float64", to=11)], source.shape, to=1)
    if way == 2 and source.rank > 1:
        order = [int(each) for each in d.rng.permutation(source.rank)]
        turned = d.op("Transpose", [source], tuple(source.shape[each] for each in order), perm=order)
        return d.op("Transpose", [turned], source.shape, perm=[order.index(each) for each in range(source.rank)])
    if way == 3:
        axis = d.below(source.rank + 1)
        wide = (*source.shape[:axis], 1, *source.shape[axis:])
        return d.axed("Squeeze", d.axed("Unsqueeze", source, [axis], wide), [axis], source.shape)
    return d.op("Identity", [source], source.shape)


def normalized(d: Drawer, source: Tensor) -> Tensor:
    """Add a BatchNormalization or InstanceNormalization over axis 1."""
    size = source.size(1)
    gain, shift = d.row(size), d.row(size)
    if source.rank > 2 and d.chance(0.2):
        return d.op("InstanceNormalization", [source, gain, shift], source.shape, epsilon=1e-2)
    variance = d.constant(d.rng.uniform(0.3, 2, size), np.float32)
    attrs = {"epsilon": 1e-3} if d.chance(0.5) else {}
    return d.op("BatchNormalization", [source, gain, shift, d.row(size), variance], source.shape, **attrs)


def pointwise(d: Drawer, source: Tensor) -> Tensor:
    """Add a convolution of one point, or a matrix product over the last axis."""
    size = source.size(1)
    if source.rank in (3, 4):
        weight = d.weight(size, size, *(1,) * (source.rank - 2))
        return d.op("Conv", [source, weight, *([d.row(size)] if d.chance(0.5) else [])], source.shape)
    if source.rank == 2:
        return d.op("MatMul", [source, d.weight(size, size)], source.shape)
    return unary(d, source)


@layer()
def one_step(d: Drawer) -> None:
    if source := d.pick():
        d.keep(step(d, source))


@layer()
def steps(d: Drawer) -> None:
    if source := d.pick():
        for _ in range(d.below(5, 2)):
            source = step(d, source)
        d.keep(source)


@layer()
def two_tensors(d: Drawer) -> None:
    left = d.pick()
    right = d.pick(lambda each: left is not None and each.shape == left.shape)
    if left and right:
        kinds = ("Add", "Mul", "Sub", "Max", "Min", "Sum", "Mean") if d.opset >= 8 else ("Add", "Mul", "Sub")
        d.add(d.among(*kinds), [left, right], left.shape)


@layer()
def prelu(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 3 and each.known(1)):
        d.add("PRelu", [source, d.weight(source.size(1), *(1,) * (source.rank - 2), scale=0.5)], source.shape)


@layer()
def powers(d: Drawer) -> None:
    if source := d.pick():
        way = d.below(3)
        if way == 0:
            d.add("Pow", [source, d.constant(d.among(2.0, 1.0, 3.0), np.float32)], source.shape)
        elif way == 1:
            d.add("Sqrt", [d.op("Abs", [source], source.shape)], source.shape)
        else:
            d.add("Exp", [d.op("Tanh", [source], source.shape)], source.shape)


@layer(9)
def where(d: Drawer) -> None:
    if source := d.pick():
        test = d.op(d.among("Less", "Greater"), [source, d.scalar(0.2)], source.shape, "bool")
        other = d.pick(lambda each: each.shape == source.shape)
        if d.chance(0.2):
            test = d.op("Not", [test], source.shape, "bool")
        d.add("Where", [test, source, other if other and d.chance(0.5) else d.scalar(d.among(0.0, -2.0))], source.shape)


@layer()
def softmax(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2):
        axis = d.among(1, source.rank - 1, -1)
        d.add(d.among("Softmax", "LogSoftmax"), [source], source.shape, **({"axis": axis} if d.chance(0.8) else {}))


@layer(17)
def layer_norm(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2 and each.known(-1)):
        size = source.size(-1)
        extra = [d.row(size)] if d.chance(0.3) else [d.row(size), d.row(size)]
        kind = "RMSNormalization" if d.opset >= 23 and d.chance(0.3) else "LayerNormalization"
        d.add(kind, [source, *(extra[:1] if kind[0] == "R" else extra)], source.shape, axis=-1, epsilon=1e-2)


@layer(21)
def group_norm(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 3 and each.known(1) and each.size(1) % 2 == 0):
        size = source.size(1)
        d.add("GroupNormalization", [source, d.row(size), d.row(size)], source.shape, num_groups=2, epsilon=1e-2)


@layer()
def written_norm(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2 and each.known(-1)):
        row = (*source.shape[:-1], 1)
        centred = d.op("Sub", [source, d.axed("ReduceMean", source, [-1 % source.rank], row)], source.shape)
        square = d.op("Pow", [centred, d.constant(2.0, np.float32)], source.shape)
        if d.chance(0.3):
            square = d.op("Mul", [centred, centred], source.shape)
        variance = d.op("Add", [d.axed("ReduceMean", square, [source.rank - 1], row), d.scalar(1e-2)], row)
        normal = d.op("Div", [centred, d.op("Sqrt", [variance], row)], source.shape)
        normal = d.op("Mul", [normal, d.row(source.size(-1))], source.shape)
        d.keep(d.op("Add", [normal, d.row(source.size(-1))], source.shape) if d.chance(0.7) else normal)


@layer(9)
def written_gelu(d: Drawer) -> None:
    if source := d.pick():
        inner = d.op("Div", [source, d.constant(np.sqrt(2), np.float32)], source.shape)
        outer = d.op("Add", [d.op("Erf", [inner], source.shape), d.constant(1.0, np.float32)], source.shape)
        half = d.op("Mul", [source, d.constant(0.5, np.float32)], source.shape)
        d.add("Mul", [half, outer][:: d.among(1, -1)], source.shape)


@layer()
def written_swish(d: Drawer) -> None:
    if source := d.pick():
        gate = d.op(d.among("Sigmoid", "HardSigmoid"), [source], source.shape)
        d.add("Mul", [source, gate][:: d.among(1, -1)], source.shape)


@layer(10)
def quantized(d: Drawer) -> None:
    if source := d.pick():
        point = d.constant(d.among(0, 5), d.among(np.uint8, np.int8))
        parts = [d.constant(0.05, np.float32), point]
        low = d.op("QuantizeLinear", [source, *parts], source.shape, "int8")
        d.add("DequantizeLinear", [low, *parts], source.shape)
