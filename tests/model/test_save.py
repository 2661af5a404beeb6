"""Saving is whole or not at all, streams, and puts weights where it was told to."""

import errno
import gc
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, parser

from graphopt.errors import ModelError
from graphopt.model import Model, exporter, from_proto, load, save, to_proto


def proto(size: int = 1000) -> ModelProto:
    """y = x + w + v + s, with a big w and v, and a small s."""
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 17]> g (float[{size}] x) => (float[{size}] y) '
        "{ t = Add(x, w) u = Add(t, v) y = Add(u, s) }"
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", size), ("v", size), ("s", 1)):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return model


def run(path: Path, size: int = 1000) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones(size, np.float32)})[0]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_always_external_never_inline(tmp_path: Path) -> None:
    save(from_proto(proto()), tmp_path / "a.onnx", "never")
    save(from_proto(proto()), tmp_path / "b.onnx", "always")
    assert names(tmp_path) == {"a.onnx", "b.onnx", "b.onnx.data"}
    stored = {t.name: t for t in onnx.load(tmp_path / "b.onnx", load_external_data=False).graph.initializer}
    assert [t.name for t in stored.values() if t.data_location == TensorProto.EXTERNAL] == ["w", "v"]
    assert {e.key: e.value for e in stored["w"].external_data} == {
        "location": "b.onnx.data",
        "offset": "0",
        "length": "4000",
    }
    onnx.checker.check_model(tmp_path / "b.onnx", full_check=True)
    np.testing.assert_array_equal(run(tmp_path / "a.onnx"), run(tmp_path / "b.onnx"))
    assert onnx.load(tmp_path / "b.onnx").graph.initializer[0].raw_data == proto().graph.initializer[0].raw_data


def test_big_external_weights_start_at_a_page(tmp_path: Path) -> None:
    save(from_proto(proto(20_000)), tmp_path / "m.onnx", "always")
    stored = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    assert [int(e.value) for t in stored for e in t.external_data if e.key == "offset"] == [0, 81920]


def test_auto_is_inline_until_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(proto().SerializeToString())
    monkeypatch.setattr(sys.modules["graphopt.model.save"], "LIMIT", size)
    save(from_proto(proto()), tmp_path / "m.onnx")
    assert names(tmp_path) == {"m.onnx"}
    monkeypatch.setattr(sys.modules["graphopt.model.save"], "LIMIT", size - 1)
    save(from_proto(proto()), tmp_path / "m.onnx")
    assert names(tmp_path) == {"m.onnx", "m.onnx.data"}
    with pytest.raises(ModelError, match="does not fit into one file"):
        save(from_proto(proto()), tmp_path / "n.onnx", "never")
    assert names(tmp_path) == {"m.onnx", "m.onnx.data"}


def test_to_proto_above_2_gb_is_refused() -> None:
    model = from_proto(proto())
    next(iter(model.constants())).values = np.zeros(2**29, np.float32)  # never touched, so never in memory
    assert exporter.weight_bytes(model) > exporter.LIMIT
    with pytest.raises(ModelError, match=r"2\.1 GB, more than the 2 GB"):
        to_proto(model)
    stub = to_proto(model, weights=False).graph.initializer[0]
    assert stub.data_location == TensorProto.EXTERNAL
    assert list(stub.dims) == [2**29]


@pytest.mark.parametrize("policy", ["never", "always"])
def test_saving_over_the_source(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto().SerializeToString())
    expected = run(path)
    for _ in range(4):
        model = load(path)
        save(model, path, policy)
        np.testing.assert_array_equal(run(path), expected)
        assert to_proto(model).SerializeToString() == proto().SerializeToString()
        assert len(names(tmp_path)) == (2 if policy == "always" else 1)


def test_an_old_data_file_goes_only_if_the_old_model_named_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    (tmp_path / "m.onnx.data").write_bytes(b"somebody else's")
    save(from_proto(proto()), path, "always")
    assert names(tmp_path) == {"m.onnx", "m.onnx.data", "m.onnx.1.data"}
    save(load(path), path, "never")
    assert names(tmp_path) == {"m.onnx", "m.onnx.data"}
    assert (tmp_path / "m.onnx.data").read_bytes() == b"somebody else's"


@pytest.mark.parametrize("policy", ["never", "always"])
def test_an_old_data_file_stays_where_another_model_names_it(policy: Any, tmp_path: Path) -> None:
    path, copy = tmp_path / "m.onnx", tmp_path / "before.onnx"
    save(from_proto(proto()), path, "always")
    copy.write_bytes(path.read_bytes())
    kept = (tmp_path / "m.onnx.data").read_bytes()
    expected = run(copy)
    save(load(path), path, policy)
    new = {"m.onnx.1.data"} if policy == "always" else set()
    assert names(tmp_path) == {"m.onnx", "before.onnx", "m.onnx.data"} | new
    assert (tmp_path / "m.onnx.data").read_bytes() == kept
    np.testing.assert_array_equal(run(copy), expected)
    np.testing.assert_array_equal(run(path), expected)


def test_a_link_to_the_model_does_not_keep_its_old_data_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(from_proto(proto()), path, "always")
    (tmp_path / "link.onnx").symlink_to(path)
    save(load(path), path, "never")
    assert names(tmp_path) == {"m.onnx", "link.onnx"}


def test_weights_of_the_model_are_not_written_over(tmp_path: Path) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    save(from_proto(proto()), path, "always")
    (tmp_path / "link.onnx").symlink_to(data)
    kept = data.read_bytes()
    for target in (data, tmp_path / "link.onnx"):
        for each in (load(path), load(path).copy()):
            with pytest.raises(ModelError) as caught:
                save(each, target)
            assert str(caught.value) == f"{target}: cannot write it: holds weights of {path}"
    assert data.read_bytes() == kept
    assert names(tmp_path) == {"m.onnx", "m.onnx.data", "link.onnx"}


def test_the_file_mode_and_a_link_stay(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    path.chmod(0o640)
    (tmp_path / "link.onnx").symlink_to(path)
    save(from_proto(proto()), tmp_path / "link.onnx")
    assert (tmp_path / "link.onnx").is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.read_bytes() == proto().SerializeToString()


@pytest.mark.parametrize("policy", ["never", "always"])
def test_a_failure_in_mid_write_leaves_the_target(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    save(from_proto(proto()), path, policy)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model = from_proto(proto())

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        save(model, path, policy)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_failure_between_data_and_model_leaves_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    save(from_proto(proto()), path, "always")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if target == path:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ModelError, match="cannot write it: No space left on device"):
        save(from_proto(proto()), path, "always")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


CHILD = """
import resource, signal, sys
import numpy as np
from graphopt.errors import ModelError
from graphopt.model import load, save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = load(sys.argv[1])
for constant in model.constants():
    constant.values = constant.values + 1
print("saving", flush=True)
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 10**6, 2 * 10**6))
try:
    while True:
        save(model, sys.argv[1], sys.argv[3])
except ModelError as error:
    print(error)
"""


@pytest.mark.parametrize("policy", ["never", "always"])
def test_a_full_disk_leaves_the_target(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(from_proto(proto(10**6)), path, policy)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, path, "full", policy], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1:] == [f"{path}: cannot write it: File too large"]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("policy", ["never", "always"])
def test_a_kill_in_mid_write_leaves_a_whole_model(policy: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(from_proto(proto(10**6)), path, policy)
    whole = {run(path, 10**6).tobytes()}
    with subprocess.Popen([sys.executable, "-c", CHILD, path, "kill", policy], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.2)
        child.send_signal(signal.SIGKILL)
    model = from_proto(proto(10**6))
    for constant in model.constants():
        constant.values = constant.values + 1
    (tmp_path / "other").mkdir()
    save(model, tmp_path / "other" / "m.onnx")
    whole.add(run(tmp_path / "other" / "m.onnx", 10**6).tobytes())
    assert run(path, 10**6).tobytes() in whole


@pytest.mark.parametrize(
    ("target", "reason"),
    [("missing/m.onnx", "No such file or directory"), (".", "directory"), ("m" * 300, "name too long")],
    ids=["no such folder", "a folder", "a long name"],
)
def test_unusable_targets(target: str, reason: str, tmp_path: Path) -> None:
    for policy in ("never", "always"):
        with pytest.raises(ModelError, match=f"cannot write it: .*(?i:{reason})"):
            save(from_proto(proto()), tmp_path / target, policy)
        assert names(tmp_path) == set()


def weights_from_disk(model: Model) -> list[object]:
    return [constant._values for constant in model.constants()]


def test_loading_and_saving_do_not_keep_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto().SerializeToString())
    model = load(path)
    before = weights_from_disk(model)
    save(model, tmp_path / "n.onnx")
    save(model, tmp_path / "o.onnx", "always")
    assert all(a is b for a, b in zip(before, weights_from_disk(model), strict=True))


@pytest.mark.parametrize("policy", ["never", "always"])
@pytest.mark.parametrize("supported", [True, False], ids=["copied by the system", "copied by hand"])
def test_big_unchanged_weights_come_out_right(
    policy: str, supported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = proto(1_200_000)
    (tmp_path / "a.onnx").write_bytes(before.SerializeToString())
    if not supported:

        def refuse(*_: object) -> int:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx", policy)
    save(load(tmp_path / "b.onnx"), tmp_path / "b.onnx", policy)
    save(load(tmp_path / "b.onnx"), tmp_path / "c.onnx", "never")
    assert (tmp_path / "c.onnx").read_bytes() == before.SerializeToString()


def test_no_file_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(proto().SerializeToString())
    gc.collect()
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        model = load(tmp_path / "a.onnx")
        save(model, tmp_path / "b.onnx")
        del model
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == opened
