"""External data: where it may lie, how long it is, and what happens where the model has the bytes as well."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser

from graphopt.errors import ModelError
from graphopt.model import load, save
from graphopt.model.ir import current_values

WEIGHT = np.random.default_rng(3).standard_normal((40, 40)).astype(np.float32)
TEXT = '<ir_version: 8, opset_import: ["": 17]> g (float[N,40] x) => (float[N,40] y) { y = MatMul(x, w) }'
HASHES = ("ab" * 32, "cd" * 32)


def written(file: Path, data: str, weight: NDArray[Any] = WEIGHT, **fields: Any) -> Path:
    """Write a model whose weight is all of the file ``data`` beside it, and more fields of its tensor."""
    file.parent.mkdir(parents=True, exist_ok=True)
    (file.parent / data).parent.mkdir(parents=True, exist_ok=True)
    (file.parent / data).write_bytes(weight.tobytes())
    model = parser.parse_model(TEXT)
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    tensor = TensorProto(name="w", data_type=kind, dims=weight.shape, data_location=TensorProto.EXTERNAL, **fields)
    tensor.external_data.add(key="location", value=data)
    model.graph.initializer.append(tensor)
    file.write_bytes(model.SerializeToString())
    return file


def weight_of(file: Path) -> NDArray[Any]:
    (constant,) = load(file).constants()
    values: NDArray[Any] = constant.values
    return values


def linked(link: Path, file: Path) -> Path:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(file, link.parent))
    return link


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["model.onnx_data", "weights/w.bin"], ids=["beside", "in a folder"])
@pytest.mark.parametrize("folder", ["snapshots/1", "snapshots/1/onnx"], ids=["flat", "in a folder of the repository"])
def test_a_download_cache_of_links(folder: str, data: str, tmp_path: Path) -> None:
    made, hub = written(tmp_path / "made/model.onnx", data), tmp_path / "hub/models--a--b"
    for name, blob in zip(("model.onnx", data), HASHES, strict=True):
        (hub / "blobs").mkdir(parents=True, exist_ok=True)
        (made.parent / name).rename(hub / "blobs" / blob)
        linked(hub / folder / name, hub / "blobs" / blob)
    np.testing.assert_array_equal(weight_of(hub / folder / "model.onnx"), WEIGHT)


def test_a_copied_model_whose_data_is_a_link_into_the_hub(tmp_path: Path) -> None:
    model, hub = written(tmp_path / "here/model.onnx", "w.bin"), tmp_path / "hub"
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots").mkdir()
    (model.parent / "w.bin").rename(hub / "blobs" / HASHES[0])
    linked(model.parent / "w.bin", hub / "blobs" / HASHES[0])
    np.testing.assert_array_equal(weight_of(model), WEIGHT)
    (hub / "snapshots").rmdir()
    with pytest.raises(ModelError, match="it is a link to"):
        load(model)


def test_a_store_with_folders_of_two_digits(tmp_path: Path) -> None:
    made, store = written(tmp_path / "made/model.onnx", "w.bin"), tmp_path / "cache/md5"
    for name, start in (("model.onnx", "ab"), ("w.bin", "17")):
        (store / start).mkdir(parents=True)
        (made.parent / name).rename(store / start / ("c0" * 15))
        linked(tmp_path / "work" / name, store / start / ("c0" * 15))
    np.testing.assert_array_equal(weight_of(tmp_path / "work/model.onnx"), WEIGHT)


def test_data_beside_what_the_model_links_to(tmp_path: Path) -> None:
    model = linked(tmp_path / "work/m.onnx", written(tmp_path / "made/model.onnx", "w.bin"))
    np.testing.assert_array_equal(weight_of(model), WEIGHT)


def test_a_linked_model_opens_no_other_folder(tmp_path: Path) -> None:
    real = written(tmp_path / "made/model.onnx", "w.bin")
    (real.parent / "w.bin").rename(tmp_path / "secret.bin")
    model = linked(tmp_path / "work/m.onnx", real)
    linked(tmp_path / "work/w.bin", tmp_path / "secret.bin")
    with pytest.raises(ModelError, match=r"outside the model's folder: it is a link to '.*secret.bin'"):
        load(model)


# -- length ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [None, "", "0"], ids=["none", "empty", "nought"])
@pytest.mark.parametrize("offset", [None, "", "64"], ids=["none", "empty", "a number"])
def test_without_a_length_the_dims_say_it(length: str | None, offset: str | None, tmp_path: Path) -> None:
    file = written(tmp_path / "m.onnx", "w.bin")
    model = onnx.load(file, load_external_data=False)
    for key, value in (("length", length), ("offset", offset)):
        if value is not None:
            model.graph.initializer[0].external_data.add(key=key, value=value)
    file.write_bytes(model.SerializeToString())
    (tmp_path / "w.bin").write_bytes(bytes(int(offset or 0)) + WEIGHT.tobytes() + bytes(4096))
    np.testing.assert_array_equal(weight_of(file), WEIGHT)
    x = np.eye(40, dtype=np.float32)
    if "" not in (length, offset):  # as ONNX Runtime takes it
        np.testing.assert_allclose(ort.InferenceSession(file).run(None, {"x": x})[0], WEIGHT, rtol=1e-6, atol=1e-6)


# -- bytes in both places ----------------------------------------------------------------------------------------------

FORMS = {
    "raw data": {"raw_data": WEIGHT.tobytes()},
    "float data": {"float_data": WEIGHT.reshape(-1).tolist()},
    "small raw data": {"raw_data": WEIGHT[:4].tobytes()},
}


@pytest.mark.parametrize("name", FORMS)
def test_equal_bytes_in_the_model_and_in_a_file_are_taken_once(name: str, tmp_path: Path) -> None:
    weight = WEIGHT[:4] if name.startswith("small") else WEIGHT
    model = load(written(tmp_path / "m.onnx", "w.bin", weight, **FORMS[name]))
    assert model.repairs == ("weight 'w' has its data in the model and in 'w.bin', both the same: they are taken once",)
    for policy in ("never", "always"):
        save(model, tmp_path / "out.onnx", policy)  # type: ignore[arg-type]
        loaded = load(tmp_path / "out.onnx")
        assert loaded.repairs == ()
        (constant,) = loaded.constants()
        np.testing.assert_array_equal(constant.values, weight)
        (stored,) = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
        assert not (stored.external_data and (stored.raw_data or stored.float_data))


@pytest.mark.parametrize("name", FORMS)
def test_bytes_that_differ_are_refused_by_name(name: str, tmp_path: Path) -> None:
    weight = WEIGHT[:4] if name.startswith("small") else WEIGHT
    file = written(tmp_path / "m.onnx", "w.bin", weight, **FORMS[name])
    (tmp_path / "w.bin").write_bytes((weight + 1).tobytes())
    with pytest.raises(ModelError, match=r"m\.onnx: weight 'w' has its data in the model and in 'w\.bin', and the two"):
        load(file)


def test_the_bytes_of_the_model_do_where_the_file_is_gone(tmp_path: Path) -> None:
    file = written(tmp_path / "m.onnx", "w.bin", raw_data=WEIGHT.tobytes())
    (tmp_path / "w.bin").unlink()
    model = load(file)
    assert model.repairs == (
        "weight 'w' has its data in the model and in 'w.bin', which cannot be found: those of the model are taken",
    )
    (constant,) = model.constants()
    np.testing.assert_array_equal(constant.values, WEIGHT)


def test_the_bytes_of_the_model_open_no_file_outside(tmp_path: Path) -> None:
    file = written(tmp_path / "models/m.onnx", "w.bin", raw_data=WEIGHT.tobytes())
    model = onnx.load(file, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../w.bin"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(file)


def test_a_place_that_is_left_over_does_not_go_to_another_file(tmp_path: Path) -> None:
    """Tools that load external data may leave its place in the tensor; the data is in the model then."""
    model = parser.parse_model(TEXT)
    tensor = numpy_helper.from_array(WEIGHT, "w")
    tensor.external_data.add(key="location", value="gone.bin")
    model.graph.initializer.append(tensor)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    loaded = load(tmp_path / "m.onnx")
    assert current_values(next(loaded.constants())).nbytes == WEIGHT.nbytes
    save(loaded, tmp_path / "out.onnx", "always")
    np.testing.assert_array_equal(weight_of(tmp_path / "out.onnx"), WEIGHT)
    (stored,) = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert [entry.value for entry in stored.external_data if entry.key == "location"] == ["out.onnx.data"]
