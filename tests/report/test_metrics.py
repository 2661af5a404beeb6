"""How large a model is: parameters, multiply-accumulates, nodes of functions."""

import numpy as np
import onnx

from graphopt.graph.symbolic import Facts
from graphopt.model import from_proto
from graphopt.model.exporter import serialized_size
from graphopt.report import measure
from graphopt.testing import model


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
    text = "g (float[N,3] x) => (float[N,5] y) <float[N,7] h> { h = other.op(x) y = MatMul(h, v) }"
    header = '<ir_version: 8, opset_import: ["" : 17, "other" : 1]>'
    proto = onnx.parser.parse_model(f"{header} {text}")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((7, 5), np.float32), "v"))
    subject = from_proto(proto)
    assert measure(subject).macs == measure(subject, Facts(subject)).macs == 7 * 5


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
