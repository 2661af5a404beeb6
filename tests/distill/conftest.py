"""A small teacher, its damaged student and data to learn from, drawn from fixed seeds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from graphopt.model import Model, from_proto
from graphopt.runtime.feeds import Data, from_arrays
from graphopt.testing import model

NET = """g (float[N,1,8,8] x) => (float[N,4] y) {
  a = Conv<pads = [1,1,1,1]>(x, w1, b1) r = Relu(a)
  d = Conv<pads = [1,1,1,1], group = 6>(r, w2, b2) e = Relu(d)
  c = Conv(e, w3, b3) s = Add(c, r) p = GlobalAveragePool(s) q = Flatten(p) y = Gemm<transB = 1>(q, w4, b4) }"""


def weights(seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = {"w1": (6, 1, 3, 3), "w2": (6, 1, 3, 3), "w3": (6, 6, 1, 1), "w4": (4, 6)}
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return drawn | {
        f"b{n}": rng.standard_normal(size).astype(np.float32) for n, size in ((1, 6), (2, 6), (3, 6), (4, 4))
    }


@dataclass
class Task:
    teacher: Model
    student: onnx.ModelProto
    data: Data
    images: NDArray[Any]


@pytest.fixture
def task() -> Task:
    teacher = model(NET, **weights(0))
    student = model(NET, **{name: (value * 0.7).astype(np.float32) for name, value in weights(0).items()})
    rng = np.random.default_rng(1)
    images = rng.standard_normal((96, 1, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 4, 96)
    loaded = from_proto(teacher)
    return Task(loaded, student, from_arrays({"x": images, "labels": labels}, loaded), images)
