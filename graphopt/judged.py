"""Runs a pipeline and judges the whole; where that does not hold, runs it again in the way that may."""

import math
from collections.abc import Sequence
from dataclasses import replace

from graphopt.base import Pass
from graphopt.contract import Lossy
from graphopt.model import Model
from graphopt.pipeline import Pipeline, Run
from graphopt.verdict import Verdict, failed, judge, kept_passes

STEP_DB, MOST_STEPS = 6.0, 3
"""Each further run is held to half the noise amplitude of the one before it, so many times."""


def judged_run(pipeline: Pipeline, source: Model, max_drop: float) -> tuple[Run, Verdict]:
    """Run the passes and judge the whole; where that fails, run again with each pass judged as the whole is.

    Where top-1 has fallen too far, passes that can demote sites are held to more than they promise, step by step.
    """
    run, passes, proof = pipeline.run(source), pipeline.passes, pipeline.proof
    if proof is None:
        return run, Verdict()
    pipeline.progress("checking the whole", len(passes), len(passes))
    verdict = judge(proof, run.after.model, passes, run.reports, max_drop)
    if not (verdict.plain_session and (verdict.default_session or failed(passes, run.reports))):
        pipeline = replace(pipeline, thorough=True, default_session=not verdict.default_session)
        run = pipeline.run(source)
        verdict = judge(proof, run.after.model, passes, run.reports, max_drop)
    return _without_drop(pipeline, source, max_drop, run, verdict)


def _without_drop(
    pipeline: Pipeline, source: Model, max_drop: float, run: Run, verdict: Verdict
) -> tuple[Run, Verdict]:
    """Return a run that keeps top-1 where this one does not and sites can be demoted, or else this one."""
    proof, passes = pipeline.proof, pipeline.passes
    if proof is None or not verdict.dropped or failed(passes, run.reports):
        return run, verdict
    ratio = _lowest_ratio(passes, run)
    if ratio is None:
        return run, verdict
    for step in range(1, MOST_STEPS + 1):
        least = ratio + step * STEP_DB
        pipeline.progress(f"top-1 fell too far, so at least {least:.0f} dB", len(passes), len(passes))
        again = replace(pipeline, least_db=least).run(source)
        found = judge(proof, again.after.model, passes, again.reports, max_drop)
        if failed(passes, again.reports) or not (found.plain_session and found.default_session):
            break
        if not found.dropped:
            note = f"top-1 fell too far with {ratio:.1f} dB, so sites were demoted until {least:.1f} dB were reached"
            return again, replace(found, notes=(*found.notes, note))
    return run, verdict


def _lowest_ratio(passes: Sequence[Pass], run: Run) -> float | None:
    """Return what the passes that can demote sites reached, the lowest.

    None if there is no such pass, or if another one promises no ratio: then the fall is likely to be its doing.
    """
    changed = [(each, told) for each, told in kept_passes(passes, run.reports) if told.rewritten]
    if any(each.contract == Lossy(-math.inf) for each, _ in changed):
        return None
    able = {each.name for each, _ in changed if isinstance(each.contract, Lossy) and each.demotions}
    checks = [report.check for report in run.reports if report.kept and report.name in able]
    return min((check.sqnr_db for check in checks if check and check.sqnr_db is not None), default=None)
