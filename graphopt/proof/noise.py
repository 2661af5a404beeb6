"""A model's own float noise: how far its outputs move when every float in it moves by a unit in the last place.

Inputs and weights are moved before a run, and what operators compute during it: Monte Carlo arithmetic (Parker 1997),
as a small subgraph behind each of them that multiplies by 1 + u, u drawn from -2**-23 to 2**-23 (for float16 -2**-10 to
2**-10). ONNX Runtime has no random operators of opset 22 and later, so u is the sine of a multiple of the logarithm.
"""

import dataclasses
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from graphopt.model.names import Names
from graphopt.numerics.compare import BEYOND, Comparison, OutputDifference
from graphopt.proof.discrete import captured, tainted_tensors
from graphopt.runtime.data import Feeds

FACTOR = 4.0
"""A difference of up to this many times the noise is noise."""

MAX_SHARE = 0.05
"""A difference whose root mean square is above this share of the output's spread is never excused."""

DRAWS = 2
_MIN_ELEMENTS = 16
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)

# fmt: off
ARITHMETIC = frozenset((
    "Add", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Einsum", "Elu", "Erf", "Exp",
    "Gelu", "Gemm", "GlobalAveragePool", "GroupNormalization", "HardSwish", "InstanceNormalization",
    "LayerNormalization", "Log", "LogSoftmax", "LpNormalization", "MatMul", "Mish", "Mul", "Pow",
    "RMSNormalization", "Reciprocal", "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Resize", "Sigmoid", "Softmax", "Softplus", "Sqrt", "Sub", "Sum", "Tanh",
))
# fmt: on

# ORT computes these by rational approximations, whose error is a unit in the last place of 1, not of a tiny result.
_APPROXIMATED = frozenset(("Erf", "Sigmoid", "Tanh"))
_EPSILON = float(np.finfo(np.float32).eps)
_UNITS: dict[int, tuple[str, float]] = {
    onnx.TensorProto.FLOAT: ("one unit in the last place", _EPSILON),
    onnx.TensorProto.FLOAT16: ("one unit in the last place of float16", float(np.finfo(np.float16).eps)),
}
_TURNS = 1e4
_TINY = 1e-30
_OWN_INITIALIZERS = 4
"""The first IR version whose initializers need not be listed as inputs."""


def shaken_feeds(feeds: Feeds, rng: np.random.Generator) -> Feeds:
    """Return feeds whose floats are one unit in the last place larger or smaller; zeros stay."""
    return {name: _shaken(value, rng) if isinstance(value, np.ndarray) else value for name, value in feeds.items()}


def shaken_model(model: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Return the model with its float initializers moved, and with noise behind its operators.

    Initializers of a few elements, settings mostly, stay, and so does what is computed of shapes and constants only.
    """
    shaken = onnx.ModelProto()
    shaken.CopyFrom(model)
    shaken.ir_version = max(shaken.ir_version, _OWN_INITIALIZERS)
    for tensor in shaken.graph.initializer:
        if np.prod(tensor.dims) >= _MIN_ELEMENTS and tensor.data_type in _FLOATS:
            tensor.CopyFrom(onnx.numpy_helper.from_array(_shaken(onnx.numpy_helper.to_array(tensor), rng), tensor.name))
    _shake_operators(shaken.graph, rng)
    return shaken


def _shake_operators(graph: onnx.GraphProto, rng: np.random.Generator) -> None:
    """Put noise behind the arithmetic operators of a graph that compute float32 or float16."""
    tainted = tainted_tensors(graph)
    types = _element_types(graph)
    names = Names(_used_names(graph))
    values = {"turns": _TURNS, "tiny": _TINY, **dict(_UNITS.values())}
    constants = {key: (names.fresh(key), value) for key, value in values.items()}
    shared = {key: name for key, (name, _) in constants.items()}
    stored = list(constants.values())
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        name = node.output[0] if node.output else ""
        if node.op_type not in ARITHMETIC or name not in tainted or types.get(name) not in _UNITS:
            continue
        node.output[0] = exact = names.fresh(f"{name} exact")
        phase = names.fresh(f"{name} phase")
        stored.append((phase, float(rng.uniform(0, 2 * np.pi))))
        absolute = node.op_type in _APPROXIMATED
        nodes += _noise(name, exact, {**shared, "phase": phase}, types[name], absolute, names)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
    for name, value in stored:
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), name))


def _used_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of a graph's tensors and nodes."""
    used = {each.name for each in (*graph.initializer, *graph.input, *graph.node)}
    return used.union(*((*node.input, *node.output, *captured(node)) for node in graph.node))


def _noise(
    name: str, exact: str, constants: dict[str, str], kind: int, absolute: bool, names: Names
) -> list[onnx.NodeProto]:
    """Return the nodes that make a tensor out of the exact one; ``absolute`` noise is a unit in the last place of 1."""
    half, unit = kind == onnx.TensorProto.FLOAT16, constants[_UNITS[kind][0]]
    wide, moved = (names.fresh(f"{name} wide"), names.fresh(f"{name} moved")) if half else (exact, name)
    parts = ("size", "positive", "logarithm", "turned", "angle", "draw", "share", "relative")
    size, positive, logarithm, turned, angle, draw, share, relative = (names.fresh(f"{name} {part}") for part in parts)
    steps = [
        ("Abs", [wide], size),
        ("Add", [size, constants["tiny"]], positive),
        ("Log", [positive], logarithm),
        ("Mul", [logarithm, constants["turns"]], turned),
        ("Add", [turned, constants["phase"]], angle),
        ("Sin", [angle], draw),
        ("Mul", [draw, unit], share),
        ("Mul", [share, wide], relative),
        ("Add", [wide, share if absolute else relative], moved),
    ]
    nodes = [onnx.helper.make_node(op, inputs, [output]) for op, inputs, output in steps]
    if half:
        nodes.insert(0, onnx.helper.make_node("Cast", [exact], [wide], to=onnx.TensorProto.FLOAT))
        nodes.append(onnx.helper.make_node("Cast", [moved], [name], to=kind))
    return nodes


def _element_types(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the element types that are declared or were inferred."""
    infos = (*graph.input, *graph.value_info, *graph.output)
    return {info.name: info.type.tensor_type.elem_type for info in infos}


def _shaken(values: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Move floats one unit in the last place up or down."""
    if values.dtype.kind != "f":
        return values
    towards = np.where(rng.random(values.shape) < 0.5, -np.inf, np.inf).astype(values.dtype)
    with np.errstate(over="ignore"):  # of the largest float, which stays
        moved = np.nextafter(values, towards)
    return np.where((values == 0) | ~np.isfinite(values) | ~np.isfinite(moved), values, moved)


def excused(comparison: Comparison, noises: list[Comparison]) -> tuple[OutputDifference, ...] | None:
    """Return the outputs with those whose differences are mere noise accepted, or None if one is more than that.

    In each part of an output that breaks the contract, both the largest difference and the root mean square have to be
    within ``FACTOR`` times the noise's, so that neither a single wrong element nor a small error everywhere hides in
    it; and the difference has to be small by itself, or below the resolution of float32 at 1.
    """
    judged = []
    for output in comparison.outputs:
        if output.holds:
            judged.append(output)
            continue
        same = [each for noise in noises for each in noise.outputs if each.name == output.name]
        if not output.broken or output.severity >= BEYOND or any(each.severity >= BEYOND for each in same):
            return None
        if not all(_is_noise(output, where, same) for where in output.broken):
            return None
        judged.append(dataclasses.replace(output, holds=True, problem="", severity=0.0, broken=()))
    return tuple(judged)


def _is_noise(output: OutputDifference, where: str, noises: list[OutputDifference]) -> bool:
    """Whether one part of an output differs by no more than the noise there."""
    part = output.parts[where]
    same = [each.parts[where] for each in noises if where in each.parts]
    largest = max((each.max_abs or 0.0 for each in same), default=0.0)
    rms = max((each.rms for each in same), default=0.0)
    if part.rms > max(MAX_SHARE * part.spread, _EPSILON * max(1.0, output.spread)):
        return False
    return (part.max_abs or 0.0) <= FACTOR * largest and part.rms <= FACTOR * rms
