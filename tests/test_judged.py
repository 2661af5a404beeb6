"""Further runs where the whole does not hold: sites are demoted until top-1 is kept, or the first run is kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt import judged
from graphopt.pipeline import Pipeline, Run
from graphopt.report.text import to_text
from graphopt.runtime.session import Session

PASSES = [graphopt.create("fold-batchnorm"), graphopt.create("quantize-weights", dtype="int2", granularity="block")]


@pytest.fixture(scope="module")
def data(models: Path) -> dict[str, np.ndarray]:
    with np.load(models / "fashion_mnist.npz") as stored:
        kept = {name: stored[name] for name in ("image.scale", "image.offset")}
        return {"image": stored["image"][:1000], "labels": stored["labels"][:1000], **kept}


def top1(model: Any, data: dict[str, np.ndarray]) -> float:
    """Return the share of right answers, computed here."""
    images = (data["image"] * data["image.scale"] + data["image.offset"]).astype(np.float32)
    (scores,) = Session(model, optimize=True).run({"image": images}).values()
    return float((scores.argmax(1) == data["labels"]).mean())


def runs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note the ratio that each run of a pipeline is held to."""
    seen: list[float] = []
    real = Pipeline.run

    def run(self: Pipeline, model: Any) -> Run:
        seen.append(self.least_db)
        return real(self, model)

    monkeypatch.setattr(Pipeline, "run", run)
    return seen


def test_sites_are_demoted_until_top1_is_kept(
    models: Path, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = runs(monkeypatch)
    source = models / "fmnist_resnet14_bn.onnx"
    result = graphopt.optimize(source, PASSES, data=data, latency=False)
    assert result.ok
    before, after = top1(str(source), data), top1(result.optimized, data)
    assert result.report.top1 == (pytest.approx(before, abs=1e-9), pytest.approx(after, abs=1e-9))
    assert before - after <= 0.02
    assert seen[0] == -np.inf
    assert len(seen) > 1
    assert np.diff(seen[1:]) == pytest.approx([judged.STEP_DB] * (len(seen) - 2), abs=1e-9)
    check = result.report.passes[1].check
    assert check is not None
    assert check.sqnr_db is not None
    assert check.sqnr_db >= seen[-1]
    assert result.report.passes[1].demoted
    (note,) = [each for each in result.report.notes if each.startswith("top-1 fell too far")]
    assert note.endswith(f"so sites were demoted until {seen[-1]:.1f} dB were reached")


def test_the_first_run_is_handed_back_where_nothing_helps(
    models: Path, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged, "STEP_DB", 0.01)
    monkeypatch.setattr(judged, "MOST_STEPS", 2)
    seen = runs(monkeypatch)
    result = graphopt.optimize(models / "fmnist_resnet14_bn.onnx", PASSES, data=data, latency=False, max_drop=0.0)
    assert len(seen) == 3
    assert not result.ok
    assert [each for each in result.report.failures if each.startswith("top-1 fell by")]
    assert not [each for each in result.report.notes if each.startswith("top-1 fell too far")]


def test_nothing_is_run_again_behind_a_pass_that_promises_no_accuracy(
    models: Path, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = runs(monkeypatch)
    passes = [graphopt.create("zero-channels", ratio=0.9), graphopt.create("prune-channels"), "quantize-weights"]
    result = graphopt.optimize(models / "fmnist_resnet14_bn.onnx", passes, data=data, latency=False)
    assert seen == [-np.inf]
    assert [each for each in result.report.failures if each.startswith("top-1 fell by")]


def test_passes_that_cannot_demote_are_run_once(
    models: Path, data: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = runs(monkeypatch)
    passes = [graphopt.create("zero-channels", ratio=0.9), graphopt.create("prune-channels")]
    result = graphopt.optimize(models / "fmnist_resnet14_bn.onnx", passes, data=data, latency=False)
    assert seen == [-np.inf]
    assert result.ok
    assert result.report.top1 is not None
    assert result.report.top1[0] - result.report.top1[1] > 0.02
    first, second = to_text(result.report.document()).splitlines()[1:3]
    assert first == "Done and verified."
    assert second.startswith("Top-1 fell by ")
