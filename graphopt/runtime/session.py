"""ONNX Runtime sessions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from graphopt.model import Model, to_proto


class Session:
    """A model in ONNX Runtime's CPU provider."""

    def __init__(
        self, model: Model | onnx.ModelProto, *, optimize: bool = False, threads: int = 0, extra_outputs: Sequence[str] = ()
    ) -> None:
        """Load ``model``."""
        proto = to_proto(model) if isinstance(model, Model) else model
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = threads
        if not optimize:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.generic]]:
        """Run once."""
        return dict(zip(self.outputs, self._session.run(None, feeds), strict=True))
