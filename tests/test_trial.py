"""One pass on one model, proved: sites are demoted, written in another form or left alone, or the pass is reverted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt import (
    BitExact,
    FloatExact,
    GraphView,
    Lossy,
    Pass,
    PassResult,
    Rewritten,
    SitePass,
    create,
    option,
    trial,
)
from graphopt.bisect import Treatment
from graphopt.contract import Contract
from graphopt.model import from_proto, to_proto
from graphopt.proof.proof import Proof
from graphopt.runtime.data import Data
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.runtime.session import Session
from graphopt.subject import Subject
from graphopt.testing import draw, initializers, model
from graphopt.trial import CHECK_SAMPLES, MAX_CULPRITS, MAX_LOSSY_CULPRITS, PROBE_SAMPLES, Outcome, Trial

SITES = tuple(f"t{i + 1}" for i in range(6))
X = draw(40, 8)


def chain(length: int = 6) -> onnx.ModelProto:
    """A chain of MatMuls with orthogonal weights, so that every one of them matters and none blows up."""
    weights = {f"w{i}": np.linalg.qr(draw(8, 8, seed=i))[0] for i in range(length)}
    steps = " ".join(f"t{i + 1} = MatMul(t{i}, w{i})" for i in range(length))
    return model(f"g (float[N,8] t0) => (float[N,8] t{length}) {{ {steps} }}", **weights)


@dataclass(frozen=True, kw_only=True)
class Blur(SitePass):
    """Add noise to weights: a lot at some sites, less with each step of demotion, NaN at others."""

    name = "blur"
    contract: ClassVar[Contract] = Lossy(20.0)
    demotions = ("form", "range", "bits")

    loud: tuple[str, ...] = option((), "Sites with more noise.")
    broken: tuple[str, ...] = option((), "Sites that break the contract.")
    silent: tuple[str, ...] = option((), "Sites without noise.")

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield every MatMul."""
        yield from view.nodes("MatMul")

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Add noise to one weight."""
        (weight,) = view.require_constants(node.inputs[1])
        site = view.site(node)
        level = min(view.demotions.get(site, 0), len(self.demotions))
        scale = (0.15 if site in self.loud else 0.0 if site in self.silent else 1e-3) * (1.0, 1.0, 0.3, 1e-3)[level]
        noise = np.float32(np.nan if site in self.broken else scale) * draw(8, 8, seed=99)
        view.edit.set_values(node, 1, weight + noise)
        return f"level {level}"


@dataclass(frozen=True, kw_only=True)
class Plain(Blur):
    """The same of a third party that knows no steps."""

    name = "plain"
    demotions = ()


def tried(
    each: Pass,
    proto: onnx.ModelProto | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    *,
    data: Data | None = None,
    **others: Any,
) -> Outcome:
    """Run a trial of one pass."""
    source = from_proto(chain() if proto is None else proto)
    feeds = data or from_arrays(arrays or {"t0": X}, source)
    with Proof.opened(source, feeds) as proof:
        return Trial(each, Subject(source), source, feeds, proof, **others).run()


def test_the_figures_that_the_documentation_quotes() -> None:
    assert (CHECK_SAMPLES, PROBE_SAMPLES, MAX_CULPRITS, MAX_LOSSY_CULPRITS) == (128, 8, 16, 4)


# -- demotion ----------------------------------------------------------------------------------------------------------


def test_a_pass_that_holds_is_kept_as_it_is() -> None:
    outcome = tried(Blur())
    assert not outcome.failure
    assert outcome.check is not None
    assert outcome.check.holds
    assert outcome.check.samples == 40
    assert outcome.demoted == ()
    assert outcome.treatment == Treatment()
    assert {each.site for each in outcome.result.rewritten} == set(SITES)


@pytest.mark.parametrize("loud", [("t3",), ("t1", "t6")], ids=["one", "two"])
def test_the_sites_that_cost_most_are_written_more_carefully(loud: tuple[str, ...]) -> None:
    outcome = tried(Blur(loud=loud))
    assert not outcome.failure
    assert outcome.check is not None
    assert outcome.check.holds
    assert outcome.check.sqnr_db is not None
    assert outcome.check.sqnr_db >= 20
    assert outcome.treatment == Treatment({}, dict.fromkeys(loud, 3))
    assert {(each.site, each.step, each.before, each.after) for each in outcome.demoted} == {
        (site, "bits", "level 0", "level 3") for site in loud
    }
    for each in outcome.demoted:
        assert each.nbytes is None
        assert each.cost_db is not None
        assert 0 < each.cost_db < 12  # the whole has 7.4, the worst part less
    stored, source = initializers(to_proto(outcome.model)), initializers(chain())
    for index, site in enumerate(SITES):
        moved = np.abs(stored[f"w{index}"] - source[f"w{index}"]).max()
        assert 1e-4 < moved < 1e-2 or site in loud, site
        assert moved < 1e-2


def test_a_site_without_noise_costs_nothing() -> None:
    outcome = tried(Blur(loud=("t3",), silent=("t5",)))
    assert not outcome.failure
    assert outcome.treatment == Treatment({}, {"t3": 3})


def test_a_third_partys_pass_without_steps_leaves_the_loud_sites_float() -> None:
    outcome = tried(Plain(loud=("t2",)))
    assert not outcome.failure
    ((told),) = outcome.demoted
    assert (told.site, told.step, told.before) == ("t2", "float", "level 0")
    assert told.after == "left as it was: with it an output falls below 20 dB"
    assert {each.site for each in outcome.result.rewritten} == set(SITES) - {"t2"}
    assert {each.site for each in outcome.result.skipped} == {"t2"}
    source, stored = initializers(chain()), initializers(to_proto(outcome.model))
    np.testing.assert_array_equal(stored["w1"], source["w1"])


def test_what_the_caller_has_treated_stays_treated() -> None:
    begin = Treatment({"t1": "before"}, {"t2": 3})
    outcome = tried(Blur(loud=("t1", "t2", "t4")), begin=begin)
    assert not outcome.failure
    assert outcome.treatment == Treatment({"t1": "before"}, {"t2": 3, "t4": 3})
    assert [each.site for each in outcome.demoted] == ["t4"]


def test_on_generated_inputs_a_pass_promises_3_db() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Loud(Plain):
        """About 10 dB."""

        name = "loud"
        contract = Lossy(100.0)

    source = from_proto(chain())
    outcome = tried(Loud(), data=generate(source))
    assert not outcome.failure
    assert outcome.demoted == ()
    assert outcome.check is not None
    assert outcome.check.contract == "lossy(min_sqnr_db=3)"
    with_data = tried(Loud())
    assert with_data.failure.startswith("broke its contract lossy(min_sqnr_db=100): t6: SQNR ")
    assert to_proto(with_data.model).SerializeToString() == chain().SerializeToString()


def test_bytes_that_demotion_takes_are_told() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Sized(Pass):
        """Says how many bytes it wrote."""

        name = "sized"
        contract = Lossy(20.0)
        demotions = ("bits",)

        def run(self, view: GraphView) -> PassResult:
            """Blur one weight, less at the second level."""
            node = next(view.nodes("MatMul"))
            (weight,) = view.require_constants(node.inputs[1])
            view.require_permitted("t1")
            level = view.demotions.get("t1", 0)
            view.edit.set_values(node, 1, weight + np.float32(0.15 * 0.001**level) * draw(8, 8, seed=99))
            return PassResult((Rewritten("t1", f"level {level}", 100 + 64 * level),))

    outcome = tried(Sized())
    assert not outcome.failure
    (told,) = outcome.demoted
    assert (told.step, told.nbytes, told.before, told.after) == ("bits", 64, "level 0", "level 1")


def test_a_real_layer_that_needs_more_than_8_bits_gets_finer_scales() -> None:
    """Inputs of one layer that are always zero have huge weights: with one scale for a channel nothing else is left."""
    w = [draw(64, 64, seed=i) / np.float32(8) for i in range(3)]
    w[1][:2] = 3000 * draw(2, 64)
    mask = np.ones(64, np.float32)
    mask[:2] = 0
    text = """g (float[N,64] x) => (float[N,64] y) {
        a = MatMul(x, w0) r = Relu(a) m = Mul(r, mask) b = MatMul(m, w1) s = Relu(b) y = MatMul(s, w2) }"""
    proto = model(text, 21, 10, w0=w[0], w1=w[1], w2=w[2], mask=mask)
    outcome = tried(create("quantize-weights"), proto, {"x": draw(40, 64)})
    assert not outcome.failure
    assert outcome.check is not None
    assert outcome.check.sqnr_db is not None
    assert outcome.check.sqnr_db >= 20
    assert {each.site for each in outcome.demoted} == {"b"}
    assert {each.site for each in outcome.result.rewritten} >= {"a", "y"}
    (told,) = outcome.demoted
    assert told.cost_db is not None
    assert told.cost_db < 20


# -- hard breaks -------------------------------------------------------------------------------------------------------


def test_a_site_that_breaks_hard_is_found_and_vetoed() -> None:
    outcome = tried(Blur(broken=("t4",), loud=("t2",)))
    assert outcome.failure == ""
    assert outcome.check is not None
    assert outcome.check.holds
    assert "t4" in outcome.treatment.vetoes
    assert outcome.treatment.vetoes["t4"].startswith("breaks the contract: t6: ")
    assert "became nan" in outcome.treatment.vetoes["t4"]


def test_the_reason_of_a_veto_reaches_the_report() -> None:
    outcome = tried(Plain(broken=("t4",)))
    assert not outcome.failure
    ((skipped),) = outcome.result.skipped
    assert skipped.site == "t4"
    assert skipped.reason.startswith("breaks the contract: t6: ")
    ((told),) = outcome.demoted
    assert (told.site, told.step, told.cost_db) == ("t4", "float", None)
    assert told.after == skipped.reason


@dataclass(frozen=True, kw_only=True)
class Double(Plain):
    """Say that nothing changes, and double some weights."""

    name = "double"
    contract = BitExact()
    gain: ClassVar[float] = 2.0

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Write a weight anew."""
        (weight,) = view.require_constants(node.inputs[1])
        view.edit.set_values(node, 1, weight * np.float32(self.gain if view.site(node) in self.broken else 1))
        return ""


@pytest.mark.parametrize(("count", "kept"), [(2, True), (3, False)])
def test_so_many_culprits_are_looked_for_and_no_more(count: int, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_CULPRITS", 2)
    outcome = tried(Double(broken=SITES[:count]))
    assert (not outcome.failure) is kept
    if kept:
        assert set(outcome.treatment.vetoes) == set(SITES[:count])
        assert [each.site for each in outcome.result.rewritten] == list(SITES[count:])
    else:
        assert outcome.failure.startswith("broke its contract bit-exact: t6: ")


def test_a_noisy_pass_has_fewer_culprits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no demotion helps and noise is all there is, sites are not taken out one by one for long."""

    @dataclass(frozen=True, kw_only=True)
    class Everywhere(SitePass):
        """Scale by less than the floor allows, wherever and whatever is left."""

        name = "everywhere"
        contract: ClassVar[Contract] = Lossy(20.0)

        def sites(self, view: GraphView) -> Iterator[gs.Node]:
            """Yield every MatMul."""
            yield from view.nodes("MatMul")

        def rewrite(self, view: GraphView, node: gs.Node) -> None:
            """Add noise to the last weight, whichever the site."""
            last = list(view.nodes("MatMul"))[-1]
            view.edit.set_values(last, 1, initializers(chain())["w5"] + np.float32(0.15) * draw(8, 8, seed=99))

        def run(self, view: GraphView) -> PassResult:
            """Hide the noise of sites that are left alone behind one that cannot be."""
            result = super().run(view)
            self.rewrite(view, next(view.nodes("MatMul")))
            return PassResult((*result.rewritten, Rewritten("always")), result.skipped)

    replays: list[Treatment] = []
    original = Trial._attempt

    def counted(self: Trial, treatment: Treatment) -> Outcome:
        replays.append(treatment)
        return original(self, treatment)

    monkeypatch.setattr(Trial, "_attempt", counted)
    outcome = tried(Everywhere())
    assert outcome.failure.startswith("broke its contract lossy(min_sqnr_db=20): t6: SQNR ")
    assert max(len(each.vetoes) for each in replays) <= 7


def test_hard_breaks_of_a_lossy_pass_are_looked_for_as_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_LOSSY_CULPRITS", 1)
    outcome = tried(Plain(broken=("t2", "t5")))
    assert not outcome.failure
    assert set(outcome.treatment.vetoes) == {"t2", "t5"}


def test_what_breaks_a_contract_by_the_models_own_noise_is_no_break() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Exact(SitePass):
        """Compute (a + k) - k without k, which cancels all but a few digits of a."""

        name = "exact"
        contract = FloatExact(rtol=1e-4, atol=1e-5)

        def sites(self, view: GraphView) -> Iterator[gs.Node]:
            """Yield every Sub."""
            yield from view.nodes("Sub")

        def rewrite(self, view: GraphView, node: gs.Node) -> None:
            """Leave out both."""
            add, out = node.i(), node.outputs[0]
            made = view.edit.add_node(node, "Identity", [add.inputs[0]])
            view.edit.remove([add, node])
            view.edit.set_output(made, 0, out)

    text = "g (float[N,8] t0) => (float[N,8] y) { a = MatMul(t0, w) s = Add(a, k) y = Sub(s, k) }"
    outcome = tried(Exact(), model(text, w=draw(8, 8), k=np.full(8, 1e4, np.float32)))
    assert not outcome.failure
    assert outcome.check is not None
    assert outcome.check.max_abs is not None
    assert outcome.check.max_abs > 1e-4
    assert "the model's own float noise" in outcome.check.notes[0]


def test_where_every_site_is_at_fault_the_pass_is_reverted() -> None:
    outcome = tried(Plain(broken=SITES))
    assert outcome.failure.startswith("broke its contract lossy(min_sqnr_db=20): t6: ")
    assert outcome.check is not None
    assert not outcome.check.holds
    assert len(outcome.result.rewritten) == 6  # what it did is still told
    assert outcome.demoted == ()


# -- the session that users open ---------------------------------------------------------------------------------------

BINS, MELS = 128, 24


@dataclass(frozen=True, kw_only=True)
class Pack(SitePass):
    """Store the weights of MatMuls as int8: behind DequantizeLinear, in another form behind Cast and Mul."""

    name = "pack"
    contract: ClassVar[Contract] = Lossy(20.0)
    compresses = True
    demotions = ("form",)

    def required_opset(self, view: GraphView) -> int:
        """Ask for the first opset that ONNX Runtime fuses."""
        return 19

    def sites(self, view: GraphView) -> Iterator[gs.Node]:
        """Yield every MatMul of a float weight."""
        yield from view.nodes("MatMul")

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Quantize one weight with one scale for each column."""
        (weight,) = view.require_constants(node.inputs[1])
        site = view.site(node)
        scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
        levels = view.edit.constant(f"{site}_q", np.round(weight / scale).astype(np.int8))
        scales = view.edit.constant(f"{site}_s", scale)
        if view.demotions.get(site, 0):
            cast = view.edit.add_node(node, "Cast", [levels], attrs={"to": onnx.TensorProto.FLOAT})
            made = view.edit.add_node(node, "Mul", [cast.outputs[0], scales])
        else:
            made = view.edit.add_node(node, "DequantizeLinear", [levels, scales], attrs={"axis": 1})
        view.edit.set_input(node, 1, made.outputs[0])
        return "Cast and Mul" if view.demotions.get(site, 0) else "DequantizeLinear"


@dataclass(frozen=True, kw_only=True)
class Stubborn(Pack):
    """The same without another form."""

    name = "stubborn"
    demotions = ()


def log_mel() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A filter bank in front of Log: non-negative, and nearly zero in the high bins; and a layer of its own."""
    bank = np.zeros((BINS, MELS), np.float32)
    for index in range(MELS):
        bank[4 * index : 4 * index + 9, index] = np.hanning(11)[1:-1]
    text = """g (float[N,6,128] x) => (float[N,6,24] y, float[N,6,32] z) {
        m = MatMul(x, w) q = Add(m, e) y = Log(q) z = MatMul(x, v) }"""
    power = np.exp(-np.arange(BINS) / 6) * np.random.default_rng(0).uniform(0.2, 1, (24, 6, BINS))
    proto = model(text, w=bank, v=draw(BINS, 32), e=np.array(2.0**-24, np.float32))
    return proto, {"x": power.astype(np.float32)}


def test_nan_in_a_default_session_alone_leads_to_another_form_of_that_site() -> None:
    proto, data = log_mel()
    plain = tried(Pack(), proto, data)
    assert not plain.failure
    assert plain.demoted == ()
    broken = Session(plain.model, optimize=True).run(data)["y"]
    assert np.isnan(broken).any()
    assert not np.isnan(Session(plain.model).run(data)["y"]).any()
    outcome = tried(Pack(), proto, data, default_session=True)
    assert not outcome.failure
    assert outcome.treatment == Treatment({}, {"m": 1})
    ((told),) = outcome.demoted
    assert (told.site, told.step, told.before, told.after) == ("m", "form", "DequantizeLinear", "Cast and Mul")
    assert not np.isnan(Session(outcome.model, optimize=True).run(data)["y"]).any()
    assert {each.site: each.detail for each in outcome.result.rewritten} == {
        "m": "Cast and Mul",
        "z": "DequantizeLinear",
    }


def test_without_another_form_the_site_is_left_float() -> None:
    proto, data = log_mel()
    outcome = tried(Stubborn(), proto, data, default_session=True)
    assert not outcome.failure
    assert set(outcome.treatment.vetoes) == {"m"}
    assert [each.site for each in outcome.result.rewritten] == ["z"]
    assert outcome.check is not None
    assert outcome.check.holds


def test_where_nothing_is_left_the_failure_names_the_session() -> None:
    proto, data = log_mel()
    del proto.graph.node[3], proto.graph.output[1]
    outcome = tried(Stubborn(), proto, data, default_session=True)
    assert outcome.failure.startswith(
        "broke its contract lossy(min_sqnr_db=20) in a default session of ONNX Runtime: y: "
    )


def test_the_plain_session_counts_as_well() -> None:
    """An error that a default session could make by itself."""

    @dataclass(frozen=True, kw_only=True)
    class Slight(Double):
        """Off by 3e-4."""

        name = "slight"
        gain = 1.0003

    assert set(tried(Slight(broken=("t2",)), default_session=True).treatment.vetoes) == {"t2"}
    assert not tried(Slight(), default_session=True).treatment.vetoes


@dataclass(frozen=True, kw_only=True)
class Fragile(Double):
    """Wrong at one site, and crashes where that is not rewritten."""

    name = "fragile"

    def run(self, view: GraphView) -> PassResult:
        """Crash if any site is vetoed."""
        result = super().run(view)
        if result.skipped:
            raise ValueError("cannot be taken apart")
        return result


def test_a_result_that_does_not_load_is_reverted() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Unloadable(Plain):
        """Leave an operator that does not exist."""

        name = "unloadable"

        def rewrite(self, view: GraphView, node: gs.Node) -> str:
            """Rename it."""
            node.op = "NoSuchOperator"
            return ""

    outcome = tried(Unloadable())
    assert outcome.failure.startswith("broke its contract lossy(min_sqnr_db=20): ONNX Runtime cannot load the model")
    assert outcome.check is not None
    assert outcome.check.max_abs is None


def test_a_replay_that_crashes_does_not_hold() -> None:
    outcome = tried(Fragile(broken=("t2",)))
    assert outcome.failure.startswith("broke its contract bit-exact: t6: ")
    assert to_proto(outcome.model).SerializeToString() == chain().SerializeToString()


def test_another_form_is_tried_first_by_a_pass_with_further_steps() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Further(Pack):
        """The same with a dearer step behind it."""

        name = "further"
        demotions = ("form", "bits")

    proto, data = log_mel()
    outcome = tried(Further(), proto, data, default_session=True)
    assert outcome.treatment == Treatment({}, {"m": 1})


# -- what is tried -----------------------------------------------------------------------------------------------------


def test_without_a_proof_nothing_is_checked() -> None:
    source = from_proto(chain())
    outcome = Trial(Blur(broken=SITES), Subject(source), source, None, None).run()
    assert not outcome.failure
    assert outcome.check is None
    assert len(outcome.result.rewritten) == 6


def test_a_pass_that_rewrites_nothing_is_not_checked() -> None:
    outcome = tried(Blur(), model("g (float[N,8] t0) => (float[N,8] y) { y = Relu(t0) }"))
    assert outcome.check is None
    assert not outcome.failure


def test_a_compressing_pass_has_to_make_the_file_smaller() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Same(Plain):
        """Other values of the same size."""

        name = "same"
        compresses = True

    outcome = tried(Same())
    assert outcome.failure == "would not make the file smaller"
    assert to_proto(outcome.model).SerializeToString() == chain().SerializeToString()


@dataclass(frozen=True, kw_only=True)
class Crash(Plain):
    """Crash at some site."""

    name = "crash"

    def rewrite(self, view: GraphView, node: gs.Node) -> str:
        """Crash."""
        raise ValueError("line\none")


def test_a_crash_is_a_failure_in_one_line_that_names_the_site() -> None:
    outcome = tried(Crash())
    assert outcome.failure == "crashed: ValueError: line one (at site 't1')"
    assert outcome.result == PassResult()
    assert outcome.check is None


@dataclass(frozen=True, kw_only=True)
class Newer(Plain):
    """Needs another opset."""

    name = "newer"
    opset: int = option(19, "What it asks for.")

    def required_opset(self, view: GraphView) -> int:
        """Return what was asked for."""
        return self.opset


@pytest.mark.parametrize(
    ("asked", "bound", "becomes"),
    [(19, None, 19), (19, 18, 18), (19, 17, 17), (19, 16, 17), (13, None, 17), (9999, None, 17)],
)
def test_the_model_is_raised_to_the_opset_that_a_pass_needs(asked: int, bound: int | None, becomes: int) -> None:
    outcome = tried(Newer(opset=asked), max_opset=bound)
    assert not outcome.failure
    assert outcome.model.opset == becomes
    idle = tried(Newer(opset=asked), model("g (float[N,8] t0) => (float[N,8] y) { y = Relu(t0) }"), max_opset=bound)
    assert idle.model.opset == 17
    assert not idle.failure


def test_sites_behind_what_onnx_runtime_does_not_know_are_left_alone() -> None:
    text = "g (float[N,8] t0) => (float[N,8] y) { t1 = MatMul(t0, w) s = com.example.Secret(t1) y = MatMul(s, w) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.linalg.qr(draw(8, 8))[0], "w"))
    outcome = tried(Plain(), proto)
    assert not outcome.failure
    assert [each.site for each in outcome.result.rewritten] == ["t1"]
    ((skipped),) = outcome.result.skipped
    assert skipped.site == "y"
    assert skipped.reason.startswith("lies behind com.example::Secret")


def test_facts_go_on_with_the_model_where_a_pass_keeps_them() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Keeping(Plain):
        """Keep what is known of tensors."""

        name = "keeping"
        keeps_facts = True

        def rewrite(self, view: GraphView, node: gs.Node) -> str:
            """Ask for a shape first."""
            assert view.shape(node.inputs[0]) is not None
            return super().rewrite(view, node)

    assert tried(Keeping()).facts is not None
    assert tried(Plain()).facts is None
