"""fuse-pads: paddings move into convolutions and poolings where they mean the same there."""

from typing import Any

import numpy as np
import pytest
from graphopt.passes.fuse_pads import FusePads
from numpy.typing import NDArray

from graphopt.testing import assert_rewrites, assert_skips, model

Arrays = dict[str, NDArray[Any]]
W = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
LOWEST = np.array(np.finfo(np.float32).min)


def amounts(*spatial: int, channels: int = 0) -> NDArray[np.int64]:
    half = len(spatial) // 2
    return np.array([0, channels, *spatial[:half], 0, 0, *spatial[half:]], dtype=np.int64)


def conv(attributes: str = "", pad: str = "p", mode: str = "constant") -> str:
    nodes = f'a = Pad<mode="{mode}">(x, {pad}) y = Conv<kernel_shape=[3,3]{attributes}>(a, w)'
    return f"g (float[N,3,8,8] x) => (float[N,4,P,Q] y) {{ {nodes} }}"


CASES: dict[str, tuple[str, Arrays, dict[str, int], int]] = {
    "conv": (conv(), {"w": W, "p": amounts(1, 2, 0, 3)}, {"Conv": 1}, 17),
    "conv that pads too": (conv(", pads=[1,0,2,0]"), {"w": W, "p": amounts(1, 2, 0, 3)}, {"Conv": 1}, 17),
    "conv with strides and dilations": (
        conv(", strides=[2,1], dilations=[1,2]"),
        {"w": W, "p": amounts(4, 4, 4, 4)},
        {"Conv": 1},
        17,
    ),
    "conv, auto_pad VALID": (conv(', auto_pad="VALID"'), {"w": W, "p": amounts(1, 1, 1, 1)}, {"Conv": 1}, 17),
    "conv, value given": (
        conv(pad="p, v"),
        {"w": W, "p": amounts(1, 1, 1, 1), "v": np.float32(0)},
        {"Conv": 1},
        17,
    ),
    "conv, axes given": (
        conv(pad="p, , axes"),
        {"w": W, "p": np.array([1, 2, 3, 0], np.int64), "axes": np.array([-1, 2], np.int64)},
        {"Conv": 1},
        18,
    ),
    "conv, amounts in an attribute": (
        "g (float[N,3,8,8] x) => (float[N,4,P,Q] y) { a = Pad<pads=[0,0,1,1,0,0,1,1]>(x) y ="
        " Conv<kernel_shape=[3,3]>(a, w) }",
        {"w": W},
        {"Conv": 1},
        9,
    ),
    "average pooling": (
        "g (float[N,3,8,8] x) => (float[N,3,P,Q] y) { a = Pad(x, p) y = AveragePool<kernel_shape=[3,3]>(a) }",
        {"p": amounts(1, 2, 1, 0)},
        {"AveragePool": 1},
        17,
    ),
    "max pooling below everything": (
        "g (float[N,3,8,8] x) => (float[N,3,P,Q] y) { a = Pad(x, p, v) y = MaxPool<kernel_shape=[3,3]>(a) }",
        {"p": amounts(1, 2, 1, 0), "v": np.float32(-np.inf)},
        {"MaxPool": 1},
        17,
    ),
    "max pooling by the lowest number": (
        "g (float[N,3,8,8] x) => (float[N,3,P,Q] y) { a = Pad(x, p, v) y = MaxPool<kernel_shape=[3,3]>(a) }",
        {"p": amounts(1, 2, 1, 0), "v": LOWEST},
        {"MaxPool": 1},
        17,
    ),
    "max pooling of what is not negative": (
        "g (float[N,3,8,8] x) => (float[N,3,P,Q] y) { r = Relu(x) a = Pad(r, p)"
        " y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(a) }",
        {"p": amounts(1, 1, 1, 1)},
        {"Relu": 1, "MaxPool": 1},
        17,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fuses(name: str) -> None:
    text, weights, ops, opset = CASES[name]
    assert_rewrites(FusePads(), model(text, opset, **weights), ops=ops)


MAX = "g (float[N,3,8,8] x) => (float[N,3,P,Q] y) { a = Pad(x, p, v) y = MaxPool<kernel_shape=[3,3]%s>(a) }"
AVERAGE = "g (float[N,3,8,8] x) => (float[N,3,P,Q] y) { a = Pad(x, p) y = AveragePool<kernel_shape=[3,3]%s>(a) }"
ONE = amounts(1, 1, 1, 1)
SKIPS: dict[str, tuple[str, Arrays, str]] = {
    "reflects": (conv(mode="reflect"), {"w": W, "p": ONE}, "mode 'reflect' is not constant"),
    "value other than zero": (conv(pad="p, v"), {"w": W, "p": ONE, "v": np.float32(1)}, "pads by 1, not by zero"),
    "tiny value": (conv(pad="p, v"), {"w": W, "p": ONE, "v": np.float32(1e-40)}, "not by zero"),
    "cuts off": (conv(), {"w": W, "p": amounts(-1, 0, 0, 0)}, "a negative amount cuts off"),
    "pads channels": (
        "g (float[N,2,8,8] x) => (float[N,4,P,Q] y) { a = Pad(x, p) y = Conv<kernel_shape=[3,3]>(a, w) }",
        {"w": W, "p": amounts(1, 1, 1, 1, channels=1)},
        "pads the batch or the channels",
    ),
    "same padding": (conv(', auto_pad="SAME_UPPER"'), {"w": W, "p": ONE}, "auto_pad SAME_UPPER depends"),
    "amounts computed": (
        "g (float[N,3,8,8] x, int64[8] p) => (float[N,4,P,Q] y) { a = Pad(x, p) y = Conv(a, w) }",
        {"w": W},
        "the amounts are not constant",
    ),
    "value fed": (
        "g (float[N,3,8,8] x, float v) => (float[N,4,P,Q] y) { a = Pad(x, p, v) y = Conv(a, w) }",
        {"w": W, "p": ONE},
        "the value 'v' is not constant",
    ),
    "read twice": (
        "g (float[N,3,8,8] x) => (float[N,4,P,Q] y, float[N,3,R,S] z) { a = Pad(x, p) y = Conv(a, w) z = Neg(a) }",
        {"w": W, "p": ONE},
        "'a' has 2 readers",
    ),
    "graph output": (
        "g (float[N,3,8,8] x) => (float[N,4,P,Q] y, float[N,3,R,S] a) { a = Pad(x, p) y = Conv(a, w) }",
        {"w": W, "p": ONE},
        "'a' is a graph output",
    ),
    "zero could be the maximum": (MAX % "", {"p": ONE, "v": np.float32(0)}, "pads by 0, which could be the maximum"),
    "windows of padding": (MAX % "", {"p": amounts(3, 0, 0, 0), "v": LOWEST}, "windows could lie in the padding alone"),
    "ceil_mode": (MAX % ", ceil_mode=1", {"p": ONE, "v": LOWEST}, "ceil_mode"),
    "dilated pooling": (MAX % ", dilations=[2,2]", {"p": ONE, "v": LOWEST}, "dilated windows"),
    "pooling that does not count its own": (AVERAGE % ", pads=[1,1,1,1]", {"p": ONE}, "without counting that"),
    "indices": (
        "g (float[1,3,8,8] x) => (float[1,3,8,8] y, int64[1,3,8,8] i) { a = Pad(x, p, v) y, i ="
        " MaxPool<kernel_shape=[3,3]>(a) }",
        {"p": ONE, "v": LOWEST},
        "its indices count the padding",
    ),
}


@pytest.mark.parametrize("name", SKIPS)
def test_skips(name: str) -> None:
    text, weights, reason = SKIPS[name]
    assert_skips(FusePads(), model(text, **weights), reason)


def test_in_a_branch() -> None:
    proto = model(
        "g (bool c, float[N,3,8,8] x) => (float[N,4,8,8] y) { y = If (c) <"
        " then_branch = t () => (float[N,4,8,8] u) { a = Pad(x, p) u = Conv(a, w) },"
        " else_branch = e () => (float[N,4,8,8] v) { v = Conv<pads=[1,1,1,1]>(x, w) }> }",
        w=W,
        p=ONE,
    )
    feeds = {"c": np.array(True), "x": np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    assert_rewrites(FusePads(), proto, ops={"If": 1}, feeds=feeds, rewritten=1)
