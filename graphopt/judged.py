"""Runs a pipeline and judges the whole; where that does not hold, runs it again in the way that may."""

from dataclasses import replace

from graphopt.contract import Lossy
from graphopt.model import Model
from graphopt.pipeline import Pipeline, Run
from graphopt.verdict import Verdict, failed, judge

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
    ratio = None if verdict.check is None else verdict.check.sqnr_db
    if proof is None or ratio is None or not verdict.dropped or failed(passes, run.reports):
        return run, verdict
    for step in range(1, MOST_STEPS + 1):
        least = ratio + step * STEP_DB
        if not any(isinstance(each.contract, Lossy) and each.demotions for each in passes):
            break
        pipeline.progress(f"top-1 fell too far, so at least {least:.0f} dB", len(passes), len(passes))
        again = replace(pipeline, least_db=least).run(source)
        found = judge(proof, again.after.model, passes, again.reports, max_drop)
        if failed(passes, again.reports) or not (found.plain_session and found.default_session):
            break
        if not found.dropped:
            note = f"top-1 fell too far with {ratio:.1f} dB, so sites were demoted until {least:.1f} dB were reached"
            return again, replace(found, notes=(*found.notes, note))
    return run, verdict
