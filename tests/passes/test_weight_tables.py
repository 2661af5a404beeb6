"""quantize-weights: which tables are embeddings, by their values and by what is done with them."""

from typing import Any

import numpy as np
import onnx
import pytest
from graphopt.passes.quantize_weights import QuantizeWeights
from numpy.typing import NDArray

from graphopt.testing import assert_skips, model, run_alone

RNG = np.random.default_rng(0)
LAYER = "e = Gather(t, i) y = MatMul(e, w)"


def vectors(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, rows, columns]).standard_normal((rows, columns)).astype(np.float32)


def looked_up(table: NDArray[Any], nodes: str = LAYER) -> onnx.ModelProto:
    columns = int(np.prod(table.shape[1:]))
    weights = {"w": vectors(columns, 8), "g": np.ones(columns, np.float32), "one": np.array([1])}
    used = {name: value for name, value in weights.items() if f", {name})" in nodes}
    text = f"g (int64[N] i, float[N,{columns}] x) => (float[N,M] y) {{ {nodes} }}"
    return model(text, 18, 8, t=table, **used)


def sinusoids(rows: int, columns: int) -> NDArray[np.float32]:
    angle = np.arange(rows)[:, None] / 10000 ** (np.arange(0, columns, 2) / columns)
    return np.concatenate([np.sin(angle), np.cos(angle)], 1).astype(np.float32)


GRID = np.stack(np.mgrid[0:40, 0:40], -1).reshape(-1, 2).astype(np.float32)
DATA = {
    "boxes": (np.concatenate([GRID * 8 - 8, GRID * 8 + 8], 1), LAYER, "has 4 columns"),
    "palette": (RNG.uniform(0, 1, (256, 3)).astype(np.float32), LAYER, "has 3 columns"),
    "curve": ((np.arange(256) / 255)[:, None].astype(np.float32) ** 2.2, LAYER, "has 1 columns"),
    "curves in rows": (
        (np.arange(256) / 255)[None].astype(np.float32) ** np.array([[2.2], [1.8], [2.4]], np.float32),
        "e = Gather<axis=1>(t, i) k = Transpose(e) y = Concat<axis=1>(k, k)",
        "has 3 columns",
    ),
    "curves of many channels": (
        np.linspace(-1, 1, 200)[:, None].astype(np.float32) * RNG.choice([-1, 1], 32).astype(np.float32),
        LAYER,
        "rise or fall from row to row",
    ),
    "keypoints in pixels": (np.tile(GRID * 8, (1, 17)) + vectors(1600, 34), LAYER, "of one sign|far from zero"),
    "means of features": (vectors(40, 64) - 2 + vectors(1, 64), LAYER, "far from zero"),
    "shapes around their centre": (vectors(1, 136) + 0.1 * vectors(50, 136), LAYER, "has columns far from zero"),
    "probabilities": (RNG.dirichlet(np.ones(32), 500).astype(np.float32), LAYER, "one sign"),
    "unlike columns": (vectors(300, 32) * np.logspace(-4, 3, 32, dtype=np.float32), LAYER, "unlike scale"),
    "means to add back": (vectors(40, 32), "e = Gather(t, i) y = Add(x, e)", "goes into no layer but straight to 'y'"),
    "scales and means to undo": (
        vectors(40, 32),
        "e = Gather(t, i) a = Mul(x, e) b = Tanh(a) y = Sub(b, e)",
        "straight to 'y'",
    ),
    "thresholds": (vectors(40, 32), "e = Gather(t, i) l = Less(x, e) y = Cast<to=1>(l)", "goes into no layer"),
}


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("case", DATA)
def test_a_table_of_data_stays_float(case: str, dtype: Any) -> None:
    table, nodes, reason = DATA[case]
    after, result = run_alone(QuantizeWeights(dtype=dtype), looked_up(table, nodes))
    kept = next(each.reason for each in result.skipped if each.site == "e")
    assert kept.startswith("'t' ")
    assert any(part in kept for part in reason.split("|")), kept
    assert kept.endswith("left float, --tables all quantizes it")
    assert "t" in {each.name for each in after.graph.initializer}


def test_tables_all_quantizes_them() -> None:
    table, nodes, _ = DATA["means to add back"]
    _, result = run_alone(QuantizeWeights(tables="all"), looked_up(table, nodes))
    assert [each.site for each in result.rewritten] == ["e"]


EMBEDDINGS = {
    "words into a product": (vectors(500, 32), LAYER),
    "words with a few strong columns": (vectors(500, 64) * np.where(np.arange(64) < 3, 8, 1).astype(np.float32), LAYER),
    "words off zero, as BERT's": (vectors(500, 32) - 0.5, LAYER),
    "two types": (vectors(2, 64) * 0.02, "e = Gather(t, i) a = Add(e, x) y = LayerNormalization(a, g)"),
    "positions": (
        (walk := vectors(64, 32).cumsum(0)) - walk.mean(0),
        "e = Gather(t, i) a = Add(e, x) y = LayerNormalization(a, g)",
    ),
    "sinusoids": (sinusoids(256, 64), "e = Gather(t, i) a = Add(e, x) y = MatMul(a, w)"),
    "attention biases of 24 heads": (vectors(169, 24) * 0.1, "e = Gather(t, i) a = Add(x, e) y = Softmax(a)"),
    "mean of words": (vectors(500, 32), "e = Gather(t, i) y = ReduceMean(e, one)"),
    "vectors that are the output": (vectors(500, 32), "e = Gather(t, i) y = Identity(e)"),
    "a sum that is the output, behind which a layer reads": (
        vectors(500, 32),
        "e = Gather(t, i) a = Tanh(e) b = MatMul(a, w) c = ReduceSum<keepdims=1>(b, one) y = Add(e, c)",
    ),
}


@pytest.mark.parametrize("case", EMBEDDINGS)
def test_an_embedding_is_quantized(case: str) -> None:
    _, result = run_alone(QuantizeWeights(), looked_up(*EMBEDDINGS[case]))
    assert "e" in [each.site for each in result.rewritten], result.skipped


def test_a_table_that_a_product_reads_too_is_a_weight() -> None:
    text = """g (int64[N] i, float[N,4] x) => (float[N,4] e, float[N,240] y) {
        e = Gather(t, i) k = Transpose(t) y = MatMul(x, k) }"""
    _, result = run_alone(QuantizeWeights(), model(text, 17, 8, t=vectors(240, 4) + 3))
    assert [each.site for each in result.rewritten] == ["e", "y"]


def test_a_slice_of_coordinates_stays_float() -> None:
    text = """g (float[N,M] x) => (float[K,2] y) {
        n = Shape<start=0, end=1>(x) p = Slice(t, zero, n, zero) y = Neg(p) }"""
    assert_skips(QuantizeWeights(), model(text, 17, 8, t=GRID, zero=np.array([0])), "has 2 columns")
