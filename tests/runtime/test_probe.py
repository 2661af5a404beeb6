"""The process that inputs are tried in: what it says, and that it never outlives its purpose."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.errors import GraphoptError
from graphopt.model import from_proto, load
from graphopt.runtime import probe, session
from graphopt.runtime.probe import Probe
from graphopt.testing import draw, model

F4 = np.float32
SUM = "g (float[N,3] x) => (float[N,1] y, string[2] names) { y = ReduceSum<keepdims = 1>(x) names = Identity(s) }"


def test_what_a_run_shows() -> None:
    text = "g (float[N,3] x) => (float[N,3] y, float[N,3] z, float[N,0] e) "
    text += "{ y = Relu(x) z = Div(y, y) n = Constant<value_ints = [0]>() k = Constant<value_ints = [1]>() "
    text += "e = Slice(x, n, n, k) }"
    with Probe(from_proto(model(text))) as subject:
        first = subject.run({"x": np.array([[1, 2, 3], [1, 2, 3]], F4)}).outputs
        second = subject.run({"x": np.array([[1, 2, 3], [1, 2, 4]], F4)}).outputs
        third = subject.run({"x": np.zeros((1, 3), F4)}).outputs
    assert [each.kind for each in first] == ["float", "float", ""]
    assert [(each.finite, each.varies, each.moved) for each in first[:2]] == [(True, True, False), (True, False, False)]
    assert [(each.finite, each.varies, each.moved) for each in second[:2]] == [(True, True, True), (True, False, False)]
    assert [(each.finite, each.moved) for each in third[:2]] == [(True, None), (False, None)]
    assert first[0].differs(second[0])
    assert not first[1].differs(second[1])
    assert not first[0].differs(third[0])


def test_refusals_are_one_line() -> None:
    with Probe(from_proto(model("g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }"))) as subject:
        with pytest.raises(GraphoptError, match="cannot run the model") as caught:
            subject.run({"x": np.ones((4, 3), F4)})
        assert "\n" not in str(caught.value)
        assert subject.run({"x": np.ones((2, 3), F4)})
    broken = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g (float[2] x) => (float[2] y) { y = No(x) }'
    )
    with pytest.raises(GraphoptError, match="cannot load the model"):
        Probe(from_proto(broken))


def test_a_refusal_names_no_file_of_ours() -> None:
    twins = model("g (float[2,3] x) => (float[2,3] y) { [n] h = Relu(x) [n] y = Neg(h) }")
    with pytest.raises(GraphoptError) as caught:
        Probe(from_proto(twins))
    reason = "This is an invalid model. Error: two nodes with same node name (n)."
    assert str(caught.value) == f"ONNX Runtime cannot load the model: {reason}"


def test_weights_in_a_file_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session, "IN_MEMORY", 0)
    onnx.save(model("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=draw(64, 64)), tmp_path / "m.onnx")
    with Probe(load(tmp_path / "m.onnx")) as subject:
        assert subject.run({"x": np.ones((2, 64), F4)}).outputs[0].varies


ENDLESS = """
g (float x) => (float y) {
  n = Constant<value_int = 9223372036854775807>()  go = Constant<value = bool {1}>()
  y = Loop<body = b (int64 i, bool c, float v) => (bool c2, float w) { c2 = Identity(c)  w = Cos(v) }>(n, go, x)
}
"""


def test_a_run_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "RUN_SECONDS", 0.2)
    with Probe(from_proto(model(ENDLESS))) as subject:
        for _ in range(probe.MOST_TIMEOUTS):
            with pytest.raises(GraphoptError, match=r"takes over 0\.2 seconds on these inputs"):
                subject.run({"x": np.ones((), F4)})
        with pytest.raises(GraphoptError, match="again and again"):
            subject.run({"x": np.ones((), F4)})


def test_a_model_that_does_not_fit_into_memory_is_a_refusal() -> None:
    text = "g (int64[4] s) => (float[a,b,c,d] y) { y = ConstantOfShape(s) }"
    with Probe(from_proto(model(text))) as subject:
        with pytest.raises(GraphoptError, match="ONNX Runtime"):
            subject.run({"s": np.array([1 << 14] * 4)})
        assert subject.run({"s": np.array([1, 2, 1, 2])})


@pytest.mark.skipif(os.name != "posix", reason="asks whether a process lives by sending it no signal")
def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """Even if the parent is killed while a run without end is under way."""
    onnx.save(model(ENDLESS), tmp_path / "m.onnx")
    script = (
        "import os, sys, threading, numpy\nfrom graphopt.model import load\nfrom graphopt.runtime.probe import Probe\n"
        "subject = Probe(load(sys.argv[1])); print(subject._process.pid, flush=True)\n"
        "threading.Timer(0.5, lambda: os._exit(0)).start(); subject.run({'x': numpy.ones((), 'f')})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "m.onnx")], capture_output=True, text=True)
    child = int(done.stdout)
    for _ in range(600):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"the process {child} is still there")


@pytest.mark.parametrize("mapped", [False, True])
def test_the_outputs_of_earlier_runs_are_those_of_a_session_to_the_bit(
    mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "IN_MEMORY", 0 if mapped else 1 << 26)
    subject = from_proto(model(SUM, s=np.array(["a", "b"], object)))
    here = session.Session(subject, threads=session.threads_for_samples(subject))
    feeds = [{"x": draw(n, 3, seed=n)} for n in (4, 2, 3)]
    with Probe(subject) as there:
        answers = [there.run(each) for each in feeds]
        with pytest.raises(GraphoptError, match="cannot run the model"):
            there.run({"x": np.ones((4, 4), F4)})
        for each, answer in reversed(list(zip(feeds, answers, strict=True))):
            values, wanted = there.values(answer), here.run(each)
            assert values is not None
            assert list(values) == ["y", "names"]
            assert values["y"].tobytes() == wanted["y"].tobytes()
            assert list(values["names"]) == ["a", "b"]


def test_outputs_that_are_large_together_are_those_of_the_latest_runs() -> None:
    text = "g (int64[1] s) => (float[N] y) { y = ConstantOfShape<value = float[1] {2}>(s) }"
    with Probe(from_proto(model(text))) as subject:
        sizes = (1 << 22, 1 << 23, 1 << 24, 1 << 22)  # of 64 MB: a quarter, half, all, a quarter
        answers = [subject.run({"s": np.array([size])}) for size in sizes]
        kept = [subject.values(each) for each in answers]
        assert [each is not None and each["y"].size for each in kept] == [False, False, False, 1 << 22]
        assert subject.values(subject.run({"s": np.array([1 << 24])})) is not None
        assert subject.values(subject.run({"s": np.array([(1 << 24) + 1])})) is None


def test_nothing_is_known_of_runs_before_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "RUN_SECONDS", 0.2)
    with Probe(from_proto(model(ENDLESS.replace("9223372036854775807", "3")))) as subject:
        first = subject.run({"x": np.ones((), F4)})
        assert subject._process is not None
        subject._process.kill()
        assert subject.values(first) is None
        second = subject.run({"x": np.ones((), F4)})
        assert subject.values(first) is None
        assert subject.values(second) is not None
