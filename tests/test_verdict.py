"""The judgement of a whole run: what fails it, and what its reader is to know."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from graphopt import BitExact, FloatExact, GraphView, Lossy, Pass, PassResult, Rewritten, Skipped, create
from graphopt.contract import Contract
from graphopt.model import Model, from_proto
from graphopt.options import option, option_values
from graphopt.proof.proof import Proof
from graphopt.report import PassReport
from graphopt.runtime.data import Data
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.testing import draw, model, run_alone
from graphopt.verdict import FINAL_SAMPLES, Verdict, failed, judge, not_smaller, remedy

W = draw(6, 4)
X = draw(32, 6)
SITE = Rewritten("y")


@dataclass(frozen=True, kw_only=True)
class Given(Pass):
    """A pass whose work is made by hand; only its contract and its words count."""

    name = "given"
    contract: ClassVar[Contract] = BitExact()
    variant: int = option(0, "Tells passes of one name apart.")

    def run(self, view: GraphView) -> PassResult:
        """Do nothing."""
        return PassResult()


@dataclass(frozen=True, kw_only=True)
class Rounding(Given):
    """Promises float rounding."""

    name = "rounding"
    contract = FloatExact(rtol=1e-4, atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class Compressing(Given):
    """Gives up accuracy for size."""

    name = "compressing"
    contract = Lossy(20.0)
    compresses = True


@dataclass(frozen=True, kw_only=True)
class Fitting(Compressing):
    """Fits values to data."""

    name = "fitting"
    compresses: ClassVar[bool] = False

    @property
    def fits(self) -> bool:
        """Yes."""
        return True


@dataclass(frozen=True, kw_only=True)
class Freezing(Given):
    """Makes constants of overridable initializers, which a runtime packs and then sums in another order."""

    name = "freezing"
    contract = FloatExact(rtol=1e-5, atol=1e-6)
    freezes = True


def told(each: Pass, kept: bool = True, failure: str = "", result: PassResult | None = None) -> PassReport:
    """The report of a pass that rewrote one site."""
    done = PassResult((SITE,)) if result is None else result
    return PassReport(each.name, option_values(each), 0.0, kept, done, failure=failure)


def linear(weight: np.ndarray = W) -> Model:
    return from_proto(model("g (float[N,6] x) => (float[N,4] y) { y = MatMul(x, w) }", w=weight))


def judged(
    candidate: Model, passes: list[Pass], *, source: Model | None = None, arrays: Mapping[str, Any] | None = None,
    data: Data | None = None, max_drop: float = 2.0, reports: list[PassReport] | None = None,
) -> Verdict:  # fmt: skip
    source = source or linear()
    feeds = data or from_arrays(arrays if arrays is not None else {"x": X}, source)
    with Proof.opened(source, feeds) as proof:
        return judge(proof, candidate, passes, reports or [told(each) for each in passes], max_drop)


# -- contracts ---------------------------------------------------------------------------------------------------------


def test_a_good_run_has_no_failures_and_no_notes() -> None:
    verdict = judged(linear(), [Given()])
    assert (verdict.failures, verdict.notes, verdict.default_session, verdict.top1) == ((), (), True, None)
    assert verdict.check is not None
    assert verdict.check.holds
    assert verdict.check.contract == "float-exact(rtol=0.001, atol=0.0001)"  # that of the default session
    assert verdict.check.samples == 32


def test_without_a_proof_nothing_is_said() -> None:
    assert Verdict() == Verdict(None, None, (), (), True)


@pytest.mark.parametrize(("gain", "fails"), [(1 + 5e-5, False), (1 + 3e-4, True)])
def test_the_plain_session_holds_the_run_to_the_passes_own_contract(gain: float, fails: bool) -> None:
    """An error of 3e-4 is within what a default session may round, but not within the contract of the passes."""
    verdict = judged(linear(W * np.float32(gain)), [Rounding()])
    assert verdict.default_session
    assert verdict.check is not None
    assert verdict.check.holds is not fails
    if fails:
        (failure,) = verdict.failures
        assert failure.startswith("the whole run broke float-exact(rtol=0.0001, atol=1e-05): y: an element moved by")
    else:
        assert not verdict.failures


def test_both_sessions_must_hold() -> None:
    verdict = judged(linear(W * np.float32(1.01)), [Rounding()])
    assert not verdict.default_session
    assert len(verdict.failures) == 2
    assert verdict.failures[0].startswith("the whole run broke ")
    assert verdict.failures[1].startswith("in a session with default options, the run broke float-exact(rtol=0.001, ")


def test_the_tolerances_of_kept_passes_add_up() -> None:
    passes: list[Pass] = [Rounding(variant=i) for i in range(8)]
    source = linear()
    off = linear(W * np.float32(1 + 6e-4))
    assert not judged(off, passes, source=source).failures
    assert judged(off, passes[:4], source=source).failures
    dropped = [told(each, kept=index < 4) for index, each in enumerate(passes)]
    assert judged(off, passes, source=source, reports=dropped).failures
    idle = [told(each, result=PassResult((SITE,) if index < 4 else ())) for index, each in enumerate(passes)]
    assert judged(off, passes, source=source, reports=idle).failures


def test_the_plain_check_takes_128_samples_and_the_default_one_1024() -> None:
    """A weight that only one of the samples reads is wrong."""
    assert FINAL_SAMPLES == 1024
    for sample, failures in ((1024, 0), (1023, 1), (128, 1), (127, 2)):
        x = np.zeros((1200, 6), np.float32)
        x[:, :3] = draw(1200, 3)
        x[sample, 5] = 1
        wrong = W.copy()
        wrong[5] += 1
        verdict = judged(linear(wrong), [Rounding()], arrays={"x": x})
        assert len(verdict.failures) == failures, sample
        assert verdict.default_session is (failures == 0)


BINS, MELS = 128, 24


def log_mel() -> tuple[onnx.ModelProto, np.ndarray]:
    """A filter bank in front of Log: non-negative, and nearly zero in the high bins."""
    bank = np.zeros((BINS, MELS), np.float32)
    for index in range(MELS):
        bank[4 * index : 4 * index + 9, index] = np.hanning(11)[1:-1]
    text = "g (float[N,6,128] x) => (float[N,6,24] y) { m = MatMul(x, w) q = Add(m, e) y = Log(q) }"
    power = np.exp(-np.arange(BINS) / 6) * np.random.default_rng(0).uniform(0.2, 1, (24, 6, BINS))
    return model(text, w=bank, e=np.array(2.0**-24, np.float32)), power.astype(np.float32)


def test_nan_in_the_default_session_alone_fails_the_run() -> None:
    """MatMulNBits with int8 activations turns a product of non-negative matrices negative, and Log of that is NaN."""
    proto, power = log_mel()
    each = create("quantize-weights", representation="dq")
    after, result = run_alone(each, proto)
    verdict = judged(
        from_proto(after), [each], source=from_proto(proto), arrays={"x": power}, reports=[told(each, result=result)]
    )
    assert not verdict.default_session
    assert verdict.check is not None
    assert not verdict.check.holds
    (failure,) = verdict.failures
    assert re.match(
        r"in a session with default options, the run broke lossy\(min_sqnr_db=20\): y: .* became nan \(\d+ of 3456",
        failure,
    )


def test_a_frozen_initializer_is_a_failure_unless_the_pass_says_that_it_freezes() -> None:
    text = "g (float[N,6] x, float[6,4] w) => (float[N,4] y) { y = MatMul(x, w) }"
    source = from_proto(model(text, w=W))
    verdict = judged(linear(), [Given()], source=source)
    assert any("initializer 'w' can no longer be overridden" in each for each in verdict.failures)
    assert not judged(linear(), [Freezing()], source=source).failures
    both: list[Pass] = [Given(), Freezing()]
    assert not judged(linear(), both, source=source).failures
    assert judged(linear(), both, source=source, reports=[told(Given())]).failures


# -- sessions that cannot be opened ------------------------------------------------------------------------------------

DECLARED = """g (float[N,6] x) => (float[N,6] y) <float[7] u> {
    u = Unique(x) shape = Shape(u) size = Abs(shape) flat = Reshape(x, size) rows = Constant<value_ints = [-1, 6]>()
    y = Reshape(flat, rows) }"""
"""The declared shape of u is wrong: a default session computes with it beforehand, and then Reshape fails."""


def test_a_result_that_only_a_plain_session_runs_is_a_failure_where_the_source_runs_in_both() -> None:
    broken = from_proto(model(DECLARED))
    fine = from_proto(model("g (float[N,6] x) => (float[N,6] y) { y = Identity(x) }"))
    arrays = {"x": X}
    verdict = judged(broken, [Given()], source=fine, arrays=arrays)
    assert not verdict.default_session
    (failure,) = verdict.failures
    assert failure.startswith("in a session with default options, ONNX Runtime cannot ")
    assert verdict.check is not None  # of the plain session
    assert verdict.check.contract == "bit-exact"
    both = judged(broken, [Given()], source=broken, arrays=arrays)
    assert both.default_session
    assert not both.failures
    (note,) = both.notes
    assert note.startswith("with its graph optimizations on, ONNX Runtime cannot ")
    assert note.endswith("; the original neither")
    mended = judged(fine, [Given()], source=broken, arrays=arrays)
    assert mended.default_session
    assert not mended.failures
    (note,) = mended.notes
    told = "with its graph optimizations on, ONNX Runtime runs the result but not the original: ONNX Runtime cannot "
    assert note.startswith(told)


# -- notes -------------------------------------------------------------------------------------------------------------


def test_generated_inputs_prove_numerics_only() -> None:
    note = "checked on generated inputs: the numerics are proved, accuracy was not measured"
    assert judged(linear(), [Fitting()], data=generate(linear())).notes == (note,)


def test_blind_outputs_are_named() -> None:
    same = np.tile(X[:1], (8, 1))
    assert judged(linear(), [Given()], arrays={"x": same}).notes == (
        "'y': the same for all samples, so that the data cannot tell a good model from a constant",
    )


def test_a_pass_that_fits_says_so_where_no_split_was_given() -> None:
    note = (
        "fitting, fitting: fitted and checked on the same 32 samples, so the figures say little of others "
        "(arrays named calibration/<input> are a split to fit on)"
    )
    both: list[Pass] = [Fitting(variant=1), Given(), Fitting(variant=2)]
    assert judged(linear(), both).notes == (note,)
    assert not judged(linear(), both, arrays={"x": X, "calibration/x": X}).notes
    assert not judged(linear(), both, reports=[told(Given())]).notes


def test_the_notes_of_both_checks_are_kept() -> None:
    text = "g (float[N,6] x) => (float[N,0] e, float[N,4] y) { y = MatMul(x, w) e = MatMul(x, v) }"
    empty = from_proto(model(text, w=W, v=np.zeros((6, 0), np.float32)))
    verdict = judged(empty, [Given()], source=empty)
    assert verdict.check is not None
    assert verdict.check.notes == ("'e' is empty on all of the data: nothing to compare",) * 2


# -- accuracy ----------------------------------------------------------------------------------------------------------

LABELS = np.argmax(X @ W, axis=1)


def drop(lost: int, allowed: float, *passes: Pass) -> Verdict:
    """Judge a result that gets so many of 32 samples wrong, the source none."""
    x = np.concatenate([X, np.zeros((32, 1), np.float32)], axis=1)
    x[:lost, 6] = 1  # what turns the signs of the result's scores, and is nothing to the source
    weight, turn = np.concatenate([W, np.zeros((1, 4), np.float32)]), np.zeros((7, 1), np.float32)
    turn[6] = 2
    source = model("g (float[N,7] x) => (float[N,4] y) { y = MatMul(x, w) }", w=weight)
    text = "g (float[N,7] x) => (float[N,4] y) { a = MatMul(x, w) t = MatMul(x, v) b = Mul(a, t) y = Sub(a, b) }"
    candidate = from_proto(model(text, w=weight, v=turn))
    data = {"x": x, "labels": LABELS}
    return judged(candidate, list(passes or [Loud()]), source=from_proto(source), arrays=data, max_drop=allowed)


@dataclass(frozen=True, kw_only=True)
class Loud(Compressing):
    """Compresses, and promises nothing but numbers."""

    name = "loud"
    contract = Lossy(-1000.0)


@dataclass(frozen=True, kw_only=True)
class Exact(Loud):
    """Promises as little, but does not compress."""

    name = "exact"
    compresses = False


@pytest.mark.parametrize(
    ("lost", "allowed", "fails"),
    [(0, 0.0, False), (1, 3.125, False), (1, 3.12, True), (4, 12.5, False), (4, 12.0, True), (4, -1.0, True)],
)
def test_a_run_that_compresses_may_lose_as_many_points_as_are_allowed(lost: int, allowed: float, fails: bool) -> None:
    verdict = drop(lost, allowed)
    assert verdict.top1 == (1.0, 1 - lost / 32)
    if not fails:
        assert not verdict.failures
        return
    points = 100 * lost / 32
    after = math.floor((1 - lost / 32) * 1e4) / 1e2  # rounded down
    assert verdict.failures == (
        f"top-1 fell by {points:.2f} points, from 100.00% to {after:.2f}%: at most {allowed:g} are allowed "
        "(--max-drop)",
    )


def test_a_run_that_does_not_compress_is_judged_by_its_contracts_alone() -> None:
    verdict = drop(4, 0.0, Exact())
    assert verdict.top1 == (1.0, 0.875)
    assert not verdict.failures
    assert drop(4, 0.0, Exact(), Loud()).failures


# -- passes ------------------------------------------------------------------------------------------------------------


def test_failed_passes_are_named_and_so_are_those_that_had_nothing_to_do() -> None:
    idle = PassResult((), (Skipped("c1", "too small"), Skipped("c2", "other")))
    passes: list[Pass] = [Given(), Compressing(variant=1), Compressing(variant=2), Compressing(variant=3), Rounding()]
    reports = [
        told(passes[0], kept=False, failure="crashed"),
        told(passes[1], result=idle),
        told(passes[2], result=PassResult()),
        told(passes[3]),
        told(passes[4], result=PassResult()),
    ]
    assert failed(passes, reports) == [
        "given: crashed",
        "compressing: nothing to do (c1: too small)",
        "compressing: nothing to do (no place to work on)",
    ]
    assert failed(passes, [told(passes[1], kept=False, failure="reverted", result=idle)]) == ["compressing: reverted"]
    assert failed(passes, []) == []


def test_a_pass_with_options_for_some_sites_has_to_find_work_in_one_of_its_runs() -> None:
    parts = Compressing(override=({"sites": ["a"], "variant": 1},)).stages()  # type: ignore[arg-type]
    assert len(parts) == 2
    idle = PassResult((), (Skipped("a", "too small"),))
    assert failed(parts, [told(parts[0], result=idle), told(parts[1])]) == []
    assert failed(parts, [told(parts[0]), told(parts[1], result=idle)]) == []
    nothing = "compressing: nothing to do (a: too small)"
    assert failed(parts, [told(part, result=idle) for part in parts]) == [nothing, nothing]


def test_nothing_has_fallen_where_nothing_was_judged() -> None:
    assert Verdict() == Verdict(None, None, (), (), True, True, False)


@pytest.mark.parametrize(
    ("each", "rewrote", "kept", "after", "says"),
    [
        (Compressing(), True, True, 1_000, True),
        (Compressing(), True, True, 1_001, True),
        (Compressing(), True, True, 999, False),
        (Given(), True, True, 2_000, False),
        (Compressing(), False, True, 2_000, False),
        (Compressing(), True, False, 2_000, False),
    ],
)
def test_a_run_that_compresses_must_give_a_smaller_file(
    each: Pass, rewrote: bool, kept: bool, after: int, says: bool
) -> None:
    reports = [told(each, kept, result=PassResult((SITE,) if rewrote else ())), told(Rounding())]
    expected = [f"the result is not smaller: 1,000 bytes became {after:,}"] if says else []
    assert not_smaller([each, Rounding()], reports, 1_000, after) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("g (float[4] x) => (float[4] y) { y = Relu(x) }", "^$"),
        ("g (int8[4] x, float s) => (float[4] y) { y = DequantizeLinear(x, s) }", "^quantize-weights with --rep"),
        (
            "g (float[4] x, float s) => (float[4] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
            "^quantize-weights gives a file as small",
        ),
        (
            """g (int8[4] x, float s, bool c) => (float[4] y) {
                y = If(c) <then_branch = a () => (float[4] t) { t = DequantizeLinear(x, s) },
                           else_branch = b () => (float[4] e) { e = Cast<to = 1>(x) }> }""",
            "^quantize-weights with --rep",
        ),
    ],
    ids=["float", "weights", "activations", "in a body"],
)
def test_what_would_not_be_slower_depends_on_what_was_written(text: str, says: str) -> None:
    assert re.search(says, remedy(from_proto(model(text))))


def test_operators_that_are_unknown_are_noted() -> None:
    text = "g (float[N,6] x) => (float[N,4] y) { a = MatMul(x, w) y = com.example.Secret(a) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    source = from_proto(proto)
    verdict = judged(source, [Given()], source=source)
    assert not verdict.failures
    assert verdict.notes[0].startswith("ONNX Runtime does not know com.example::Secret")
