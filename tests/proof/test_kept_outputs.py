"""What a proof keeps of one model's outputs is never taken for those of other feeds or of another model."""

import gc

import numpy as np
import pytest

from graphopt import optimize
from graphopt.contract import BitExact, Lossy
from graphopt.model import Model, from_proto
from graphopt.proof.proof import MOST_KEPT, Proof
from graphopt.registry import create
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.testing import draw, model


def scaled(by: float) -> Model:
    return from_proto(model("g (float[N,4] x) => (float[N,4] y) { y = Mul(x, s) }", s=np.float32(by)))


def with_a_default() -> Model:
    text = "g (float[N,4] x, float[4] s) => (float[N,4] y) { y = Mul(x, s) }"
    return from_proto(model(text, s=draw(4)))


@pytest.mark.parametrize("limits", [(128, 8), (8, 128), (8, 12, 8, 24, 64)], ids=str)
def test_limits_within_a_batch_compare_equal_feeds(limits: tuple[int, ...]) -> None:
    source, same = scaled(2), scaled(2)
    data = from_arrays({"x": draw(64, 4)}, source)
    with Proof(source, data) as proof:
        for limit in limits:
            comparison = proof.compare(source, same, BitExact(), limit)
            assert comparison.holds, comparison.problem
            assert comparison.samples == 64  # one whole batch


def test_other_values_stand_at_the_same_place_whatever_the_limit() -> None:
    source, same = with_a_default(), with_a_default()
    data = from_arrays({"x": draw(300, 4)}, source)
    with Proof(source, data) as proof:
        assert len(list(proof.feeds(128))) < len(list(proof.feeds()))
        for limit in (128, 256, None):
            assert proof.compare(source, same, BitExact(), limit).holds


def test_a_session_that_is_kept_never_answers_for_another_model() -> None:
    source = scaled(1)
    with Proof(source, generate(source)) as proof:
        for by in range(2, 4 * MOST_KEPT):
            candidate = scaled(by)
            comparison = proof.compare(source, candidate, Lossy(3.0), optimize=True, reviewed=False)
            first = next(proof.feeds())["x"]
            assert comparison.max_abs is not None
            assert comparison.max_abs >= (by - 1) * np.abs(first).max() * 0.999
            del candidate
            gc.collect()


def test_a_layer_is_demoted_on_data_that_come_in_large_batches() -> None:
    first, last = draw(8, 64), draw(64, 1) * np.float32(0.05)
    first[:, 0], last[0] = 0, 4
    bias = np.zeros(64, np.float32)
    bias[0] = 0.5  # a feature that is always on, with the largest weight of all
    text = "g (float[N,8] x) => (float[N,1] y) { a = Gemm(x, w, b) h = Relu(a) y = Gemm(h, v) }"
    source = model(text, w=first, b=bias, v=last)
    result = optimize(source, [create("quantize-weights", dtype="int4")], {"x": draw(512, 8)}, latency=False)
    assert result.ok
    (report,) = result.report.passes
    assert [each.site for each in report.demoted] == ["y"]
    assert report.demoted[0].step != "float"
