"""ModelProto to Model."""

from pathlib import Path

import onnx

from graphopt.model import _gsio
from graphopt.model.model import Model


def from_proto(proto: onnx.ModelProto, path: Path | None = None) -> Model:
    """Build a Model; the proto is not changed and its weights are not copied."""
    graph = _gsio.from_onnx(proto)
    header = onnx.ModelProto()
    header.CopyFrom(proto)
    header.ClearField("graph")
    model = Model(graph, header, path)
    for inner in model.graphs():
        inner._spare = {id(t) for t in inner._home if not t.outputs}
    return model
