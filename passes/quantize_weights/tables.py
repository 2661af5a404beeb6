"""Tells tables of trained vectors, which are weights, from tables of data: coordinates, curves, palettes, means."""

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from graphopt.graph.view import GraphView, is_op
from graphopt.graph.weights import LOOKUPS, MOVES, Weight

FEWEST_COLUMNS = 16
_MOST_OFFSET = 0.6
_MOST_MONOTONE = 0.75
_MOST_LOST = 0.25
_FEWEST_ROWS = 16
_SAMPLED_ROWS = 4096
_MOST_NODES = 512
_MOVING = (*MOVES, "Expand", "Tile", "Gather", "GatherElements", "GatherND", "Where", "Dropout")
_CHOICES = ("Shape", "Size", "TopK", "ArgMax", "ArgMin", "NonMaxSuppression", "NonZero", "Equal", "Less", "Greater")
_POSITIONS = ("LessOrEqual", "GreaterOrEqual", "RoiAlign", "GridSample", "Resize", "Range", "OneHot", "IsNaN", "IsInf")
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "Attention")
_NORMS = ("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization")
_MORE_NORMS = ("LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax")
_SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "GlobalAveragePool")
_BODIES = ("If", "Loop", "Scan")
_LAYERS = (*_PRODUCTS, *_NORMS, *_MORE_NORMS, *_SUMS, *_BODIES)


def why_no_embedding(view: GraphView, weight: Weight, values: NDArray[np.generic]) -> str | None:
    """Return why a table that only look-ups read is taken for data; None if it is an embedding, or a layer's weight."""
    if not weight.uses or not all(is_op(use.layer, *LOOKUPS) for use in weight.uses):
        return None
    axis = weight.common_axis or 0
    reason = why_no_trained_vectors(values, axis) or _why_no_input_of_a_layer(view, weight)
    return None if reason is None else f"{weight.source.name!r} {reason}: left float, --tables all quantizes it"


def why_no_trained_vectors(values: NDArray[np.generic], axis: int) -> str | None:
    """Return what in a table's values speaks against trained vectors, one for each index of ``axis``; None if nothing.

    Moments are taken of at most 4,096 rows, evenly spaced.
    """
    rows = values.shape[axis]
    chosen = np.arange(rows) if rows <= _SAMPLED_ROWS else np.linspace(0, rows - 1, _SAMPLED_ROWS).astype(np.int64)
    table = np.moveaxis(np.take(values, chosen, axis), axis, 0).reshape(len(chosen), -1).astype(np.float64)
    if table.shape[1] < FEWEST_COLUMNS:
        return f"has {table.shape[1]} columns, an embedding has {FEWEST_COLUMNS} or more"
    if (table >= 0).all() or (table <= 0).all():
        return "has values of one sign only, those of an embedding lie around zero"
    power = np.square(table).mean(axis=0)
    if np.square(table.mean(axis=1)).mean() > _MOST_OFFSET * power.mean():
        return "has rows far from zero, those of an embedding lie around it"
    if len(table) >= _FEWEST_ROWS:
        if np.square(table.mean(axis=0)).sum() > _MOST_OFFSET * power.sum():
            return "has columns far from zero, those of an embedding lie around it"
        steps = np.diff(table, axis=0)
        ordered = ((steps >= 0).all(axis=0) | (steps <= 0).all(axis=0)) & (steps != 0).any(axis=0)
        if ordered.mean() > _MOST_MONOTONE:
            return "has columns that rise or fall from row to row, as a grid or a curve"
    if _lost_columns(table) > _MOST_LOST:
        return "has columns of unlike scale, of which one scale for a row would lose the small ones"
    return None


def _lost_columns(table: NDArray[np.float64]) -> float:
    """Return the share of columns that keep less than 10 dB in eight bits with a scale for each row."""
    noise = np.square(np.abs(table).max(axis=1) / 127).mean() / 12
    power = np.square(table).mean(axis=0)
    return float((power[power > 0] < 10 * noise).mean())


def _why_no_input_of_a_layer(view: GraphView, weight: Weight) -> str | None:
    """Return where a table's rows go if no layer, normalization or sum reads them; None if one does.

    Rows that are a model's output as they are count as an embedding: that is what such a model gives out.
    """
    waiting = [(out, True) for use in weight.uses for out in use.layer.outputs]
    seen: set[tuple[int, bool]] = set()
    bare = False
    changed: gs.Tensor | None = None
    while waiting and len(seen) < _MOST_NODES:
        tensor, same = waiting.pop()
        if (id(tensor), same) in seen or not tensor.name:
            continue
        seen.add((id(tensor), same))
        if view.is_output(tensor):
            if all(out is not tensor for out in view.model.graph.outputs):
                return None  # a subgraph or function gives it out, and what reads it there is not followed
            bare, changed = bare or same, changed if same else tensor
        for reader in view.readers(tensor):
            if not is_op(reader, reader.op) or is_op(reader, *_LAYERS):
                return None
            if not is_op(reader, *_CHOICES, *_POSITIONS):
                waiting += [(out, same and is_op(reader, *_MOVING)) for out in reader.outputs]
    if bare:
        return None
    return "goes into no layer" + ("" if changed is None else f" but straight to {changed.name!r}")
