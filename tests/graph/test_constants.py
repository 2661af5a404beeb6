"""Constants that nobody can change: what a caller can override stays as it was, in every place that reads values."""

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from graphopt.graph import GraphView
from graphopt.graph.channels import Facts
from graphopt.graph.constants import constant_of, default_values, fixed_constant, fixed_tensor, fixed_values
from graphopt.model import from_proto
from graphopt.registry import create
from graphopt.runtime.session import Session
from graphopt.testing import draw, model, run_alone

PASSES = (
    "prune-channels",
    "fold-affine",
    "fold-batchnorm",
    "fold-constants",
    "fuse-pads",
    "eliminate-noops",
    "merge-duplicates",
)


def dead(*shape: int) -> NDArray[np.float32]:
    """Draw a weight of which two outputs are zero."""
    values = draw(*shape)
    values[2:4] = 0
    return values


WEIGHTS = {"W": dead(6, 3, 3, 3), "V": draw(5, 6, 1, 1), "M": draw(3, 6), "L": dead(6, 8).T, "R": draw(8, 6)}
FRONT = "a = Conv(x, W) r = Sigmoid(a)"
TAIL = "y = Conv(t, V)"
ROWS = "a = MatMul(x, L) r = Sigmoid(a)"


def lstm(seed: int) -> NDArray[np.float32]:
    """Draw LSTM weights [directions, gates * hidden, input] whose units 1 and 2 are zero."""
    values = draw(1, 16, 6, seed=seed)
    values[:, [1, 2, 5, 6, 9, 10, 13, 14]] = 0
    return values


FORMS: dict[str, tuple[str, NDArray[np.generic], NDArray[np.generic]]] = {
    "scalar Add": (f"{FRONT} t = Add(r, s) {TAIL}", np.float32(0.5), np.float32(3)),
    "scalar Mul": (f"{FRONT} t = Mul(r, s) {TAIL}", np.float32(0.5), np.float32(3)),
    "zero Mul": (f"{FRONT} t = Mul(r, s) {TAIL}", np.float32(0), np.float32(3)),
    "Mul by one": (f"{FRONT} t = Mul(r, s) {TAIL}", np.float32(1), np.float32(3)),
    "channel Mul": (f"{FRONT} t = Mul(r, s) {TAIL}", np.zeros((6, 1, 1), np.float32), draw(6, 1, 1)),
    "Pow": (f"{FRONT} t = Pow(r, s) {TAIL}", np.float32(2), np.float32(3)),
    "Max": (f"{FRONT} t = Max(r, s) {TAIL}", np.float32(0.2), np.float32(0.9)),
    "PRelu": (f"b = Conv(x, W) t = PRelu(b, s) {TAIL}", np.full((6, 1, 1), 0.1, np.float32), draw(6, 1, 1)),
    "Clip": (f"{FRONT} t = Clip(r, , s) {TAIL}", np.float32(0.9), np.float32(0.1)),
    "Where": (f"{FRONT} z = Greater(x1, s) t = Where(z, r, x1) {TAIL}", np.float32(9), np.float32(-9)),
    "Gather": (
        f"r = Conv(x, W) p = Gather<axis=1>(r, s) t = Concat<axis=1>(p, p) {TAIL}",
        *np.array([[0, 1, 4], [5, 5, 2]]),
    ),
    "Slice": (
        f"r = Conv(x, W) e = Add(s, three) p = Slice(r, s, e, ax) t = Concat<axis=1>(p, p) {TAIL}",
        *np.array([[0], [1]]),
    ),
    "Pad value": (
        f"{FRONT} p = Pad(r, pads, s) t = MaxPool<kernel_shape=[1,1]>(p) {TAIL}",
        np.float32(0.5),
        np.float32(7),
    ),
    "Pad widths": (
        f"p = Pad(x, s) a = Conv(p, W) t = Sigmoid(a) {TAIL}",
        *np.array([[0] * 8, [0, 0, 1, 1, 0, 0, 1, 1]]),
    ),
    "Conv bias": (f"a = Conv(x, W, s) t = Relu(a) {TAIL}", np.zeros(6, np.float32), np.abs(draw(6))),
    "Conv weight": (f"a = Conv(x, s) t = Relu(a) {TAIL}", WEIGHTS["W"], draw(6, 3, 3, 3, seed=4)),
    "batch normalization": (
        "a = Conv(x, W) t = BatchNormalization(a, s, o, o, o) y = Conv(t, V)",
        np.zeros(6, np.float32),
        draw(6),
    ),
    "instance normalization": (
        "a = Conv(x, W) t = InstanceNormalization(a, s, o) y = Conv(t, V)",
        np.zeros(6, np.float32),
        draw(6),
    ),
    "quantized scale": (
        f"{FRONT} q = QuantizeLinear(r, s, zp) t = DequantizeLinear(q, s, zp) {TAIL}",
        np.float32(0.01),
        np.float32(0.004),
    ),
}
ROW_FORMS: dict[str, tuple[str, NDArray[np.generic], NDArray[np.generic]]] = {
    "MatMul bias": (f"{ROWS} m = MatMul(r, K) y = Add(m, s)", draw(4), draw(4, seed=9)),
    "Gemm bias": (f"{ROWS} y = Gemm(r, K, s)", draw(4), draw(4, seed=9)),
    "MatMul weight": (f"{ROWS} y = MatMul(r, s)", np.zeros((6, 4), np.float32), draw(6, 4)),
    "LSTM": (
        "u = Unsqueeze(x, ax0) h, y = LSTM<hidden_size=4>(u, s, H, B)",
        lstm(1)[:, :, :],
        draw(1, 16, 6, seed=7),
    ),
    "LSTM state": (
        "u = Unsqueeze(x, ax0) h, y = LSTM<hidden_size=4>(u, LW, H, B, , s)",
        np.zeros((1, 2, 4), np.float32),
        draw(1, 2, 4),
    ),
    "layer normalization": (f"{ROWS} t = LayerNormalization(r, s) y = MatMul(t, K)", np.zeros(6, np.float32), draw(6)),
}
CONSTANTS: dict[str, NDArray[np.generic]] = {
    "W": WEIGHTS["W"],
    "V": WEIGHTS["V"],
    "L": np.ascontiguousarray(dead(6, 6).T),
    "K": draw(6, 4),
    "H": lstm(2)[:, :, :4],
    "LW": lstm(1),
    "B": np.zeros((1, 32), np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "three": np.array([3]),
    "ax": np.array([1]),
    "ax0": np.array([0]),
    "o": np.ones(6, np.float32),
    "zp": np.uint8(0),
}


def build(text: str, default: NDArray[np.generic], where: str, rows: bool) -> onnx.ModelProto:
    """Return the model of a form, whose default ``s`` is read directly, through Identity or in a branch of an If."""
    inputs = "float[2,6] x" if rows else "float[1,3,6,6] x, float[1,6,4,4] x1"
    if where == "identity":
        text = "s1 = Identity(s) s2 = Identity(s1) " + text.replace(", s)", ", s2)").replace(" s, ", " s2, ")
    out = "float[a,b]" if "LSTM" not in text and rows else "float[a,b,c]" if rows else "float[a,b,c,d]"
    if where == "branch":
        other = " ".join(f"z{i} = Unsqueeze(z{i + 1}, ax0)" for i in range(out.count(","), -1, -1))
        head = f"y = If(flag) <then_branch = g1 () => ({out} y) {{ {text} }}, else_branch = g2 () => ({out} z0) "
        text = f"{head} {{ z{out.count(',') + 1} = Cast<to=1>(flag) {other} }}>"
        inputs += ", bool flag"
    used = {n: v for n, v in CONSTANTS.items() if any(f"{a}{n}{b}" in text for a in " (" for b in ",)")}
    proto = model(f"g ({inputs}) => ({out} y) {{ {text} }}", s=default, **used)
    array = np.asarray(default)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    proto.graph.input.append(helper.make_tensor_value_info("s", kind, array.shape))
    return proto


@pytest.mark.parametrize("where", ["direct", "identity", "branch"])
@pytest.mark.parametrize("form", [*FORMS, *ROW_FORMS])
def test_what_the_caller_feeds_counts(form: str, where: str) -> None:
    text, default, other = {**FORMS, **ROW_FORMS}[form]
    proto = build(text, default, where, form in ROW_FORMS)
    feeds = {"x": draw(2, 6) if form in ROW_FORMS else draw(1, 3, 6, 6), "x1": draw(1, 6, 4, 4), "flag": np.array(True)}
    feeds = {name: values for name, values in feeds.items() if name in {info.name for info in proto.graph.input}}
    for name in PASSES:
        after, result = run_alone(create(name), proto)
        if not result.rewritten:
            continue
        for extra in ({}, {"s": np.asarray(other).astype(np.asarray(default).dtype)}):
            before, now = Session(proto).run(feeds | extra)["y"], Session(after).run(feeds | extra)["y"]
            assert before.shape == now.shape, name
            np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_one_function_decides(ir_version: int) -> None:
    proto = model(
        """g (float[2] x) => (float[2] y) {
        c = Constant<value = float[2] {7, 8}>() ci = Identity(c) wi = Identity(w) fi = Identity(f)
        y = Sum(x, ci, wi, fi) }""",
        w=np.float32([1, 2]),
        f=np.float32([3, 4]),
    )
    proto.ir_version = ir_version
    if ir_version == 3:
        proto.graph.input.append(helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, [2]))
    proto.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2]))
    view = GraphView(from_proto(proto))
    facts = Facts(view)
    total = next(view.nodes("Sum"))
    x, c, w, f = total.inputs
    expected = {id(x): None, id(c): [7, 8], id(w): [1, 2] if ir_version == 3 else None, id(f): [3, 4]}
    for tensor in total.inputs:
        for asker in (view, view.edit):
            found = fixed_values(tensor, asker)
            assert (None if found is None else found.tolist()) == expected[id(tensor)]
            assert (fixed_tensor(tensor, asker) is None) == (expected[id(tensor)] is None)
        constant = fixed_constant(tensor, view)
        assert (constant is None) == (expected[id(tensor)] is None)
        assert constant is None or constant is constant_of(tensor)
        array = facts.array(tensor)
        assert facts.is_constant(tensor) == (array is not None) == (view.array(tensor) is not None)
        assert array is None or array.tolist() == expected[id(tensor)]
        assert np.isnan(facts.scalar(tensor))
    stored = default_values(w)
    assert stored is not None
    assert stored.tolist() == [1, 2]
    assert default_values(x) is None
