"""Data in .npz files, read as it is needed: the same samples in any order, and one line where a file is damaged."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import DataError
from graphopt.model import Model, from_proto
from graphopt.runtime import npz
from graphopt.runtime.data import ArrayData, ListData
from graphopt.runtime.feeds import from_arrays, load_data
from graphopt.testing import model

X = np.random.default_rng(0).standard_normal((11, 5)).astype(np.float32)
LONG = np.tile(X, (1, 1000))
"""More than is read of a file at once."""
Save = Callable[..., None]


@pytest.fixture(params=["kept", "streamed"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read members whole, or sample after sample in small pieces, as large ones are."""
    if request.param == "streamed":
        monkeypatch.setattr(npz, "KEPT_BYTES", 0)
        monkeypatch.setattr(npz, "_CHUNK", 7)


def subject(shape: str = "N,5") -> Model:
    return from_proto(model(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Relu(x) }}"))


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", ["N,5", "4,5", "5"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_are_those_of_arrays(shape: str, save: Save, order: str, tmp_path: Path) -> None:
    save(tmp_path / "d.npz", x=np.asarray(X, order=order))
    data, same = load_data(tmp_path / "d.npz", subject(shape)), from_arrays({"x": X}, subject(shape))
    for limit in (None, 1, 6, 11):
        pairs = list(zip(data.batches(limit), same.batches(limit), strict=True))
        assert pairs
        for one, two in pairs:
            np.testing.assert_array_equal(one["x"], two["x"])
            assert one["x"].flags.c_contiguous
    assert list(data.counts(6)) == list(same.counts(6))


@pytest.mark.usefixtures("reading")
def test_two_iterators_at_once(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=X)
    data = load_data(tmp_path / "d.npz", subject("1,5"))
    for (one, two), row in zip(zip(data.batches(), data.batches(), strict=True), X, strict=True):
        np.testing.assert_array_equal(one["x"][0], row)
        np.testing.assert_array_equal(two["x"][0], row)


@pytest.mark.usefixtures("reading")
def test_samples_in_any_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X)
    data = load_data(tmp_path / "d.npz", subject())
    assert isinstance(data, ArrayData)
    for part in (slice(4, 7), slice(0, 2), slice(9, 20), slice(None, None, 3), 5, slice(3, 3)):
        np.testing.assert_array_equal(data.stored["x"].take(part), X[part])
    np.testing.assert_array_equal(np.asarray(data.stored["x"].values), X)


@pytest.mark.usefixtures("reading")
def test_stored_types_and_scales(tmp_path: Path) -> None:
    stored = (X * 10).astype(np.int8)
    np.savez_compressed(tmp_path / "d.npz", **{"x": stored, "x.scale": np.float32(0.5), "calibration/x": stored[:3]})
    data = load_data(tmp_path / "d.npz", subject())
    np.testing.assert_array_equal(next(data.batches())["x"], stored * np.float32(0.5))
    np.testing.assert_array_equal(next(data.calibration().batches())["x"], stored[:3] * np.float32(0.5))


def damaged(path: Path, entry: str) -> None:
    """Change the last byte of a stored member's values."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(entry)
    content = bytearray(path.read_bytes())
    name_length = int.from_bytes(content[info.header_offset + 26 : info.header_offset + 28], "little")
    extra_length = int.from_bytes(content[info.header_offset + 28 : info.header_offset + 30], "little")
    content[info.header_offset + 30 + name_length + extra_length + info.compress_size - 1] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.usefixtures("reading")
def test_damage_is_told_in_one_line_when_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=LONG)
    damaged(path, "x.npy")
    data = load_data(path, subject("1,5000"))
    with pytest.raises(DataError, match=r"d\.npz: is not a readable \.npz file") as caught:
        list(data.batches())
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("reading")
def test_data_to_calibrate_with_is_not_read_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, **{"x": LONG, "calibration/x": LONG})
    damaged(path, "calibration/x.npy")
    data = load_data(path, subject("N,5000"))
    np.testing.assert_array_equal(next(data.batches())["x"], LONG)
    with pytest.raises(DataError, match="not a readable"):
        list(data.calibration().batches())


def test_a_file_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "KEPT_BYTES", 0)
    np.savez(tmp_path / "d.npz", x=X)
    data = load_data(tmp_path / "d.npz", subject())
    (tmp_path / "d.npz").unlink()
    with pytest.raises(DataError, match=r"d\.npz: is not a readable"):
        next(data.batches())


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("{'descr': '<f4', 'fortran_order': False, 'shape': (11, 500)}", id="more than there is"),
        pytest.param("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 5)}", id="negative"),
        pytest.param("{'descr': 'none', 'fortran_order': False, 'shape': (11, 5)}", id="no type"),
        pytest.param("{", id="no header"),
    ],
)
def test_headers_that_lie(header: str, tmp_path: Path) -> None:
    text = header.encode().ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + X.tobytes())
    with pytest.raises(DataError, match=r"d\.npz: is not a readable") as caught:
        load_data(tmp_path / "d.npz", subject())
    assert "\n" not in str(caught.value)


# -- what is a sample --------------------------------------------------------------------------------------------------


def test_counts_leave_out_what_fills_up() -> None:
    data = from_arrays({"x": X}, subject("4,5"))
    assert list(data.counts()) == [4, 4, 3]
    assert list(data.counts(6)) == [4, 4]
    assert [len(feeds["x"]) for feeds in data.batches(6)] == [4, 4]
    assert list(from_arrays({"x": X}, subject()).counts(6)) == [6]
    assert list(from_arrays({"x": X}, subject("5")).counts(3)) == [1, 1, 1]


def test_counts_of_generated_feeds() -> None:
    two, three = {"x": X[:2], "k": np.float32(1)}, {"x": X[:3], "y": X[:2]}
    assert list(ListData([two, three, {}], generated=True).counts()) == [2, 1, 1]
    assert list(ListData([two, three]).counts(1)) == [1]


def test_a_sample_may_hold_nothing() -> None:
    past = np.zeros((3, 0, 4), np.float32)
    two = from_proto(model("g (float[N,P,4] past, float[N,4] x) => (float[N,P,4] y) { y = Relu(past) }"))
    (feeds,) = from_arrays({"past": past, "x": X[:3, :4]}, two).batches()
    assert feeds["past"].shape == (3, 0, 4)


def test_an_input_without_a_sample_axis() -> None:
    flag = from_proto(
        model("g (float[N,5] x, bool[1] flag) => (float[N,5] y, bool[1] z) { y = Relu(x) z = Not(flag) }")
    )
    (feeds,) = from_arrays({"x": X, "flag": np.array([True])}, flag).batches()
    assert (feeds["x"].shape, feeds["flag"].tolist()) == ((11, 5), [True])
    fixed = from_proto(
        model("g (float[4,5] x, bool[1] flag) => (float[4,5] y, bool[1] z) { y = Relu(x) z = Not(flag) }")
    )
    with pytest.raises(DataError, match="'x' has 11 samples, 'flag' has 1"):
        from_arrays({"x": X, "flag": np.array([True])}, fixed)


def test_inputs_that_are_called_like_keys() -> None:
    text = "g (float[N,5] x, float[1] x.scale, int64[N] labels) => (float[N,5] y, int64[N] z) "
    subject = from_proto(model((text + "{ y = Mul(x, s) z = Identity(labels) }").replace("x.scale", "s")))
    for tensor in subject.graph.inputs:
        tensor.name = "x.scale" if tensor.name == "s" else tensor.name
    data = from_arrays({"x": X, "x.scale": np.array([2], np.float32), "labels": np.arange(11) + 100}, subject)
    (feeds,) = data.batches()
    np.testing.assert_array_equal(feeds["x"], X)
    assert feeds["labels"].tolist() == list(range(100, 111))
    assert data.labels is None
