"""Raising the opset keeps what the model computes and everything that it says, or is refused with the reason."""

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper, parser

from graphopt.errors import ModelError
from graphopt.model import from_proto, raise_opset, to_proto
from graphopt.model.adapters import ADAPTERS
from graphopt.model.opset import NEWEST, OLDEST


def model(body: str, opset: int, ir_version: int = 8, **weights: np.ndarray) -> ModelProto:
    proto = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}, "f": 1]> {body}')
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    return proto


def run(proto: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


IMAGE = "g (float[N,4,6,5] x) => (float[a,b,c,d] y)"
MATRIX = "g (float[N,4,6,5] x) => (float[a,b] y)"
SCALES = np.array([1, 1, 2, 1.5], np.float32)
ROIS = {
    "r": np.array([[0, 0, 4, 4], [1, 1, 3.3, 4.7]], np.float32),
    "i": np.array([0, 1], np.int64),
}

CASES: dict[str, tuple[str, int, dict[str, np.ndarray]]] = {
    "Upsample-7 nearest": (IMAGE + "{ y = Upsample<scales = [1.0, 1.0, 2.0, 2.0]>(x) }", 7, {}),
    "Upsample-7 linear": (IMAGE + '{ y = Upsample<mode = "linear", scales = [1.0, 1.0, 2.0, 1.5]>(x) }', 7, {}),
    "Upsample-9 nearest": (IMAGE + "{ y = Upsample(x, s) }", 9, {"s": SCALES}),
    "Upsample-9 linear": (IMAGE + '{ y = Upsample<mode = "linear">(x, s) }', 9, {"s": SCALES}),
    "Resize-10 nearest": (IMAGE + "{ y = Resize(x, s) }", 10, {"s": SCALES}),
    "Resize-10 nearest, constant node": (
        IMAGE + "{ s = Constant<value = float[4] {1, 1, 2, 1.5}>() y = Resize(x, s) }",
        10,
        {},
    ),
    "Resize-10 linear": (IMAGE + '{ y = Resize<mode = "linear">(x, s) }', 10, {"s": SCALES}),
    "Resize-10 linear, down": (
        IMAGE + '{ y = Resize<mode = "linear">(x, s) }',
        10,
        {"s": np.array([1, 1, 0.6, 0.7], np.float32)},
    ),
    "Resize-11, scales there but empty": (
        IMAGE + "{ y = Resize(x, e, e, s) }",
        11,
        {"e": np.zeros(0, np.float32), "s": np.array([2, 4, 12, 10])},
    ),
    "Resize-11, scales there but empty, behind Identity": (
        IMAGE + "{ n = Identity(e) y = Resize(x, n, n, s) }",
        11,
        {"e": np.zeros(0, np.float32), "s": np.array([2, 4, 12, 10])},
    ),
    "Resize-11 inside If, scales there but empty": (
        "g (float[2,4,6,5] x, bool c) => (float[d,e,f,h] y) { y = If(c) "
        "<then_branch = t () => (float[2,4,9,5] z) { z = Resize(x, n, n, s) }, "
        "else_branch = e () => (float[2,4,6,5] z2) { z2 = Relu(x) }> }",
        11,
        {"n": np.zeros(0, np.float32), "s": np.array([2, 4, 9, 5])},
    ),
    "Softmax-7, default axis": (IMAGE + "{ y = Softmax(x) }", 7, {}),
    "Softmax-11, middle axis": (IMAGE + "{ t = Relu(x) y = Softmax<axis = 2>(t) }", 11, {}),
    "Softmax-11, last axis": (IMAGE + "{ y = Softmax<axis = 3>(x) }", 11, {}),
    "Softmax-11, negative axis": (IMAGE + "{ y = Softmax<axis = -2>(x) }", 11, {}),
    "Softmax-11, unknown rank": (
        IMAGE + "{ s = Shape(x) r = Reshape(x, s) q = Reshape(r, s) y = Softmax<axis = 1>(q) }",
        11,
        {},
    ),
    "LogSoftmax-9": (IMAGE + "{ y = LogSoftmax(x) }", 9, {}),
    "Hardmax-9": (IMAGE + "{ y = Hardmax<axis = 2>(x) }", 9, {}),
    "Clip-7": (IMAGE + "{ t = Neg(x) y = Clip<min = -0.5, max = 0.3>(t) }", 7, {}),
    "Clip-7, one bound": (IMAGE + "{ t = Clip<max = 0.3>(x) y = Clip<min = -0.2>(t) }", 7, {}),
    "Clip-7, no bound": (IMAGE + "{ y = Clip(x) }", 7, {}),
    "Pad-7": (IMAGE + '{ y = Pad<mode = "constant", pads = [0,0,1,2,0,1,0,3], value = 1.5>(x) }', 7, {}),
    "Pad-7, zeros": (IMAGE + "{ y = Pad<pads = [0,0,1,2,0,1,0,3]>(x) }", 7, {}),
    "Pad-7, reflect": (IMAGE + '{ y = Pad<mode = "reflect", pads = [0,0,1,2,0,0,0,3]>(x) }', 7, {}),
    "Slice-7": (IMAGE + "{ y = Slice<axes = [3, 1], starts = [1, -2], ends = [9223372036854775807, -1]>(x) }", 7, {}),
    "Slice-7, no axes": (IMAGE + "{ y = Slice<starts = [0, 1], ends = [1, 3]>(x) }", 7, {}),
    "TopK-7": ("g (float[N,4,6,5] x) => (float[a,b,c,d] y, int64[e,f,g,h] i) { y, i = TopK<k = 3>(x) }", 7, {}),
    "Dropout-7": (IMAGE + "{ t = Dropout<ratio = 0.3>(x) y = Relu(t) }", 7, {}),
    "Dropout-7 with an unused mask": (IMAGE + "{ t, m = Dropout(x) y = Relu(t) }", 7, {}),
    "Squeeze-11": (MATRIX + "{ t = ReduceMean<axes = [2, 3]>(x) y = Squeeze<axes = [-1, 2]>(t) }", 11, {}),
    "Squeeze-7, no axes": (
        "g (float[2,4,6,5] x) => (float[a,b] y) { t = ReduceMax<axes = [2, 3]>(x) y = Squeeze(t) }",
        7,
        {},
    ),
    "Unsqueeze-7": ("g (float[N,4,6,5] x) => (float[a,b,c,d,e,f] y) { y = Unsqueeze<axes = [0, 3]>(x) }", 7, {}),
    "ReduceSum-7": (MATRIX + "{ y = ReduceSum<axes = [1, 2], keepdims = 0>(x) }", 7, {}),
    "ReduceSum-11, all": ("g (float[N,4,6,5] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }", 11, {}),
    "ReduceLogSumExp-13": (IMAGE + "{ y = ReduceLogSumExp<axes = [-1]>(x) }", 13, {}),
    "ReduceMean-17, all": ("g (float[N,4,6,5] x) => (float y) { y = ReduceMean<keepdims = 0>(x) }", 17, {}),
    "Split-7": (IMAGE + "{ a, b = Split<axis = 1, split = [1, 3]>(x) y = Concat<axis = 1>(b, a) }", 7, {}),
    "Split-13, equal parts": (IMAGE + "{ a, b = Split<axis = 1>(x) y = Sub(a, b) }", 13, {}),
    "Split-13, given parts": (
        IMAGE + "{ a, b = Split<axis = 1>(x, s) y = Concat<axis = 1>(b, a) }",
        13,
        {"s": np.array([1, 3])},
    ),
    "BatchNormalization-7": (
        IMAGE + "{ y = BatchNormalization<epsilon = 0.01>(x, s, b, m, v) }",
        7,
        {name: np.linspace(0.5, 2, 4).astype(np.float32) for name in "sbmv"},
    ),
    "Scatter-9": (
        IMAGE + "{ y = Scatter<axis = 1>(x, i, u) }",
        9,
        {"i": np.ones((2, 1, 6, 5), np.int64), "u": np.ones((2, 1, 6, 5), np.float32)},
    ),
    "RoiAlign-10": (IMAGE + "{ y = RoiAlign<output_height = 3, output_width = 2>(x, r, i) }", 10, ROIS),
    "GridSample-16": (
        IMAGE + "{ y = GridSample(x, q) }",
        16,
        {"q": np.linspace(-1, 1, 2 * 3 * 3 * 2).reshape(2, 3, 3, 2).astype(np.float32)},
    ),
    "GridSample-16, cubic": (
        IMAGE + '{ y = GridSample<mode = "bicubic">(x, q) }',
        16,
        {"q": np.linspace(-1, 1, 2 * 3 * 3 * 2).reshape(2, 3, 3, 2).astype(np.float32)},
    ),
    "DFT-17": ("g (float[2,4,6,1] x) => (float[a,b,c,d] y) { y = DFT<axis = 2>(x) }", 17, {}),
    "QuantizeLinear-10": (
        IMAGE + "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        10,
        {"s": np.float32(0.01), "z": np.uint8(100)},
    ),
    "inside If, captured": (
        "g (float[2,4,6,5] x, bool c) => (float[a,b] y) { y = If(c) "
        "<then_branch = t () => (float[d,e] z) { r = ReduceSum<axes = [2,3], keepdims = 0>(x) z = Softmax(r) }, "
        "else_branch = e () => (float[d2,e2] z2) { r2 = ReduceMax<axes = [2,3]>(x) z2 = Squeeze<axes = [2,3]>(r2) }> }",
        11,
        {},
    ),
    "inside a local function": (
        "g (float[N,4,6,5] x) => (float[a,b,c,d] y) { y = f.act(x) } "
        '<opset_import: ["": 11], domain: "f"> act (p) => (q) { r = Softmax<axis = 2>(p) s = ReduceSum<axes = [1]>(r) '
        "q = Mul(r, s) }",
        11,
        {},
    ),
}


NOT_IN_THE_RUNTIME = {("RoiAlign-10", 25)}


@pytest.mark.parametrize("target", [13, 21, 25])
@pytest.mark.parametrize("name", CASES)
def test_outputs_stay(name: str, target: int) -> None:
    body, opset, weights = CASES[name]
    before = model(body, opset, 10 if "function" in name else 7, **weights)
    dims = [d.dim_value or 2 for d in before.graph.input[0].type.tensor_type.shape.dim]
    feeds: dict[str, np.ndarray] = {"x": np.random.default_rng(0).standard_normal(dims).astype(np.float32)}
    if len(before.graph.input) > 1:
        feeds["c"] = np.array(True)
    raised = raise_opset(from_proto(before), target)
    after = to_proto(raised)
    assert raised.opset == max(opset, target)
    onnx.checker.check_model(after, full_check=True)
    if (name, target) in NOT_IN_THE_RUNTIME:
        return
    for expected, value in zip(run(before, feeds), run(after, feeds), strict=True):
        np.testing.assert_array_equal(value, expected)


REFUSED: dict[str, tuple[str, int, dict[str, np.ndarray], str]] = {
    "old broadcasting": (IMAGE + "{ y = Relu(x) }", 6, {}, "its operators of opset 6, older than 7"),
    "nearest, down": (
        IMAGE + "{ y = Resize(x, s) }",
        10,
        {"s": np.array([1, 1, 0.5, 1], np.float32)},
        "the Resize node 'y': how nearest rounds when it scales down was not defined",
    ),
    "nearest, computed scales": (
        IMAGE + "{ s = Abs(r) y = Resize(x, s) }",
        10,
        {"r": SCALES},
        "the Resize node 'y': how nearest rounds",
    ),
    "mode without successor": (
        IMAGE + '{ y = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn">(x, r, s) }',
        11,
        {"r": np.zeros(0, np.float32), "s": SCALES},
        "tf_half_pixel_for_nn is no longer part of ONNX",
    ),
    "training BatchNormalization": (
        "g (float[N,4,6,5] x) => (float[a,b,c,d] y, float[k] mean) { y, mean = BatchNormalization(x, s, b, m, v) }",
        9,
        {name: np.ones(4, np.float32) for name in "sbmv"},
        "it trains",
    ),
    "spatial BatchNormalization": (
        IMAGE + "{ y = BatchNormalization<spatial = 0>(x, s, b, m, v) }",
        7,
        {name: np.ones((4, 6, 5), np.float32) for name in "sbmv"},
        "spatial=0",
    ),
    "used mask": (
        "g (float[N,4,6,5] x) => (float[a,b,c,d] y, float[e,f,g,h] m) { y, m = Dropout(x) }",
        7,
        {},
        "its mask, which something reads",
    ),
    "integer Erf": ("g (int32[3] x) => (int32[3] y) { y = Erf(x) }", 9, {}, "Erf of integers"),
    "GroupNormalization": (
        IMAGE + "{ y = GroupNormalization<num_groups = 2>(x, s, b) }",
        18,
        {"s": np.ones(2, np.float32), "b": np.ones(2, np.float32)},
        "the GroupNormalization node 'y': its scale and bias per group",
    ),
    "batched Scan": (
        "g (float[2,3,4] x) => (float[2,3,4] y) { y = Scan<num_scan_inputs = 1, body = b (float[4] i) => (float[4] o) "
        "{ o = Relu(i) }>(, x) }",
        8,
        {},
        "Scan with a batch axis",
    ),
    "attribute of the function": (
        "g (float[N,4,6,5] x) => (float[a,b,c,d] y) { y = f.act<k = 1>(x) } "
        '<opset_import: ["": 11], domain: "f"> act <k> (p) => (q) { q = Softmax<axis: int = @k>(p) }',
        11,
        {},
        "the Softmax node 'q': its attribute 'axis' is not a plain value",
    ),
    "bounds of unknown type in a function": (
        "g (float[N,4,6,5] x) => (float[a,b,c,d] y) { y = f.act(x) } "
        '<opset_import: ["": 7], domain: "f"> act (p) => (q) { q = Clip<min = 0.0>(p) }',
        7,
        {},
        "the element type of 'p' is unknown",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    body, opset, weights, reason = REFUSED[name]
    before = from_proto(model(body, opset, **weights))
    bytes_before = to_proto(before).SerializeToString()
    with pytest.raises(ModelError, match=f"^opset {opset} cannot be raised to 21: .*{reason}"):
        raise_opset(before, 21)
    assert to_proto(before).SerializeToString() == bytes_before


def test_beyond_the_newest_known() -> None:
    with pytest.raises(ModelError, match=f"opset {NEWEST + 1} is newer than {NEWEST}"):
        raise_opset(from_proto(model(IMAGE + "{ y = Relu(x) }", 17)), NEWEST + 1)


def test_already_there() -> None:
    before = from_proto(model(IMAGE + "{ y = Relu(x) }", 17))
    after = raise_opset(before, 13)
    assert after is not before
    assert to_proto(after).SerializeToString() == to_proto(before).SerializeToString()


def test_metadata_functions_and_weights_stay() -> None:
    proto = model(
        "g (float[N,4] x) => (float[a,b] y) { t = f.act(x) y = Mul(t, w) } "
        '<opset_import: ["": 17], domain: "f"> act (p) => (q) { q = Relu(p) }',
        17,
        w=np.ones((4, 400, 4), np.float32)[:, 0],
    )
    proto.doc_string = proto.graph.node[0].doc_string = proto.graph.initializer[0].doc_string = "documented"
    proto.graph.node[0].metadata_props.add(key="k", value="v")
    proto.training_info.add().algorithm.name = "a"
    expected = to_proto(from_proto(proto))
    before = from_proto(proto)
    after = raise_opset(before, 21)
    assert [c._values is d._values for c, d in zip(before.constants(), after.constants(), strict=True)] == [True]
    for entry in (*expected.opset_import, *expected.functions[0].opset_import):
        entry.version = 21 if not entry.domain else entry.version
    expected.ir_version = 10
    assert to_proto(after).SerializeToString() == expected.SerializeToString()


def test_initializers_that_had_to_be_inputs_do_not_become_overridable() -> None:
    proto = model(IMAGE + "{ y = Mul(x, w) }", 7, ir_version=3, w=np.ones(5, np.float32))
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, [5]))
    after = raise_opset(from_proto(proto), 21)
    assert after.overridable() == []
    assert [info.name for info in to_proto(after).graph.input] == ["x"]
    assert after.header.ir_version == 10


def changes(older: onnx.defs.OpSchema, newer: onnx.defs.OpSchema) -> bool:
    """Whether a node of the older schema can mean something else, or nothing, under the newer one."""
    if newer.deprecated or older.min_input < newer.min_input or older.max_output > newer.max_output:
        return True
    for name, attribute in older.attributes.items():
        if name not in newer.attributes or default(newer.attributes[name]) != default(attribute):
            return True
    if any(a.required and name not in older.attributes for name, a in newer.attributes.items()):
        return True
    formal = [*zip(older.inputs, newer.inputs, strict=False), *zip(older.outputs, newer.outputs, strict=False)]
    return any(set(old.types) - set(new.types) for old, new in formal)


def default(attribute: onnx.defs.OpSchema.Attribute) -> Any:
    return helper.get_attribute_value(attribute.default_value) if attribute.default_value.type else None


UNSIGNED = {("RoiAlign", 16), ("Resize", 13), ("Split", 18), ("GroupNormalization", 21), ("BatchNormalization", 14)}
"""Changes that no signature tells: a default that is not the old behaviour, a mode or a shape that went away."""


def test_every_change_of_a_signature_is_known() -> None:
    """The table has an adapter for exactly the changes that onnx's own schemas tell of."""
    history: dict[str, list[onnx.defs.OpSchema]] = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            history[schema.name].append(schema)
    found = set()
    for name, schemas in history.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for older, newer in itertools.pairwise(schemas):
            if OLDEST < newer.since_version <= NEWEST and changes(older, newer):
                found.add((name, newer.since_version))
    assert found - ADAPTERS.keys() == set()
    assert ADAPTERS.keys() - found <= UNSIGNED
