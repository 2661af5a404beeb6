"""The ruler that ranks layers is the one that judges, and the search for what a model bears."""

import numpy as np
import pytest

from graphopt.contract import Lossy
from graphopt.model import from_proto
from graphopt.numerics.compare import Comparer
from graphopt.runtime.sensitivity import bearable, rank, worst_sqnr
from graphopt.runtime.session import Session
from graphopt.testing import model

X = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
FEEDS = [{"x": X[:6]}, {"x": X[6:]}]


def net(factor: float, more: str = "") -> object:
    text = f"""g (float[N,4] x) => (float[N,4] y, float[N,4] z, int64[N,1] i) {{
        y = Mul(x, f) z = Add(y, one) i = ArgMax<axis=1>({more or "y"}) }}"""
    return model(text, f=np.array(factor, np.float32), one=np.array(9, np.float32))


def ratio(candidate: object) -> float:
    before, after = from_proto(net(1.0)), from_proto(candidate)
    return worst_sqnr(after, FEEDS, [Session(before).run(each) for each in FEEDS])


def test_it_is_the_ratio_of_the_comparer() -> None:
    comparer = Comparer(Lossy(0.0))
    before, after = Session(from_proto(net(1.0))), Session(from_proto(net(1.1)))
    for feeds in FEEDS:
        comparer.add(*({name: each.run(feeds)[name] for name in "yz"} for each in (before, after)))
    assert ratio(net(1.1)) == comparer.result().sqnr_db


def test_outputs_that_are_no_floats_do_not_count() -> None:
    assert ratio(net(1.0, "z")) == ratio(net(1.0)) == np.inf
    assert ratio(net(-1.0)) < 0


def test_another_shape_is_as_bad_as_can_be() -> None:
    text = """g (float[N,4] x) => (float[M,4] y, float[N,4] z, int64[N,1] i) {
        y = Concat<axis=0>(x, x) z = Add(x, one) i = ArgMax<axis=1>(x) }"""
    assert ratio(model(text, one=np.array(9, np.float32))) == -np.inf


@pytest.mark.parametrize(("floor", "kept"), [(0.0, "bcd"), (25.0, "cd"), (35.0, "d"), (99.0, "")])
def test_as_few_of_the_most_sensitive_as_possible_are_left_out(floor: float, kept: str) -> None:
    alone = {"c": 30.0, "a": 5.0, "d": 40.0, "b": 20.0}
    ranking = rank(list(alone), lambda sites: alone[sites[0]])
    assert list(ranking) == ["a", "b", "c", "d"]
    assert bearable(ranking, lambda sites: min(alone[each] for each in sites), floor) == list(kept)
