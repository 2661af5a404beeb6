"""The report of a run: frozen data, and its JSON form, which other programs read."""

import json
import math
from dataclasses import dataclass
from typing import Any

from graphopt.numerics.compare import Comparison
from graphopt.report.metrics import Metrics
from graphopt.result import PassResult


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
    """

    before: float
    after: float
    samples: int
    noise: float = 0.05
    sites: tuple[tuple[str, str, float], ...] = ()
    remedy: str = ""

    @property
    def ratio(self) -> float:
        """The result's time over the source's."""
        return self.after / self.before if self.before else 1.0

    @property
    def slower(self) -> bool:
        """Whether the result is slower beyond noise."""
        return self.ratio > 1 + self.noise


@dataclass(frozen=True)
class Circumstances:
    """What a run was made with.

    Attributes:
        versions: Of graphopt, ONNX Runtime, onnx, numpy and Python, by name.
        cpu: The CPU's model and those of its features that integer kernels hang on (such as avx512_vnni).
        data: What the proof ran on, in words: a file, arrays, or generated inputs; and how many samples.
        options: The options of the run (not of its passes), by name.
        opset: The version of the default operator domain before and after.
        ir: The IR version before and after.
    """

    versions: dict[str, str]
    cpu: dict[str, Any]
    data: str
    options: dict[str, Any]
    opset: tuple[int, int] | None = None
    ir: tuple[int, int] | None = None


@dataclass(frozen=True)
class PassReport:
    """One run of one pass: what it did, whether it was kept, and what was measured."""

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
        }


@dataclass(frozen=True)
class Report:
    """A whole run. ``failures`` lists, one line each, everything that makes the run unsuccessful."""

    source: str
    target: str
    before: Metrics
    after: Metrics
    passes: tuple[PassReport, ...]
    check: Check | None
    top1: tuple[float, float] | None = None
    latency: Latency | None = None
    circumstances: Circumstances | None = None
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for was done and verified."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Return the report in the form of the JSON file."""
        check = None if self.check is None else {**vars(self.check), "top1": _pair(self.top1)}
        return {
            "source": self.source,
            "target": self.target,
            "before": vars(self.before),
            "after": vars(self.after),
            "passes": [each.as_dict() for each in self.passes],
            "check": check,
            "latency_ms": None if self.latency is None else [self.latency.before, self.latency.after],
            "failures": list(self.failures),
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """Return the report as JSON text; a figure that is not finite becomes null."""
        return json.dumps(_finite(self.as_dict()), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _pair(values: tuple[float, float] | None) -> list[float] | None:
    return None if values is None else list(values)


def _finite(value: Any) -> Any:
    """Replace NaN and Inf, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
