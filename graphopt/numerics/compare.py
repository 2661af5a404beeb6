"""Placeholder until the comparison lands."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.contract import BitExact, Contract, FloatExact


@dataclass(frozen=True)
class Comparison:
    """How two models' outputs differ."""

    holds: bool
    contract: str
    max_abs: float
    max_rel: float
    sqnr_db: float | None
    outputs: tuple[Any, ...] = ()
    problem: str = ""


class Comparer:
    """Collects differences."""

    def __init__(self, contract: Contract) -> None:
        """Judge by ``contract``."""
        self.contract = contract
        self.holds, self.max_abs, self.problem = True, 0.0, ""

    def add(self, reference: dict[str, Any], candidate: dict[str, Any]) -> None:
        """Add one batch."""
        for name, r in reference.items():
            c = candidate[name]
            if r.shape != c.shape or r.dtype != c.dtype:
                self.holds, self.problem = False, f"{name}: {r.dtype}{r.shape} became {c.dtype}{c.shape}"
                continue
            if not r.size:
                continue
            d = np.abs(r.astype(np.float64) - c.astype(np.float64))
            self.max_abs = max(self.max_abs, float(d.max()))
            if isinstance(self.contract, BitExact):
                ok = r.tobytes() == c.tobytes()
            elif isinstance(self.contract, FloatExact):
                s = float(r.astype(np.float64).std())
                ok = bool((d <= self.contract.rtol * np.maximum(np.abs(r), s) + self.contract.atol * min(1, s)).all())
            else:
                noise = float((d**2).sum())
                ok = noise == 0 or 10 * np.log10(float((r.astype(np.float64) ** 2).sum()) / noise) >= self.contract.min_sqnr_db
            if not ok:
                self.holds, self.problem = False, f"{name}: moved by {d.max():.3g}"

    def result(self) -> Comparison:
        """Return the verdict."""
        return Comparison(self.holds, str(self.contract), self.max_abs, 0.0, None, (), self.problem)
