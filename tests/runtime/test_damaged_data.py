"""Damaged data are read or refused with one line, never anything else: archives and folders of test data alike."""

import io
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import SequenceProto, TensorProto, numpy_helper

from graphopt.errors import DataError
from graphopt.model import Model, from_proto
from graphopt.runtime import npz
from graphopt.runtime.feeds import load_data
from graphopt.testing import model

COUNT = 400
X = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)


def subject() -> Model:
    return from_proto(model("g (float[N,5] x) => (float[N,5] y) { y = Relu(x) }"))


def read(path: Path, into: Model) -> str:
    """Read all of the data; return why it is refused, in one line, or nothing."""
    said = ""
    try:
        data = load_data(path, into)
        for feeds in [*data.batches(), *data.calibration().batches()]:
            assert set(feeds) <= {"x", "s"}
    except DataError as error:
        said = str(error)
    assert "\n" not in said
    assert not said or said.startswith(str(path))
    return said


def mutated(source: bytes, seed: int) -> bytes:
    """Cut bytes off, flip bits, put other bytes in, or repeat a part."""
    rng = random.Random(seed)
    data = bytearray(source)
    for _ in range(rng.choice((1, 1, 1, 3, 10))):
        place = rng.randrange(len(data))
        match rng.randrange(5):
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                data[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del data[place + 1 :]
            case 3:
                del data[place : place + rng.randrange(1, 9)]
            case 4:
                data[place:place] = data[place : place + rng.randrange(1, 9)]
        if not data:
            return b""
    return bytes(data)


def archive(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(buffer, x=X, labels=np.arange(6) % 5, **{"calibration/x": X[:2], "x.scale": np.float32(1)})
    return buffer.getvalue()


@pytest.mark.parametrize("streamed", [False, True], ids=["kept", "streamed"])
@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
def test_mutated_archives(compressed: bool, streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "KEPT_BYTES", 0 if streamed else npz.KEPT_BYTES)
    source, path, into = archive(compressed), tmp_path / "d.npz", subject()
    refused = 0
    for seed in range(COUNT):
        path.write_bytes(mutated(source, seed))
        try:
            refused += bool(read(path, into))
        except Exception as error:  # any other kind is what this looks for
            pytest.fail(f"mutated(archive({compressed}), {seed}) raised {type(error).__name__}: {error}")
    assert 0 < refused < COUNT


def test_every_truncated_archive(tmp_path: Path) -> None:
    source, path, into = archive(True), tmp_path / "d.npz", subject()
    for length in range(0, len(source), 7):
        path.write_bytes(source[:length])
        assert read(path, into)


SEQUENCE = """g (seq(float[5]) s, float[N,5] x) => (float[N,5] y) {
    t = ConcatFromSequence <axis = 0, new_axis = 1> (s)  y = Add(t, x)
}"""


@pytest.mark.parametrize("form", ["tensor", "sequence"])
def test_mutated_test_data_sets(form: str, tmp_path: Path) -> None:
    into = subject() if form == "tensor" else from_proto(model(SEQUENCE))
    messages = [numpy_helper.from_array(X)]
    if form == "sequence":
        messages.insert(0, numpy_helper.from_list(list(X)))
    folder = tmp_path / "test_data_set_0"
    folder.mkdir()
    sources = [message.SerializeToString() for message in messages]
    refused = 0
    for seed in range(COUNT):
        for number, source in enumerate(sources):
            (folder / f"input_{number}.pb").write_bytes(mutated(source, seed) if not number else source)
        try:
            refused += bool(read(tmp_path, into))
        except Exception as error:  # any other kind is what this looks for
            pytest.fail(f"mutated(sources[0], {seed}) of a {form} raised {type(error).__name__}: {error}")
    assert 0 < refused < COUNT


def npy(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin1")
    text += b" " * (64 - (10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + body


def header(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def patched(local: int, central: int, value: int) -> bytes:
    """Return an archive with a field of both headers of its one member set."""
    data = bytearray(zipped(x=npy(header("(1, 5)"), bytes(20))))
    for start, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        struct.pack_into("<H", data, data.find(start) + offset, value)
    return bytes(data)


def bomb() -> bytes:
    """An archive whose headers tell of a terabyte that it does not hold."""
    content = npy(header("(50000000000, 5)"))
    data = bytearray(zipped(x=content))
    for start, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.find(start) + offset, 0xFFFFFFF0)
    return bytes(data)


def directory() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.mkdir("x")
    return buffer.getvalue()


def twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in ("x", "x.npy"):
            file.writestr(name, npy(header("(1, 5)"), bytes(20)))
    return buffer.getvalue()


ARCHIVES: dict[str, tuple[bytes, str]] = {
    "more than memory": (zipped(x=npy(header("(4000000000000, 5)"))), "not as long as its header says"),
    "a size of no integer": (zipped(x=npy(header("(99999999999999999999, 5)"))), "not as long"),
    "a negative size": (zipped(x=npy(header("(-1, 5)"), bytes(20))), "not as long"),
    "a header that is cut": (zipped(x=npy("{'descr': '<f4', 'shape': (1, 5")), "not a readable .npz"),
    "a header that nests": (zipped(x=npy("(" * 4000)), "not a readable .npz"),
    "a header of code": (zipped(x=npy("__import__('os').abort()")), "not a readable .npz"),
    "a header that is longer than allowed": (
        zipped(x=npy(header("(1, 5)" + " " * 20000), bytes(20))),
        "not a readable",
    ),
    "an unknown type": (zipped(x=npy(header("(1, 5)", "'<q9'"), bytes(20))), "not a readable .npz"),
    "objects": (zipped(x=npy(header("(1, 5)", "'|O'"), bytes(40))), "pickled objects"),
    "records": (zipped(x=npy(header("(1, 5)", "[('a', '<f4')]"), bytes(20))), "'x' holds"),
    "pairs": (zipped(x=npy(header("(1, 5)", "('<f4', (2,))"), bytes(40))), ""),
    "times": (zipped(x=npy(header("(1, 5)", "'<M8[s]'"), bytes(40))), "'x' holds datetime64[s]"),
    "texts": (zipped(x=npy(header("(1, 5)", "'<U2'"), bytes(40))), "'x' holds <U2"),
    "complex numbers": (zipped(x=npy(header("(1, 5)", "'<c8'"), bytes(40))), "'x' holds complex64"),
    "an unknown version": (zipped(x=npy(header("(1, 5)"), bytes(20), b"\x09\x00")), "not a readable .npz"),
    "what is no array": (zipped(x=b"\x80\x04pickle"), "not a readable .npz"),
    "an empty member": (zipped(x=b""), "not a readable .npz"),
    "an archive without members": (zipped(), "no array 'x'"),
    "a member that is locked": (patched(6, 8, 1), "encrypted"),
    "a compression that nobody has": (patched(8, 10, 99), "not a readable .npz"),
    "a terabyte that is not there": (bomb(), "not as long"),
    "a folder": (directory(), "not a readable .npz"),
    "a name twice": (twice(), "holds 'x' twice"),
    "a name in a folder": (zipped(**{"data/x": npy(header("(1, 5)"), bytes(20))}), "'data/x' is no input"),
    "a name with line breaks": (zipped(**{"x\n\x1b[31m": npy(header("(1, 5)"), bytes(20))}), "is no input"),
    "a name that is empty": (zipped(**{"": npy(header("(1, 5)"), bytes(20))}), "'' is no input"),
    "labels beyond memory": (
        zipped(x=npy(header("(1, 5)"), bytes(20)), labels=npy(header("(0, 9000000000000000000)", "'<i8'"))),
        "'labels' has shape",
    ),
    "a scale of many numbers": (
        zipped(x=npy(header("(1, 5)"), bytes(20)), **{"x.scale": npy(header("(2,)"), bytes(8))}),
        "must be one number",
    ),
    "a single array": (npy(header("(1, 5)"), bytes(20)), "is a single array"),
    "nothing": (b"", "is not an .npz file"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_lie(name: str, tmp_path: Path) -> None:
    content, culprit = ARCHIVES[name]
    (tmp_path / "d.npz").write_bytes(content)
    said = read(tmp_path / "d.npz", subject())
    assert said
    assert culprit in said


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([b"\xff\xfe"]))
    into = from_proto(model("g (string[N] x) => (string[N] y) { y = Identity(x) }"))
    assert "bytes that are no text" in read(tmp_path / "d.npz", into)


def tensor(**fields: object) -> bytes:
    return TensorProto(**fields).SerializeToString()


EXTERNAL = TensorProto(data_type=1, dims=[1, 5], data_location=TensorProto.EXTERNAL)
EXTERNAL.external_data.add(key="location", value="../secret")

SETS: dict[str, tuple[dict[str, bytes], str]] = {
    "too few bytes": ({"input_0.pb": tensor(data_type=1, dims=[1, 5], raw_data=b"123")}, "not a readable tensor"),
    "an unknown type": ({"input_0.pb": tensor(data_type=99, dims=[1, 5])}, "not a readable tensor"),
    "no type": ({"input_0.pb": tensor(dims=[1, 5])}, "not a readable tensor"),
    "more than memory": ({"input_0.pb": tensor(data_type=1, dims=[2**40, 2**40], raw_data=b"1234")}, "not a readable"),
    "a negative size": ({"input_0.pb": tensor(data_type=1, dims=[-1, 5], raw_data=bytes(21))}, "not a readable"),
    "too few numbers": ({"input_0.pb": tensor(data_type=1, dims=[1, 5], float_data=[1, 2])}, "not a readable tensor"),
    "values in another file": ({"input_0.pb": EXTERNAL.SerializeToString()}, "keeps its values in another file"),
    "texts for numbers": ({"input_0.pb": tensor(data_type=8, dims=[1], string_data=[b"\xff"])}, "input_0.pb"),
    "another shape": ({"input_0.pb": numpy_helper.from_array(X[:, :4]).SerializeToString()}, "has shape (6, 4)"),
    "what is no message": ({"input_0.pb": b"\xff" * 9}, "not a readable tensor"),
    "no input": ({"output_0.pb": b""}, "holds no test_data_set_0"),
    "a number twice": ({"input_0.pb": b"", "input_00.pb": b""}, "not numbered from input_0.pb on"),
    "a number left out": ({"input_1.pb": numpy_helper.from_array(X).SerializeToString()}, "not numbered"),
    "no number": ({"input_x.pb": numpy_helper.from_array(X).SerializeToString()}, "not numbered"),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("below", ["", "test_data_set_0"], ids=["the set itself", "below a folder"])
def test_test_data_that_lie(name: str, below: str, tmp_path: Path) -> None:
    files, culprit = SETS[name]
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    assert culprit.replace("holds no test_data_set_0", "holds" if below else "holds no") in read(tmp_path, subject())


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "input_0.pb").mkdir()
    assert "input_0.pb: is not a file" in read(tmp_path, subject())


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are a thing of POSIX")
@pytest.mark.parametrize(("make", "why"), [(pipe, "is not a file"), (loop, "cannot be read")])
@pytest.mark.parametrize("name", ["d.npz", "input_0.pb"])
def test_what_is_no_file(make: Callable[[Path], None], why: str, name: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    assert why in read(tmp_path / name if name == "d.npz" else tmp_path, subject())


def test_a_name_that_no_system_takes() -> None:
    for name in ("a\0b.npz", "a" * 5000 + ".npz"):
        with pytest.raises(DataError, match=r"cannot be read|no such file"):
            load_data(name, subject())


def test_sequences_that_are_damaged(tmp_path: Path) -> None:
    into = from_proto(model(SEQUENCE))
    broken = SequenceProto(elem_type=SequenceProto.TENSOR, tensor_values=[TensorProto(data_type=99, dims=[5])])
    (tmp_path / "input_0.pb").write_bytes(broken.SerializeToString())
    (tmp_path / "input_1.pb").write_bytes(numpy_helper.from_array(X).SerializeToString())
    assert "input_0.pb: is not a readable sequence" in read(tmp_path, into)
