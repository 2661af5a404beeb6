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
    """One measured claim: of a pass against its input, or of the run against the original."""

    contract: str
    holds: bool
    max_abs: float
    max_rel: float
    sqnr_db: float | None
    problem: str = ""
    notes: tuple[str, ...] = ()

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
        )


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
    latency_ms: tuple[float, float] | None = None
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
            "latency_ms": _pair(self.latency_ms),
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
