"""equalize-channels: what moves, that outputs keep every bit, and what does not scale."""

from typing import Any

import numpy as np
import onnx
import pytest
from graphopt.passes.equalize_channels import EqualizeChannels
from numpy.typing import NDArray

from graphopt.runtime.session import Session
from graphopt.testing import assert_rewrites, assert_skips, initializers, model, random_feeds


def draw(*shape: int, seed: int = 0, uneven: bool = False) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal(shape)
    if uneven:
        values *= np.logspace(-3, 3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return values.astype(np.float32)


DEPTHWISE = """g (float[2,3,9,9] x) => (float[2,5,7,7] y) {
    a = Conv(x, w1, b1)
    r = Relu(a)
    c = Conv<group=8, pads=[1,1,1,1]>(r, w2, b2)
    l = LeakyRelu<alpha=0.125>(c)
    p = AveragePool<kernel_shape=[1,1]>(l)
    y = Conv(p, w3) }"""


def depthwise(text: str = DEPTHWISE, **changes: Any) -> onnx.ModelProto:
    weights = {
        "w1": draw(8, 3, 3, 3, uneven=True),
        "b1": draw(8, seed=1),
        "w2": draw(8, 1, 3, 3, seed=2),
        "b2": draw(8, seed=3),
        "w3": draw(5, 8, 1, 1, seed=4),
    }
    used = {name: values for name, values in {**weights, **changes}.items() if f"{name})" in text or f"{name}," in text}
    return model(text, **used)


def test_ranges_meet_and_outputs_keep_every_bit() -> None:
    before = depthwise()
    after = assert_rewrites(
        EqualizeChannels(), before, ops={"Conv": 3, "Relu": 1, "LeakyRelu": 1, "AveragePool": 1}, rewritten=2
    )
    feeds = random_feeds(before, 1)
    assert Session(after).run(feeds)["y"].tobytes() == Session(before).run(feeds)["y"].tobytes()
    stored = initializers(after)
    first = np.abs(stored["w1"]).reshape(8, -1).max(axis=1)
    second = np.abs(stored["w2"]).reshape(8, -1).max(axis=1)
    third = np.abs(stored["w3"]).max(axis=(0, 2, 3))
    assert (np.abs(np.log2(first / second)) <= 1.0).all()
    assert (np.abs(np.log2(second / third)) <= 1.0).all()
    np.testing.assert_array_equal(
        stored["b1"] / initializers(before)["b1"], (stored["w1"] / initializers(before)["w1"])[:, 0, 0, 0]
    )


def test_grouped_convolutions() -> None:
    text = "g (float[2,4,9,9] x) => (float[2,6,5,5] y) { a = Conv<group=2>(x, w1) y = Conv<group=2>(a, w2) }"
    before = depthwise(text, w1=draw(8, 2, 3, 3, uneven=True), w2=draw(6, 4, 3, 3))
    after = assert_rewrites(EqualizeChannels(), before, ops={"Conv": 2}, rewritten=1)
    feeds = random_feeds(before, 1)
    assert Session(after).run(feeds)["y"].tobytes() == Session(before).run(feeds)["y"].tobytes()


def test_a_dead_channel_stays() -> None:
    dead = draw(8, 3, 3, 3, uneven=True)
    dead[2] = 0
    after = assert_rewrites(
        EqualizeChannels(), depthwise(w1=dead), ops={"Conv": 3, "Relu": 1, "LeakyRelu": 1, "AveragePool": 1}
    )
    assert np.isfinite(initializers(after)["w2"]).all()
    np.testing.assert_array_equal(initializers(after)["b1"][2], draw(8, seed=1)[2])


PAIR = "g (float[2,3,9,9] x) => (float[2,8,5,5] y) {{ a = Conv(x, w1) {between} y = Conv({read}, w4) }}"
REFUSALS = {
    "clip": (PAIR.format(between="c = Clip(a, lo, hi)", read="c"), "Clip 'c' has bounds that do not scale"),
    "nan": (PAIR.format(between="", read="a"), "'w1' holds NaN or Inf"),
    "shared": (
        "g (float[2,8,9,9] x) => (float[2,8,5,5] y) { a = Conv(x, w4) y = Conv(a, w4) }",
        "'w4' has 2 readers",
    ),
    "two convolutions read it": (
        """g (float[2,3,9,9] x) => (float[2,8,5,5] y, float[2,8,5,5] z) {
            a = Conv(x, w1)
            y = Conv(a, w4)
            z = Conv(a, w5) }""",
        "'a' has 2 readers",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    text, reason = REFUSALS[case]
    first = draw(8, 3, 3, 3, uneven=True)
    if case == "nan":
        first[0, 0, 0, 0] = np.nan
    bounds = {"lo": np.float32(0), "hi": np.float32(6)}
    proto = depthwise(text, w1=first, w4=draw(8, 8, 3, 3), w5=draw(8, 8, 3, 3, seed=1), **bounds)
    assert_skips(EqualizeChannels(), proto, reason)
