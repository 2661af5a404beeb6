"""quantize-weights, demoted: each step writes a site more carefully, and says so only where the outcome differs."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.passes.quantize_weights.demotion import STEPS, taken
from numpy.typing import NDArray

from graphopt.graph import GraphView
from graphopt.model import from_proto, to_proto
from graphopt.result import PassResult
from graphopt.runtime.feeds import Data, from_arrays, generate
from graphopt.runtime.session import Session
from graphopt.testing import count_ops, model, random_feeds


def heavy(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Values with far outliers, so that a narrower range has a smaller error."""
    return np.random.default_rng([seed, *shape]).standard_t(3, shape).astype(np.float32)


def demoted(
    proto: onnx.ModelProto,
    demotions: Mapping[str, int],
    data: Data | None = None,
    memory: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[onnx.ModelProto, PassResult]:
    """Run the pass with these steps down by site."""
    subject = from_proto(proto)
    view = GraphView(subject, calibration=data, demotions=demotions, memory=memory)
    result = QuantizeWeights(**options).apply(view)
    return to_proto(subject), result


def noise(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    feeds = random_feeds(before, 3, dynamic=64)
    return float(np.square(Session(after).run(feeds)["y"] - Session(before).run(feeds)["y"]).sum())


PRODUCT = model("g (float[M,1024] x) => (float[M,512] y) { y = MatMul(x, w) }", 21, 10, w=heavy(1024, 512))
CONV_TEXT = "g (float[1,32,9,9] x) => (float[1,24,7,7] y) { y = Conv(x, w) }"
CONV = model(CONV_TEXT, 21, 10, w=heavy(24, 32, 3, 3))
OLD_CONV = model(CONV_TEXT, 17, 8, w=heavy(24, 32, 3, 3))
DEPTHWISE = model(
    "g (float[1,48,9,9] x) => (float[1,48,5,5] y) { y = Conv<group=48>(x, w) }", 21, 10, w=heavy(48, 1, 5, 5)
)
TABLE = model("g (int64[M] x) => (float[M,64] y) { y = Gather(w, x) }", 17, 8, w=heavy(64, 64))


def test_every_step_of_a_product() -> None:
    found = [demoted(PRODUCT, {"y": steps}, dtype="int4") for steps in range(5)]
    details = [result.rewritten[0].detail for _, result in found]
    blocks, folded = "to int4 blocks of 128 on axis 0", "as Cast and Mul, folded at load"
    assert re.fullmatch(rf"'w' {blocks}, [\d.]+ dB, as DequantizeLinear, fused with the product", details[0])
    assert details[1] == details[0].replace("as DequantizeLinear, fused with the product", folded)
    assert re.fullmatch(rf"'w' {blocks}, [\d.]+ dB, {folded}", details[2])
    assert re.fullmatch(rf"'w' to int4 blocks of 32 on axis 0, [\d.]+ dB, {folded}", details[3])
    assert re.fullmatch(rf"'w' to int8 blocks of 32 on axis 0, [\d.]+ dB, {folded}", details[4])
    assert len(set(details)) == 5
    errors = [noise(PRODUCT, after) for after, _ in found]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3), "the same values"
    assert errors[4] < 0.1 * errors[3] < 0.1 * errors[2] < 0.1 * errors[1]
    count = 1024 * 512
    sizes = [result.rewritten[0].nbytes for _, result in found]
    assert sizes == [count // 2 + count // 32] * 3 + [count // 2 + count // 8, count + count // 8]


def outcome(proto: onnx.ModelProto, steps: int, dtype: str) -> str:
    """Return what one site is told to have become."""
    return demoted(proto, {"y": steps}, dtype=dtype)[1].rewritten[0].detail


def test_a_step_that_a_site_lacks_falls_through_to_the_next() -> None:
    details = [outcome(CONV, steps, "int4") for steps in range(5)]
    kinds = [re.search(r"to (int\d+ (per channel|blocks of \d+))", each) for each in details]
    assert [kind and kind[1] for kind in kinds] == [*["int4 per channel"] * 3, "int4 blocks of 32", "int8 blocks of 32"]
    assert details[0] != details[1] == details[2], "a convolution has no other form, so its first step is the range"
    depthwise = [outcome(DEPTHWISE, steps, "int4") for steps in range(5)]
    assert depthwise[0] != depthwise[1] == depthwise[2] != depthwise[3] == depthwise[4]
    assert "to int8 per channel" in depthwise[3], "nothing is summed over but the kernel"


def test_no_other_outcome_is_told_alike() -> None:
    """In eight bits, the range of least error of a few values is the whole one."""
    assert outcome(CONV, 2, "int8") == outcome(CONV, 0, "int8")
    assert demoted(CONV, {"y": 2})[0] == demoted(CONV, {})[0]


def test_steps_of_a_table_keep_its_look_up() -> None:
    found = [demoted(TABLE, {"y": steps}) for steps in (0, 1, 3, 4)]
    assert all("rows looked up as integers" in result.rewritten[0].detail for _, result in found)
    assert [count_ops(after).get("Reshape", 0) for after, _ in found] == [0, 0, 1, 1]
    errors = [noise(TABLE, after) for after, _ in found]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("dtype", "more"), [("int4", "int8"), ("uint4", "uint8"), ("int2", "int4"), ("int8", "int16")])
def test_more_bits(dtype: str, more: str) -> None:
    proto = model("g (float[M,96] x) => (float[M,24] y) { y = MatMul(x, w) }", 25, 13, w=heavy(96, 24))
    after, result = demoted(proto, {"y": 4}, dtype=dtype)
    assert f"to {more} blocks of 32" in result.rewritten[0].detail
    assert after.graph.initializer[0].data_type == onnx.TensorProto.DataType.Value(more.upper())


def test_half_precision_has_no_sixteen_bits() -> None:
    proto = model(
        "g (float16[M,96] x) => (float16[M,24] y) { y = MatMul(x, w) }", 17, 8, w=heavy(96, 24).astype(np.float16)
    )
    assert demoted(proto, {"y": 4})[1] == demoted(proto, {"y": 3})[1]


def test_layers_that_share_a_weight_take_the_most_steps_of_them() -> None:
    proto = model(
        "g (float[M,48] x) => (float[M,48] y) { a = MatMul(x, w) b = Tanh(a) y = MatMul(b, w) }", 17, 8, w=heavy(48, 48)
    )
    _, result = demoted(proto, {"a": 1, "y": 3})
    assert [each.site for each in result.rewritten] == ["a", "y"]
    assert all("blocks of 24" in each.detail or "blocks of 16" in each.detail for each in result.rewritten)
    assert len({each.detail for each in result.rewritten}) == 1


def test_dq_stays_dq_and_asks_for_the_opset_of_blocks() -> None:
    each = QuantizeWeights(representation="dq")
    assert each.required_opset(GraphView(from_proto(OLD_CONV))) == 19
    assert each.required_opset(GraphView(from_proto(OLD_CONV), demotions={"y": 3})) == 21
    after, result = demoted(OLD_CONV, {"y": 4}, representation="dq")
    assert count_ops(after) == {"DequantizeLinear": 1, "Conv": 1}
    assert "to int8 per channel" in result.rewritten[0].detail, "opset 17 has neither blocks nor 16 bits"


def biased(samples: int) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    text = "g (float[N,32] x) => (float[N,24] y) { h = Gemm(x, w, b) r = Relu(h) y = MatMul(r, v) }"
    proto = model(text, 17, 8, w=heavy(32, 40), v=heavy(40, 24), b=heavy(40))
    return proto, (np.random.default_rng(1).standard_normal((samples, 32)) + 1).astype(np.float32)


def test_the_range_comes_with_a_corrected_bias_where_there_are_samples() -> None:
    proto, x = biased(64)
    data = from_arrays({"x": x}, from_proto(proto))
    details = {}
    for name, steps in (("none", {}), ("first", {"h": 2})):
        after, result = demoted(proto, steps, data)
        details[name] = [each.detail for each in result.rewritten]
        shift = Session(after).run({"x": x})["y"].mean(axis=0) - Session(proto).run({"x": x})["y"].mean(axis=0)
        details[f"{name} shift"] = [float(np.abs(shift).max())]
    assert "with its bias corrected" in details["first"][0]
    assert details["first"][1] == details["none"][1], "the other site is left alone"
    few, _ = biased(15)
    for too_few in (from_arrays({"x": x[:15]}, from_proto(few)), generate(from_proto(few)), None):
        assert all("corrected" not in each.detail for each in demoted(few, {"h": 2}, too_few)[1].rewritten)


def test_replays_share_one_run_of_the_calibration_data() -> None:
    proto, x = biased(64)
    plain = from_arrays({"x": x}, from_proto(proto))

    class Counted:
        """The same data; counts how often they are asked for."""

        generated, labels, size, at_once = False, None, plain.size, plain.at_once
        runs = 0

        def batches(self, limit: int | None = None) -> Any:
            Counted.runs += 1
            return plain.batches(limit)

        def calibration(self) -> Data:
            return self

    memory: dict[str, Any] = {}
    first = demoted(proto, {"h": 2}, Counted(), memory)
    asked = Counted.runs
    assert asked > 0
    again = demoted(proto, {"h": 2}, Counted(), memory)
    both = demoted(proto, {"h": 2, "y": 2}, Counted(), memory)
    assert Counted.runs == asked
    assert again[1] == first[1]
    assert again[0] == first[0]
    assert both == demoted(proto, {"h": 2, "y": 2}, Counted(), {})


@pytest.mark.parametrize(
    ("count", "lacks", "expected"),
    [
        (0, "", ""),
        (1, "", "form"),
        (4, "", "form range blocks bits"),
        (9, "", "form range blocks bits"),
        (1, "form", "range"),
        (2, "form", "range"),
        (1, "form range", "blocks"),
        (3, "blocks", "form range bits"),
        (4, "bits", "form range blocks"),
        (4, "form range blocks bits", ""),
    ],
)
def test_which_steps_are_taken(count: int, lacks: str, expected: str) -> None:
    has = {step: step not in lacks.split() for step in STEPS}
    assert taken(count, has) == frozenset(expected.split())
