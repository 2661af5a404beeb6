"""How large a model is: parameters, multiply-accumulates, nodes of functions."""

import numpy as np
import onnx
import pytest

from graphopt.graph.symbolic import Facts
from graphopt.model import from_proto
from graphopt.model.exporter import serialized_size
from graphopt.report import measure
from graphopt.testing import model, read_by


def test_metrics_of_a_model() -> None:
    weights = {"w": np.zeros((8, 4, 3, 3), np.float32), "v": np.zeros((8 * 36, 5), np.float32)}
    graph = "g (float[N,4,8,8] x) => (float[N,5] y) { h = Conv(x, w)  f = Flatten(h)  y = MatMul(f, v) }"
    proto = model(graph, **weights)
    metrics = measure(from_proto(proto))
    assert metrics.parameters == 8 * 36 + 8 * 36 * 5
    assert metrics.macs == 8 * 36 * 36 + 8 * 36 * 5
    assert metrics.ops == {"Conv": 1, "Flatten": 1, "MatMul": 1}
    assert abs(serialized_size(from_proto(proto)) - proto.ByteSize()) <= 16


def test_macs_count_rows_that_the_batch_is_folded_into() -> None:
    text = "g (float[N,4,3] x) => (float[M,5] y) { h = Reshape(x, rows) y = MatMul(h, v) }"
    subject = from_proto(model(text, rows=np.array([-1, 3]), v=np.zeros((3, 5), np.float32)))
    assert measure(subject).macs == measure(subject, Facts(subject)).macs == 4 * 3 * 5


def test_macs_believe_a_declaration_where_nothing_else_is_known() -> None:
    text = "g (float[N,9] x, int64[K] s) => (float[N,5] y) <float[N,7] h> { h = Reshape(x, s) y = MatMul(h, v) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((7, 5), np.float32), "v"))
    subject = from_proto(proto)
    assert measure(subject).macs == measure(subject, Facts(subject)).macs == 7 * 5


COUNTED = {
    "ConvInteger": ("g (int8[N,3,16,16] x) => (int32[N,8,14,14] y) { y = ConvInteger(x, w) }", 8 * 14 * 14 * 27),
    "QLinearConv": (
        "g (uint8[N,4,8,8] x) => (uint8[N,6,6,6] y) { y = QLinearConv<group=2>(x, s, z, u, s, z, s, z) }",
        6 * 6 * 6 * 2 * 9,
    ),
    "MatMulInteger": ("g (int8[N,64] x) => (int32[N,32] y) { y = MatMulInteger(x, p) }", 64 * 32),
    "QLinearMatMul": (
        "g (uint8[N,5,64] x) => (uint8[N,5,32] y) { y = QLinearMatMul(x, s, z, q, s, z, s, z) }",
        5 * 64 * 32,
    ),
    "Einsum": (
        'g (float[N,5,7] x, float[N,7,3] v) => (float[N,5,3] y) { y = Einsum<equation="bij,bjk->bik">(x, v) }',
        5 * 7 * 3,
    ),
    "LSTM": ("g (float[10,N,6] x) => (float[10,1,N,8] y) { y = LSTM<hidden_size=8>(x, lw, lr) }", 10 * 32 * (6 + 8)),
    "GRU of two directions": (
        'g (float[10,N,6] x) => (float[10,2,N,8] y) { y = GRU<hidden_size=8, direction="bidirectional">(x, gw, gr) }',
        10 * 2 * 24 * (6 + 8),
    ),
    "fused by ONNX Runtime": (
        "g (float[N,64] x) => (float[N,32] y) { y = com.microsoft.FusedMatMul(x, f) }",
        64 * 32,
    ),
    "with an activation of ONNX Runtime's": (
        "g (float[N,64] x) => (float[N,32] y) { h = MatMul(x, f) y = com.microsoft.QuickGelu(h) }",
        64 * 32,
    ),
}
STORED = {
    "w": np.ones((8, 3, 3, 3), np.int8),
    "u": np.ones((6, 2, 3, 3), np.uint8),
    "p": np.ones((64, 32), np.int8),
    "q": np.ones((64, 32), np.uint8),
    "s": np.float32(1),
    "z": np.uint8(0),
    "lw": np.ones((1, 32, 6), np.float32),
    "lr": np.ones((1, 32, 8), np.float32),
    "gw": np.ones((2, 24, 6), np.float32),
    "gr": np.ones((2, 24, 8), np.float32),
    "f": np.ones((64, 32), np.float32),
}


def net(text: str, opset: int = 17) -> onnx.ModelProto:
    """Parse a graph that may use operators of other domains."""
    domains = f'["" : {opset}, "com.microsoft" : 1, "other" : 1]'
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: {domains}> {text}")
    for name, values in read_by(text, STORED).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return proto


@pytest.mark.parametrize("name", COUNTED)
def test_macs_of_every_operator_that_multiplies(name: str) -> None:
    text, wanted = COUNTED[name]
    metrics = measure(from_proto(net(text)))
    assert (metrics.macs, metrics.uncounted) == (wanted, ())


UNCOUNTED = {
    "another domain": ("g (float[N,4] x) => (float[N,4] y) { y = other.op(x) }", "op of other 'y'"),
    "attention": ("g (float[1,2,4,8] x) => (float[1,2,4,8] y) { y = Attention(x, x, x) }", "Attention 'y'"),
    "attention of ONNX Runtime": (
        "g (float[N,4,8] x) => (float[N,4,8] y) { y = com.microsoft.MultiHeadAttention<num_heads=2>(x, x, x) }",
        "MultiHeadAttention of com.microsoft 'y'",
    ),
    "three operands": (
        'g (float[3,3] x) => (float[3,3] y) { y = Einsum<equation="ij,jk,kl->il">(x, x, x) }',
        "Einsum 'y'",
    ),
    "steps that are not known": (
        "g (float[S,N,6] x) => (float[S,1,N,8] y) { y = LSTM<hidden_size=8>(x, lw, lr) }",
        "LSTM 'y'",
    ),
    "a body that is repeated": (
        """g (float[1,64] x, int64 n, bool c) => (float[1,64] y) { y = Loop (n, c, x) <body = b
        (int64 i, bool go, float[1,64] t) => (bool more, float[1,64] r)
        { more = Identity(go) m = MatMul(t, f) r = Concat<axis = 1>(m, m) }> }""",
        "MatMul 'm'",
    ),
}


@pytest.mark.parametrize("name", UNCOUNTED)
def test_macs_that_are_not_known_are_named_and_never_zero(name: str) -> None:
    text, wanted = UNCOUNTED[name]
    metrics = measure(from_proto(net(text, 23)))
    assert (metrics.macs, metrics.uncounted) == (None, (wanted,))


def test_macs_are_unknown_where_space_is() -> None:
    subject = from_proto(
        model("g (float[N,4,H,W] x) => (float[N,8,A,B] y) { y = Conv(x, w) }", w=np.zeros((8, 4, 1, 1), np.float32))
    )
    assert measure(subject).macs is None


def test_nodes_of_functions_count_once_for_each_call() -> None:
    proto = model(
        """g (float[2] x) => (float[2] y) { a = local.F(x) b = local.G(a) c = local.F(b) y = Neg(c) }
        <domain: "local", opset_import: ["" : 17, "local" : 1]> F (a) => (c) { b = local.G(a) c = local.G(b) }
        <domain: "local", opset_import: ["" : 17]> G (a) => (c) {
            t = Constant<value: tensor = bool {1}>()
            b = If (t) <then_branch = yes () => (u) { u = Exp(a) }, else_branch = no () => (v) { v = Neg(a) }>
            c = Neg(b)
        }
        <domain: "local", opset_import: ["" : 17]> H (a) => (b) { b = Sin(a) }"""
    )
    metrics = measure(from_proto(proto))
    assert metrics.ops == {"Exp": 5, "If": 5, "Neg": 11}
    assert metrics.nodes == 21
