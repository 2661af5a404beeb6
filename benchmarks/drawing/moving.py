"""Layers that move, cut, join and reduce, and the arithmetic on shapes that exporters write for them."""

import numpy as np

from drawing.drawer import Dim, Drawer, Tensor, layer

MOVED = ("float32", "int64")


def moved(d: Drawer, rank: int = 1) -> Tensor | None:
    """Choose a tensor to move, one of integers now and then."""
    return d.pick(lambda each: each.rank >= rank, d.among("float32", "float32", "float32", "float32", "int64"))


@layer()
def transpose(d: Drawer) -> None:
    if source := moved(d, 2):
        order = [int(each) for each in d.rng.permutation(source.rank)]
        d.add("Transpose", [source], tuple(source.shape[each] for each in order), source.dtype, perm=order)


@layer()
def concat(d: Drawer) -> None:
    if source := moved(d):
        axis = d.below(source.rank)
        rest = (source.shape[:axis], source.shape[axis + 1 :])
        other = d.pick(
            lambda each: each.rank == source.rank and (each.shape[:axis], each.shape[axis + 1 :]) == rest, source.dtype
        )
        if other:
            sizes = source.shape[axis], other.shape[axis]
            size: Dim = sum(sizes) if all(isinstance(each, int) for each in sizes) else d.fresh()  # type: ignore[arg-type]
            shape = (*source.shape[:axis], size, *source.shape[axis + 1 :])
            place = axis - source.rank if d.opset >= 11 and d.chance(0.3) else axis
            d.add("Concat", [source, other], shape, source.dtype, axis=place)


@layer()
def split(d: Drawer) -> None:
    if source := d.pick(lambda each: any(each.known(axis) and each.size(axis) > 1 for axis in range(each.rank))):
        axis = d.among(*(axis for axis in range(source.rank) if source.known(axis) and source.size(axis) > 1))
        size = source.size(axis)
        even = size % 2 == 0 and d.chance(0.5)
        first = size // 2 if even else d.below(size, 1)
        names, sizes, attrs = [d.name("t"), d.name("t")], [first, size - first], {"axis": axis}
        inputs: list[Tensor | str] = [source]
        if even and d.chance(0.5):
            attrs |= {"num_outputs": 2} if d.opset >= 18 else {}
        elif d.opset >= 13:
            inputs.append(d.ints(*sizes))
        else:
            attrs["split"] = sizes
        d.node("Split", inputs, names, **attrs)
        for name, part in zip(names, sizes, strict=True):
            d.keep(Tensor(name, (*source.shape[:axis], part, *source.shape[axis + 1 :])))


@layer()
def slice_(d: Drawer) -> None:
    if source := moved(d):
        axis, far = d.below(source.rank), d.among(2**31 - 1, 2**63 - 1)
        if not source.known(axis):
            start, end = d.among((0, far), (0, 1), (-1, far))
            return d.keep(d.cut(source, axis, start, end, 1, 1 if (start, end) != (0, far) else source.shape[axis]))
        size = source.size(axis)
        step = d.among(1, 1, 1, 2, -1) if d.opset >= 10 else 1
        start = d.below(size) if step > 0 else size - 1
        end = d.among(far, d.below(size + 1, start + 1)) if step > 0 else -far
        left = len(range(size)[start : min(end, size) : step]) if step > 0 else size
        return d.keep(d.cut(source, axis, start - size if d.chance(0.3) else start, end, step, left))
    return None


@layer()
def gather(d: Drawer) -> None:
    if source := d.pick(lambda each: any(each.known(axis) for axis in range(each.rank))):
        axis = d.among(*(axis for axis in range(source.rank) if source.known(axis)))
        size = source.size(axis)
        if d.chance(0.3):
            place = d.constant(d.below(size) - (size if d.opset >= 11 and d.chance(0.3) else 0), np.int64)
            d.add("Gather", [source, place], source.shape[:axis] + source.shape[axis + 1 :], axis=axis)
        else:
            places = d.rng.integers(0, size, d.below(6, 1))
            shape = (*source.shape[:axis], len(places), *source.shape[axis + 1 :])
            d.add("Gather", [source, d.constant(places, d.among(np.int64, np.int32))], shape, axis=axis)


@layer()
def pad(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2):
        spots = [axis for axis in range(source.rank) if axis != 0 or d.chance(0.2)]
        axis, before, after = d.among(*spots), d.below(3), d.below(3)
        last = d.chance(0.5) and source.rank > 2
        pads = np.zeros((2, source.rank), np.int64)
        pads[0, axis], pads[1, axis] = before, after
        if last:
            pads[:, 2:] = 1
        new = [
            dim + int(pads[:, k].sum()) if isinstance(dim, int) else dim if not pads[:, k].any() else f"H{d.fresh()}"
            for k, dim in enumerate(source.shape)
        ]
        value = d.among(0.0, 0.0, 0.5)
        if d.opset < 11:
            d.add("Pad", [source], tuple(new), pads=pads.ravel().tolist(), value=value)
            return
        mode = d.among("constant", "constant", "edge")
        extra = [d.constant(value, np.float32)] if mode == "constant" and (value or d.chance(0.5)) else []
        d.add("Pad", [source, d.ints(*pads.ravel().tolist()), *extra], tuple(new), mode=mode)


@layer()
def resize(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank == 4 and each.known(1)):
        scales = d.constant([1, 1, 2, d.among(1, 2, 1.5) if d.opset >= 11 else 2], np.float32)
        shape = (*source.shape[:2], f"H{d.fresh()}", f"W{d.fresh()}")
        mode = d.among("nearest", "linear")
        if d.opset in (7, 8):
            d.add(
                "Upsample", [source], shape, mode=mode, scales=d.arrays[scales].tolist()
            ) if scales in d.arrays else None
        elif d.opset < 11:
            d.add("Upsample" if d.opset == 9 else "Resize", [source, scales], shape, mode=mode)
        else:
            ways = {"coordinate_transformation_mode": d.among("half_pixel", "asymmetric", "align_corners")}
            empty = "" if d.opset >= 13 else d.constant(np.zeros(0), np.float32)
            if d.chance(0.3):
                known = d.op("Shape", [source], (4,), "int64")
                sizes = d.op("Mul", [known, d.ints(1, 1, 2, 3)], (4,), "int64")
                d.add("Resize", [source, empty, "" if d.opset >= 13 else empty, sizes], shape, mode=mode, **ways)
            else:
                d.add("Resize", [source, empty, scales], shape, mode=mode, **ways)


@layer()
def reduced(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2):
        kind = d.among("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare")
        axes = sorted({d.below(source.rank), d.below(source.rank)})
        kept = d.chance(0.5)
        shape = tuple(1 if k in axes else dim for k, dim in enumerate(source.shape) if kept or k not in axes)
        d.keep(d.axed(kind, source, axes, shape, keepdims=int(kept)))


@layer()
def squeezed(d: Drawer) -> None:
    if source := d.pick(lambda each: 1 in each.shape):
        axis = source.shape.index(1)
        d.keep(d.axed("Squeeze", source, [axis], source.shape[:axis] + source.shape[axis + 1 :]))


@layer()
def unsqueezed(d: Drawer) -> None:
    if (source := moved(d)) and source.rank < 4:
        axis = d.below(source.rank + 1)
        d.keep(d.axed("Unsqueeze", source, [axis], (*source.shape[:axis], 1, *source.shape[axis:])))


@layer()
def flattened(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2):
        rest = source.shape[1:]
        size: Dim = int(np.prod(rest)) if all(isinstance(each, int) for each in rest) else d.fresh()  # type: ignore[arg-type]
        shape = (source.shape[0], size)
        way = d.below(4)
        if way == 0:
            d.add("Flatten", [source], shape)
        elif way == 1:
            d.add("Reshape", [source, d.ints(0, -1)], shape)
        elif isinstance(size, int):
            d.add("Reshape", [source, d.ints(-1, size)], shape)
        else:
            d.add("Reshape", [source, d.ints(*source.shape[:0], 0, -1)], shape)


@layer()
def unfolded(d: Drawer) -> None:
    """Split an axis of a known even size in two, swap, and join them again, as a shuffle does."""
    if source := d.pick(lambda each: each.rank >= 3 and each.known(1) and each.size(1) % 2 == 0):
        half = source.size(1) // 2
        zeros = [0] * (source.rank - 2)
        if source.rank > 3:
            zeros = [dim if isinstance(dim, int) else 0 for dim in source.shape[2:]]
            if 0 in zeros:
                return
        elif not source.known(2):
            zeros = [-1]
        else:
            zeros = [source.size(2)]
        open_ = d.op("Reshape", [source, d.ints(0, 2, half, *zeros)], (source.shape[0], 2, half, *source.shape[2:]))
        order = [0, 2, 1, *range(3, source.rank + 1)]
        swapped = d.op("Transpose", [open_], (source.shape[0], half, 2, *source.shape[2:]), perm=order)
        d.add("Reshape", [swapped, d.ints(0, 2 * half, *zeros)], source.shape)


@layer()
def depth_to_space(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank == 4 and each.known(1) and each.size(1) % 4 == 0):
        shape = (source.shape[0], source.size(1) // 4, f"H{d.fresh()}", f"W{d.fresh()}")
        attrs = {"mode": d.among("DCR", "CRD")} if d.opset >= 11 else {}
        d.add("DepthToSpace", [source], shape, blocksize=2, **attrs)


# -- arithmetic on shapes ----------------------------------------------------------------------------------------------


def extent(d: Drawer, source: Tensor, axis: int) -> Tensor:
    """Read one dimension of a tensor as a vector of one number, in one of several ways."""
    shape = d.op("Shape", [source], (source.rank,), "int64")
    if d.chance(0.5):
        return d.cut(shape, 0, axis, axis + 1, 1, 1)
    if d.chance(0.3):
        return d.op("Gather", [shape, d.ints(axis)], (1,), "int64", axis=0)
    single = d.op("Gather", [shape, d.constant(axis, np.int64)], (), "int64", axis=0)
    if d.chance(0.3):
        single = d.op(
            "Div", [d.op("Mul", [single, d.constant(6, np.int64)], (), "int64"), d.constant(6, np.int64)], (), "int64"
        )
    return d.axed("Unsqueeze", single, [0], (1,))


@layer()
def computed_reshape(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2):
        rest = [extent(d, source, axis) for axis in range(1, source.rank)]
        if d.chance(0.5):
            product: Tensor = rest[0]
            for each in rest[1:]:
                product = d.op("Mul", [product, each], (1,), "int64")
            target = [extent(d, source, 0), product if d.chance(0.5) else d.ints(-1)]
        else:
            target = [d.op("Mul", [extent(d, source, 0), rest[0]], (1,), "int64"), *rest[1:-1], d.ints(-1)]
        shape = d.op("Concat", target, (len(target),), "int64", axis=0)
        flat = d.op("Reshape", [source, shape], tuple(d.fresh() for _ in target))
        if d.chance(0.5):
            d.pool.append(Tensor(flat.name, flat.shape))
        d.add("Reshape", [flat, d.op("Shape", [source], (source.rank,), "int64")], source.shape)


@layer(9)
def filled(d: Drawer) -> None:
    if source := d.pick():
        shape = d.op("Shape", [source], (source.rank,), "int64")
        value = d.among(0.0, 1.0, 0.5)
        import onnx

        fill = onnx.helper.make_tensor("value", 1, [1], [value])
        made = d.op("ConstantOfShape", [shape], source.shape, value=fill)
        d.add(d.among("Add", "Mul", "Sub"), [source, made], source.shape)


@layer(8)
def expanded(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2):
        size = source.size(-1) if source.known(-1) else 1
        shape = d.op("Shape", [source], (source.rank,), "int64")
        made = d.op("Expand", [d.weight(size, scale=0.5), shape], source.shape)
        d.add("Add", [source, made], source.shape)


@layer(8)
def repeated(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2 and 1 in each.shape):
        axis = source.shape.index(1)
        target = [1] * source.rank
        target[axis] = 3
        shape = (*source.shape[:axis], 3, *source.shape[axis + 1 :])
        d.add(d.among("Expand", "Tile"), [source, d.ints(*target)], shape)


@layer(11)
def positions(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank == 3):
        size = d.axed("Squeeze", extent(d, source, 1), [0], ())
        line = d.op("Range", [d.constant(0, np.int64), size, d.constant(1, np.int64)], (source.shape[1],), "int64")
        numbers = d.op("Cast", [line], line.shape, to=1)
        d.add("Add", [source, d.axed("Unsqueeze", numbers, [1], (source.shape[1], 1))], source.shape)


@layer()
def cut_to_shape(d: Drawer) -> None:
    if (source := d.pick(lambda each: each.rank >= 2)) and d.opset >= 10:
        axis = d.below(source.rank)
        end = extent(d, source, axis)
        d.add("Slice", [source, d.ints(0), end, d.ints(axis)], source.shape)


@layer()
def cast(d: Drawer) -> None:
    if source := d.pick(dtype="int64"):
        d.add("Cast", [source], source.shape, to=1)


@layer(11)
def best(d: Drawer) -> None:
    if source := d.pick(lambda each: each.rank >= 2 and each.known(-1)):
        k = d.below(source.size(-1)) + 1
        values, places = d.name("t"), d.name("t")
        d.node("TopK", [source, d.ints(k)], [values, places], axis=-1)
        d.keep(Tensor(values, (*source.shape[:-1], k)))
        if d.chance(0.5):
            d.pool.append(Tensor(places, (*source.shape[:-1], k), "int64"))
