"""The report of a run: frozen data, and its JSON form, which other programs read."""

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from graphopt.numerics.compare import Comparison
from graphopt.report.build import build
from graphopt.report.document import Document
from graphopt.report.metrics import Metrics
from graphopt.result import PassResult

SCHEMA = 1
"""The version of the JSON form: keys are only added within one; see docs/report.md."""

Outcome = Literal["verified", "unproved", "unchecked", "failed"]


@dataclass(frozen=True)
class Check:
    """One measured claim: of a pass against its input, or of the run against the original.

    Attributes:
        contract: What was promised.
        holds: Whether it was kept.
        max_abs: The largest difference of two finite elements; None if nothing could be compared.
        max_rel: ``max_abs`` over the spread of what it was found in.
        sqnr_db: The lowest ratio of spread to noise of any output, or part of one; None if nothing differs.
        problem: How the contract was broken.
        notes: What a reader has to know about the verdict.
        where: What ``sqnr_db`` was measured on, such as "output 'dets', index 4 of axis 2".
        correlation: The lowest correlation of a float output with the original's; None without floats that vary.
        agreement: The share of samples whose highest class score is at the same class; None without class scores.
        samples: How many samples were run.
        blind: The outputs on which the data cannot tell a good model from a constant one.
    """

    contract: str
    holds: bool
    max_abs: float | None
    max_rel: float | None
    sqnr_db: float | None
    problem: str = ""
    notes: tuple[str, ...] = ()
    where: str = ""
    correlation: float | None = None
    agreement: float | None = None
    samples: int | None = None
    blind: tuple[str, ...] = ()

    @classmethod
    def of(cls, comparison: Comparison) -> "Check":
        """Take from a comparison what the report shows."""
        return cls(
            comparison.contract,
            comparison.holds,
            comparison.max_abs,
            comparison.max_rel,
            comparison.sqnr_db,
            comparison.problem,
            comparison.notes,
            comparison.where,
            comparison.correlation,
            comparison.agreement,
            comparison.samples,
            comparison.blind,
        )


@dataclass(frozen=True)
class Demoted:
    """A site that was written more carefully than asked for, as the contract would not have held.

    Attributes:
        site: The site.
        step: The step that it took, see ``Pass.demotions``, or "float".
        before: What would have been written.
        after: What was written, or why nothing was.
        nbytes: How many bytes more that takes; None if the pass does not say.
        cost_db: What the site alone took from the worst output, as it was first asked for: the SQNR in dB that it
            leaves; None if it was not measured alone.
    """

    site: str
    step: str
    before: str
    after: str
    nbytes: int | None = None
    cost_db: float | None = None


@dataclass(frozen=True)
class Latency:
    """The time of one run in a default session on one thread, source and result in turn.

    Attributes:
        before: The source's, in ms (the least of several).
        after: The result's.
        samples: How many samples one run takes.
        noise: The share by which equal models differ in this measurement.
        sites: Where the result spends what it takes longer, the dearest first: site, operator, ms.
        remedy: What would not be slower, in words.
        unfused: Weights whose DequantizeLinear the session computes at every run, by the name of the node's output.
        same: Whether the result is the source, and was timed once.
    """

    before: float
    after: float
    samples: int
    noise: float = 0.05
    sites: tuple[tuple[str, str, float], ...] = ()
    remedy: str = ""
    unfused: tuple[str, ...] = ()
    same: bool = False

    @property
    def ratio(self) -> float:
        """The result's time over the source's."""
        return self.after / self.before if self.before else 1.0

    @property
    def slower(self) -> bool:
        """Whether the result is slower beyond noise."""
        return self.ratio > 1 + self.noise

    def as_dict(self) -> dict[str, Any]:
        """Return the latency's part of the JSON report, times in ms."""
        return {
            "before": self.before,
            "after": self.after,
            "ratio": self.ratio,
            "slower": self.slower,
            "samples": self.samples,
            "noise": self.noise,
            "sites": [{"site": site, "op": operator, "ms": ms} for site, operator, ms in self.sites],
            "remedy": self.remedy or None,
            "unfused": list(self.unfused),
            "same": self.same,
        }


@dataclass(frozen=True)
class Circumstances:
    """What a run was made with.

    Attributes:
        versions: Of graphopt, ONNX Runtime, onnx, numpy and Python, by name; None for one that is unknown.
        cpu: The CPU's ``model`` and those of its features that integer kernels hang on (such as avx512_vnni), True,
            False or None where that is unknown.
        data: What the proof ran on, in words: a file, arrays, or generated inputs; and how many samples.
        options: The options of the run (not of its passes), by name.
        opset: The version of the default operator domain before and after.
        ir: The IR version before and after.
    """

    versions: dict[str, str | None]
    cpu: dict[str, Any]
    data: str
    options: dict[str, Any]
    opset: tuple[int, int] | None = None
    ir: tuple[int, int] | None = None


@dataclass(frozen=True)
class PassReport:
    """One run of one pass: what it did, whether it was kept, and what was measured.

    Attributes:
        name: The pass.
        options: Its options by name.
        seconds: How long it took, its proof included.
        kept: Whether the model went on with what it wrote.
        result: Its sites, rewritten or skipped.
        check: How its contract was kept; None if it was not checked.
        failure: Why it was reverted; empty if it was not.
        demoted: The sites that it wrote more carefully than asked for.
        opset: The version of the default operator domain before and after; None if the pass did not ask for another.
    """

    name: str
    options: dict[str, Any]
    seconds: float
    kept: bool
    result: PassResult
    check: Check | None = None
    failure: str = ""
    demoted: tuple[Demoted, ...] = ()
    opset: tuple[int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the pass's part of the JSON report."""
        return {
            "name": self.name,
            "options": self.options,
            "seconds": round(self.seconds, 4),
            "kept": self.kept,
            "rewritten": [{"site": each.site, "detail": each.detail} for each in self.result.rewritten],
            "skipped": [{"site": each.site, "reason": each.reason} for each in self.result.skipped],
            "check": None if self.check is None else vars(self.check),
            "failure": self.failure or None,
            "demoted": [vars(each) for each in self.demoted],
            "opset": _pair(self.opset),
        }


@dataclass(frozen=True)
class Report:
    """A whole run.

    Attributes:
        source: The path of the original; empty if it was none.
        target: The path of the result; empty if it was not written.
        before: The size of the original.
        after: The size of the result.
        passes: The passes in the order in which they ran.
        check: The result held against the original; None if it was not checked.
        top1: Top-1 accuracy before and after, from 0 to 1; None without labels.
        latency: The time of one run before and after; None if it was not measured.
        failures: Everything that makes the run unsuccessful, a line each.
        notes: What a reader has to know besides, a line each.
        circumstances: What the run was made with; None if that was not collected.
    """

    source: str
    target: str
    before: Metrics
    after: Metrics
    passes: tuple[PassReport, ...]
    check: Check | None
    top1: tuple[float, float] | None = None
    latency: Latency | None = None
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    circumstances: Circumstances | None = None

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for was done and, unless checks were off, verified."""
        return not self.failures

    @property
    def checked(self) -> bool:
        """Whether the result was held against the original."""
        return self.check is not None

    @property
    def outcome(self) -> Outcome:
        """What may be said of the run: "verified" only if it was checked, on data that can tell on every output."""
        if self.failures or (self.check is not None and not self.check.holds):
            return "failed"
        if self.check is None:
            return "unchecked"
        return "unproved" if self.check.blind else "verified"

    @property
    def latency_ms(self) -> tuple[float, float] | None:
        """The time of one run before and after, in ms; None if it was not measured."""
        return None if self.latency is None else (self.latency.before, self.latency.after)

    def document(self) -> Document:
        """Return all that the report says in words, which text, page and JSON lay out."""
        return build(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the report in the form of the JSON file; docs/report.md has every key."""
        check = None if self.check is None else {**vars(self.check), "top1": _pair(self.top1)}
        return {
            "schema": SCHEMA,
            "source": self.source,
            "target": self.target,
            "outcome": self.outcome,
            "checked": self.checked,
            "failures": list(self.failures),
            "before": vars(self.before),
            "after": vars(self.after),
            "latency_ms": _pair(self.latency_ms),
            "latency": None if self.latency is None else self.latency.as_dict(),
            "check": check,
            "notes": list(self.notes),
            "passes": [each.as_dict() for each in self.passes],
            "circumstances": None if self.circumstances is None else vars(self.circumstances),
            "document": self.document().as_list(),
        }

    def to_json(self) -> str:
        """Return the report as JSON text; a figure that is not finite becomes null."""
        return json_text(self.as_dict())


def json_text(figures: dict[str, Any]) -> str:
    """Return figures as JSON text: NaN and Inf, which JSON does not have, become null, other objects their text."""
    return json.dumps(_finite(figures), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _pair(values: tuple[float, float] | None) -> list[float] | None:
    return None if values is None else list(values)


def _finite(value: Any) -> Any:
    """Replace NaN and Inf by None."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
