"""Every pass on random graphs, judged by ONNX Runtime alone; the long run is a command.

``python benchmarks/random_graphs.py --count 5000 --jobs 2`` does the same with more graphs.
"""

from collections import Counter
from collections.abc import Callable
from types import ModuleType

import numpy as np
import onnx
import pytest

from graphopt.contract import BitExact, FloatExact, Lossy

SEEDS = range(60)
PARTS = 6


@pytest.fixture(scope="module")
def random_graphs(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("random_graphs")


@pytest.mark.parametrize("part", range(PARTS))
def test_every_pass_on_random_graphs(random_graphs: ModuleType, part: int) -> None:
    tally: Counter[str] = Counter()
    found = {seed: random_graphs.findings(seed, (), tally) for seed in SEEDS[part::PARTS]}
    assert not {seed: problems for seed, problems in found.items() if problems}
    assert tally["graphs"] >= 0.8 * tally["drawn"]
    assert tally["preset clean: sites"] > tally["graphs"]


def test_the_graphs_are_of_many_kinds(random_graphs: ModuleType) -> None:
    drawn = [random_graphs.draw_model(seed, random_graphs.FORMS) for seed in SEEDS]
    kinds = Counter(node.op_type for each in drawn for node in each.proto.graph.node)
    assert len(kinds) >= 60
    assert len({each.proto.opset_import[0].version for each in drawn}) >= 15
    assert sum(bool(each.overrides[1]) for each in drawn) >= 5
    sizes = [{str([value.shape for value in feeds.values()]) for feeds in each.feeds} for each in drawn]
    assert sum(len(each) == 3 for each in sizes) >= 40


def test_the_same_seed_draws_the_same_graph(random_graphs: ModuleType) -> None:
    one, same, other = (random_graphs.draw_model(seed, random_graphs.FORMS).proto for seed in (5, 5, 6))
    assert one.SerializeToString() == same.SerializeToString() != other.SerializeToString()


class TestTheJudge:
    """What would be a fault is one to the judge."""

    @pytest.fixture
    def judge(self, random_graphs: ModuleType) -> object:
        graph = onnx.parser.parse_graph(
            "g (float[N,3] x, float[3] w) => (float[N,3] y) { a = Mul(x, w) y = Add(a, w) }"
        )
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1, 2, 3]), "w"))
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        rng = np.random.default_rng(0)
        feeds = tuple({"x": rng.standard_normal((size, 3)).astype(np.float32)} for size in (2, 1, 3))
        overrides = ({}, {"w": np.float32([4, 5, 6])}, {})
        return random_graphs.Judge(random_graphs.Drawn(proto, feeds, overrides))

    def changed(self, judge: object, old: str, new: str) -> onnx.ModelProto:
        text = onnx.printer.to_text(judge.drawn.proto)
        assert old in text
        return onnx.parser.parse_model(text.replace(old, new))

    @pytest.mark.parametrize("contract", [BitExact(), FloatExact(1e-4, 1e-5), Lossy(10.0)], ids=str)
    def test_the_model_itself_is_right(self, judge: object, contract: object) -> None:
        assert judge.problem(judge.drawn.proto, contract, False) == ""

    @pytest.mark.parametrize("contract", [BitExact(), FloatExact(1e-4, 1e-5)], ids=str)
    @pytest.mark.parametrize(
        "new",
        [
            pytest.param("Add (a, a)", id="another value"),
            pytest.param("Sub (a, w)", id="another sign"),
        ],
    )
    def test_a_wrong_value(self, judge: object, contract: object, new: str) -> None:
        assert "plain session, call 0, 'y': moved by" in judge.problem(
            self.changed(judge, "Add (a, w)", new), contract, False
        )

    def test_rounding(self, judge: object) -> None:
        swapped = self.changed(judge, "y = Add (a, w)", "b = Sub (a, x) c = Add (b, w) y = Add (c, x)")
        assert judge.problem(swapped, FloatExact(1e-5, 1e-6), False) == ""
        assert "not bit-exact" in judge.problem(swapped, BitExact(), False)

    def test_a_default_that_was_made_a_constant(self, judge: object) -> None:
        proto = onnx.ModelProto.FromString(judge.drawn.proto.SerializeToString())
        constant = onnx.helper.make_node("Constant", [], ["own"], value=proto.graph.initializer[0])
        proto.graph.node.insert(0, constant)
        proto.graph.node[-1].input[1] = "own"
        assert "call 3, 'y': moved by" in judge.problem(proto, FloatExact(1e-4, 1e-5), False)
        assert judge.problem(proto, FloatExact(1e-4, 1e-5), True) == ""

    def test_a_lossy_result_that_is_not_finite(self, judge: object) -> None:
        broken = self.changed(judge, "y = Add (a, w)", "b = Sub (x, x) c = Div (a, b) y = Add (c, w)")
        assert "is not finite" in judge.problem(broken, Lossy(10.0), False)

    def test_a_lossy_result_of_another_shape(self, judge: object) -> None:
        broken = self.changed(judge, "y = Add (a, w)", "b = Add (a, w) y = Concat <axis = 0> (b, b)")
        assert "instead of float32(2, 3)" in judge.problem(broken, Lossy(10.0), False)
