"""ONNX's own shape inference, for which some models are too odd."""

import onnx
from google.protobuf.message import DecodeError, EncodeError

REFUSALS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    onnx.defs.SchemaError,
    EncodeError,
    DecodeError,
    RuntimeError,
    ValueError,
    IndexError,
    OverflowError,
    MemoryError,
)
"""What inference raises on odd models: its own errors, protobuf's, and what C++'s standard exceptions are in Python."""


def with_inferred_shapes(proto: onnx.ModelProto, *, data_prop: bool = False) -> onnx.ModelProto:
    """Return the model with types and shapes of the tensors in the middle, or as it is where inference gives up.

    Args:
        proto: The model; its large weights may be missing. It is not changed.
        data_prop: Whether small integers are followed too, for the shapes that are computed from them.
    """
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=data_prop)
    except REFUSALS:
        return proto
