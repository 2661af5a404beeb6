"""How a node of one opset says the same in the next: one small function per change of an operator.

ONNX's changelog (docs/Changelog.md) is the source. Operators that are not in the table have only gained types,
optional inputs, or attributes whose default is what they did before.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.model.ir import RawAttribute, make_node, make_variable
from graphopt.model.links import link_anew
from graphopt.model.raising import Raise


class Around(NamedTuple):
    """The nodes that an adapted node needs before and after it."""

    before: list[gs.Node]
    after: list[gs.Node]


ALONE = Around([], [])


Adapter = Callable[[Raise, gs.Node], Around]


def _take(node: gs.Node, name: str, default: Any = None) -> Any:
    """Remove an attribute and return its value.

    Raises:
        ModelError: It is not a plain value, but refers to an attribute of the local function.
    """
    value = _peek(node, name, default)
    node.attrs.pop(name, None)
    return value


def _peek(node: gs.Node, name: str, default: Any = None) -> Any:
    """Return the value of an attribute, which must be plain."""
    value = node.attrs.get(name, default)
    if isinstance(value, (gs.Node.AttributeRef, RawAttribute)):
        raise ModelError(f"its attribute {name!r} is not a plain value")
    return value


def _append(node: gs.Node, place: int, *tensors: gs.Tensor | None) -> None:
    """Add inputs from slot ``place`` on, None for absent ones; absent ones at the end are left away."""
    added = list(tensors)
    while added and added[-1] is None:
        added.pop()
    while added and len(node.inputs) < place:
        node.inputs.append(make_variable(""))
    node.inputs.extend([make_variable("") if tensor is None else tensor for tensor in added])


def _to_input(name: str) -> Adapter:
    """Integers that have moved from an attribute to the second input."""

    def adapt(context: Raise, node: gs.Node) -> Around:
        values = _take(node, name)
        if values is not None:
            _append(node, 1, context.integers(node, name, values))
        return ALONE

    return adapt


def _first_output_alone(why: str) -> Adapter:
    """Further outputs go; where something reads one, ``why`` says what stands against it."""

    def adapt(context: Raise, node: gs.Node) -> Around:
        if any(context.is_used(tensor) for tensor in node.outputs[1:]):
            raise ModelError(why)
        link_anew(node, list(node.inputs), list(node.outputs[:1]))
        return ALONE

    return adapt


def _batch_normalization_9(context: Raise, node: gs.Node) -> Around:
    if not _take(node, "spatial", 1):
        raise ModelError("statistics per element (spatial=0) are no longer part of ONNX")
    return ALONE


def _upsample_9(context: Raise, node: gs.Node) -> Around:
    scales = _take(node, "scales")
    _append(node, 1, context.constant(node, "scales", np.asarray(scales, dtype=np.float32)))
    return ALONE


def _upsample_10(context: Raise, node: gs.Node) -> Around:
    node.op = "Resize"
    return ALONE


def _resize_11(context: Raise, node: gs.Node) -> Around:
    mode = _peek(node, "mode", "nearest")
    scales = node.inputs[1]
    if mode == "nearest":
        values = context.values(scales)
        if values is None or (values < 1).any():
            raise ModelError("how nearest rounds when it scales down was not defined before opset 11")
        node.attrs["nearest_mode"] = "floor"
    node.attrs["coordinate_transformation_mode"] = "asymmetric"
    roi = context.constant(node, "roi", np.zeros(0, np.float32))
    link_anew(node, [node.inputs[0], roi, scales], list(node.outputs))
    return ALONE


def _resize_13(context: Raise, node: gs.Node) -> Around:
    if _peek(node, "coordinate_transformation_mode", "half_pixel") == "tf_half_pixel_for_nn":
        raise ModelError("the mode tf_half_pixel_for_nn is no longer part of ONNX")
    if len(node.inputs) > 3 and node.inputs[3].name and _is_empty_or_unknown(context, node.inputs[2]):
        link_anew(node, [*node.inputs[:2], make_variable(""), node.inputs[3]], list(node.outputs))
    return ALONE


def _is_empty_or_unknown(context: Raise, scales: gs.Tensor) -> bool:
    """Whether the scales beside the sizes of a Resize say nothing: until opset 12 they had to be there, but empty."""
    values = context.values(scales)
    return values is None or not values.size


def _scan_9(context: Raise, node: gs.Node) -> Around:
    raise ModelError("Scan with a batch axis and sequence lengths is no longer part of ONNX")


def _dropout_12(context: Raise, node: gs.Node) -> Around:
    ratio = _take(node, "ratio", 0.5)
    _append(node, 1, context.constant(node, "ratio", np.asarray(ratio, dtype=np.float32)))
    return ALONE


def _slice_10(context: Raise, node: gs.Node) -> Around:
    starts, ends, axes = (_take(node, name) for name in ("starts", "ends", "axes"))
    made = [context.integers(node, "starts", starts), context.integers(node, "ends", ends)]
    _append(node, 1, *made, None if axes is None else context.integers(node, "axes", axes))
    return ALONE


def _top_k_10(context: Raise, node: gs.Node) -> Around:
    _append(node, 1, context.integers(node, "k", [_take(node, "k")]))
    return ALONE


def _clip_11(context: Raise, node: gs.Node) -> Around:
    bounds = [_take(node, "min"), _take(node, "max")]
    if bounds != [None, None]:
        dtype = context.dtype(node.inputs[0])
        made = [None if v is None else context.constant(node, "bound", np.asarray(v).astype(dtype)) for v in bounds]
        _append(node, 1, *made)
    return ALONE


def _pad_11(context: Raise, node: gs.Node) -> Around:
    pads, value = _take(node, "pads"), _take(node, "value", 0.0)
    made = [context.integers(node, "pads", pads)]
    if value != 0:
        made.append(context.constant(node, "value", np.asarray(value).astype(context.dtype(node.inputs[0]))))
    _append(node, 1, *made)
    return ALONE


def _scatter_11(context: Raise, node: gs.Node) -> Around:
    node.op = "ScatterElements"
    return ALONE


def _softmax_13(context: Raise, node: gs.Node) -> Around:
    """Until opset 12 all axes from ``axis`` on were one."""
    axis, rank = _take(node, "axis", 1), context.rank(node.inputs[0])
    node.attrs["axis"] = -1
    if axis == -1 or (rank is not None and axis % max(rank, 1) == rank - 1):
        return ALONE
    data, out = node.inputs[0], node.outputs[0]
    shape, flat, normal = (make_variable(context.fresh(f"{out.name}_{what}")) for what in ("shape", "flat", "normal"))
    link_anew(node, [flat], [normal])
    before = [
        make_node("Shape", "", {}, [data], [shape], None, None),
        make_node("Flatten", "", {"axis": axis}, [data], [flat], None, None),
    ]
    return Around(before, [make_node("Reshape", "", {}, [normal, shape], [out], None, None)])


def _split_18(context: Raise, node: gs.Node) -> Around:
    if len(node.inputs) < 2 or not node.inputs[1].name:
        node.attrs["num_outputs"] = len(node.outputs)
    return ALONE


def _erf_13(context: Raise, node: gs.Node) -> Around:
    if context.dtype(node.inputs[0]).kind in "iu":
        raise ModelError("Erf of integers is no longer part of ONNX")
    return ALONE


def _roi_align_16(context: Raise, node: gs.Node) -> Around:
    node.attrs["coordinate_transformation_mode"] = "output_half_pixel"
    return ALONE


def _grid_sample_20(context: Raise, node: gs.Node) -> Around:
    mode = _peek(node, "mode", "bilinear")
    node.attrs["mode"] = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    return ALONE


def _dft_20(context: Raise, node: gs.Node) -> Around:
    _append(node, 2, context.integers(node, "axis", _take(node, "axis", 1)))
    return ALONE


def _group_normalization_21(context: Raise, node: gs.Node) -> Around:
    raise ModelError("its scale and bias per group become ones per channel")


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("BatchNormalization", 9): _batch_normalization_9,
    ("Upsample", 9): _upsample_9,
    ("Scan", 9): _scan_9,
    ("Dropout", 10): _first_output_alone("its mask, which something reads, becomes boolean"),
    ("Slice", 10): _slice_10,
    ("TopK", 10): _top_k_10,
    ("Upsample", 10): _upsample_10,
    ("Clip", 11): _clip_11,
    ("Pad", 11): _pad_11,
    ("Resize", 11): _resize_11,
    ("Scatter", 11): _scatter_11,
    ("Dropout", 12): _dropout_12,
    ("Erf", 13): _erf_13,
    ("Hardmax", 13): _softmax_13,
    ("LogSoftmax", 13): _softmax_13,
    ("ReduceSum", 13): _to_input("axes"),
    ("Resize", 13): _resize_13,
    ("Softmax", 13): _softmax_13,
    ("Split", 13): _to_input("split"),
    ("Squeeze", 13): _to_input("axes"),
    ("Unsqueeze", 13): _to_input("axes"),
    ("BatchNormalization", 14): _first_output_alone("it trains: its statistics are given out"),
    ("RoiAlign", 16): _roi_align_16,
    ("Split", 18): _split_18,
    **{(f"Reduce{kind}", 18): _to_input("axes") for kind in _REDUCTIONS},
    ("DFT", 20): _dft_20,
    ("GridSample", 20): _grid_sample_20,
    ("GroupNormalization", 21): _group_normalization_21,
}
