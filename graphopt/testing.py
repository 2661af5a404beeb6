"""The kit that pass authors test with: models from one line of text, and three strict assertions."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from graphopt.base import Pass
from graphopt.graph import GraphView
from graphopt.model import from_proto, to_proto
from graphopt.proof.proof import compare_models
from graphopt.result import PassResult
from graphopt.runtime.data import ListData

Feeds = Mapping[str, NDArray[Any]]


def model(text: str, opset: int = 17, ir_version: int = 8, **weights: NDArray[Any]) -> onnx.ModelProto:
    """Parse a graph in ONNX's text form, such as ``g (float[N,3,8,8] x) => (float[N,4,6,6] y) { y = Conv(x, w) }``.

    Args:
        text: The graph; local functions may follow it.
        opset: The version of the default operator domain.
        ir_version: The IR version.
        weights: Arrays that become initializers, by name.

    Returns:
        The model, checked and with shapes inferred nowhere.
    """
    domains = ', "local" : 1' if re.search(r"\blocal\.", text) else ""
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}{domains}]> {text}')
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    onnx.checker.check_model(proto)
    return proto


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> NDArray[Any]:
    """Draw a normal weight; other shapes and seeds give other numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def draw_batchnorm(channels: int, seed: int = 0, dtype: Any = np.float32, suffix: str = "") -> dict[str, NDArray[Any]]:
    """Draw the parameters g, b, m, v of a BatchNormalization that break careless arithmetic.

    Gammas have both signs, one is zero and one is large; one variance is tiny and one is large; means are not zero.
    """
    rng = np.random.default_rng(seed)
    gamma, var = rng.uniform(-2, 2, channels), rng.uniform(0.5, 2, channels)
    gamma[0], var[-1] = 0, 1e-4
    if channels > 2:
        gamma[1], var[2] = 40, 300
    values = {"g": gamma, "b": rng.standard_normal(channels), "m": rng.standard_normal(channels), "v": var}
    return {key + suffix: value.astype(dtype) for key, value in values.items()}


def read_by(text: str, weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return those weights that the nodes of a text name."""
    words = set(re.split(r"[\s(),]+", text.partition("=>")[2]))
    return {name: values for name, values in weights.items() if name in words}


def initializers(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Return what the main graph stores, by name."""
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def random_feeds(proto: onnx.ModelProto, seed: int, dynamic: int = 2) -> dict[str, NDArray[Any]]:
    """Draw one input for each graph input: normal floats, integers from 0 to 3; unknown dimensions get ``dynamic``."""
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in proto.graph.initializer}
    feeds: dict[str, NDArray[Any]] = {}
    for info in proto.graph.input:
        if info.name in stored:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        shape = [dim.dim_value if dim.HasField("dim_value") else dynamic for dim in info.type.tensor_type.shape.dim]
        values = rng.integers(0, 4, shape) if kind.kind in "iub" else rng.standard_normal(shape)
        feeds[info.name] = np.asarray(values).astype(kind)
    return feeds


def run_alone(pass_: Pass, proto: onnx.ModelProto) -> tuple[onnx.ModelProto, PassResult]:
    """Run one pass, without pipeline or checks; return the rewritten model and what the pass told."""
    subject = from_proto(onnx.ModelProto.FromString(proto.SerializeToString()))
    result = pass_.apply(GraphView(subject))
    return to_proto(subject), result


def count_ops(proto: onnx.ModelProto) -> dict[str, int]:
    """Count the main graph's operators, Constant nodes left out."""
    return dict(Counter(node.op_type for node in proto.graph.node if node.op_type != "Constant"))


def assert_rewrites(
    pass_: Pass,
    proto: onnx.ModelProto,
    *,
    ops: Mapping[str, int],
    feeds: Feeds | None = None,
    rewritten: int | None = None,
) -> onnx.ModelProto:
    """Assert that the pass leaves exactly ``ops``, keeps its contract, and finds nothing more to do.

    Outputs are compared as the pipeline compares them, review of a broken contract included, against the model before
    the pass and with the pass's own contract.

    Args:
        pass_: The pass under test.
        proto: The model before.
        ops: The operators that remain in the main graph, Constant nodes left out.
        feeds: What to run on; drawn with seed 0 if not given.
        rewritten: How many sites the pass must have rewritten; at least one if not given.

    Returns:
        The model after.
    """
    after, result = run_alone(pass_, proto)
    told = f"rewritten {result.rewritten}, skipped {result.skipped}"
    assert count_ops(after) == dict(ops), f"operators {count_ops(after)}; {told}"
    assert len(result.rewritten) == rewritten if rewritten is not None else result.rewritten, told
    onnx.checker.check_model(after, full_check=True)
    inputs = dict(feeds) if feeds is not None else random_feeds(proto, 0)
    before, data = from_proto(proto), ListData([inputs])
    comparison = compare_models(before, from_proto(after), data, pass_.contract, freezes=pass_.freezes)
    assert comparison.holds, comparison.problem
    again, second = run_alone(pass_, after)
    assert not second.rewritten, f"a second run rewrites {second.rewritten}"
    assert again.SerializeToString() == after.SerializeToString(), "a second run changes the model"
    return after


def assert_untouched(pass_: Pass, proto: onnx.ModelProto) -> PassResult:
    """Assert that the pass rewrites nothing and leaves every bit alone; return what it told."""
    after, result = run_alone(pass_, proto)
    assert not result.rewritten, f"rewritten {result.rewritten}"
    assert after.SerializeToString() == proto.SerializeToString(), "the model has changed"
    return result


def assert_skips(pass_: Pass, proto: onnx.ModelProto, reason: str) -> None:
    """Assert that the pass rewrites nothing, gives a reason that matches the pattern, and leaves every bit alone."""
    reasons = [skipped.reason for skipped in assert_untouched(pass_, proto).skipped]
    assert any(re.search(reason, text) for text in reasons), f"no reason matches {reason!r}: {reasons}"
