"""Declared types and shapes of tensors: what the file says as far as it still holds, and what passes have changed."""

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from graphopt.model.ir import Info, Variable
from graphopt.model.order import reads


def matched(infos: list[Info], tensors: list[gs.Tensor]) -> list[onnx.ValueInfoProto]:
    """Return a declaration for each tensor: its own of the file, if it has one, as far as that still holds."""
    waiting: dict[int, list[onnx.ValueInfoProto]] = {}
    for info, tensor in infos:
        waiting.setdefault(id(tensor), []).append(info)
    declared = []
    for place, tensor in enumerate(tensors):
        own = waiting.get(id(tensor))
        renewed = not own and place < len(infos) and infos[place][0].name == tensor.name
        declared.append(_declaration(own.pop(0) if own else infos[place][0] if renewed else None, tensor))
    return declared


def value_infos(graph: gs.Graph) -> list[onnx.ValueInfoProto]:
    """Return what is declared of intermediate tensors: in file order, then what passes have added.

    What is about a tensor that the graph no longer has, or whose shape a pass has set to None, is dropped.
    """
    alive = {id(tensor) for node in graph.nodes for tensor in [*reads(node), *node.outputs]}
    alive |= {id(t) for t in [*graph.initializers, *graph.inputs, *graph.outputs]}
    infos = []
    known = {id(tensor) for _, tensor in [*graph.value_infos, *graph.input_infos, *graph.output_infos]}
    known |= {id(tensor) for tensor in [*graph.inputs, *graph.outputs]}
    for info, tensor in graph.value_infos:
        if tensor is None:
            infos.append(info)
        elif id(tensor) in alive and not _is_forgotten(tensor):
            infos.append(_declaration(info, tensor))
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.name and id(tensor) not in known and tensor.dtype is not None and tensor.shape is not None:
                infos.append(_declaration(None, tensor))
    return infos


def _is_forgotten(tensor: gs.Tensor) -> bool:
    """Whether what the file declared of a tensor no longer holds, and nothing is known in its place."""
    declared = getattr(tensor, "declared", None)
    if isinstance(tensor, gs.Constant):
        return bool(declared is not None and _now(tensor) != declared)
    return bool(tensor.shape is None and declared is not None and declared[1] is not None)


def _now(tensor: gs.Tensor) -> tuple[Any, tuple[Any, ...] | None]:
    """Return element type and shape of a tensor as they are now."""
    return tensor.dtype, None if tensor.shape is None else tuple(tensor.shape)


def _declaration(info: onnx.ValueInfoProto | None, tensor: gs.Tensor) -> onnx.ValueInfoProto:
    """Return the declaration of a tensor: ``info`` itself if it still holds, else a new one with its documentation."""
    if info is not None and _now(tensor) == getattr(tensor, "declared", None):
        if info.name == tensor.name:
            return info
        renamed = onnx.ValueInfoProto()
        renamed.CopyFrom(info)
        renamed.name = tensor.name
        return renamed
    made = onnx.ValueInfoProto()
    if info is not None:
        made.CopyFrom(info)
        made.ClearField("type")
    made.name = tensor.name
    if tensor.dtype is not None:
        dtype = (
            tensor.dtype if isinstance(tensor.dtype, int) else helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        )
        made.type.CopyFrom(helper.make_tensor_type_proto(dtype, tensor.shape))
    elif isinstance(tensor, Variable) and info is not None:
        made.type.CopyFrom(info.type)
    return made
