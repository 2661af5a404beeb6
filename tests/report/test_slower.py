"""A result that is slower than the original says what to do about it."""

import numpy as np
import pytest

from graphopt import api, create, optimize
from graphopt.testing import model

WEIGHT = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "options", "advice"),
    [
        ("quantize-weights", {}, "computes the DequantizeLinear of each weight at every run"),
        ("quantize-weights", {"representation": "mul"}, None),
        ("quantize-activations", {}, "the integer kernels do not pay on this machine"),
    ],
)
def test_what_to_do_when_slower(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, str], advice: str | None
) -> None:
    monkeypatch.setattr(api, "median_latencies", lambda *_: (1.0, 2.5))
    proto = model("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=WEIGHT)
    notes = optimize(proto, [create(name, **options)], latency=True).report.notes
    told = [note for note in notes if note.startswith("slower than the original")]
    assert len(told) == 1
    assert "1 ms became 2.5 ms" in told[0]
    if advice is None:
        assert told[0].endswith("2.5 ms")
    else:
        assert advice in told[0]
        assert "--representation mul" in told[0]
    assert ("session.disable_quant_qdq" in told[0]) == (name == "quantize-weights" and advice is not None)
