"""fuse-operators: each way to spell an operator out, what is refused, and what other passes must leave whole."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphopt.passes.eliminate_noops import EliminateNoops
from graphopt.passes.fold_affine import FoldAffine
from graphopt.passes.fuse_operators import FuseOperators
from numpy.typing import NDArray

from graphopt import optimize
from graphopt.graph import GraphView
from graphopt.graph.spelled_out import find_spelled_out
from graphopt.model import from_proto
from graphopt.presets import preset_passes
from graphopt.testing import assert_rewrites, assert_skips, assert_untouched, count_ops, draw, model, read_by

ROOT2 = float(np.sqrt(2.0))
NUMBERS = {
    "two": 2, "three": 3, "six": 6, "one": 1, "half": 0.5, "e": 1e-5, "root": ROOT2, "inverse": 1 / ROOT2,
    "tanh": 0.7978845608, "cubic": 0.044715, "product": 0.035677408136, "zero": 0, "sixth": 1 / 6, "double": 2,
}  # fmt: skip
WEIGHTS = {name: np.float32(value) for name, value in NUMBERS.items()} | {
    "g": draw(8),
    "b": draw(8, seed=1),
    "w": draw(8, 8, seed=2),
}
IO = "g (float[N,5,8] x) => (float[N,5,8] y) "
MEAN = "m = ReduceMean<axes=[-1]>(x) c = Sub(x, m) "
SQUARE = "p = Pow(c, two) "
ROOT = "v = ReduceMean<axes=[-1]>(p) s = Add(v, e) r = Sqrt(s) "


def spelled(text: str, opset: int = 17, **weights: NDArray[Any]) -> onnx.ModelProto:
    if opset >= 18:
        text = text.replace("ReduceMean<axes=[-1]>(", "ReduceMean(").replace("ReduceMean(x)", "ReduceMean(x, last)")
        text = text.replace("ReduceMean(p)", "ReduceMean(p, last)")
    given = {**WEIGHTS, "last": np.int64([-1]), **weights}
    return model(IO + "{ " + text + " }", opset=opset, ir_version=10, **read_by("=> " + text, given))


LAST = "q = Div(c, r) k = Mul(q, g) y = Add(k, b)"
CENTRED = {
    "torch": MEAN + SQUARE + ROOT + LAST,
    "gain and shift first": MEAN + SQUARE + ROOT + "q = Div(c, r) k = Mul(g, q) y = Add(b, k)",
    "square as a product": MEAN + "p = Mul(c, c) " + ROOT + LAST,
    "reciprocal": MEAN + SQUARE + ROOT + "i = Reciprocal(r) q = Mul(c, i) k = Mul(q, g) y = Add(k, b)",
    "no shift": MEAN + SQUARE + ROOT + "q = Div(c, r) y = Mul(q, g)",
    "neither gain nor shift": MEAN + SQUARE + ROOT + "y = Div(c, r)",
    "gain is one number": MEAN + SQUARE + ROOT + "q = Div(c, r) k = Mul(q, two) y = Add(k, b)",
}
RMS = {
    "root mean square": "p = Pow(x, two) " + ROOT + "q = Div(x, r) y = Mul(q, g)",
    "root mean square by a reciprocal": "p = Mul(x, x) " + ROOT + "i = Reciprocal(r) q = Mul(x, i) y = Mul(g, q)",
}
NORMS = {name: (text, "LayerNormalization") for name, text in CENTRED.items()}
NORMS |= {name: (text, "RMSNormalization") for name, text in RMS.items()}


@pytest.mark.parametrize(("text", "operator"), NORMS.values(), ids=NORMS)
def test_normalizations(text: str, operator: str) -> None:
    assert_rewrites(FuseOperators(), spelled(text, 23), ops={operator: 1}, rewritten=1)


ERF = ("r = Div(x, root) e0 = Erf(r) ", "r = Mul(inverse, x) e0 = Erf(r) ")
GELUS = {
    "torch": ERF[0] + "a = Add(e0, one) p = Mul(x, a) y = Mul(p, half)",
    "half first": ERF[1] + "a = Add(one, e0) h = Mul(half, x) y = Mul(h, a)",
    "half of the gate": ERF[0] + "a = Add(e0, one) h = Mul(a, half) y = Mul(x, h)",
    "half as a quotient": ERF[1] + "a = Add(e0, one) p = Mul(a, x) y = Div(p, two)",
    "half within the gate": ERF[1] + "f = Mul(e0, half) a = Add(f, half) y = Mul(x, a)",
    "tanh": "c = Pow(x, three) d = Mul(c, cubic) s = Add(x, d) u = Mul(s, tanh) t = Tanh(u) a = Add(t, one) "
    "h = Mul(x, half) y = Mul(h, a)",
    "tanh of products": "q = Mul(x, x) c = Mul(q, x) d = Mul(cubic, c) s = Add(x, d) u = Mul(tanh, s) t = Tanh(u) "
    "a = Add(t, one) p = Mul(x, a) y = Mul(half, p)",
    "tanh of a factored polynomial": "q = Mul(x, x) d = Mul(q, product) s = Add(d, tanh) u = Mul(x, s) t = Tanh(u) "
    "a = Add(t, one) p = Mul(x, a) y = Mul(p, half)",
}


@pytest.mark.parametrize("text", GELUS.values(), ids=GELUS)
@pytest.mark.parametrize("opset", [20, 23])
def test_gelus(text: str, opset: int) -> None:
    after = assert_rewrites(FuseOperators(), spelled(text, opset), ops={"Gelu": 1}, rewritten=1)
    (node,) = after.graph.node
    assert [a.s for a in node.attribute] == ([b"tanh"] if "Tanh" in text else [])


SWISHES = {
    "sixth of the product": "a = Add(x, three) c = Clip(a, zero, six) p = Mul(x, c) y = Div(p, six)",
    "sixth of the gate": "a = Add(three, x) c = Clip(a, zero, six) h = Mul(c, sixth) y = Mul(h, x)",
}


@pytest.mark.parametrize("text", SWISHES.values(), ids=SWISHES)
def test_hard_swish(text: str) -> None:
    assert_rewrites(FuseOperators(), spelled(text, 14), ops={"HardSwish": 1}, rewritten=1)


REFUSALS = {
    "opset without LayerNormalization": (spelled(NORMS["torch"][0], 16), "opset 16 has no LayerNormalization"),
    "opset without Gelu": (spelled(GELUS["torch"], 19), "opset 19 has no Gelu, it comes with opset 20"),
    "opset without HardSwish": (spelled(SWISHES["sixth of the gate"], 13), "opset 13 has no HardSwish"),
    "half precision": (
        model(
            IO.replace("float", "float16") + "{ " + NORMS["torch"][0] + " }",
            **{name: WEIGHTS[name].astype(np.float16) for name in ("two", "e", "g", "b")},
        ),
        "'x' is not float32",
    ),
    "unknown extent": (
        model(
            "g (float[N,5,M] x) => (float[N,5,M] y) { " + CENTRED["neither gain nor shift"] + " }",
            **{name: WEIGHTS[name] for name in ("two", "e")},
        ),
        "the extents of 'x' along the normalized axes are not known",
    ),
}


@pytest.mark.parametrize(("proto", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(proto: onnx.ModelProto, reason: str) -> None:
    assert_skips(FuseOperators(), proto, reason)


OTHERS = {
    "another root": "r = Mul(x, half) e0 = Erf(r) a = Add(e0, one) p = Mul(x, a) y = Mul(p, half)",
    "another factor": ERF[0] + "a = Add(e0, one) y = Mul(x, a)",
    "another gate": ERF[0] + "a = Add(e0, two) p = Mul(x, a) y = Mul(p, half)",
    "another gated tensor": ERF[0] + "a = Add(e0, one) z = Relu(x) p = Mul(z, a) y = Mul(p, half)",
    "read in between": ERF[0] + "a = Add(e0, one) p = Mul(x, a) h = Mul(p, half) y = Sub(h, e0)",
    "another cubic": "c = Pow(x, three) d = Mul(c, half) s = Add(x, d) u = Mul(s, tanh) t = Tanh(u) a = Add(t, one) "
    "h = Mul(x, half) y = Mul(h, a)",
    "mean of another tensor": "z = Relu(x) m = ReduceMean<axes=[-1]>(z) c = Sub(x, m) p = Pow(x, two) "
    + ROOT
    + "q = Div(c, r) y = Mul(q, g)",
    "mean over another axis": "p = Pow(x, two) v = ReduceMean<axes=[1]>(p) s = Add(v, e) r = Sqrt(s) y = Div(x, r)",
    "another bound": "a = Add(x, three) c = Clip(a, zero, three) p = Mul(x, c) y = Div(p, six)",
    "divided the other way": "p = Pow(x, two) " + ROOT + "y = Div(r, x)",
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_what_only_looks_alike_is_left_alone(text: str) -> None:
    assert not assert_untouched(FuseOperators(), spelled(text)).skipped


def test_a_constant_along_another_axis_is_no_gain() -> None:
    text = MEAN + SQUARE + ROOT + "q = Div(c, r) y = Mul(q, h)"
    assert_rewrites(FuseOperators(), spelled(text, h=draw(5, 1)), ops={"LayerNormalization": 1, "Mul": 1}, rewritten=1)


# -- what other passes must leave whole --------------------------------------------------------------------------------


def before_a_layer(text: str, opset: int = 14) -> onnx.ModelProto:
    return spelled(text.replace("y =", "z =") + " y = MatMul(z, w)", opset)


NEUTRAL = {"g": np.ones(8, np.float32), "b": np.zeros(8, np.float32)}
WHOLE = {
    "normalization": (FoldAffine(), before_a_layer(CENTRED["torch"])),
    "normalization without shift": (FoldAffine(), before_a_layer(CENTRED["no shift"])),
    "root mean square": (FoldAffine(), before_a_layer(RMS["root mean square"])),
    "half of a GELU": (FoldAffine(), before_a_layer(GELUS["torch"])),
    "sixth of a HardSwish": (FoldAffine(), before_a_layer(SWISHES["sixth of the product"], 13)),
    "neutral gain and shift": (EliminateNoops(), spelled(CENTRED["torch"], 14, **NEUTRAL)),
    "GELU times two": (EliminateNoops(), spelled(GELUS["torch"].replace("y =", "z =") + " y = Mul(z, double)", 14)),
}


@pytest.mark.parametrize(("pass_", "proto"), WHOLE.values(), ids=WHOLE)
def test_operators_spelled_out_stay_whole(pass_: Any, proto: onnx.ModelProto) -> None:
    assert_untouched(pass_, proto)


def test_the_scale_of_attention_scores_stays() -> None:
    text = (
        "g (float[N,5,8] x) => (float[N,5,5] y) { q = MatMul(x, w) t = Transpose<perm=[0,2,1]>(x) p = MatMul(q, t) "
        "s = Div(p, n) m = Add(s, k) y = Softmax<axis=-1>(m) }"
    )
    proto = model(text, w=WEIGHTS["w"], n=np.float32(2.5), k=draw(5, 5))
    assert_skips(
        FoldAffine(), proto, "part of a scaled product of attention spelled out, which runtimes compute as one"
    )


# -- what ONNX Runtime makes of it ------------------------------------------------------------------------------------

FUSED = ("LayerNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization",
         "Gelu", "BiasGelu", "FastGelu", "QuickGelu")  # fmt: skip


def at_run_time(proto: onnx.ModelProto, folder: Path) -> dict[str, int]:
    """Count the operators that ONNX Runtime runs with default options."""
    options, dump = ort.SessionOptions(), folder / "optimized.onnx"
    options.optimized_model_filepath, options.log_severity_level = str(dump), 3
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return count_ops(onnx.load(dump))


def block(norm: str, gelu: str, opset: int, **weights: NDArray[Any]) -> onnx.ModelProto:
    """Return a normalization, two dense layers around a GELU, and a residual."""
    made = {*re.findall(r"(\w+) =", gelu)} - {"y"}
    inner = re.sub(r"\b\w+\b", lambda word: f"{word[0]}_gelu" if word[0] in made else word[0], gelu)
    inner = re.sub(r"\bx\b", "wide", inner).replace("y =", "active =")
    text = norm.replace("y =", "normal =") + " up = MatMul(normal, w) wide = Add(up, b) " + inner
    return spelled(text + " down = MatMul(active, w) out = Add(down, b) y = Add(out, x)", opset, **weights)


@pytest.mark.parametrize("opset", [14, 17, 20, 23])
@pytest.mark.parametrize(
    ("norm", "gelu", "neutral"),
    [(n, g, k) for n, g, k in itertools.product(("torch", "root mean square"), ("torch", "tanh"), (False, True))],
)
def test_cleaned_models_are_no_larger_at_run_time(
    norm: str, gelu: str, neutral: bool, opset: int, tmp_path: Path
) -> None:
    proto = block(NORMS[norm][0], GELUS[gelu], opset, **(NEUTRAL if neutral else {}))
    passes, repeat = preset_passes("clean")
    result = optimize(proto, passes, {"x": draw(16, 5, 8, seed=7)}, fixed_point=repeat, latency=False)
    assert result.report.ok
    before, after = at_run_time(proto, tmp_path), at_run_time(result.model, tmp_path)
    assert sum(after.values()) <= sum(before.values()), (before, after)
    kept = [sum(ops.get(name, 0) for name in FUSED) for ops in (before, after)]
    assert kept[1] >= kept[0] >= 1, (before, after)


def test_every_form_is_found_below_its_opset() -> None:
    for text in [text for text, _ in NORMS.values()] + list(GELUS.values()):
        assert len(list(find_spelled_out(GraphView(from_proto(spelled(text, 14)))))) == 1, text
