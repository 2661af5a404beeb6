"""Presets that repeat: a site that broke its contract stays vetoed in later rounds; a pass at rest is left alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
import pytest

import graphopt
from graphopt import BitExact, GraphView, Pass, PassResult, SitePass, option
from graphopt.errors import OptionError
from graphopt.testing import model

RUNS: list[tuple[str, ...]] = []


@dataclass(frozen=True, kw_only=True)
class Double(SitePass):
    """Write 2 for 1 in constants of Mul: wrong everywhere but where the product is multiplied by zero."""

    name = "double"
    contract = BitExact()

    only: str = option("", "The one site that is looked at.")

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield every Mul by one, and note the run."""
        found = [node for node in view.nodes("Mul") if np.all(view.array(node.inputs[1]) == 1)]
        RUNS.append(tuple(view.site(node) for node in found))
        yield from found

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Double one."""
        view.edit.set_values(node, 1, np.float32(2))
        return "doubled"


def test_culprits_stay_vetoed_in_later_rounds() -> None:
    proto = model(
        "g (float[N,4] x) => (float[N,4] y) { a = Mul(x, p) b = Mul(x, q) z = Mul(b, zero) y = Add(a, z) }",
        p=np.float32(1),
        q=np.float32(1),
        zero=np.float32(0),
    )
    RUNS.clear()
    result = graphopt.optimize(proto, [Double()], fixed_point=True)
    assert result.ok
    assert [rewritten.site for report in result.report.passes for rewritten in report.result.rewritten] == ["b"]
    reasons = [skipped.reason for report in result.report.passes for skipped in report.result.skipped]
    assert len(reasons) == 1
    assert reasons[0].startswith("breaks the contract")
    assert RUNS[-1] == ("a",), "the second round looks at what is left, and is told to leave it"


def test_a_pass_at_rest_is_not_run_again() -> None:
    proto = model(
        "g (float[N,4] x) => (float[N,4] y) { b = Mul(x, q) y = Mul(b, zero) }", q=np.float32(1), zero=np.float32(0)
    )
    RUNS.clear()
    result = graphopt.optimize(proto, [Double(), Double()], fixed_point=True)
    assert result.ok
    assert RUNS == [("b",), (), ()]


@pytest.mark.parametrize(
    ("fixed_point", "runs", "told"),
    [(False, 2, False), (0, 2, False), (-1, 2, False), (1, 3, 1), (2, 3, True), (5, 3, True), (True, 3, True)],
)
def test_a_number_repeats_the_first_so_many_passes(fixed_point: bool | int, runs: int, told: bool | int) -> None:
    proto = model(
        "g (float[N,4] x) => (float[N,4] y) { b = Mul(x, q) y = Mul(b, zero) }", q=np.float32(1), zero=np.float32(0)
    )
    RUNS.clear()
    result = graphopt.optimize(proto, [Double(), Double()], fixed_point=fixed_point)
    assert result.ok
    assert [("b",), (), ()][:runs] == RUNS
    assert result.report.circumstances is not None
    assert repr(result.report.circumstances.options["fixed_point"]) == repr(told)


def test_what_is_no_number_of_passes_is_refused() -> None:
    proto = model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    with pytest.raises(OptionError, match="fixed_point: a str cannot be used; True, False or a number of passes"):
        graphopt.optimize(proto, [Double()], fixed_point="all")  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Whisper(Pass):
    """Change an attribute, and say nothing of it."""

    name = "whisper"
    contract = BitExact()
    keeps_facts = True

    change: bool = option(True, "Whether to change it.")

    def run(self, view: GraphView) -> PassResult:
        """Change the graph if asked to, and note what was there."""
        (node,) = view.nodes("LeakyRelu")
        SEEN.append((id(view.model), node.attrs["alpha"]))
        if self.change:
            node.attrs["alpha"] = 0.75
        return PassResult()


SEEN: list[tuple[int, float]] = []


def test_an_untouched_copy_serves_the_next_pass_and_a_touched_one_does_not() -> None:
    proto = model("g (float[N,4] x) => (float[N,4] y) { y = LeakyRelu<alpha = 0.5>(x) }")
    SEEN.clear()
    passes = [Whisper(change=False), Whisper(change=False), Whisper(), Whisper(change=False)]
    result = graphopt.optimize(proto, passes, check=False, keep_going=True)
    assert [value for _, value in SEEN] == [0.5] * 4
    assert SEEN[0][0] == SEEN[1][0] == SEEN[2][0]
    assert [each.failure for each in result.report.passes] == [
        "",
        "",
        "says that it rewrote nothing but changed the graph",
        "",
    ]
    assert result.model.graph.node[0].attribute[0].f == 0.5


@dataclass(frozen=True, kw_only=True)
class Bake(SitePass):
    """Write the length 2 into every Reshape: right for the first draw of inputs, which has two samples."""

    name = "bake"
    contract = BitExact()

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield every Reshape to (-1, 2, 2)."""
        yield from [node for node in view.nodes("Reshape") if view.array(node.inputs[1])[0] == -1]

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Write (2, 2, 2) for two of them, and what leaves the shape alone for a third."""
        first = 0 if node.name == "sound" else 2
        view.edit.set_values(node, 1, np.array([first, 2, 2], np.int64))
        return "fixed"


@pytest.mark.parametrize("behind", [(), ("quantize-weights",)], ids=["alone", "with a pass that fails"])
def test_a_site_that_is_wrong_for_other_sizes_alone_is_found_and_left_out(behind: tuple[str, ...]) -> None:
    text = """g (float[N,4] x) => (float[N,2,2] y, float[N,2,2] z) {
        a = Reshape(x, p) b = Relu(x) [sound] z = Reshape(b, q) y = Neg(a) }"""
    target = np.array([-1, 2, 2], np.int64)
    result = graphopt.optimize(model(text, p=target, q=target), [Bake(), *behind], keep_going=True)
    baked = result.report.passes[0]
    assert [rewritten.site for rewritten in baked.result.rewritten] == ["z"]
    assert [skipped.site for skipped in baked.result.skipped] == ["a"]
    assert baked.check is not None
    assert baked.check.samples == 3
    assert result.report.check is not None
    assert result.report.check.holds
    assert result.ok is not bool(behind)


def test_exact_passes_are_held_to_the_first_draw_and_the_whole_to_all() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = Identity(x) y = Relu(a) }"
    result = graphopt.optimize(model(text), ["eliminate-noops"])
    (noops,) = result.report.passes
    assert noops.check is not None
    assert result.report.check is not None
    assert (noops.check.samples, result.report.check.samples) == (2, 3)
