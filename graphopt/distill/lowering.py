"""Rewrites what derivative rules do not cover into operators that they do, at shapes and values that were measured."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from graphopt.graph.slicing import slice_of

Arrays = Mapping[str, NDArray[Any]]

_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


def lower(proto: onnx.ModelProto, measured: Arrays) -> None:
    """Rewrite the main graph in place.

    - What follows from shapes and constants alone is a constant, as far as it is of integers.
    - A Slice with a step becomes a Gather of the places it takes.
    - A Pad that repeats what is there (reflect, edge, wrap) becomes a Gather along each axis.
    - SplitToSequence becomes Split where only SequenceAt at constant places reads the sequence.

    Args:
        proto: A model of fixed shapes.
        measured: The values of its tensors for one feed.
    """
    graph = proto.graph
    static = _fold_integers(graph, measured)
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in static}
    measured = {**measured, **known}
    sequences = _sequences(graph, known)
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if _is(node, "Slice"):
            graph.node.extend(_stepless(graph, node, known, measured))
        elif _is(node, "Pad"):
            graph.node.extend(_padless(graph, node, known, measured))
        elif _is(node, "SplitToSequence") and node.output[0] in sequences:
            graph.node.extend(_split(graph, node, sequences[node.output[0]], measured))
        elif not (_is(node, "SequenceAt") and node.input[0] in sequences):
            graph.node.append(node)


def _is(node: NodeProto, *ops: str) -> bool:
    return node.op_type in ops and node.domain in ("", "ai.onnx")


def _fold_integers(graph: onnx.GraphProto, measured: Arrays) -> set[str]:
    """Store integers that follow from shapes and constants alone; return all tensors that are constant."""
    fed = {info.name for info in graph.input}
    static = {tensor.name for tensor in graph.initializer} - fed
    kept: list[NodeProto] = []
    for node in graph.node:
        names = [name for name in node.input if name]
        follows = all(name in static for name in names) or (_is(node, "Shape", "Size") and names[0] in measured)
        inner = any(attribute.HasField("g") for attribute in node.attribute)
        if not follows or inner or _is(node, *_RANDOM) or node.domain not in ("", "ai.onnx"):
            kept.append(node)
            continue
        static |= set(node.output)
        given = [name for name in node.output if name]
        if all(name in measured and measured[name].dtype.kind in "iub" for name in given):
            graph.initializer.extend(numpy_helper.from_array(measured[name], name) for name in given)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    return static


def _constant(graph: onnx.GraphProto, name: str, values: Any) -> str:
    """Store integers under a new name."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
    return name


def _declare(graph: onnx.GraphProto, name: str, like: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Say what shape a new tensor has."""
    if all(info.name != name for info in graph.value_info):
        kind = helper.np_dtype_to_tensor_dtype(like.dtype)
        graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def _stepless(graph: onnx.GraphProto, node: NodeProto, known: Arrays, measured: Arrays) -> Iterator[NodeProto]:
    """Yield a Slice without its steps other than one, and a Gather for each of those."""
    source, out = node.input[0], node.output[0]
    given = [known.get(name) for name in node.input[1:] if name]
    if len(node.input) < 5 or not node.input[4] or any(each is None for each in given) or source not in measured:
        yield node
        return
    starts, ends, steps = (known[node.input[slot]].tolist() for slot in (1, 2, 4))
    axes = known[node.input[3]].tolist() if node.input[3] else list(range(len(starts)))
    shape = measured[source].shape
    bounds = [
        (axis % len(shape), slice_of(shape[axis], b, e, s))
        for axis, b, e, s in zip(axes, starts, ends, steps, strict=True)
    ]
    plain = [(axis, part) for axis, part in bounds if part.step == 1]
    stepped = [(axis, part) for axis, part in bounds if part.step != 1]
    if not stepped:
        yield node
        return
    current = source
    for count, (axis, part) in enumerate(stepped):
        last = count == len(stepped) - 1 and not plain
        places = _constant(graph, f"{out}/places_{axis}", np.arange(shape[axis])[part])
        result = out if last else f"{out}/along_{axis}"
        yield helper.make_node("Gather", [current, places], [result], axis=axis)
        shape = (*shape[:axis], len(range(shape[axis])[part]), *shape[axis + 1 :])
        _declare(graph, result, measured[source], shape)
        current = result
    if plain:
        parts = ([part.start for _, part in plain], [part.stop for _, part in plain], [axis for axis, _ in plain])
        names = [_constant(graph, f"{out}/{what}", part) for what, part in zip(("b", "e", "a"), parts, strict=True)]
        yield helper.make_node("Slice", [current, *names], [out])


def _padless(graph: onnx.GraphProto, node: NodeProto, known: Arrays, measured: Arrays) -> Iterator[NodeProto]:
    """Yield a Gather for each axis that a Pad lengthens by what is there."""
    mode = next((attribute.s.decode() for attribute in node.attribute if attribute.name == "mode"), "constant")
    source, out, pads = node.input[0], node.output[0], known.get(node.input[1])
    axes = known.get(node.input[3]) if len(node.input) > 3 and node.input[3] else ()
    if mode not in ("reflect", "edge", "wrap") or pads is None or axes is None or source not in measured:
        yield node
        return
    shape = list(measured[source].shape)
    along = [int(axis) % len(shape) for axis in axes] or list(range(len(shape)))
    amounts = [(axis, int(pads[i]), int(pads[len(along) + i])) for i, axis in enumerate(along)]
    amounts = [(axis, before, after) for axis, before, after in amounts if before or after]
    if any(min(before, after) < 0 for _, before, after in amounts) or not amounts:
        yield node
        return
    current = source
    for axis, before, after in amounts:
        places = np.pad(np.arange(shape[axis]), (before, after), mode=cast(Any, mode))
        result = out if axis == amounts[-1][0] else f"{out}/along_{axis}"
        yield helper.make_node(
            "Gather", [current, _constant(graph, f"{out}/places_{axis}", places)], [result], axis=axis
        )
        shape[axis] = len(places)
        _declare(graph, result, measured[source], tuple(shape))
        current = result


def _sequences(graph: onnx.GraphProto, known: Arrays) -> dict[str, dict[str, int]]:
    """Return the sequences that only SequenceAt at constant places reads: their elements' names and places."""
    found: dict[str, dict[str, int]] = {node.output[0]: {} for node in graph.node if _is(node, "SplitToSequence")}
    for name in {name for node in graph.node for name in _reads_inside(node)} | {info.name for info in graph.output}:
        found.pop(name, None)
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in found and _is(node, "SequenceAt") and slot == 0 and node.input[1] in known:
                found[name][node.output[0]] = int(known[node.input[1]])
            else:
                found.pop(name, None)
    return found


def _reads_inside(node: NodeProto) -> Iterator[str]:
    """Yield what the subgraphs of a node read."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from inner.input
                yield from _reads_inside(inner)


def _split(
    graph: onnx.GraphProto, node: NodeProto, elements: Mapping[str, int], measured: Arrays
) -> Iterator[NodeProto]:
    """Yield a Slice for each element of a sequence that is read."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    source = node.input[0]
    shape = measured[source].shape
    axis = attributes.get("axis", 0) % len(shape)
    sizes = _sizes(node, measured, shape[axis])
    begins = np.cumsum([0, *sizes])
    for name, place in elements.items():
        at = place % len(sizes)
        parts = [
            _constant(graph, f"{name}/{what}", [part])
            for what, part in zip("bea", (begins[at], begins[at + 1], axis), strict=True)
        ]
        dropped = len(node.input) < 2 and not attributes.get("keepdims", 1)
        part = f"{name}/part" if dropped else name
        yield helper.make_node("Slice", [source, *parts], [part])
        if dropped:
            _declare(graph, part, measured[source], (*shape[:axis], 1, *shape[axis + 1 :]))
            yield helper.make_node("Squeeze", [part, parts[2]], [name])


def _sizes(node: NodeProto, measured: Arrays, length: int) -> list[int]:
    """Return the sizes of a sequence's elements: given one by one, all alike, or one each."""
    if len(node.input) < 2 or not node.input[1]:
        return [1] * length
    split = measured[node.input[1]]
    if split.ndim:
        return [int(size) for size in split]
    return [min(int(split), length - begin) for begin in range(0, length, int(split))]
