"""What zero-weights has pruned stays pruned in every pass behind it that changes weights: two of four, and at all."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from graphopt.passes.equalize_channels import EqualizeChannels
from graphopt.passes.fold_affine import FoldAffine
from graphopt.passes.fold_batchnorm import FoldBatchNorm
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.passes.reconstruct import Reconstruct
from graphopt.passes.zero_weights import ZeroWeights
from numpy.typing import NDArray

from graphopt import Pass, optimize
from graphopt.model import from_proto
from graphopt.numerics.gptq import gptq
from graphopt.numerics.quantization import TYPES, Affine
from graphopt.runtime.session import Session
from graphopt.testing import draw, initializers, model

DENSE = (
    "g (float[N,64] x) => (float[N,16] y) { a = Gemm<transB=1>(x, w, b) r = Relu(a) c = Gemm<transB=1>(r, v, b) "
    "s = Relu(c) y = Gemm<transB=1>(s, u) }"
)
IMAGES = (
    "g (float[N,16,6,6] x) => (float[N,16,6,6] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) "
    "y = Conv<pads=[1,1,1,1]>(r, v) }"
)
BEHIND: dict[str, Sequence[Pass]] = {
    "nearest": [QuantizeWeights()],
    "bias correction": [QuantizeWeights(bias_correction=True)],
    "gptq": [QuantizeWeights(rounding="gptq")],
    "gptq with bias correction": [QuantizeWeights(rounding="gptq", bias_correction=True)],
    "gptq in four bits": [QuantizeWeights(rounding="gptq", dtype="int4", bias_correction=True)],
    "gptq in blocks": [QuantizeWeights(rounding="gptq", dtype="int4", granularity="block")],
    "gptq, uneven": [QuantizeWeights(rounding="gptq", dtype="uint8", symmetric=False)],
    "least squared error": [QuantizeWeights(range="mse")],
    "reconstruct": [Reconstruct()],
    "reconstruct, then gptq": [Reconstruct(), QuantizeWeights(rounding="gptq")],
    "equalize": [EqualizeChannels(), QuantizeWeights()],
    "folding": [FoldBatchNorm(), FoldAffine(), QuantizeWeights()],
}


def dense() -> tuple[onnx.ModelProto, NDArray[Any]]:
    weights = {"w": draw(64, 64) / 6, "v": draw(64, 64, seed=1) / 6, "u": draw(16, 64, seed=2) / 6, "b": draw(64)}
    return model(DENSE, **weights), draw(320, 64, seed=3)


def images() -> tuple[onnx.ModelProto, NDArray[Any]]:
    weights = {"w": draw(16, 16, 3, 3) / 9, "v": draw(16, 16, 3, 3, seed=1) / 9, "b": draw(16)}
    return model(IMAGES, **weights), draw(32, 16, 6, 6, seed=3)


def weights_as_run(proto: onnx.ModelProto) -> list[NDArray[Any]]:
    """The weights that the layers read, computed by ONNX Runtime."""
    names = [node.input[1] for node in proto.graph.node if node.op_type in ("Gemm", "Conv")]
    cut = onnx.ModelProto.FromString(proto.SerializeToString())
    stored = initializers(proto)
    computed = [name for name in names if name not in stored]
    del cut.graph.output[:]
    cut.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in computed)
    shape = [1, *(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:])]
    found = Session(from_proto(cut)).run({"x": np.zeros(shape, np.float32)}) if computed else {}
    return [stored[name] if name in stored else found[name] for name in names]


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize("net", [dense, images])
def test_pruned_weights_stay_zero(net: Any, behind: Sequence[Pass]) -> None:
    proto, x = net()
    pattern = {"pattern": "2:4"} if net is dense else {"ratio": 0.5}
    pruned = optimize(proto, [ZeroWeights(**pattern)], {"x": x}, latency=False).model
    result = optimize(pruned, behind, {"x": x}, latency=False)
    assert result.report.ok
    for before, after in zip(weights_as_run(pruned), weights_as_run(result.model), strict=True):
        assert not after.reshape(before.shape)[before == 0].any()
        if net is dense:
            assert ((after.reshape(len(after), -1, 4) != 0).sum(axis=-1) <= 2).all()


def test_gptq_with_zeros_rounds_each_row_on_what_is_left_of_it() -> None:
    """A row whose zeros are taken out, with the Gram matrix of the other columns, gets the same levels."""
    rng = np.random.default_rng(0)
    weight, rows = rng.standard_normal((1, 24)), rng.standard_normal((200, 24)) @ rng.standard_normal((24, 24))
    weight[0, 16:] = 0
    affine = Affine(TYPES["int4"])
    scale = np.full((1, 1), np.abs(weight).max() / 7, np.float32)
    rows[:, 16:] *= 1e-6  # the zeros come last, so that no error can come from them
    levels, real = gptq(weight, rows.T @ rows, affine, scale, np.zeros((1, 1)))
    alone, _ = gptq(
        weight[:, :16], rows[:, :16].T @ rows[:, :16], affine, scale, np.zeros((1, 1)), damping=0.01 * 16 / 24
    )
    assert not real[0, 16:].any()
    np.testing.assert_array_equal(levels[:, :16].astype(int), alone.astype(int))
