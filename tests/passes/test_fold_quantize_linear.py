"""fold-constants stores the integers that QuantizeLinear makes of a constant: bit for bit what every run computed."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import graphopt
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import assert_skips, draw, initializers, model, random_feeds, run_alone

CONV = """g (float[N,16,9,9] x) => (float[N,32,9,9] y) { q = QuantizeLinear ATTRS (w, s, z)
    d = DequantizeLinear ATTRS (q, s, z) y = Conv(x, d) }"""

FORMS: dict[str, tuple[int, str, Any, Any]] = {
    "one scale, opset 10": (10, "", np.float32(0.02), np.int8(0)),
    "unsigned, opset 10": (10, "", np.float32(0.02), np.uint8(128)),
    "by channel, opset 13": (13, "<axis=0>", np.linspace(0.01, 0.03, 32, dtype=np.float32), np.zeros(32, np.int8)),
    "by channel with zero points, opset 19": (
        19,
        "<axis=0>",
        np.linspace(0.01, 0.03, 32, dtype=np.float32),
        np.arange(32, dtype=np.uint8) + 100,
    ),
    "sixteen bits, opset 21": (21, "<axis=0>", np.full(32, 1e-4, np.float32), np.zeros(32, np.int16)),
    "in blocks, opset 21": (
        21,
        "<axis=1, block_size=4>",
        np.random.default_rng(0).uniform(0.01, 0.03, (32, 4, 1, 1)).astype(np.float32),
        np.zeros((32, 4, 1, 1), np.int8),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_integers_are_stored_and_nothing_is_computed_otherwise(name: str) -> None:
    opset, attributes, scale, zero = FORMS[name]
    proto = model(CONV.replace("ATTRS", attributes), opset, 10, w=draw(32, 16, 1, 1), s=scale, z=zero)
    after, _ = run_alone(create("fold-constants"), proto)
    assert [node.op_type for node in after.graph.node] == ["DequantizeLinear", "Conv"]
    stored = initializers(after)
    assert "w" not in stored
    wanted = expected(draw(32, 16, 1, 1), scale, zero)
    np.testing.assert_array_equal(stored["q"], wanted)
    feeds = random_feeds(proto, 1)
    np.testing.assert_array_equal(Session(after).run(feeds)["y"], Session(proto).run(feeds)["y"])


def expected(weight: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any]) -> NDArray[Any]:
    """Quantize as ONNX defines it: round half to even, then saturate."""
    ends = (-1, 1, 1, 1) if np.ndim(scale) == 1 else np.shape(scale)
    step, shift = np.reshape(scale, ends), np.reshape(zero, ends).astype(np.float64)
    if np.ndim(scale) == 4:
        step, shift = np.repeat(step, 4, 1), np.repeat(shift, 4, 1)
    limits = np.iinfo(np.asarray(zero).dtype)
    rounded = np.rint(weight / step).astype(np.float64) + shift
    return np.clip(rounded, limits.min, limits.max).astype(np.asarray(zero).dtype)


def test_a_weight_that_something_else_reads_is_not_stored_twice() -> None:
    text = """g (float[N,48] x) => (float[N,48] y) { q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z)
        a = MatMul(x, d) b = MatMul(x, w) y = Add(a, b) }"""
    proto = model(text, 17, w=draw(48, 48), s=np.float32(0.02), z=np.int8(0))
    after, _ = run_alone(create("fold-constants"), proto)
    assert "QuantizeLinear" in {node.op_type for node in after.graph.node}
    assert after.ByteSize() <= proto.ByteSize()


def test_what_is_computed_from_inputs_or_can_be_overridden_stays() -> None:
    text = """g (float[N,4] x, float[4] w) => (float[N,4] y) { a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z)
        c = QuantizeLinear(w, s, z) d = DequantizeLinear(c, s, z) y = Add(b, d) }"""
    proto = model(text, 17, w=draw(4), s=np.float32(0.02), z=np.int8(0))
    after, _ = run_alone(create("fold-constants"), proto)
    assert after == proto


def test_a_dequantize_linear_of_stored_integers_stays() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { d = DequantizeLinear(w, s) y = Add(x, d) }"
    proto = model(text, 17, w=np.arange(4, dtype=np.int8), s=np.float32(0.02))
    assert_skips(create("fold-constants"), proto, "DequantizeLinear keeps low-bit values small")


def test_a_run_proves_it() -> None:
    stored = {"w": draw(32, 16, 1, 1), "s": np.full(32, 0.02, np.float32), "z": np.zeros(32, np.int8)}
    proto = model(CONV.replace("ATTRS", "<axis=0>"), 13, 10, **stored)
    result = graphopt.optimize(proto, ["fold-constants"])
    assert result.ok
    assert result.model.ByteSize() < 0.6 * onnx.ModelProto.ByteSize(proto)
