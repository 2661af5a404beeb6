"""Gradients against central differences in float64 on the ONNX reference evaluator, and against torch where it is."""

import sys
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from graphopt.distill.gradients import LOSS, Gradients, MissingExtraError, differentiate, with_shapes
from graphopt.distill.seeds import _is_slow, _shapes, without_seed_axis
from graphopt.errors import ModelError
from graphopt.numerics.patches import windows
from graphopt.runtime.session import Session
from graphopt.testing import model

pytest.importorskip("onnx_ad")

Arrays = dict[str, NDArray[Any]]

CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "conv": ("Conv", {"x": (2, 3, 7, 6), "w": (4, 3, 3, 2), "b": (4,)}, {}),
    "conv without bias": ("Conv", {"x": (2, 3, 5, 5), "w": (2, 3, 2, 2)}, {}),
    "grouped": ("Conv", {"x": (2, 4, 6, 6), "w": (6, 2, 3, 3), "b": (6,)}, {"group": 2, "pads": [1, 0, 1, 2]}),
    "depthwise": ("Conv", {"x": (3, 4, 6, 5), "w": (4, 1, 3, 3), "b": (4,)}, {"group": 4, "pads": [1, 1, 1, 1]}),
    "depthwise, two filters each": ("Conv", {"x": (2, 3, 6, 6), "w": (6, 1, 3, 3)}, {"group": 3}),
    "strides that leave a rest": ("Conv", {"x": (2, 4, 8, 7), "w": (4, 2, 3, 3)}, {"group": 2, "strides": [2, 3]}),
    "dilations": ("Conv", {"x": (2, 4, 9, 9), "w": (4, 1, 3, 3)}, {"group": 4, "dilations": [2, 3], "strides": [2, 1]}),
    "one dimension": (
        "Conv",
        {"x": (2, 4, 11), "w": (4, 2, 3), "b": (4,)},
        {"group": 2, "strides": [2], "pads": [2, 1]},
    ),
    "three dimensions": ("Conv", {"x": (1, 2, 4, 5, 4), "w": (2, 1, 2, 3, 2)}, {"group": 2}),
    "depthwise, one dimension": (
        "Conv",
        {"x": (2, 4, 9), "w": (4, 1, 3)},
        {"group": 4, "strides": [2], "pads": [0, 2]},
    ),
    "same upper": (
        "Conv",
        {"x": (2, 4, 6, 7), "w": (4, 1, 3, 4)},
        {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ),
    "no kernel to speak of": ("Conv", {"x": (3, 4, 5, 6), "w": (5, 4, 1, 1), "b": (5,)}, {"strides": [2, 1]}),
    "dense strides and dilations": (
        "Conv",
        {"x": (2, 3, 9, 8), "w": (4, 3, 3, 2)},
        {"strides": [2, 3], "dilations": [2, 3], "pads": [1, 0, 2, 1]},
    ),
    "dense, one dimension": ("Conv", {"x": (2, 3, 11), "w": (4, 3, 3), "b": (4,)}, {"strides": [2], "pads": [2, 1]}),
    "dense, three dimensions": ("Conv", {"x": (1, 2, 4, 5, 4), "w": (3, 2, 2, 3, 2)}, {"pads": [1, 0, 0, 0, 1, 1]}),
    "same lower": ("Conv", {"x": (2, 2, 6, 7), "w": (3, 2, 3, 4)}, {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "valid": ("Conv", {"x": (2, 2, 6, 7), "w": (3, 2, 3, 4)}, {"auto_pad": "VALID"}),
    "transposed": ("ConvTranspose", {"x": (2, 3, 4, 5), "w": (3, 2, 3, 3), "b": (2,)}, {}),
    "transposed, strides": (
        "ConvTranspose",
        {"x": (2, 3, 4, 5), "w": (3, 2, 3, 2)},
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]},
    ),
    "transposed, groups": (
        "ConvTranspose",
        {"x": (2, 4, 4, 4), "w": (4, 3, 2, 3), "b": (6,)},
        {"group": 2, "strides": [2, 1], "dilations": [1, 2]},
    ),
    "average, rounded up": (
        "AveragePool",
        {"x": (2, 3, 7, 8)},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    ),
    "average, same": (
        "AveragePool",
        {"x": (2, 3, 7, 8)},
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    ),
}


class Conv(OpRun):
    """Convolution in float64; the evaluator's own one refuses several grouped cases."""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[Any]:
        rank, groups = x.ndim - 2, attributes.get("group") or 1
        ones = [1] * rank
        seen = windows(
            x,
            w.shape[2:],
            attributes.get("strides") or ones,
            attributes.get("dilations") or ones,
            attributes.get("pads") or [0] * 2 * rank,
        )
        grid = seen.shape[2 : 2 + rank]
        parts = [
            np.tensordot(images, filters, ([1, *range(2 + rank, 2 + 2 * rank)], list(range(1, 2 + rank))))
            for images, filters in zip(np.split(seen, groups, 1), np.split(w, groups, 0), strict=True)
        ]
        y = np.moveaxis(np.concatenate(parts, axis=-1), -1, 1).reshape(len(x), len(w), *grid)
        return (y if b is None else y + b.reshape(-1, *ones),)


class ConvTranspose(OpRun):
    """Transposed convolution in float64, by its definition: every input element spreads the kernel."""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[Any]:
        rank, groups = x.ndim - 2, attributes.get("group") or 1
        ones = [1] * rank
        strides, dilations = attributes.get("strides") or ones, attributes.get("dilations") or ones
        pads, beyond = attributes.get("pads") or [0] * 2 * rank, attributes.get("output_padding") or [0] * rank
        reach = [d * (k - 1) + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
        full = [s * (n - 1) + r for n, s, r in zip(x.shape[2:], strides, reach, strict=True)]
        room = [f + o for f, o in zip(full, beyond, strict=True)]
        if attributes.get("output_shape") is not None:
            room = [o + pads[i] + pads[rank + i] for i, o in enumerate(attributes["output_shape"][-rank:])]
        y = np.zeros((len(x), w.shape[1] * groups, *[max(a, b) for a, b in zip(full, room, strict=True)]))
        inner, outer = len(w) // groups, w.shape[1]
        for at in np.ndindex(*x.shape[2:]):
            window = tuple(slice(a * s, a * s + r, d) for a, s, r, d in zip(at, strides, reach, dilations, strict=True))
            for g in range(groups):
                spread = np.tensordot(
                    x[(slice(None), slice(g * inner, (g + 1) * inner), *at)], w[g * inner :][:inner], 1
                )
                y[(slice(None), slice(g * outer, (g + 1) * outer), *window)] += spread
        y = y[(..., *[slice(pads[i], room[i] - pads[rank + i]) for i in range(rank)])]
        return (y if b is None else y + b.reshape(-1, *ones),)


def evaluator(proto: onnx.ModelProto) -> ReferenceEvaluator:
    return ReferenceEvaluator(proto, new_ops=[Conv, ConvTranspose])


def case(name: str, kind: int) -> tuple[onnx.ModelProto, Arrays]:
    """The loss is a random weighting of the operator's output, squared so that no gradient is constant."""
    op, shapes, attributes = CASES[name]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    rng = np.random.default_rng(len(name))
    feeds = {key: rng.standard_normal(shape).astype(dtype) for key, shape in shapes.items()}
    if len(shapes) > 1 and shapes["w"][2:] and "kernel_shape" not in attributes:
        attributes = {**attributes, "kernel_shape": list(shapes["w"][2:])}
    nodes = [
        helper.make_node(op, list(shapes), ["y"], **attributes),
        helper.make_node("Sin", ["y"], ["s"]),
        helper.make_node("Mul", ["s", "y"], ["m"]),
        helper.make_node("ReduceSum", ["m"], [LOSS], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(key, kind, value.shape) for key, value in feeds.items()]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info(LOSS, kind, [])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), feeds


def in_double(proto: onnx.ModelProto) -> onnx.ModelProto:
    """ONNX Runtime has no float64 convolutions: shapes are measured in float32, the result is retyped."""
    retyped = onnx.ModelProto.FromString(proto.SerializeToString())
    graph = retyped.graph
    for info in [*graph.input, *graph.output, *graph.value_info]:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    return retyped


@pytest.mark.parametrize("name", CASES)
def test_central_differences_in_float64(name: str) -> None:
    check_differences(name)


@pytest.mark.parametrize(
    "name", [name for name, (op, _, kept) in CASES.items() if op == "Conv" and "group" not in kept]
)
def test_images_too_large_to_unfold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.distill import rules

    monkeypatch.setattr(rules, "UNFOLDED", 0)
    monkeypatch.setattr(rules, "PLACES", 0)
    check_differences(name)


def check_differences(name: str) -> None:
    proto, single = case(name, TensorProto.FLOAT)
    prepared = in_double(with_shapes(proto, single))
    feeds = {key: value.astype(np.float64) for key, value in single.items()}
    backward = evaluator(differentiate(prepared, feeds))
    values = backward.run(None, {**feeds, f"loss/adjoint/{LOSS}": np.ones(1)})
    given = dict(zip(backward.output_names, values, strict=True))
    forward = evaluator(prepared)
    step = 1e-5
    rng = np.random.default_rng(0)
    for key, value in feeds.items():
        gradient = given[f"loss/adjoint/{key}"][..., 0]
        assert gradient.shape == value.shape
        assert np.abs(gradient).max() > 1e-3
        for flat in rng.choice(value.size, min(value.size, 12), replace=False):
            at = np.unravel_index(flat, value.shape)
            up, down = value.copy(), value.copy()
            up[at] += step
            down[at] -= step
            higher, lower = (forward.run(None, {**feeds, key: moved})[0] for moved in (up, down))
            difference = (float(higher) - float(lower)) / (2 * step)
            assert abs(gradient[at] - difference) <= 1e-7 + 1e-7 * abs(difference), (key, at)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] != "AveragePool"])
def test_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    op, shapes, attributes = CASES[name]
    if (
        attributes.get("auto_pad", "VALID") != "VALID"
        or attributes.get("pads", [0, 0]) != attributes.get("pads", [0, 0])[::-1]
    ):
        pytest.skip("torch has no uneven padding")
    proto, feeds = case(name, TensorProto.FLOAT)
    _, given, _ = Gradients(proto, feeds, feeds)(feeds)
    tensors = {key: torch.tensor(value, requires_grad=True) for key, value in feeds.items()}
    rank = len(shapes["x"]) - 2
    kind = f"conv{rank}d" if op == "Conv" else f"conv_transpose{rank}d"
    options: dict[str, Any] = {
        "stride": attributes.get("strides", [1] * rank),
        "dilation": attributes.get("dilations", [1] * rank),
        "groups": attributes.get("group", 1),
        "padding": attributes.get("pads", [0] * 2 * rank)[:rank],
    }
    if op == "ConvTranspose":
        options["output_padding"] = attributes.get("output_padding", [0] * rank)
    y = getattr(torch.nn.functional, kind)(tensors["x"], tensors["w"], tensors.get("b"), **options)
    (torch.sin(y) * y).sum().backward()
    for key, tensor in tensors.items():
        scale = float(tensor.grad.abs().max())
        np.testing.assert_allclose(given[key], tensor.grad.numpy(), rtol=0, atol=1e-5 * scale)


def test_onnx_runtime_gives_what_the_reference_gives() -> None:
    proto, feeds = case("grouped", TensorProto.FLOAT)
    loss, given, extra = Gradients(proto, feeds, ["w"], extra=["y"])(feeds)
    wide = {key: value.astype(np.float64) for key, value in feeds.items()}
    backward = evaluator(differentiate(in_double(with_shapes(proto, feeds)), ["w"]))
    exact = dict(
        zip(backward.output_names, backward.run(None, {**wide, f"loss/adjoint/{LOSS}": np.ones(1)}), strict=True)
    )
    np.testing.assert_allclose(given["w"], exact["loss/adjoint/w"][..., 0], rtol=1e-4, atol=1e-4)
    assert loss == pytest.approx(float(exact[LOSS]), rel=1e-4)
    assert extra["y"].shape == (2, 6, 6, 6)


@pytest.mark.parametrize("bounds", ["lo, hi", "lo", "'', hi", ""])
def test_clip(bounds: str) -> None:
    text = f"g (float[3,4,5] x, float[3,4,5] w) => (float l) {{ y = Clip(x{bounds and ', '}{bounds}) m = Mul(y, w)"
    limits = {"lo": np.float32(-0.5), "hi": np.float32(0.7)}
    proto = model(text.replace("''", "") + " l = ReduceSum<keepdims = 0>(m) }", **limits)
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = LOSS
    rng = np.random.default_rng(2)
    feeds = {name: rng.standard_normal((3, 4, 5)).astype(np.float32) for name in ("x", "w")}
    feeds["x"][0, 0] = [-0.5, 0.7, -0.6, 0.8, 0.0]
    inside = np.ones((3, 4, 5), bool)
    if "lo" in bounds:
        inside &= feeds["x"] >= limits["lo"]
    if "hi" in bounds:
        inside &= feeds["x"] <= limits["hi"]
    _, given, _ = Gradients(proto, feeds, ["x"])(feeds)
    np.testing.assert_array_equal(given["x"], feeds["w"] * inside)


def test_the_bounds_of_clip_still_have_gradients() -> None:
    proto = model(
        "g (float[5] x, float lo, float hi) => (float l) { y = Clip(x, lo, hi) l = ReduceSum<keepdims = 0>(y) }"
    )
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = LOSS
    feeds = {
        "x": np.asarray([-3, -2, 0, 5, 0.5], np.float32),
        "lo": np.asarray(-1, np.float32),
        "hi": np.asarray(1, np.float32),
    }
    _, given, _ = Gradients(proto, feeds, ["x", "lo", "hi"])(feeds)
    np.testing.assert_array_equal(given["x"], [0, 0, 1, 0, 1])
    assert (float(given["lo"]), float(given["hi"])) == (2.0, 1.0)


def test_the_axis_of_seeds_is_taken_out_where_operators_broadcast() -> None:
    text = """g (float[2,3,4] x, float[3,1] w) => (float l) {
      h = HardSwish(x) p = Mul(h, w) q = Div(p, c) r = Sub(q, w) e = Mul(r, r) l = ReduceMean<keepdims = 0>(e) }"""
    proto = model(text, c=np.asarray(1.5, np.float32))
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = LOSS
    rng = np.random.default_rng(5)
    feeds = {"x": rng.standard_normal((2, 3, 4)).astype(np.float32) * 3, "w": np.ones((3, 1), np.float32)}
    backward = differentiate(with_shapes(proto, feeds), feeds)
    plain = Session(backward).run({**feeds, f"loss/adjoint/{LOSS}": np.ones(1, np.float32)})
    without_seed_axis(backward, f"loss/adjoint/{LOSS}")
    assert not any(_is_slow(node, _shapes(backward)) for node in backward.graph.node)
    assert any(name.startswith("loss/seeds/") for node in backward.graph.node for name in node.output)
    narrow = Session(backward).run({**feeds, f"loss/adjoint/{LOSS}": np.ones(1, np.float32)})
    for name, value in plain.items():
        np.testing.assert_array_equal(narrow[name], value)
    _, given, _ = Gradients(proto, feeds, feeds)(feeds)
    for name in feeds:
        np.testing.assert_array_equal(given[name], plain[f"loss/adjoint/{name}"][..., 0])


def test_onnx_ads_own_rules_are_left_as_they_were() -> None:
    from onnx_ad import rules

    before = dict(rules.REVERSE)
    proto, feeds = case("grouped", TensorProto.FLOAT)
    Gradients(proto, feeds, ["w"])
    assert before == rules.REVERSE


def test_an_operator_without_a_rule_is_named() -> None:
    proto = model(
        "g (float[1,1,4,4] x, float[1,5] r) => (float l)"
        "{ y = MaxRoiPool<pooled_shape = [1,1]>(x, r) l = ReduceSum<keepdims = 0>(y) }"
    )
    proto.graph.node[1].output[0] = proto.graph.output[0].name = LOSS
    feeds = {"x": np.ones((1, 1, 4, 4), np.float32), "r": np.asarray([[0, 0, 0, 3, 3]], np.float32)}
    with pytest.raises(ModelError, match=r"cannot be differentiated.*MaxRoiPool"):
        Gradients(proto, feeds, ["x"])


def test_without_onnx_ad_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, feeds = case("conv", TensorProto.FLOAT)
    monkeypatch.setitem(sys.modules, "onnx_ad", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'graphopt\[distill\]'"):
        Gradients(proto, feeds, ["w"])
