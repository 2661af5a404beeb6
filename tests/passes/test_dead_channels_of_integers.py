"""Dead channels of weights that are stored as integers, in every form that quantize-weights writes: cut, or told."""

from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.base import Pass
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import draw, initializers, model, random_feeds, run_alone

CHAIN = """g (float[N,3,8,8] x) => (float[N,10] y) { a = Conv<pads=[1,1,1,1]>(x, u) b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, v, k) d = Relu(c) e = GlobalAveragePool(d) f = Flatten(e) y = Gemm(f, w, h) }"""

FORMS: dict[str, tuple[dict[str, Any], int]] = {
    "DequantizeLinear by channel": ({"representation": "dq", "granularity": "channel"}, 32),
    "DequantizeLinear by tensor": ({"representation": "dq", "granularity": "tensor"}, 32),
    "Cast and Mul by channel": ({"representation": "mul", "granularity": "channel"}, 32),
    "Cast, Sub and Mul": ({"representation": "mul", "dtype": "uint8", "symmetric": False}, 32),
    "Cast and Mul of four bits in blocks": ({"representation": "mul", "dtype": "int4", "granularity": "block"}, 32),
}


def half_dead() -> onnx.ModelProto:
    u, v, w = draw(64, 3, 3, 3), draw(64, 64, 3, 3), draw(64, 10)
    k = draw(64)
    u[32:], v[32:], k[32:] = 0, 0, 0
    return model(CHAIN, 21, 10, u=u, v=v, w=w, k=k, h=draw(10))


def rewritten(pass_: Pass, proto: onnx.ModelProto) -> onnx.ModelProto:
    return run_alone(pass_, proto)[0]


def widths(proto: onnx.ModelProto) -> list[int]:
    """Return the channels that the convolutions give out, as inference finds them."""
    infos = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph.value_info
    shapes = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in infos}
    return [shapes[name][1] for name in ("a", "c")]


@pytest.mark.parametrize("name", FORMS)
def test_dead_channels_are_cut_as_integers(name: str) -> None:
    options, kept = FORMS[name]
    source = half_dead()
    stored = rewritten(create("quantize-weights", **options), source)
    cut = rewritten(create("prune-channels"), stored)
    assert widths(cut) == [kept, kept]
    feeds = random_feeds(source, 1)
    before, after = (Session(each).run(feeds)["y"] for each in (stored, cut))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    sizes = {key: array for key, array in initializers(cut).items() if array.size >= 1000}
    assert sizes
    assert all(array.dtype.itemsize == 1 for array in sizes.values())


def test_blocks_of_scales_that_cannot_be_cut_are_told() -> None:
    stored = rewritten(create("quantize-weights", representation="dq", dtype="int4", granularity="block"), half_dead())
    result = graphopt.optimize(stored, ["prune-channels"])
    (told,) = result.report.passes
    assert not told.result.rewritten
    assert {each.site for each in told.result.skipped} == {"a", "c"}
    assert all("32 idle channels stay: " in each.reason for each in told.result.skipped)
    assert all("blocks of scales" in each.reason for each in told.result.skipped)


@pytest.mark.parametrize("form", ["dq", "mul"])
def test_zero_weights_names_every_layer_with_integers(form: str) -> None:
    stored = rewritten(create("quantize-weights", representation=form), half_dead())
    result = graphopt.optimize(stored, [create("zero-weights", ratio=0.5)])
    (told,) = result.report.passes
    assert {each.site: each.reason for each in told.result.skipped} == {
        "a": "'u' is quantized already",
        "c": "'v' is quantized already",
        "y": "'w' is quantized already",
    }


def test_a_cast_that_two_layers_share_is_cut_for_each() -> None:
    """Other inputs of each are dead: each gets integers of its own."""
    q = np.random.default_rng(0).integers(-9, 9, (8, 8, 1, 1)).astype(np.int8)
    u, v = draw(8, 3, 1, 1), draw(8, 3, 1, 1, seed=1)
    u[2:], v[:5] = 0, 0
    source = model(
        """g (float[N,3,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] z) { f = Cast<to = 1>(q) w = Mul(f, s)
        t = Mul(f, s) a = Conv(x, u) y = Conv(a, w) b = Conv(x, v) z = Conv(b, t) }""",
        q=q,
        s=draw(8, 1, 1, 1),
        u=u,
        v=v,
    )
    cut = rewritten(create("prune-channels", multiple=1), source)
    feeds = random_feeds(source, 2)
    before, after = (Session(each).run(feeds) for each in (source, cut))
    for output in ("y", "z"):
        np.testing.assert_allclose(after[output], before[output], rtol=1e-5, atol=1e-5)
    shapes = sorted(array.shape for array in initializers(cut).values() if array.dtype == np.int8)
    assert shapes == [(8, 2, 1, 1), (8, 3, 1, 1)]
