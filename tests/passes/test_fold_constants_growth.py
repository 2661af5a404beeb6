"""fold-constants: the file does not become larger than the run has found it, and nodes go where that costs least."""

import numpy as np
import onnx
import pytest
from graphopt.passes.fold_constants import FoldConstants
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt
from graphopt import GraphView
from graphopt.graph.growth import SMALL
from graphopt.model import from_proto
from graphopt.model.exporter import serialized_size
from graphopt.presets import preset_passes
from graphopt.testing import assert_rewrites, assert_skips, count_ops, draw, model, run_alone

TIED = "g (float[N,32] x) => (float[N,32] y) { t = Transpose(w) a = MatMul(x, t) y = MatMul(a, w) }"


def ints(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


def test_a_weight_that_others_read_is_not_stored_twice() -> None:
    proto = model(TIED, w=draw(32, 32))
    assert_skips(FoldConstants(), proto, r"^its value would add 40\d\d bytes to a file that is not to become larger$")


@pytest.mark.parametrize("allowance", [4000, 5000])
def test_an_allowance_is_a_bound_on_what_the_file_gains(allowance: int) -> None:
    proto = model(TIED, w=draw(32, 32))
    if allowance == 4000:
        assert_skips(FoldConstants(allowance=allowance), proto, "is not to become larger")
        return
    after = assert_rewrites(FoldConstants(allowance=allowance), proto, ops={"MatMul": 2})
    assert len(proto.SerializeToString()) < len(after.SerializeToString()) < len(proto.SerializeToString()) + allowance


def test_small_values_are_always_stored() -> None:
    side = int((SMALL // 4) ** 0.5)
    proto = model(TIED.replace("32", str(side)), w=draw(side, side))
    assert_rewrites(FoldConstants(), proto, ops={"MatMul": 2})


def test_what_one_value_frees_another_may_take() -> None:
    """The sum frees 8 KB, of which the table of 4 KB takes a part."""
    text = (
        "g (float[32,32] x) => (float[32,32] y) { a = Add(v, w) b = Mul(x, a) e = ConstantOfShape(n) c = Exp(e) "
        "y = Add(b, c) }"
    )
    weights = {"v": draw(32, 32), "w": draw(32, 32, seed=1), "n": ints(32, 32)}
    after = assert_rewrites(FoldConstants(), model(text, **weights), ops={"Mul": 1, "Add": 1})
    assert sorted(len(tensor.raw_data) for tensor in after.graph.initializer) == [4096, 4096]
    alone = "g (float[32,32] x) => (float[32,32] y) { e = ConstantOfShape(n) c = Exp(e) y = Add(x, c) }"
    assert_skips(FoldConstants(), model(alone, n=weights["n"]), "is not to become larger")


def test_values_that_save_more_nodes_for_their_bytes_come_first() -> None:
    """There is room for one of two tables: it goes to the larger one, of four nodes, not to the smaller one of two."""
    text = (
        "g (float[32,32] x, float[30,32] r) => (float[32,32] y, float[30,32] z) { s = Add(v, w) a = Mul(x, s) "
        "e = ConstantOfShape(n) f = Exp(e) z = Add(r, f) "
        "h = ConstantOfShape(m) i = Cos(h) j = Exp(i) k = Neg(j) y = Add(a, k) }"
    )
    proto = model(text, v=draw(32, 32), w=draw(32, 32, seed=1), n=ints(30, 32), m=ints(32, 32))
    after = assert_rewrites(FoldConstants(), proto, ops={"Mul": 1, "Add": 2, "ConstantOfShape": 1, "Exp": 1})
    assert len(after.SerializeToString()) <= len(proto.SerializeToString())


def test_a_constant_that_dead_nodes_read_too_is_freed() -> None:
    """The sum may take the place of the weight, as nothing else that stays reads it: what reads it besides is dead."""
    text = (
        "g (float[16,16] x) => (float[16,16] y) { c = Add(w, w) d = Sin(w) e = Add(v, c) a = Mul(x, c) b = Mul(a, e) "
        "y = Mul(b, v) }"
    )
    proto = model(text, w=draw(16, 16), v=draw(1, 16))
    assert_rewrites(FoldConstants(), proto, ops={"Add": 1, "Mul": 3}, rewritten=2)


def test_room_that_the_first_round_makes_serves_the_second() -> None:
    """What a sum frees shows only once the dead sums that share a part with it have gone."""
    dead = "c1 = Add(w, w) c3 = Add(w, w) c4 = Add(w, w) c5 = Add(w, w) c6 = Add(w, c0)"
    text = (
        f"g (float[16,16] x) => (float[16,16] y) {{ c0 = Add(w, w) {dead} c2 = Add(v, c0) c7 = Expand(v, n) "
        "a = Mul(x, c2) y = Mul(a, c7) }"
    )
    proto = model(text, n=ints(16, 16), w=draw(16, 16), v=draw(1, 16))
    assert_rewrites(FoldConstants(), proto, ops={"Mul": 2, "Expand": 1})


def test_the_allowance_is_for_all_rounds_of_the_pass() -> None:
    """The first table is stored; the size of the second is known only once the first round has computed it."""
    text = (
        "g (float[32,32] x) => (float[32,32] y) { e = ConstantOfShape(n) a = Add(x, e) "
        "f = Floor(q) m = Cast<to = 7>(f) h = ConstantOfShape(m) y = Add(a, h) }"
    )
    proto = model(text, n=ints(32, 32), q=np.float32([32.5, 32.5]))
    after, _ = run_alone(FoldConstants(allowance=5_000), proto)
    assert len(after.SerializeToString()) <= len(proto.SerializeToString()) + 5_000
    assert count_ops(after) == {"Add": 2, "ConstantOfShape": 1}
    after, _ = run_alone(FoldConstants(allowance=10_000), proto)
    assert count_ops(after) == {"Add": 2}


def test_a_chain_of_values_of_one_size_is_given_up_whole() -> None:
    chain = " ".join(f"c{i + 1} = Neg(c{i})" for i in range(300))
    proto = model(
        f"g (float[64,64] x) => (float[64,64] y) {{ c0 = ConstantOfShape(n) {chain} y = Add(x, c300) }}", n=ints(64, 64)
    )
    after, result = run_alone(FoldConstants(), proto)
    assert not result.rewritten
    assert len(result.skipped) == 301
    assert after.SerializeToString() == proto.SerializeToString()


def test_what_comes_before_a_large_value_is_folded() -> None:
    """The expansion stays; the row that it expands has been computed from two."""
    text = "g (float[64,64] x) => (float[64,64] y) { r = Add(v, w) e = Expand(r, n) y = Add(x, e) }"
    proto = model(text, v=draw(1, 64), w=draw(1, 64, seed=1), n=ints(64, 64))
    after = assert_rewrites(FoldConstants(), proto, ops={"Expand": 1, "Add": 1}, rewritten=1)
    assert len(after.SerializeToString()) < len(proto.SerializeToString())


def test_room_is_what_the_run_has_freed_so_far() -> None:
    """Alone the pass has no room; after another has dropped a dead weight it has."""
    proto = model(TIED, w=draw(32, 32), dead=draw(64, 32))
    assert_skips(FoldConstants(), proto, "is not to become larger")
    result = graphopt.optimize(proto, ["eliminate-dead", "fold-constants"])
    assert result.ok
    assert count_ops(result.model) == {"MatMul": 2}
    assert len(result.model.SerializeToString()) < len(proto.SerializeToString())


def test_a_file_counts_as_large_as_it_is_on_disk(tmp_path: object) -> None:
    """Text in a header that the graph knows nothing of counts on both sides."""
    proto = model(TIED, w=draw(32, 32))
    proto.doc_string = "x" * 10_000
    path = f"{tmp_path}/m.onnx"
    onnx.save(proto, path)
    result = graphopt.optimize(path, ["fold-constants"])
    assert [each.reason for each in result.report.passes[0].result.skipped] == [
        "its value would add 4090 bytes to a file that is not to become larger"
    ]


def summed(read: list[str]) -> str:
    """Add the sum of each tensor to the input."""
    parts = [f"s{i} = ReduceSum({name}) t{i} = Add({f't{i - 1}' if i else 'x'}, s{i})" for i, name in enumerate(read)]
    return " ".join(parts)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.data())
def test_no_program_becomes_larger(data: st.DataObject) -> None:
    """Parts of what shared constants of several sizes come to are stored: the file takes at most what it took."""
    known, nodes = ["w", "v", "u"], []
    for index in range(data.draw(st.integers(1, 10))):
        left, right = data.draw(st.sampled_from(known)), data.draw(st.sampled_from(known))
        kind = data.draw(st.sampled_from(["Add({a}, {b})", "Sin({a})", "Expand({a}, n)", "Softmax({a})"]))
        nodes.append(f"c{index} = {kind.format(a=left, b=right)}")
        known.append(f"c{index}")
    outer = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=4, unique=True))
    mixed = [f"p{i} = Mul(z, {name})" for i, name in enumerate(outer)]
    text = (
        f"g (float[1,1] x, float[16,16] z) => (float[1,1] y) {{ {' '.join(nodes + mixed)} "
        f"{summed([f'p{i}' for i in range(len(outer))])} y = Identity(t{len(outer) - 1}) }}"
    )
    proto = model(text, n=ints(16, 16), w=draw(16, 16), v=draw(1, 16), u=draw(1, 1))
    subject = from_proto(proto)
    before = serialized_size(subject)
    view = GraphView(subject)
    result = FoldConstants().apply(view)
    assert serialized_size(subject) <= before + SMALL * len(result.rewritten)
    again = FoldConstants().apply(GraphView(subject))
    assert not again.rewritten


def test_clean_up_ends_no_larger_than_it_began() -> None:
    """Ten tables of which each layer has its own: as many are stored as the dropped constants make room for."""
    layers = " ".join(
        f"i{k} = Gather(b{k}, rows) j{k} = Neg(i{k}) h{k} = Add({f'h{k - 1}' if k else 'x'}, j{k})" for k in range(10)
    )
    weights = {f"b{k}": draw(4, 64, seed=k) for k in range(10)}
    proto = model(
        f"g (float[32,64] x) => (float[32,64] y) {{ {layers} y = Identity(h9) }}",
        rows=np.arange(32) % 4,
        spare=draw(90, 64),
        **weights,
    )
    passes, repeat = preset_passes("clean")
    result = graphopt.optimize(proto, passes, fixed_point=repeat)
    assert result.ok
    assert count_ops(result.model)["Add"] == 10
    assert 0 < count_ops(result.model)["Gather"] < 10
    assert len(result.model.SerializeToString()) <= len(proto.SerializeToString())
