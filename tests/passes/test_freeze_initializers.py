"""freeze-initializers: weights that are listed as inputs become constants, and only then may passes touch them."""

import numpy as np
import onnx
from graphopt.passes.fold_batchnorm import FoldBatchNorm
from graphopt.passes.freeze_initializers import FreezeInitializers
from graphopt.passes.quantize_weights import QuantizeWeights

import graphopt
from graphopt.graph import GraphView
from graphopt.model import from_proto
from graphopt.testing import assert_rewrites, assert_skips, assert_untouched, model

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((8, 3, 3, 3)).astype(np.float32),
    **{name: RNG.uniform(0.5, 1.5, 8).astype(np.float32) for name in ("scale", "bias", "mean", "var")},
}
TEXT = """g (float[N,3,8,8] x, float[8,3,3,3] w, float[8] scale, float[8] bias, float[8] mean, float[8] var)
    => (float[N,8,6,6] y) { c = Conv(x, w) y = BatchNormalization(c, scale, bias, mean, var) }"""


def listed(ir_version: int = 8) -> onnx.ModelProto:
    return model(TEXT, 17, ir_version, **WEIGHTS)


def test_what_is_listed_becomes_constant() -> None:
    after = assert_rewrites(FreezeInitializers(), listed(), ops={"Conv": 1, "BatchNormalization": 1}, rewritten=5)
    assert [each.name for each in after.graph.input] == ["x"]
    assert {each.name for each in after.graph.initializer} == set(WEIGHTS)


def test_other_passes_then_do_their_work() -> None:
    assert_skips(FoldBatchNorm(), listed(), "can be overridden by the caller, freeze-initializers ends that")
    assert_skips(QuantizeWeights(), listed(), "'w' can be overridden by the caller, freeze-initializers ends that")
    result = graphopt.optimize(listed(), ["freeze-initializers", "fold-batchnorm", "quantize-weights"])
    assert result.ok
    assert [node.op_type for node in result.model.graph.node] == ["Cast", "Mul", "Conv"]


def test_up_to_ir_version_3_there_is_nothing_to_do() -> None:
    proto = listed(3)
    assert not assert_untouched(FreezeInitializers(), proto).skipped


def test_a_veto_keeps_an_input() -> None:
    subject = from_proto(listed())
    result = FreezeInitializers().apply(GraphView(subject, {"w": "it broke the contract"}))
    assert [(each.site, each.reason) for each in result.skipped] == [("w", "it broke the contract")]
    assert [info.name for info, _ in subject.graph.input_infos] == ["x", "w"]
