"""Model to ModelProto."""

import onnx

from graphopt.model import _gsio
from graphopt.model.model import Model


def to_proto(model: Model, weights: bool = True) -> onnx.ModelProto:
    """Return the whole model as a proto; without ``weights``, large ones are stubs (for inference on structure)."""
    proto = _gsio.to_onnx(model.graph)
    proto.MergeFrom(onnx.ModelProto())
    proto.ir_version = model.header.ir_version
    if not weights:
        for tensor in proto.graph.initializer:
            if len(tensor.raw_data) > 1024:
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
    return proto
