"""The judgement of a whole run: the result against the original, in the session that users open."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphopt.base import Pass
from graphopt.contract import in_default_session, on_inputs, total_contract
from graphopt.errors import GraphoptError
from graphopt.model import Model
from graphopt.options import option_values
from graphopt.proof.accuracy import top1
from graphopt.proof.proof import Proof
from graphopt.report import Check, PassReport
from graphopt.report.figures import percent
from graphopt.result import PassResult
from graphopt.trial import CHECK_SAMPLES

FINAL_SAMPLES = 1024


@dataclass(frozen=True)
class Verdict:
    """What the check of the whole run found: nothing, if there was none.

    Attributes:
        check: The result against the original, both in a session with default options.
        top1: Top-1 accuracy before and after, from 0 to 1, where there are labels.
        failures: What broke, a sentence each.
        notes: What a reader should know besides.
        plain_session: Whether the result keeps its promises in a session without optimizations.
        default_session: Whether it does in a session with default options.
        dropped: Whether top-1 fell by more than it may.
    """

    check: Check | None = None
    top1: tuple[float, float] | None = None
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    plain_session: bool = True
    default_session: bool = True
    dropped: bool = False


def judge(
    proof: Proof, optimized: Model, passes: Sequence[Pass], reports: Sequence[PassReport], max_drop: float
) -> Verdict:
    """Hold the result to the sum of the kept passes' contracts against the original.

    Args:
        proof: The proof of the run.
        optimized: The result.
        passes: What was run.
        reports: What came of it.
        max_drop: How many points of top-1 a run that compresses may lose.
    """
    kept = [(each, told) for each, told in kept_passes(passes, reports) if told.rewritten]
    total = on_inputs(total_contract([each.contract for each, _ in kept]), proof.data.generated)
    freezes = any(each.freezes for each, _ in kept)
    try:
        plain = Check.of(proof.compare(proof.source, optimized, total, CHECK_SAMPLES, freezes=freezes))
    except GraphoptError as error:  # on inputs of other sizes than those that each pass was held to
        plain = Check(str(total), False, None, None, None, str(error))
    failures = [] if plain.holds else [f"the whole run broke {plain.contract}: {plain.problem}"]
    check, problem, notes = plain, "", []
    try:
        contract = in_default_session(total)
        usual = proof.compare(proof.source, optimized, contract, FINAL_SAMPLES, optimize=True, freezes=freezes)
    except GraphoptError as error:
        if _runs(proof, proof.source):
            problem = f"in a session with default options, {error}"
        elif _runs(proof, optimized):
            notes.append(f"with its graph optimizations on, ONNX Runtime runs the result but not the original: {error}")
        else:
            notes.append(f"with its graph optimizations on, {error}; the original neither")
    else:
        check = Check.of(usual)
        if not check.holds:
            problem = f"in a session with default options, the run broke {check.contract}: {check.problem}"
    if problem:
        return Verdict(check, None, (*failures, problem), (), plain.holds, default_session=False)
    check = replace(check, holds=check.holds and plain.holds, notes=(*plain.notes, *check.notes))
    if proof.unknown is not None:
        notes.append(proof.unknown.note())
    notes += _what_data_say(proof, check, [each for each, _ in kept])
    accuracy, drop = None, list[str]()
    if proof.data.labels is not None:
        accuracy = (top1(proof.source, proof.data, proof.session), top1(optimized, proof.data, proof.session))
        drop = _drop(accuracy, max_drop, any(each.compresses for each, _ in kept))
    return Verdict(check, accuracy, (*failures, *drop), tuple(notes), plain.holds, dropped=bool(drop))


def _what_data_say(proof: Proof, check: Check, kept: Sequence[Pass]) -> list[str]:
    """Say what the data that the run was judged on cannot prove."""
    notes = []
    if proof.data.generated:
        notes.append("checked on generated inputs: the numerics are proved, accuracy was not measured")
    if check.blind:
        names = ", ".join(map(repr, check.blind))
        notes.append(f"{names}: the same for all samples, so that the data cannot tell a good model from a constant")
    fitting = [each.name for each in kept if each.fits]
    if fitting and not proof.data.generated and proof.data.calibration() is proof.data:
        notes.append(
            f"{', '.join(fitting)}: fitted and checked on the same {proof.data.size} samples, so the figures say "
            "little of others (arrays named calibration/<input> are a split to fit on)"
        )
    return notes


def _drop(accuracy: tuple[float, float], most: float, compressed: bool) -> list[str]:
    """Return the failure of a run that compresses and loses more top-1 than it may."""
    lost = 100 * (accuracy[0] - accuracy[1])
    if not compressed or lost <= most:
        return []
    before, after = map(percent, accuracy)
    return [f"top-1 fell by {lost:.2f} points, from {before} to {after}: at most {most:g} are allowed (--max-drop)"]


def failed(passes: Sequence[Pass], reports: Sequence[PassReport]) -> list[str]:
    """Name the passes that failed, then the compressing ones that could do nothing at all."""
    failures = [f"{each.name}: {each.failure}" for each in reports if each.failure]
    kept = kept_passes(passes, reports)
    busy = {(each.name, each.override) for each, told in kept if told.rewritten and each.override}
    for each, told in kept:
        if each.compresses and not told.rewritten and (each.name, each.override) not in busy:
            first = f"{told.skipped[0].site}: {told.skipped[0].reason}" if told.skipped else "no place to work on"
            failures.append(f"{each.name}: nothing to do ({first})")
    return failures


def not_smaller(passes: Sequence[Pass], reports: Sequence[PassReport], before: int, after: int) -> list[str]:
    """Say so if a run that was to compress gives a file as large as the original, whatever has made it grow."""
    compressed = any(each.compresses and told.rewritten for each, told in kept_passes(passes, reports))
    return [f"the result is not smaller: {before:,} bytes became {after:,}"] if compressed and after >= before else []


def kept_passes(passes: Sequence[Pass], reports: Sequence[PassReport]) -> list[tuple[Pass, PassResult]]:
    """Pair each kept report with its pass."""
    by_key = {(each.name, str(option_values(each))): each for each in passes}
    return [(by_key[(each.name, str(each.options))], each.result) for each in reports if each.kept]


def _runs(proof: Proof, model: Model) -> bool:
    """Whether a model runs in a session with default options."""
    try:
        proof.session(model, optimize=True).run(next(proof.feeds()))
    except GraphoptError:
        return False
    return True


def remedy(model: Model) -> str:
    """Say what would not be slower than a result that is."""
    ops = {node.op for graph in model.graphs() for node in graph.nodes}
    if "QuantizeLinear" in ops:
        return "quantize-weights gives a file as small that runs at the speed of float; integer kernels do not pay here"
    if "DequantizeLinear" in ops:
        return "quantize-weights with --representation mul writes weights that are folded when the model is loaded"
    return ""
