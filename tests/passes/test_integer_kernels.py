"""Every operator that quantize-activations puts between integers, in every form: a default session loads and agrees."""

from typing import Any

import numpy as np
import onnx
import pytest
from graphopt.passes.quantize_activations import QuantizeActivations
from numpy.typing import NDArray

from graphopt.graph import GraphView
from graphopt.model import from_proto, raise_opset, to_proto
from graphopt.runtime.feeds import from_arrays
from graphopt.runtime.session import Session
from graphopt.testing import model


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


NEWEST = 24
"""The opset of forms that need none in particular, beside 13."""
INTEGERS = {
    "shape": np.array([0, 4, 4, 16], np.int64),
    "axes": np.array([0], np.int64),
    "last": np.array([2, 3], np.int64),
    "starts": np.array([-1, 0], np.int64),
    "ends": np.array([-9, 8], np.int64),
    "steps": np.array([-1, 2], np.int64),
    "halves": np.array([2, 2], np.int64),
    "wide": np.array([1, 4, 8, 16], np.int64),
    "lone": np.array([1, 1, 1, 2], np.int64),
    "sizes": np.array([6, 12], np.int64),
    "two": np.array([2], np.int64),
}
FLOATS = {
    "twice": np.array([1, 1, 2, 2], np.float32),
    "half": np.array([1, 1, 0.5, 0.5], np.float32),
    "odd": np.array([1.7, 1.3], np.float32),
    "roi": np.array([0, 0, 0.1, 0.2, 1, 1, 0.8, 0.9], np.float32),
    "slope": np.full((4, 1, 1), 0.1, np.float32),
    "three": np.array(3.0, np.float32),
    "gamma": np.array([1.0, 2.0, 0.5, 1.5], np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.float32),
}
# What stands between r and t, the opset it needs, and the channels of t (0: t is read by a Gemm behind a Flatten).
FORMS: dict[str, tuple[str, int, int]] = {
    "average": ("t = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)", 13, 4),
    "average, padding counted": ("t = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(r)", 13, 4),
    "average, ceiling": ("t = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(r)", 13, 4),
    "average, ceiling, opset 19": ("t = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(r)", 19, 4),
    "average, ceiling, padding counted": (
        "t = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1, count_include_pad=1>(r)",
        13,
        4,
    ),
    "average, padding by name": ('t = AveragePool<kernel_shape=[3,3], auto_pad="SAME_UPPER">(r)', 13, 4),
    "average, padding below": ('t = AveragePool<kernel_shape=[2,2], auto_pad="SAME_LOWER">(r)', NEWEST, 4),
    "average, dilations of one": ("t = AveragePool<kernel_shape=[3,3], dilations=[1,1]>(r)", 19, 4),
    "average, newest opset": ("t = AveragePool<kernel_shape=[3,3], dilations=[1,1], ceil_mode=0>(r)", NEWEST, 4),
    "average, dilated": ("t = AveragePool<kernel_shape=[3,3], dilations=[2,2]>(r)", 19, 4),
    "average, dilated one way": ("t = AveragePool<kernel_shape=[3,3], dilations=[1,2]>(r)", NEWEST, 4),
    "average of the input, dilated": (
        "u = AveragePool<kernel_shape=[3,3], dilations=[2,2]>(x) v = Conv(x, p) s = AveragePool<kernel_shape=[5,5]>(v)"
        " q = Concat<axis=1>(u, s)  t = Conv(q, p2)",
        19,
        4,
    ),
    "two averages": ("s = AveragePool<kernel_shape=[2,2]>(r) t = AveragePool<kernel_shape=[2,2]>(s)", 19, 4),
    "average, then dilated": (
        "s = AveragePool<kernel_shape=[2,2]>(r) t = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(s)",
        19,
        4,
    ),
    "global average": ("t = GlobalAveragePool(r)", 13, 4),
    "global average, flattened": ("t = GlobalAveragePool(r)", 13, 0),
    "global maximum": ("t = GlobalMaxPool(r)", 13, 4),
    "maximum": ("t = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)", 13, 4),
    "maximum, ceiling": ("t = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(r)", NEWEST, 4),
    "maximum, dilated": ("t = MaxPool<kernel_shape=[3,3], dilations=[2,2]>(r)", 13, 4),
    "maximum, by columns": ("t = MaxPool<kernel_shape=[2,2], storage_order=1>(r)", 13, 4),
    "maximum, padding by name": ('t = MaxPool<kernel_shape=[3,3], auto_pad="SAME_UPPER">(r)', 13, 4),
    "maximum and where": ("t, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) n = Cast<to=1>(i)", 13, 4),
    "maximum, undone": (
        "s, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) t = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(s, i)",
        13,
        4,
    ),
    "nearest": ('t = Resize<mode="nearest">(r, , twice)', 13, 4),
    "nearest, floor": ('t = Resize<mode="nearest", nearest_mode="floor">(r, , twice)', 13, 4),
    "nearest, asymmetric": (
        't = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil">(r, , half)',
        13,
        4,
    ),
    "linear": ('t = Resize<mode="linear">(r, , twice)', 13, 4),
    "linear, corners": ('t = Resize<mode="linear", coordinate_transformation_mode="align_corners">(r, , twice)', 13, 4),
    "linear, pytorch": (
        't = Resize<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">(r, , half)',
        NEWEST,
        4,
    ),
    "cubic": ('t = Resize<mode="cubic">(r, , twice)', 13, 4),
    "linear on two axes": ('t = Resize<mode="linear", axes=[2,3]>(r, , odd)', 18, 4),
    "to a size, keeping the ratio": (
        't = Resize<mode="linear", axes=[2,3], keep_aspect_ratio_policy="not_larger">(r, , , sizes)',
        18,
        4,
    ),
    "nearest, keeping the ratio": (
        't = Resize<mode="nearest", axes=[2,3], keep_aspect_ratio_policy="not_smaller">(r, , , sizes)',
        NEWEST,
        4,
    ),
    "antialiased": ('t = Resize<mode="linear", antialias=1>(r, , half)', 18, 4),
    "antialiased on two axes": ('t = Resize<mode="linear", antialias=1, axes=[2,3]>(r, , , sizes)', NEWEST, 4),
    "cubic, antialiased": ('t = Resize<mode="cubic", antialias=1>(r, , half)', 18, 4),
    "cropped": (
        't = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(r, roi, twice)',
        13,
        4,
    ),
    "concat": ("c = Conv(r, p) t = Concat<axis=1>(r, c)", 13, 8),
    "concat, from the end": ("c = Conv(r, p) t = Concat<axis=-3>(r, c)", NEWEST, 8),
    "concat, other axis": ("c = Conv(r, p) t = Concat<axis=-1>(r, c)", 13, 4),
    "concat with itself": ("t = Concat<axis=1>(r, r)", 13, 8),
    "concat of one": ("t = Concat<axis=1>(r)", 13, 4),
    "concat, then Relu": ("c = Conv(r, p) s = Concat<axis=1>(r, c) t = Relu(s)", 13, 8),
    "split": ("a, b = Split<axis=1>(r) t = Concat<axis=1>(b, a)", 13, 4),
    "split in a number": ("a, b = Split<axis=1, num_outputs=2>(r) t = Concat<axis=1>(b, a)", 18, 4),
    "split in sizes": ("a, t = Split<axis=-1>(r, sums) n = Exp(a)", 13, 4),
    "split, one part unread": ("a, t = Split<axis=1>(r, halves)", NEWEST, 2),
    "reshape": ("t = Reshape(r, shape)", 13, 4),
    "reshape, zero allowed": ("t = Reshape<allowzero=1>(r, full)", 14, 4),
    "flatten": ("t = Flatten<axis=1>(r)", 13, 0),
    "flatten, from the end": ("t = Flatten<axis=-3>(r)", NEWEST, 0),
    "transpose": ("t = Transpose<perm=[0,1,3,2]>(r)", 13, 4),
    "transpose, channels last": ("t = Transpose<perm=[0,3,1,2]>(r)", NEWEST, 8),
    "transpose, all reversed": ("s = Transpose(r) t = Transpose(s)", 13, 4),
    "squeeze": ("s = GlobalAveragePool(r) t = Squeeze(s, last)", 13, 0),
    "unsqueeze": ("s = Unsqueeze(r, axes) t = Squeeze(s, axes)", 13, 4),
    "slice": ("t = Slice(r, starts, ends, last, steps)", 13, 4),
    "slice of channels": ("t = Slice(r, axes, two, one)", NEWEST, 2),
    "identity": ("t = Identity(r)", 13, 4),
    "depth to space": ("s = DepthToSpace<blocksize=2>(r) t = SpaceToDepth<blocksize=2>(s)", 13, 4),
    "depth to space, other order": ('t = DepthToSpace<blocksize=2, mode="CRD">(r)', NEWEST, 1),
    "space to depth": ("t = SpaceToDepth<blocksize=2>(r)", 13, 16),
    "expand": ("s = GlobalAveragePool(r) t = Expand(s, wide)", 13, 4),
    "tile": ("t = Tile(r, lone)", 13, 4),
    "sum": ("c = Conv(r, p) t = Add(r, c)", 13, 4),
    "sum, then Relu": ("c = Conv(r, p) s = Add(r, c) t = Relu(s)", 13, 4),
    "sum, then Clip": ("c = Conv(r, p) s = Add(r, c) t = Clip(s, , three)", 13, 4),
    "sum with a mean": ("m = GlobalAveragePool(r) c = Conv(m, p) t = Add(r, c)", NEWEST, 4),
    "sum with itself": ("t = Add(r, r)", 13, 4),
    "sum with a constant": ("t = Add(r, slope)", 13, 4),
    "gate": ("m = GlobalAveragePool(r) c = Conv(m, p) s = Sigmoid(c) t = Mul(r, s)", 13, 4),
    "hard gate": ("m = GlobalAveragePool(r) c = Conv(m, p) s = HardSigmoid(c) t = Mul(r, s)", NEWEST, 4),
    "silu": ("c = Conv(r, p) s = Sigmoid(c) t = Mul(c, s)", 13, 4),
    "sigmoid": ("t = Sigmoid(r)", 13, 4),
    "leaky": ("c = Conv(r, p) t = LeakyRelu<alpha=0.3>(c)", 13, 4),
    "prelu": ("c = Conv(r, p) t = PRelu(c, slope)", 13, 4),
    "hard swish": ("c = Conv(r, p) t = HardSwish(c)", 14, 4),
    "gelu": ("c = Conv(r, p) t = Gelu(c)", 20, 4),
    "tanh": ("t = Tanh(r)", 13, 4),
    "softmax of channels": ("t = Softmax<axis=1>(r)", 13, 4),
    "softmax of the last axis": ("t = Softmax(r)", NEWEST, 4),
    "log softmax": ("t = LogSoftmax<axis=1>(r)", 13, 4),
    "mean over axes": ("t = ReduceMean<axes=[2,3]>(r)", 13, 4),
    "mean over axes, as input": ("t = ReduceMean(r, last)", 18, 4),
    "sum over axes": ("t = ReduceSum(r, last)", 13, 4),
    "maximum over axes": ("t = ReduceMax(r, last)", 20, 4),
    "computed, then moved": ("s = Tanh(r) t = Transpose<perm=[0,1,3,2]>(s)", 13, 4),
    "computed, then moved twice": ("s = Tanh(r) u = Reshape(s, shape) t = Transpose<perm=[0,1,3,2]>(u)", 13, 4),
    "computed, then reduced": ("s = Tanh(r) t = MaxPool<kernel_shape=[2,2]>(s)", 13, 4),
    "moved, then computed": ("s = Transpose<perm=[0,1,3,2]>(r) t = Tanh(s)", 13, 4),
    "moved twice, then computed": ("u = Reshape(r, shape) s = Transpose<perm=[0,1,3,2]>(u) t = Tanh(s)", 13, 4),
    "cut, then computed": ("u = Slice(r, axes, two, one) t = Tanh(u)", 13, 2),
    "flattened, then computed": ("u = Flatten(r) v = Tanh(u) t = Reshape(v, shape)", 13, 4),
    "squeezed, then computed": ("m = GlobalMaxPool(r) u = Squeeze(m, last) v = Tanh(u) t = Unsqueeze(v, last)", 13, 4),
    "split, then computed": ("u, v = Split<axis=1>(r) s = Tanh(u) t = Concat<axis=1>(s, v)", 13, 4),
    "concat, then computed": ("c = Conv(r, p) u = Concat<axis=1>(r, c) t = Tanh(u)", 13, 8),
    "reduced, then computed": ("s = MaxPool<kernel_shape=[2,2]>(r) t = Tanh(s)", 13, 4),
    "resized, then computed": ('s = Resize<mode="linear">(r, , twice) t = Tanh(s)', 13, 4),
    "tiled, then computed": ("s = Tile(r, lone) t = Tanh(s)", 13, 4),
    "moved, computed and convolved": (
        "s = Transpose<perm=[0,1,3,2]>(r) c = Conv(s, p) u = Tanh(s) t = Add(c, u)",
        13,
        4,
    ),
    "averaged, ceiling, padding counted, computed": (
        "u = Tanh(r) t = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1, "
        "count_include_pad=1>(u)",
        13,
        4,
    ),
    "largest": ("v, i = TopK<axis=1>(r, two) t = Concat<axis=1>(r, v)", 13, 6),
    "difference": ("c = Conv(r, p) t = Sub(r, c)", 13, 4),
    "product": ("c = Conv(r, p) t = Mul(r, c)", 13, 4),
    "quotient": ("t = Div(r, three)", 13, 4),
    "larger of two": ("c = Conv(r, p) t = Max(r, c)", 13, 4),
    "smaller of two": ("c = Conv(r, p) t = Min(r, c)", NEWEST, 4),
    "mask": ("c = Conv(r, p) m = Greater(c, three) t = Where(m, c, r)", 13, 4),
    "padded": ("t = Pad(r, border)", 13, 4),
    "padded by reflection": ('t = Pad<mode="reflect">(r, border)', NEWEST, 4),
    "gathered": ("t = Gather<axis=1>(r, order)", 13, 4),
    "batch norm": ("t = BatchNormalization(r, gamma, gamma, gamma, gamma)", 15, 4),
    "instance norm": ("t = InstanceNormalization(r, gamma, gamma)", 13, 4),
    "group norm": ("t = GroupNormalization<num_groups=2>(r, gamma, gamma)", 21, 4),
    "p-norm": ("t = LpPool<kernel_shape=[2,2]>(r)", 18, 4),
    "rounded": ("t = Round(r)", 13, 4),
    "lrn": ("t = LRN<size=3>(r)", 13, 4),
    "shape asked": (
        "h = Shape(r) n = Slice(h, axes, one, axes) m = Concat<axis=0>(n, rest) t = Reshape(r, m)",
        13,
        4,
    ),
    "a channel to each side": ("c = Conv<group=4, pads=[1,1,1,1]>(r, d) t = Concat<axis=1>(c, r)", 13, 8),
    "a dilated convolution": ("t = Conv<dilations=[2,2], pads=[2,2,2,2]>(r, k)", 13, 4),
    "a convolution padded by name": ('t = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(r, k)', NEWEST, 4),
    "a transposed convolution": ("t = ConvTranspose<strides=[2,2]>(r, k)", 13, 4),
    "gemm, scaled": ("h = Flatten(r) t = Gemm<transB=1, alpha=2.0>(h, g, gamma)", 13, 0),
    "gemm, bias scaled": ("h = Flatten(r) t = Gemm<transB=1, beta=0.5>(h, g, gamma)", 13, 0),
    "gemm, both scaled": ("h = Flatten(r) t = Gemm<transB=1, alpha=0.5, beta=2.0>(h, g, gamma)", NEWEST, 0),
    "gemm, no bias": ("h = Flatten(r) t = Gemm<transB=1>(h, g)", 13, 0),
    "gemm, one number for a bias": ("h = Flatten(r) t = Gemm<transB=1>(h, g, three)", 13, 0),
    "gemm, a matrix for a bias": ("h = Flatten(r) t = Gemm<transB=1>(h, g, matrix)", 13, 0),
    "gemm, a bias that is computed": (
        "h = Flatten(r) m = GlobalAveragePool(r) b = Flatten(m) t = Gemm<transB=1>(h, g, b)",
        13,
        0,
    ),
    "gemm, input transposed": ("h = Flatten(r) i = Transpose(h) t = Gemm<transA=1, transB=1>(i, g, gamma)", 13, 0),
    "gemm, then Relu": ("h = Flatten(r) u = Gemm<transB=1>(h, g, gamma) t = Relu(u)", NEWEST, 0),
    "matmul of rank 4": ("t = MatMul(r, square)", 13, 4),
    "matmul of rank 4 and a bias": ("u = MatMul(r, square) t = Add(u, row)", NEWEST, 4),
    "matmul, a sum with its input": ("u = MatMul(r, square) t = Add(u, r)", 13, 4),
    "matmul and gelu": ("u = MatMul(r, square) v = Add(u, row) t = Gelu(v)", 20, 4),
    "one axis": ("s = Squeeze(m1, ax3) c = Conv<pads=[1,1]>(s, k1) t = Unsqueeze(c, ax3)", 13, 4),
}
INTEGERS |= {
    "sums": np.array([5, 3], np.int64),
    "full": np.array([8, 4, 4, 16], np.int64),
    "one": np.array([1], np.int64),
    "rest": np.array([4, 4, 16], np.int64),
    "border": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "order": np.array([3, 1, 0, 2], np.int64),
    "ax3": np.array([3], np.int64),
}
WEIGHTS = {"p": draw(4, 4, 1, 1, seed=1), "p2": draw(4, 8, 1, 1, seed=2), "d": draw(4, 1, 3, 3, seed=3)}
WEIGHTS |= {"g": draw(4, 256) / 16, "matrix": draw(8, 4), "square": draw(8, 8, seed=5) / 3, "row": draw(8, seed=6)}
WEIGHTS |= {"k": draw(4, 4, 3, 3, seed=4) / 3, "k1": draw(4, 4, 3, seed=5)}


def net(form: str, opset: int | None = None) -> onnx.ModelProto:
    """A convolution, its Relu, the form and another layer."""
    text, least, channels = FORMS[form]
    text = text.replace("m1", "r1")
    start = "a0 = Conv<pads=[1,1,1,1]>(x, w0, b0) r = Relu(a0)"
    if "r1" in text:
        start += " r1 = MaxPool<kernel_shape=[1,8]>(r)"
    if channels:
        last, weight = "e = Conv(t, w1) y = GlobalMaxPool(e)", draw(6, channels, 1, 1, seed=10)
    else:
        size = {"flatten": 256, "flatten, from the end": 256}.get(form, 4)
        last, weight = "f = Flatten(t) y = Gemm<transB=1>(f, w1)", draw(6, size, seed=8)
    used = {name: value for name, value in {**INTEGERS, **FLOATS, **WEIGHTS}.items() if name in words(text)}
    return model(
        f"g (float[8,4,8,8] x) => (float[8,6{',1,1' if channels else ''}] y) {{ {start} {text} {last} }}",
        max(opset or least, least),
        10,
        w0=draw(4, 4, 3, 3, seed=6) / 3,
        b0=draw(4, seed=7) / 4,
        w1=weight,
        **used,
    )


def words(text: str) -> set[str]:
    """The names in a text."""
    for sign in '()<>=,[]"':
        text = text.replace(sign, " ")
    return set(text.split())


def decibels(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    noise = float(np.square(wanted.astype(np.float64) - found).sum())
    return float(10 * np.log10(float(wanted.astype(np.float64).var()) * wanted.size / max(noise, 1e-300)))


@pytest.mark.parametrize("target", ["cpu", "tensorrt", "generic"])
@pytest.mark.parametrize("form", FORMS)
def test_a_default_session_loads_it_and_agrees(form: str, target: str) -> None:
    before, x = net(form), draw(8, 4, 8, 8, seed=9)
    wanted = Session(before).run({"x": x})["y"]
    subject = from_proto(before)
    pass_ = QuantizeActivations(target=target, bias_correction=False)
    if (opset := pass_.required_opset(GraphView(subject))) > subject.opset:
        subject = raise_opset(subject, opset)
    result = pass_.apply(GraphView(subject, calibration=from_arrays({"x": x}, subject)))
    assert result.rewritten
    after = to_proto(subject)
    onnx.checker.check_model(after, full_check=True)
    plain, default = (Session(after, optimize=each).run({"x": x})["y"] for each in (False, True))
    assert decibels(wanted, plain) > 12, f"{decibels(wanted, plain):.1f} dB to float"
    assert decibels(plain, default) > 25, f"{decibels(plain, default):.1f} dB between sessions"
