"""The proof of a run: what is run and how often, what is kept of it and where, and what is fed."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.contract import BitExact, FloatExact, Lossy
from graphopt.errors import DataError, GraphoptError, ModelError
from graphopt.model import Model, from_proto, to_proto
from graphopt.proof import proof as proofs
from graphopt.proof import sessions as keeping_open
from graphopt.proof.outputs import Outputs
from graphopt.proof.proof import MOST_KEPT, Proof, compare_models
from graphopt.runtime import session as sessions
from graphopt.runtime import store as keeping
from graphopt.runtime.data import ListData
from graphopt.runtime.feeds import draw_inputs, from_arrays, generate
from graphopt.runtime.session import Session, threads_for_samples
from graphopt.runtime.store import Store
from graphopt.testing import draw, model

W = draw(6, 4)
X = draw(10, 6)
TIGHT = FloatExact(rtol=1e-4, atol=1e-5)
LISTED = "g (float[N,6] x, float[6,4] w) => (float[N,4] y) { y = MatMul(x, w) }"
CANCELLING = "g (float[N,6] x) => (float[N,4] y) { a = MatMul(x, w) s = Add(a, k) y = Sub(s, k) }"


def linear(weight: np.ndarray = W, batch: str = "N") -> Model:
    return from_proto(model(f"g (float[{batch},6] x) => (float[{batch},4] y) {{ y = MatMul(x, w) }}", w=weight))


class Counting(Proof):
    """A proof that counts the sessions that it opens."""

    opened_sessions = 0

    def session(self, model: Model, **options: Any) -> Session:
        """Open a session and count it."""
        self.opened_sessions += 1
        return super().session(model, **options)


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_outputs_are_computed_once_and_further_batches_when_they_are_asked_for() -> None:
    source = linear(batch="2")
    with Counting(source, from_arrays({"x": X}, source)) as proof:
        assert isinstance(proof, Counting)
        first = proof.outputs(source, 4)
        assert (proof.opened_sessions, len(first)) == (1, 2)
        assert proof.outputs(source, 3) is first
        assert (proof.opened_sessions, len(first)) == (1, 2)
        assert proof.outputs(source) is first
        assert (proof.opened_sessions, len(first)) == (2, 5)
        got = np.concatenate([batch["y"] for batch in first.read()])
        np.testing.assert_allclose(got, X @ W, rtol=1e-5, atol=1e-5)
        other = proof.outputs(source, 2, optimize=True)
        assert other is not first
        hidden = proof.outputs(source, 2, hidden=frozenset("w"))
        assert hidden is not first
        assert hidden is not other
        assert proof.opened_sessions == 4


def test_what_is_known_of_the_source_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Model] = []
    real = Proof.session

    def counted(proof: Proof, model: Model, **options: Any) -> Session:
        opened.append(model)
        return real(proof, model, **options)

    monkeypatch.setattr(Proof, "session", counted)
    source = linear()
    drawn = draw_inputs(source)
    plain = Session(source, threads=threads_for_samples(source))
    assert [each and each["y"].tobytes() for each in drawn.outputs] == [
        plain.run(feeds)["y"].tobytes() for feeds in drawn.data.batches()
    ]
    for known, count in ((drawn.outputs, 0), ((drawn.outputs[0], None), 1), ((None, drawn.outputs[1]), 1), ((), 1)):
        opened.clear()
        with Proof.opened(source, drawn.data, known=known) as proof:
            assert len(opened) == count
            assert proof.compare(proof.source, linear(), BitExact()).holds
            assert not proof.compare(proof.source, linear(W + 1), TIGHT).holds
            assert len(opened) == count + 2


@pytest.mark.parametrize(("limit", "mapped"), [(6 * 4 * 4, False), (6 * 4 * 4 - 1, True)])
def test_weights_go_the_way_of_the_sources_whatever_their_size(
    limit: int, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Spy(Session):
        def __init__(self, model: Any, **options: Any) -> None:
            seen.append(options["mapped"])
            super().__init__(model, **options)

    monkeypatch.setattr(sessions, "IN_MEMORY", limit)
    monkeypatch.setattr(keeping_open, "Session", Spy)
    source = linear()
    small, large = linear(W[:, :1]), linear(np.repeat(W, 2, axis=1))
    with Proof(source, from_arrays({"x": X}, source)) as proof:
        for each in (source, small, large):
            proof.outputs(each)
    assert seen == [mapped] * 3


def test_a_limit_within_a_batch_runs_the_whole_batch() -> None:
    source = linear()
    with Counting(source, from_arrays({"x": X}, source)) as proof:
        whole, part = proof.outputs(source), proof.outputs(source, 3)
        assert whole is part
        assert [len(batch["y"]) for batch in whole.read()] == [10]
        assert proof.compare(source, linear(W * np.float32(1 + 1e-6)), TIGHT, 3).samples == 10
        assert proof.opened_sessions == 2


def test_other_values_come_first_whatever_the_limit() -> None:
    source = from_proto(model(LISTED.replace("N", "2"), w=W))
    with Proof(source, from_arrays({"x": X}, source)) as proof:
        short = len(proof.outputs(source, 4))
        whole = proof.outputs(source)
        assert (short, len(whole)) == (3, 6)
        given = np.concatenate([batch["y"] for batch in list(whole.read())[1:]])
        np.testing.assert_allclose(given, X @ W, rtol=1e-5, atol=1e-5)


def test_outputs_of_the_source_stay_and_of_others_the_last_four() -> None:
    source = linear()
    others = [linear(W * np.float32(factor)) for factor in range(1, 7)]
    assert MOST_KEPT == 4
    with Counting(source, from_arrays({"x": X}, source)) as proof:
        assert isinstance(proof, Counting)
        kept = [proof.outputs(each) for each in (source, *others[:4])]
        proof.outputs(others[0])  # the oldest is the second one now
        assert proof.opened_sessions == 5
        held = proof._store.nbytes
        assert held == 5 * X.shape[0] * 4 * 4
        kept.append(proof.outputs(others[4]))
        assert [len(each) for each in kept] == [1, 1, 0, 1, 1, 1]
        assert proof._store.nbytes == held
        assert proof.outputs(source) is kept[0]
        assert proof.outputs(others[0]) is kept[1]
        assert proof.opened_sessions == 6
        assert proof.outputs(others[1]) is not kept[2]
        assert proof.opened_sessions == 7


def test_default_sessions_on_one_thread_stay_open() -> None:
    assert keeping_open.KEPT_OPEN == 1 << 25
    source, other = linear(), linear(W * np.float32(2))
    with Proof(source, from_arrays({"x": X}, source)) as proof:
        first = proof.session(source, optimize=True, threads=1)
        assert proof.session(source, optimize=True, threads=1) is first
        second = proof.session(other, optimize=True, threads=1)
        assert proof.session(other, optimize=True, threads=1) is second
        assert proof.session(source, optimize=True, threads=1) is first
        assert proof.session(source, threads=1) is not first
        assert proof.session(source, optimize=True) is not first


def test_a_model_that_fails_keeps_nothing() -> None:
    source = linear()
    text = (
        "g (float[N,6] x) => (float[N,4] y) { s = Constant<value_ints = [1, 4]>() a = MatMul(x, w) y = Reshape(a, s) }"
    )
    broken = from_proto(model(text, w=W))
    with Counting(source, from_arrays({"x": X}, source)) as proof:
        assert isinstance(proof, Counting)
        for count in (1, 2):
            with pytest.raises(GraphoptError, match="cannot run the model"):
                proof.outputs(broken)
            assert proof.opened_sessions == count
            assert proof._store.nbytes == 0
            assert not proof._kept


def test_large_outputs_go_to_files_and_come_back_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeping.IN_MEMORY == 1 << 27
    monkeypatch.setattr(keeping, "IN_MEMORY", 200)
    store = Store()
    kept = Outputs("owner", store)
    batches: list[dict[str, Any]] = [
        {"a": np.arange(25, dtype=np.float64)},  # as many bytes as there is room for
        {"b": np.ones(1, np.bool_), "c": np.array(["x", "y"], object), "d": [np.ones(3)], "e": None},
        {"f": np.arange(40, dtype=np.int16).reshape(4, 10), "g": np.array(2.5, np.float16)},
    ]
    for batch in batches:
        kept.append(batch)
    assert store.nbytes == 200
    folder = Path(store._folder.name) if store._folder is not None else None
    assert folder is not None
    assert folder.name.startswith("graphopt-kept-")
    assert sorted(path.name for path in folder.iterdir()) == ["1.npy", "2.npy", "3.npy"]
    for read, batch in zip(kept.read(), batches, strict=True):
        assert read.keys() == batch.keys()
        for name, value in batch.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(read[name], value)
                assert read[name].dtype == value.dtype
            else:
                assert read[name] is value
    assert len(kept) == 3
    kept.forget()
    assert (len(kept), store.nbytes, list(folder.iterdir())) == (0, 0, [])
    kept.append({"a": np.arange(26, dtype=np.float64)})
    assert (folder / "4.npy").exists()
    store.close()
    assert not folder.exists()
    store.close()
    kept.forget()


def test_a_proof_removes_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "IN_MEMORY", 100)
    source = linear()
    with Proof(source, from_arrays({"x": X}, source)) as proof:
        (batch,) = proof.outputs(source).read()
        np.testing.assert_allclose(batch["y"], X @ W, rtol=1e-5, atol=1e-5)
        assert proof.compare(source, linear(W * np.float32(1.01)), TIGHT).max_abs == pytest.approx(
            np.abs(X @ W).max() * 0.01, rel=1e-3
        )
        assert proof._store._folder is not None
        folder = Path(proof._store._folder.name)
        del batch
    assert not folder.exists()
    assert not proof._kept


# -- what is fed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["4", "7"])
def test_samples_that_fill_up_a_batch_do_not_count(batch: str) -> None:
    source = linear(batch=batch)
    with Proof(source, from_arrays({"x": X}, source)) as proof:
        rows = [each["y"] for each in proof.outputs(source).read()]
        assert [len(each) for each in rows] == list(proof.counts())
        assert sum(map(len, rows)) == 10
        np.testing.assert_allclose(np.concatenate(rows), X @ W, rtol=1e-5, atol=1e-5)


def test_only_outputs_with_a_row_for_each_sample_are_trimmed() -> None:
    text = """g (float[4,6] x) => (float[4,4] y, float[3] z, float s, float[2,4] t) {
        y = MatMul(x, w) z = Identity(v) s = ReduceSum<keepdims = 0>(x) t = Identity(u) }"""
    source = from_proto(model(text, w=W, v=draw(3), u=draw(2, 4)))
    with Proof(source, from_arrays({"x": X}, source)) as proof:
        last = list(proof.outputs(source).read())[-1]
        assert {name: value.shape for name, value in last.items()} == {"y": (2, 4), "z": (3,), "s": (), "t": (2, 4)}


def test_outputs_are_not_trimmed_where_inputs_have_no_length_in_common() -> None:
    text = "g (float[4,6] x, float[6,4] m) => (float[4,4] y) { y = MatMul(x, m) }"
    source = from_proto(model(text))
    data = ListData([{"x": X[:4], "m": W}])
    with Proof(source, data) as proof:
        (batch,) = proof.outputs(source).read()
        assert batch["y"].shape == (4, 4)


def test_every_row_of_a_ready_set_of_feeds_is_compared() -> None:
    """A folder of test data may hold several samples in each set."""
    source = from_proto(model("g (float[10,6] x) => (float[10,4] y) { y = MatMul(x, w) }", w=W))
    text = "g (float[10,6] x) => (float[10,4] y) { a = MatMul(x, w) y = Add(a, e) }"
    off = np.zeros((10, 4), np.float32)
    off[9, 3] = 1
    wrong = from_proto(model(text, w=W, e=off))
    result = compare_models(source, wrong, ListData([{"x": X}]), TIGHT)
    assert not result.holds
    assert result.outputs[0].elements == 40


def test_scalars_and_lists_among_the_inputs_fill_up_nothing() -> None:
    text = """g (float[4,6] x, float s, seq(float[3]) l) => (float[4,4] y, seq(float[3]) k) {
        a = MatMul(x, w) y = Mul(a, s) k = Identity(l) }"""
    source = from_proto(model(text, w=W))
    feeds = {"x": X[:4], "s": np.array(2, np.float32), "l": [draw(3)]}
    with Proof.opened(source, ListData([feeds])) as proof:
        (batch,) = proof.outputs(proof.source).read()
        assert batch["y"].shape == (4, 4)
        assert len(batch["k"]) == 1
    shared = from_proto(model("g (float[4,6] x, float s) => (float[4,4] y) { a = MatMul(x, w) y = Mul(a, s) }", w=W))
    with Proof(shared, from_arrays({"x": X, "s": np.array(2, np.float32)}, shared)) as proof:
        assert [len(batch["y"]) for batch in proof.outputs(shared).read()] == [4, 4, 2]


def test_initializers_that_a_caller_can_override_are_fed_other_values_first() -> None:
    source = from_proto(model(LISTED, w=W))
    with Proof(source, from_arrays({"x": X}, source)) as proof:
        feeds = list(proof.feeds())
        assert [sorted(each) for each in feeds] == [["w", "x"], ["x"]]
        assert list(proof.counts()) == [1, 10]
        assert list(proof.counts(3)) == [1, 10]
        np.testing.assert_array_equal(feeds[0]["x"], X[:1])
        assert not np.isclose(feeds[0]["w"], W).any()
        other, usual = proof.outputs(source).read()
        np.testing.assert_allclose(usual["y"], X @ W, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(other["y"], X[:1] @ feeds[0]["w"], rtol=1e-5, atol=1e-5)
        assert next(proof.feeds())["w"] is feeds[0]["w"]  # drawn once


def test_other_values_that_the_model_refuses_are_not_fed() -> None:
    """A shape cannot be just any shape."""
    text = "g (float[N,6] x, int64[2] s) => (float[N,M] y) { y = Reshape(x, s) }"
    source = from_proto(model(text, s=np.array([-1, 6])))
    with Proof(source, from_arrays({"x": X[:5]}, source)) as proof:
        assert [sorted(each) for each in proof.feeds()] == [["x"]]
        assert list(proof.counts()) == [5]
        assert proof.compare(source, source, TIGHT).holds


def test_generated_feeds_are_taken_as_they_are() -> None:
    source = from_proto(model(LISTED, w=W))
    data = generate(source)
    with Proof(source, data) as proof:
        assert len(list(proof.feeds())) == len(list(data.batches()))


def test_a_constant_in_the_place_of_what_could_be_overridden_is_refused_unless_the_pass_freezes() -> None:
    source, frozen = from_proto(model(LISTED, w=W)), linear()
    data = from_arrays({"x": X}, source)
    refused = compare_models(source, frozen, data, TIGHT)
    assert not refused.holds
    assert refused.problem == "initializer 'w' can no longer be overridden"
    assert not refused.outputs[0].holds  # the other values went nowhere
    allowed = compare_models(source, frozen, data, TIGHT, freezes=True)
    assert allowed.holds, allowed.problem
    assert allowed.samples == 11
    wrong = linear(W * np.float32(1.01))
    assert not compare_models(source, wrong, data, TIGHT, freezes=True).holds
    assert compare_models(source, source, data, TIGHT).holds


def test_a_candidate_that_ignores_what_is_fed_is_found_out() -> None:
    source = from_proto(model(LISTED, w=W))
    text = "g (float[N,6] x, float[6,4] w) => (float[N,4] y) { n = Sub(w, w) v = Add(n, c) y = MatMul(x, v) }"
    deaf = from_proto(model(text, w=W, c=W))
    assert not compare_models(source, deaf, from_arrays({"x": X}, source), TIGHT).holds


# -- opening -----------------------------------------------------------------------------------------------------------


def test_a_model_that_does_not_run_cannot_be_proved() -> None:
    text = "g (float[N,6] x) => (float[N,4] y) { y = MatMul(x, w) }"
    broken = from_proto(model(text, w=draw(5, 4)))
    with pytest.raises(ModelError, match="the model cannot be proved, as it does not run: ONNX Runtime cannot"):
        Proof.opened(broken, from_arrays({"x": X}, linear()))


def test_labels_need_a_row_of_scores_for_each_sample() -> None:
    text = "g (float[N,6] x) => (float[M] y) { y = MatMul(x, w) }"
    flat = from_proto(model(text, w=W[:, 0]))
    labelled = {"x": X, "labels": np.zeros(10, np.int64)}
    whole = "g (float[N,6] x) => (float[M,4] y) { a = MatMul(x, w) y = Concat<axis = 0>(a, a) }"
    double = from_proto(model(whole, w=W))
    with pytest.raises(DataError, match="has 2 rows of class scores for 1 samples"):
        Proof.opened(double, from_arrays(labelled, double))
    assert Proof.opened(linear(), from_arrays(labelled, linear())).data.labels is not None
    assert Proof.opened(flat, from_arrays({"x": X}, flat)).data.labels is None


def test_a_rank_that_is_declared_wrong_is_put_right() -> None:
    text = "g (float[N,6] x) => (float[N,6,1] y) { shape = Shape(x) same = Abs(shape) y = Reshape(x, same) }"
    source = from_proto(model(text))
    proof = Proof.opened(source, from_arrays({"x": X}, source))
    assert len(to_proto(proof.source).graph.output[0].type.tensor_type.shape.dim) == 2
    assert proof.source.repairs == ("output 'y' is declared with rank 3 but has 2",)
    assert proof.data.size == 10


# -- judging -----------------------------------------------------------------------------------------------------------


def test_a_broken_contract_is_reviewed_where_that_is_asked_for_and_affordable(monkeypatch: pytest.MonkeyPatch) -> None:
    source = from_proto(model(CANCELLING, w=W, k=np.full(4, 1e4, np.float32)))
    exact = linear()
    data = from_arrays({"x": X}, source)
    assert proofs.REVIEWED == 1 << 30
    assert compare_models(source, exact, data, TIGHT).holds
    assert not compare_models(source, exact, data, TIGHT, reviewed=False).holds
    assert not compare_models(source, exact, data, BitExact()).holds
    nbytes = W.nbytes + 16
    monkeypatch.setattr(proofs, "REVIEWED", nbytes)
    assert compare_models(source, exact, data, TIGHT).holds
    assert compare_models(exact, exact, data, TIGHT).holds
    monkeypatch.setattr(proofs, "REVIEWED", nbytes - 1)
    assert not compare_models(source, exact, data, TIGHT).holds


def test_a_contract_that_holds_is_not_reviewed() -> None:
    source = from_proto(model("g (float[N,6] x) => (int64[N] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }"))
    result = compare_models(source, source, from_arrays({"x": X}, source), TIGHT)
    assert result.holds
    assert not result.notes
    assert [each.name for each in result.outputs] == ["y"]


def test_samples_are_those_of_the_user() -> None:
    source = linear(batch="4")
    data = from_arrays({"x": X}, source)
    assert compare_models(source, source, data, TIGHT).samples == 10
    assert compare_models(source, source, data, TIGHT, 5).samples == 8


def test_what_lies_behind_a_plugin_has_to_stay() -> None:
    def plugged(weight: np.ndarray, plugin: str = "Secret<a = 1>", end: str = "Relu") -> Model:
        text = f"g (float[N,6] x) => (float[N,4] y) {{ a = MatMul(x, w) b = com.example.{plugin}(a) y = {end}(b) }}"
        proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]> {text}')
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        return from_proto(proto)

    source = plugged(W)
    data = from_arrays({"x": X}, source)
    with Proof.opened(source, data) as proof:
        assert proof.unknown is not None
        assert proof.session(source).outputs == ("input 0 of Secret 'b'",)
        same = proof.compare(source, plugged(W * np.float32(1 + 1e-6)), TIGHT)
        assert same.holds, same.problem
        assert [each.name for each in same.outputs] == ["input 0 of Secret 'b'"]
        wrong = proof.compare(source, plugged(W * np.float32(1.01)), TIGHT)
        assert wrong.problem.startswith("input 0 of Secret 'b': an element moved by")
        for changed in (plugged(W, "Secret<a = 2>"), plugged(W, end="Abs")):
            found = proof.compare(source, changed, Lossy(-1000.0))
            assert found.problem == "what lies behind com.example::Secret has changed, which cannot be proved"
