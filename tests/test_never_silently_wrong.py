"""Passes that lie, crash or hide what they did: nothing of theirs reaches the saved model."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import graphopt
from graphopt import BitExact, FloatExact, GraphView, Lossy, Pass, PassResult, SitePass, option
from graphopt.testing import model


def chain(length: int = 20) -> onnx.ModelProto:
    """A chain of MatMuls with orthogonal weights, so that every one of them matters and none blows up."""
    rng = np.random.default_rng(7)
    weights = {f"w{i}": np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32) for i in range(length)}
    steps = " ".join(f"t{i + 1} = MatMul(t{i}, w{i})" for i in range(length))
    return model(f"g (float[N,8] t0) => (float[N,8] t{length}) {{ {steps} }}", **weights)


@dataclass(frozen=True, kw_only=True)
class Nudge(SitePass):
    """Scale weights by a power of two and scale back (exact), except at one site, where the scale stays."""

    name = "nudge"
    contract = BitExact()

    bad: tuple[str, ...] = option((), "Sites where the weight really changes.")
    crash: str = option("", "Site at which to crash, half-way through its rewrite.")
    gain: float = option(1.001, "By how much a bad site is off.")

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield every MatMul."""
        yield from view.nodes("MatMul")

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Replace the weight by an equal one, or by a wrong one."""
        (weight,) = view.require_constants(node.inputs[1])
        site = view.site(node)
        view.edit.set_values(node, 1, weight * (self.gain if site in self.bad else 1.0))
        if site == self.crash:
            view.edit.remove([node])
            raise KeyError("half-way")
        return "nudged"


@dataclass(frozen=True, kw_only=True)
class Hide(Pass):
    """Change the graph and say that nothing was done."""

    name = "hide"
    contract = BitExact()

    def run(self, view: GraphView) -> PassResult:
        """Negate a weight in silence."""
        node = next(view.nodes("MatMul"))
        (weight,) = view.require_constants(node.inputs[1])
        view.edit.set_values(node, 1, -weight)
        return PassResult()


@dataclass(frozen=True, kw_only=True)
class Break(Pass):
    """Leave a graph that does not load."""

    name = "break"
    contract = Lossy(min_sqnr_db=0)

    def run(self, view: GraphView) -> PassResult:
        """Turn an operator into one that does not exist."""
        node = next(view.nodes("MatMul"))
        node.op = "NoSuchOperator"
        return PassResult((graphopt.Rewritten(view.site(node)),))


ALL_SITES = tuple(f"t{i + 1}" for i in range(20))


@pytest.mark.parametrize(
    ("culprit", "says"),
    [
        pytest.param(Nudge(bad=ALL_SITES), "broke its contract bit-exact", id="lies about its exactness"),
        pytest.param(Nudge(crash="t5"), r"KeyError.*half-way.*t5", id="crashes half-way"),
        pytest.param(Hide(), "rewrote nothing but changed", id="says it did nothing but changed the graph"),
        pytest.param(Break(), "broke its contract|NoSuchOperator", id="leaves a model that does not load"),
    ],
)
def test_rolled_back(culprit: Pass, says: str, tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(chain().SerializeToString())
    result = graphopt.optimize(tmp_path / "in.onnx", [culprit])
    assert not result.ok
    assert len(result.report.failures) == 1
    assert re.search(says, result.report.failures[0])
    assert not result.report.passes[0].kept
    graphopt.save(result.optimized, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()
    assert result.model.SerializeToString() == (tmp_path / "in.onnx").read_bytes()


@pytest.mark.parametrize("bad", [("t1",), ("t13",), ("t20",), ("t4", "t17")], ids=["first", "middle", "last", "two"])
def test_bad_sites_are_named_and_the_others_stay(bad: tuple[str, ...]) -> None:
    result = graphopt.optimize(chain(), [Nudge(bad=bad)])
    (told,) = result.report.passes
    assert result.ok
    assert told.kept
    assert {each.site for each in told.result.rewritten} == set(ALL_SITES) - set(bad)
    assert {each.site for each in told.result.skipped} == set(bad)
    assert all(each.reason.startswith("breaks the contract: ") for each in told.result.skipped)
    assert told.check is not None
    assert told.check.holds
    assert told.check.max_abs == 0


def test_a_small_lie_about_float_exactness_is_caught() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Float(Nudge):
        """The same under a float contract."""

        name = "nudge-float"
        contract = FloatExact(rtol=1e-4, atol=1e-5)

    result = graphopt.optimize(chain(), [Float(bad=("t3",), gain=1.001)])
    assert [each.site for each in result.report.passes[0].result.skipped] == ["t3"]


def test_a_pass_after_a_failed_one_runs_only_if_told_to() -> None:
    assert [each.name for each in graphopt.optimize(chain(), [Hide(), Nudge()]).report.passes] == ["hide"]
    going = graphopt.optimize(chain(), [Hide(), Nudge()], keep_going=True).report
    assert [(each.name, each.kept) for each in going.passes] == [("hide", False), ("nudge", True)]
    assert not going.ok


def test_a_compressing_pass_that_does_not_make_the_file_smaller_fails() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Inflate(Nudge):
        """Claim to compress."""

        name = "inflate"
        compresses = True

    result = graphopt.optimize(chain(), [Inflate()])
    assert result.report.failures == ("inflate: would not make the file smaller",)


def test_a_run_that_is_to_compress_but_gives_a_larger_file_fails() -> None:
    filled = """g (float[N,64] x) => (float[N,64] y) {
        s = Constant<value_ints = [64, 64]>() w = ConstantOfShape<value = float[1] {0.5}>(s) h = MatMul(x, w)
        y = MatMul(h, u) }"""
    proto = model(filled, u=np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32))
    grow = graphopt.create("fold-constants", allowance=1 << 20)
    alone = graphopt.optimize(proto, [grow])
    assert alone.ok
    assert alone.report.after.bytes > 1.5 * alone.report.before.bytes
    assert graphopt.optimize(proto, [grow, "quantize-weights"]).ok
    told = graphopt.optimize(proto, [grow, graphopt.create("quantize-weights", dtype="int16")]).report
    assert [each.kept for each in told.passes] == [True, True]
    assert told.failures == (f"the result is not smaller: {told.before.bytes:,} bytes became {told.after.bytes:,}",)


def test_a_compressing_pass_with_nothing_to_do_fails() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Idle(Nudge):
        """Claim to compress."""

        name = "idle"
        compresses = True

    relu = model("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    assert graphopt.optimize(relu, [Idle()]).report.failures == ("idle: nothing to do (no place to work on)",)


def test_the_model_given_is_not_changed() -> None:
    proto = chain()
    before = proto.SerializeToString()
    graphopt.optimize(proto, [Nudge(bad=("t2",))])
    assert proto.SerializeToString() == before


def test_passes_that_undo_each_other_are_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Flip(Pass):
        """Swap Relu chains' operator names back and forth."""

        name = "flip"
        contract = BitExact()

        def run(self, view: GraphView) -> PassResult:
            """Toggle a pair of double negations."""
            nodes = list(view.nodes("Neg"))
            if nodes:
                source, out = nodes[0].inputs[0], nodes[1].outputs[0]
                view.edit.remove(nodes)
                added = view.edit.add_node(nodes[0], "Identity", [source])
                view.edit.set_output(added, 0, out)
                return PassResult((graphopt.Rewritten("y"),))
            node = next(view.nodes("Identity"))
            out = node.outputs[0]
            first = view.edit.add_node(node, "Neg", [node.inputs[0]])
            second = view.edit.add_node(node, "Neg", [first.outputs[0]])
            view.edit.remove([node])
            view.edit.set_output(second, 0, out)
            return PassResult((graphopt.Rewritten("y"),))

    start = model("g (float[N,4] x) => (float[N,4] y) { t = Neg(x)  y = Neg(t) }")
    failures = graphopt.optimize(start, [Flip()], fixed_point=True).report.failures
    assert len(failures) == 1
    assert "never comes to rest: flip still find work" in failures[0]
    assert graphopt.optimize(start, ["merge-duplicates", Flip()], fixed_point=1).ok, "what runs once need not rest"
