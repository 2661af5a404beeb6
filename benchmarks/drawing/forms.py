"""Draws a whole model: its inputs and their free axes, its layers, its outputs, and the way in which it is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from drawing import control, elementwise, moving, weighted  # noqa: F401  (they register their layers)
from drawing.drawer import LAYERS, Array, Dim, Drawer, Shape, Tensor

SIZES: tuple[Mapping[str, int], ...] = (
    {"N": 2, "H": 7, "W": 9, "L": 12, "T": 5},
    {"N": 1, "H": 10, "W": 8, "L": 11, "T": 6},
    {"N": 3, "H": 9, "W": 11, "L": 14, "T": 4},
)
"""The sizes of free axes that a model is run at, no two axes alike."""

INPUTS: dict[str, Shape] = {
    "image": ("N", 3, "H", "W"),
    "channels": ("N", 8, "H", "W"),
    "signal": ("N", 4, "L"),
    "tokens": ("N", "T", 6),
    "rows": ("N", 10),
    "ids": ("N", "T"),
}

NEWEST = min(26, onnx.defs.onnx_opset_version())
"""The newest opset that graphs are drawn in."""

Form = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Drawn:
    """A model, and what to feed it: one set of arrays for each set of sizes."""

    proto: onnx.ModelProto
    feeds: tuple[dict[str, Array], ...]
    overrides: tuple[dict[str, Array], ...]


def draw_model(seed: int, forms: Sequence[Form] = ()) -> Drawn:
    """Draw a model, the same for the same seed; some models are no models, which ONNX's checker and runtime tell.

    Args:
        seed: What decides everything.
        forms: Ways of writing a model otherwise, of which one is used now and then where no initializer is overridable.
    """
    rng = np.random.default_rng(seed)
    d = Drawer(rng, opset=int(rng.integers(7, NEWEST + 1)))
    _draw_inputs(d)
    usable = [function for since, function in LAYERS.values() if since <= d.opset]
    usable += [weighted.block, weighted.block, weighted.perceptron, weighted.conv]
    goal = len(d.nodes) + d.below(36, 5)
    for _ in range(60):
        if len(d.nodes) >= goal:
            break
        d.among(*usable)(d)
    proto = _finished(d)
    if forms and not d.overridable and proto.ir_version > 3 and d.chance(0.25):
        d.among(*forms)(proto)
    feeds, overrides = zip(*(_feeds(d, sizes, number) for number, sizes in enumerate(SIZES)), strict=True)
    return Drawn(proto, feeds, overrides)


def _draw_inputs(d: Drawer) -> None:
    """Choose inputs, with each free axis left free or given its first size."""
    fixed = {axis: size for axis, size in SIZES[0].items() if d.chance(0.35)}
    for name in d.rng.permutation(list(INPUTS))[: d.among(1, 1, 2)]:
        shape = tuple(fixed.get(dim, dim) if isinstance(dim, str) else dim for dim in INPUTS[str(name)])
        made = Tensor(d.name(str(name)), shape, "int64" if name == "ids" else "float32")
        if name == "ids":
            d.limits[made.name] = 11
        d.inputs.append(made)
        d.pool.append(made)


def _finished(d: Drawer) -> onnx.ModelProto:
    """Put the graph together."""
    ways = {axis: d.among("name", "name", "none", "?", "-1", "same") for axis in SIZES[0]}

    def declared(dim: Dim, name: str) -> Dim | None:
        way = ways.get(str(dim), "none")
        names: dict[str, str | None] = {"name": f"dim_{dim}", "none": None, "same": f"{name} size"}
        return dim if isinstance(dim, int) else names.get(way, way)

    def info(tensor: Tensor) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        made = helper.make_tensor_value_info(tensor.name, kind, [declared(dim, tensor.name) for dim in tensor.shape])
        if d.chance(0.1):
            made.doc_string = "said twice"
        return made

    outputs = [info(each) for each in _outputs(d)]
    if d.chance(0.05):
        spare = d.constant(d.rng.standard_normal(3), np.float32)
        outputs.append(helper.make_tensor_value_info(spare, onnx.TensorProto.FLOAT, [3]))
    inputs = [info(each) for each in d.inputs]
    version = d.among(3, 7, 8, 8, 8, 10)
    if version == 3:
        d.overridable.clear()
    listed = [each for each in d.stored if version == 3 or each.name in d.overridable]
    inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in listed]
    middle = [info(each) for each in d.pool if each not in d.inputs and d.chance(0.3)]
    given = {each.name for each in outputs}
    graph = helper.make_graph(
        d.nodes, "random", inputs, outputs, d.stored, value_info=[each for each in middle if each.name not in given]
    )
    return helper.make_model(graph, ir_version=version, opset_imports=[helper.make_opsetid("", d.opset)])


def _outputs(d: Drawer) -> list[Tensor]:
    """Choose the outputs: most of what nothing reads, and something in the middle now and then."""
    made = [each for each in d.pool if each not in d.inputs] or [
        d.op("Identity", [d.inputs[0]], d.inputs[0].shape, d.inputs[0].dtype)
    ]
    read = {name for node in d.nodes for name in node.input}
    chosen = [each for each in made if each.name not in read][-4:] or made[-1:]
    if d.chance(0.3):
        chosen = [*chosen, d.among(*made)]
    return list({each.name: each for each in chosen}.values())


def _feeds(d: Drawer, sizes: Mapping[str, int], number: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Draw inputs of these sizes, and other values for what can be overridden."""
    feeds: dict[str, Array] = {}
    for each in d.inputs:
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in each.shape]
        limit = d.limits.get(each.name)
        feeds[each.name] = d.rng.integers(0, limit, shape) if limit else d.rng.standard_normal(shape).astype(np.float32)
    shapes = {each.name: tuple(each.dims) for each in d.stored if each.name in d.overridable}
    overrides = {name: d.rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items() if number}
    return feeds, overrides
