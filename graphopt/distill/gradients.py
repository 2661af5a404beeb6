"""Turns a model with a scalar loss into one that gives the gradients too; ONNX Runtime runs it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper

from graphopt.distill.lowering import lower
from graphopt.distill.seeds import without_seed_axis
from graphopt.errors import GraphoptError, ModelError
from graphopt.numerics.patches import same_pads
from graphopt.runtime.session import Session
from graphopt.runtime.taps import cut

Feeds = Mapping[str, NDArray[Any]]

LOSS = "loss/total"
_SEED = "loss/adjoint/"


class MissingExtraError(GraphoptError):
    """The optional package that writes gradients is not installed."""


class Gradients:
    """Gives a loss and its gradient with respect to some of the model's inputs, at fixed shapes."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        feeds: Feeds,
        wanted: Iterable[str],
        *,
        extra: Iterable[str] = (),
        threads: int = 0,
    ) -> None:
        """Differentiate the tensor ``loss/total`` of ``proto``.

        Args:
            proto: The model; it is not changed.
            feeds: An example of all its inputs; shapes are fixed to these.
            wanted: The inputs to differentiate with respect to.
            extra: Names of tensors to give out besides.
            threads: For ONNX Runtime; 0 leaves the choice to it.

        Raises:
            MissingExtraError: onnx-ad is not installed.
            ModelError: An operator has no derivative rule.
        """
        self.wanted, self.extra = list(wanted), list(extra)
        backward = differentiate(with_shapes(proto, feeds), self.wanted)
        outputs = [LOSS, *(_SEED + name for name in self.wanted), *(name for name in self.extra if name != LOSS)]
        backward = cut(backward, outputs)
        without_seed_axis(backward, _SEED + LOSS)
        self._session = Session(backward, threads=threads)

    def __call__(self, feeds: Feeds) -> tuple[float, dict[str, NDArray[np.float32]], dict[str, NDArray[Any]]]:
        """Return the loss, the gradients by input name, and the extra tensors."""
        values = self._session.run({**feeds, _SEED + LOSS: np.ones(1, np.float32)})
        gradients = {name: values[_SEED + name][..., 0] for name in self.wanted}
        return float(values[LOSS]), gradients, {name: values[name] for name in self.extra}


def differentiate(proto: onnx.ModelProto, wanted: Iterable[str]) -> onnx.ModelProto:
    """Return the model with, for each wanted input, an output that holds the loss's gradient and one axis of seeds.

    Raises:
        MissingExtraError: onnx-ad is not installed.
        ModelError: An operator has no derivative rule.
    """
    try:
        import onnx_ad

        from graphopt.distill.rules import our_rules
    except ImportError as error:
        raise MissingExtraError("gradients need the package onnx-ad: pip install 'graphopt[distill]'") from error
    try:
        with our_rules():
            backward: onnx.ModelProto = onnx_ad.reverse(
                proto, inputs=list(wanted), outputs=[LOSS], prefix=_SEED, layout="onnx"
            )
    except onnx_ad.UnsupportedOperator as error:
        raise ModelError(f"the model cannot be differentiated: {error}") from error
    return backward


def with_shapes(proto: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """Return the model with every shape fixed as measured on ``feeds``, and written in operators that have rules."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for info in fixed.graph.input:
        if info.name in feeds:
            kind = helper.np_dtype_to_tensor_dtype(np.asarray(feeds[info.name]).dtype)
            info.CopyFrom(helper.make_tensor_value_info(info.name, kind, np.shape(feeds[info.name])))
    del fixed.graph.value_info[:]
    for info in fixed.graph.output:
        info.type.tensor_type.ClearField("shape")
    names = [name for node in fixed.graph.node for name in node.output if name]
    given = {info.name for info in fixed.graph.output}
    measured = Session(fixed, extra_outputs=[name for name in names if name not in given]).run(feeds)
    arrays = {name: value for name, value in measured.items() if isinstance(value, np.ndarray)}
    for name, value in arrays.items():
        if name not in given and value.dtype.kind in "fiub":
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            fixed.graph.value_info.append(helper.make_tensor_value_info(name, kind, value.shape))
    for info in fixed.graph.output:
        if info.name in arrays:
            kind = helper.np_dtype_to_tensor_dtype(arrays[info.name].dtype)
            info.CopyFrom(helper.make_tensor_value_info(info.name, kind, arrays[info.name].shape))
    shapes = {name: value.shape for name, value in arrays.items()}
    shapes |= {info.name: np.shape(feeds[info.name]) for info in fixed.graph.input if info.name in feeds}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in fixed.graph.initializer}
    lower(fixed, {**{name: np.asarray(value) for name, value in feeds.items()}, **arrays})
    for node in fixed.graph.node:
        if node.op_type in ("Conv", "AveragePool", "MaxPool") and node.domain in ("", "ai.onnx"):
            _write_out_pads(node, shapes)
    return fixed


def _write_out_pads(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Replace ``auto_pad`` and, for AveragePool, ``ceil_mode`` by the pads they stand for at these shapes."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    sizes, grid = shapes[node.input[0]][2:], shapes[node.output[0]][2:]
    kernel = list(given.get("kernel_shape", [])) or list(shapes[node.input[1]][2:])
    ones = [1] * len(kernel)
    strides, dilations = list(given.get("strides", ones)), list(given.get("dilations", ones))
    mode = given.get("auto_pad", b"NOTSET").decode()
    pads = list(given.get("pads", [0] * 2 * len(kernel)))
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = same_pads(mode, sizes, kernel, strides, dilations)
    elif mode == "VALID":
        pads = [0] * 2 * len(kernel)
    drop = {"auto_pad", "pads"}
    if node.op_type == "AveragePool" and given.get("ceil_mode", 0):
        overhang = [
            (count - 1) * stride + dilation * (width - 1) + 1 - size - pads[i] - pads[len(kernel) + i]
            for i, (count, stride, dilation, width, size) in enumerate(
                zip(grid, strides, dilations, kernel, sizes, strict=True)
            )
        ]
        if any(value > 0 for value in overhang) and given.get("count_include_pad", 0):
            return
        pads = pads[: len(kernel)] + [end + max(0, o) for end, o in zip(pads[len(kernel) :], overhang, strict=True)]
        drop.add("ceil_mode")
    kept = [attribute for attribute in node.attribute if attribute.name not in drop]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", pads)])


def promote(proto: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    """Return the model with tensors that it stores or computes (initializers, node outputs) as inputs instead."""
    fed = onnx.ModelProto()
    fed.CopyFrom(proto)
    graph = fed.graph
    initializers = [tensor for tensor in graph.initializer if tensor.name not in values]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    inputs = [info for info in graph.input if info.name not in values]
    del graph.input[:]
    graph.input.extend(inputs)
    nodes = [node for node in graph.node if not any(name in values for name in node.output)]
    del graph.node[:]
    graph.node.extend(nodes)
    for name, value in values.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
    return fed
