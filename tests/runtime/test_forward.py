"""Tensors asked for from the front to the back: equal to the whole model's, and each part of the model is run once."""

from typing import Any

import numpy as np
import pytest

from graphopt import GraphView
from graphopt.model import Model, from_proto, to_proto
from graphopt.runtime import forward
from graphopt.runtime.data import ListData
from graphopt.runtime.feeds import from_arrays
from graphopt.runtime.forward import Forward
from graphopt.runtime.session import Session
from graphopt.runtime.taps import Taps, cut
from graphopt.testing import draw, model

X = draw(10, 4)


def chain(length: int) -> Model:
    """Layers h1, h2, ..., each of which reads the sum of the two before it; the weights are cast from float16."""
    lines, weights = ["s1 = Identity(x)"], {}
    for index in range(1, length + 1):
        weights[f"k{index}"] = draw(4, 4, seed=index).astype(np.float16)
        lines.append(
            f"w{index} = Cast<to = 1>(k{index}) h{index} = MatMul(s{index}, w{index}) t{index} = Tanh(h{index})"
        )
        lines.append(f"s{index + 1} = Add(t{index}, {f't{index - 1}' if index > 1 else 'x'})")
    text = f"g (float[N,4] x) => (float[N,4] y) {{ {' '.join(lines)} y = Identity(s{length + 1}) }}"
    return from_proto(model(text, **weights))


def whole(subject: Model, names: list[str]) -> list[dict[str, Any]]:
    """What a session gives for the batches of three."""
    session = Session(to_proto(subject), extra_outputs=names)
    return [{name: session.run({"x": X[start : start + 3]})[name] for name in names} for start in (0, 3, 6, 9)]


def walked(subject: Model) -> Forward:
    return Forward(subject, ListData([{"x": X[start : start + 3]} for start in (0, 3, 6, 9)]), 4)


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        for name, value in right.items():
            np.testing.assert_array_equal(left[name], value)


@pytest.mark.parametrize("seed", range(4))
def test_values_are_the_whole_models_in_any_order(seed: int) -> None:
    subject = chain(8)
    rng = np.random.default_rng(seed)
    forwards = walked(subject)
    for _ in range(12):
        names = [f"{rng.choice(list('hts'))}{rng.integers(1, 9)}" for _ in range(2)]
        upto = f"h{rng.integers(1, 9)}"
        names = list(dict.fromkeys([*names, "y"]))
        assert_equal(list(forwards.batches(names, upto)), whole(subject, names))
        assert_equal([forwards.first(["h5", "x"])], [{**whole(subject, ["h5"])[0], "x": X[:3]}])
    forwards.close()


def test_what_lies_behind_may_change() -> None:
    subject = chain(5)
    forwards = walked(subject)
    view = GraphView(subject)
    for index in range(1, 6):
        names = [f"s{index}", f"h{index}"]
        assert_equal(list(forwards.batches(names, f"h{index}")), whole(subject, names))
        node = next(node for node in view.nodes("MatMul") if node.outputs[0].name == f"h{index}")
        view.edit.set_values(view.producer(node.inputs[1], "Cast"), 0, draw(4, 4, seed=50 + index).astype(np.float16))
    assert_equal(list(forwards.batches(["y"], "y")), whole(subject, ["y"]))
    forwards.close()


def nodes_run(length: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many nodes are run while all layers are asked for in order."""
    count = 0

    class Counted(Taps):
        def __init__(self, subject: Model, names: Any, **options: Any) -> None:
            nonlocal count
            count += len(cut(to_proto(subject), names, options["given"]).graph.node)
            super().__init__(subject, names, **options)

    monkeypatch.setattr(forward, "Taps", Counted)
    forwards = walked(chain(length))
    for index in range(1, length + 1):
        list(forwards.batches([f"s{index}", f"h{index}"], f"h{index}"))
    forwards.close()
    return count


def test_each_part_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = nodes_run(10, monkeypatch), nodes_run(30, monkeypatch)
    assert long - short == 20 * 6, "the four nodes of a layer, and the two that the layer after it begins with"


def test_constants_are_not_kept() -> None:
    forwards = walked(chain(6))
    list(forwards.batches(["h4"], "h4"))
    assert sorted(info.name for info in forwards._given) == ["s4", "t3"]
    assert forwards._store.nbytes == 2 * X.nbytes
    forwards.close()
    assert forwards._store.nbytes == 0


def test_what_was_not_read_to_the_end_is_not_kept() -> None:
    subject = chain(4)
    forwards = walked(subject)
    given_up = forwards.batches(["h2"], "h2")
    next(given_up)
    assert forwards._store.nbytes
    given_up.close()
    assert not forwards._kept
    assert not forwards._store.nbytes
    assert_equal(list(forwards.batches(["h3"], "h3")), whole(subject, ["h3"]))
    forwards.close()


def test_sequences_are_not_kept() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
      a = Neg(x) q = SequenceConstruct(x, a) b = Exp(a) i = Constant<value = int64 {1}>()
      c = SequenceAt(q, i) y = Add(b, c) }"""
    subject = from_proto(model(text))
    forwards = Forward(subject, from_arrays({"x": X}, subject), 10)
    (first,) = forwards.batches(["a"], "b")
    assert not forwards._kept
    np.testing.assert_array_equal(first["a"], -X)
    (last,) = forwards.batches(["c", "y"], "y")
    np.testing.assert_array_equal(last["c"], -X)
    np.testing.assert_allclose(last["y"], np.exp(-X) - X, rtol=1e-5, atol=1e-6)
    forwards.close()


def test_bodies_read_what_is_kept() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y) {
      a = Neg(x) b = Exp(a) d = Abs(b)
      y = If(c) <then_branch = t () => (float[N,4] p) { p = Mul(a, d) },
                 else_branch = e () => (float[N,4] q) { q = Neg(a) }> }"""
    subject = from_proto(model(text))
    forwards = Forward(subject, from_arrays({"x": X, "c": np.array(True)}, subject), 10)
    list(forwards.batches(["b"], "d"))
    assert sorted(info.name for info in forwards._given) == ["a", "b"]
    (last,) = forwards.batches(["y"], "y")
    np.testing.assert_allclose(last["y"], -X * np.exp(-X), rtol=1e-5, atol=1e-6)
    forwards.close()
