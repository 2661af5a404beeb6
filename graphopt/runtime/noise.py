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

from graphopt.numerics.compare import BEYOND, Comparison, OutputDifference
from graphopt.runtime.data import Feeds
from graphopt.runtime.decisions import tainted_tensors

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
    constants = {"turns": _TURNS, "tiny": _TINY, **dict(_UNITS.values())}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        name = node.output[0] if node.output else ""
        if node.op_type not in ARITHMETIC or name not in tainted or types.get(name) not in _UNITS:
            continue
        node.output[0] = f"{name} exact"
        constants[f"{name} phase"] = float(rng.uniform(0, 2 * np.pi))
        nodes += _noise(name, types[name], absolute=node.op_type in _APPROXIMATED)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
    for name, value in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), name))


def _noise(name: str, kind: int, absolute: bool) -> list[onnx.NodeProto]:
    """Return the nodes that make a tensor out of the exact one; ``absolute`` noise is a unit in the last place of 1."""
    half, unit = kind == onnx.TensorProto.FLOAT16, _UNITS[kind][0]
    wide, moved = (f"{name} wide", f"{name} moved") if half else (f"{name} exact", name)
    steps = [
        ("Abs", [wide], f"{name} size"),
        ("Add", [f"{name} size", "tiny"], f"{name} positive"),
        ("Log", [f"{name} positive"], f"{name} logarithm"),
        ("Mul", [f"{name} logarithm", "turns"], f"{name} turned"),
        ("Add", [f"{name} turned", f"{name} phase"], f"{name} angle"),
        ("Sin", [f"{name} angle"], f"{name} draw"),
        ("Mul", [f"{name} draw", unit], f"{name} share"),
        ("Mul", [f"{name} share", wide], f"{name} relative"),
        ("Add", [wide, f"{name} share" if absolute else f"{name} relative"], moved),
    ]
    nodes = [onnx.helper.make_node(op, inputs, [output]) for op, inputs, output in steps]
    if half:
        nodes.insert(0, onnx.helper.make_node("Cast", [f"{name} exact"], [wide], to=onnx.TensorProto.FLOAT))
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
    moved = np.nextafter(values, towards)
    return np.where((values == 0) | ~np.isfinite(moved), values, moved)


def excused(comparison: Comparison, noises: list[Comparison]) -> tuple[OutputDifference, ...] | None:
    """Return the outputs with those whose differences are mere noise accepted, or None if one is more than that.

    Both the largest difference and the root mean square have to be within ``FACTOR`` times the noise's, so that neither
    a single wrong element nor a small error everywhere hides in it; and the difference has to be small by itself, or
    below the resolution of float32 at 1.
    """
    judged = []
    for output in comparison.outputs:
        if output.holds:
            judged.append(output)
            continue
        same = [each for noise in noises for each in noise.outputs if each.name == output.name]
        largest = max((each.max_abs for each in same), default=0.0)
        rms = max((each.rms for each in same), default=0.0)
        strange = output.severity >= BEYOND or any(each.severity >= BEYOND for each in same)
        large = output.rms > max(MAX_SHARE * output.spread, _EPSILON)
        if strange or large or output.max_abs > FACTOR * largest or output.rms > FACTOR * rms:
            return None
        judged.append(dataclasses.replace(output, holds=True, problem="", severity=0.0))
    return tuple(judged)
