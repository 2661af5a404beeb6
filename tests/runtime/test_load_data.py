"""The user's data: every form that is taken, and one clear line for every fault."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.errors import DataError
from graphopt.model import Model, from_proto, load
from graphopt.runtime.feeds import from_arrays, load_data
from graphopt.testing import model

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 3, 4)).astype(np.float32)


def subject(shape: str = "N,3,4", kind: str = "float", classes: str = "7") -> Model:
    return from_proto(model(f"g ({kind}[{shape}] image) => ({kind}[N,{classes}] y) {{ y = Identity(image) }}"))


def joined(data: object, name: str = "image") -> np.ndarray:
    return np.concatenate([feeds[name] for feeds in data.batches()])  # type: ignore[attr-defined]


def test_dynamic_batch() -> None:
    data = from_arrays({"image": X}, subject())
    assert (data.size, data.generated, data.labels) == (5, False, None)
    assert [feeds["image"].shape for feeds in data.batches()] == [(5, 3, 4)]
    assert [feeds["image"].shape for feeds in data.batches(2)] == [(2, 3, 4)]
    np.testing.assert_array_equal(joined(data), X)


def test_dynamic_batches_are_bounded_by_memory() -> None:
    big = np.zeros((5, 3, 400_000), np.float32)
    data = from_arrays({"image": big}, subject("N,3,400000"))
    assert [feeds["image"].shape[0] for feeds in data.batches()] == [1] * 5
    small = np.zeros((300, 1, 1), np.float32)
    assert [f["image"].shape[0] for f in from_arrays({"image": small}, subject("N,1,1")).batches()] == [128, 128, 44]


def test_fixed_batch_is_filled_up_by_the_last_sample() -> None:
    data = from_arrays({"image": X}, subject("2,3,4"))
    assert [feeds["image"].shape for feeds in data.batches()] == [(2, 3, 4)] * 3
    np.testing.assert_array_equal(joined(data), X[[0, 1, 2, 3, 4, 4]])
    assert data.size == 5


def test_fixed_batch_larger_than_the_data() -> None:
    (feeds,) = from_arrays({"image": X}, subject("8,3,4")).batches()
    np.testing.assert_array_equal(feeds["image"], X[[0, 1, 2, 3, 4, 4, 4, 4]])


def test_one_axis_more_than_the_input_feeds_samples_one_by_one() -> None:
    data = from_arrays({"image": X}, subject("3,4"))
    assert [feeds["image"].shape for feeds in data.batches()] == [(3, 4)] * 5
    assert len(list(data.batches(2))) == 2


def test_scalar_goes_to_every_batch() -> None:
    two = from_proto(model("g (float[2,3,4] image, float k) => (float[2,3,4] y) { y = Mul(image, k) }"))
    batches = list(from_arrays({"image": X, "k": np.float32(2)}, two).batches())
    assert [float(feeds["k"]) for feeds in batches] == [2.0, 2.0, 2.0]


def test_stored_integers_are_scaled_in_float64() -> None:
    stored = RNG.integers(0, 256, (5, 3, 4), dtype=np.uint8)
    scale, offset = 1 / 255 / 0.353, -0.286 / 0.353
    data = from_arrays({"image": stored, "image.scale": scale, "image.offset": offset}, subject())
    got = joined(data)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, (stored.astype(np.float64) * scale + offset).astype(np.float32))


def test_an_offset_alone_scales_by_one() -> None:
    got = joined(from_arrays({"image": np.ones((1, 3, 4), np.int8), "image.offset": np.array([0.5])}, subject()))
    assert (got == np.float32(1.5)).all()


@pytest.mark.parametrize(
    ("stored", "taken"),
    [("float16", "float"), ("int32", "int64"), ("uint8", "int32"), ("float16", "double"), ("float32", "double")],
)
def test_narrower_storage_of_the_same_kind(stored: str, taken: str) -> None:
    values = RNG.integers(0, 9, (5, 3, 4)).astype(stored)
    got = joined(from_arrays({"image": values}, subject(kind=taken)))
    assert got.dtype == onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, taken.upper()))
    np.testing.assert_array_equal(got, values)


def test_nan_and_inf_in_data_are_allowed() -> None:
    values = X.copy()
    values[0, 0, :2] = np.nan, np.inf
    np.testing.assert_array_equal(joined(from_arrays({"image": values}, subject())), values)


def test_text_input() -> None:
    data = from_arrays({"image": np.array([["a"], ["b"]])}, from_proto(_text_model()))
    (feeds,) = data.batches()
    assert feeds["image"].dtype == object
    assert feeds["image"].tolist() == [["a"], ["b"]]


def _text_model() -> onnx.ModelProto:
    return model("g (string[N,1] image) => (string[N,1] y) { y = Identity(image) }")


def test_calibration_split_inherits_scale_and_offset() -> None:
    stored = RNG.integers(0, 256, (5, 3, 4), dtype=np.uint8)
    arrays = {"image": stored, "image.scale": 0.5, "image.offset": -1.0, "calibration/image": stored[:2]}
    split = from_arrays(arrays, subject()).calibration()
    assert split.size == 2
    np.testing.assert_array_equal(joined(split), stored[:2] * np.float32(0.5) - 1)


def test_calibration_split_with_its_own_scale() -> None:
    stored = np.full((5, 3, 4), 10, np.uint8)
    arrays = {"image": stored, "image.scale": 0.5, "calibration/image": stored[:2], "calibration/image.scale": 2.0}
    assert (joined(from_arrays(arrays, subject()).calibration()) == 20).all()


def test_calibration_split_of_another_type_is_taken_as_it_is() -> None:
    arrays = {"image": np.full((5, 3, 4), 10, np.uint8), "image.scale": 0.5, "calibration/image": X}
    np.testing.assert_array_equal(joined(from_arrays(arrays, subject()).calibration()), X)


def test_without_a_split_the_data_calibrate() -> None:
    data = from_arrays({"image": X}, subject())
    assert data.calibration() is data


def test_labels() -> None:
    data = from_arrays({"image": X, "labels": np.array([0, 1, 2, 3, 6], np.uint8)}, subject())
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 6]


def test_an_input_whose_name_looks_like_a_key() -> None:
    named = from_proto(
        onnx.helper.make_model(
            onnx.helper.make_graph(
                [onnx.helper.make_node("Add", ["calibration/a", "a.scale"], ["y"])],
                "g",
                [onnx.helper.make_tensor_value_info(n, 1, ["N", 2]) for n in ("calibration/a", "a.scale")],
                [onnx.helper.make_tensor_value_info("y", 1, ["N", 2])],
            ),
            ir_version=8,
            opset_imports=[onnx.helper.make_opsetid("", 17)],
        )
    )
    arrays = {"calibration/a": np.ones((3, 2), "f4"), "a.scale": np.ones((3, 2), "f4")}
    assert from_arrays(arrays, named).size == 3


LABELS = np.zeros(5, np.int64)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        pytest.param({}, r"no array 'image' for the model's input 'image' \(float32\[N, 3, 4\]\)", id="missing"),
        pytest.param({"imgae": X}, "'imgae' is no input of the model; did you mean 'image'", id="near miss"),
        pytest.param({"image": X, "zz": X}, "'zz' is no input of the model; the inputs are 'image'", id="unknown"),
        pytest.param({"image": X.astype("f8")}, r"'image' holds float64, the model takes float32", id="wider float"),
        pytest.param({"image": X.astype("i8")}, "holds int64.*to store integers, add 'image.scale'", id="integers"),
        pytest.param({"image": X > 0}, "holds bool", id="bool"),
        pytest.param({"image": np.full((5, 3, 4), "a")}, "holds <U1", id="text"),
        pytest.param({"image": X[:, :2]}, r"shape \(5, 2, 4\), axis 1 must be 3", id="wrong axis"),
        pytest.param({"image": X[:, 0]}, r"shape \(5, 4\), the model takes", id="rank too low"),
        pytest.param({"image": X[None, None]}, r"shape \(1, 1, 5, 3, 4\)", id="rank too high"),
        pytest.param({"image": np.float32(1)}, r"shape \(\)", id="rank 0"),
        pytest.param({"image": X[:0]}, r"is empty \(shape \(0, 3, 4\)\)", id="no samples"),
        pytest.param({"image": X, "labels": LABELS[:4]}, r"'labels' has shape \(4,\).* 5 samples", id="label count"),
        pytest.param({"image": X, "labels": LABELS[:, None]}, r"has shape \(5, 1\)", id="label rank"),
        pytest.param({"image": X, "labels": LABELS + 7}, r"from 7 to 7, out of range.*7 classes", id="label high"),
        pytest.param({"image": X, "labels": LABELS - 1}, "from -1 to -1, out of range", id="label low"),
        pytest.param({"image": X, "labels": LABELS * 1.0}, "class indices must be integers", id="float labels"),
        pytest.param({"image": X, "image.scale": np.ones(2)}, "'image.scale' must be one number", id="two scales"),
        pytest.param({"image": X, "image.scale": "a"}, "'image.scale' must be one number", id="text scale"),
        pytest.param({"image": X, "image.offset": np.nan}, "'image.offset' is not finite", id="NaN offset"),
        pytest.param({"image": X > 0, "image.scale": 1.0}, "bool, which cannot be scaled", id="scaled bool"),
        pytest.param({"image": X, "calibration/img": X}, "'calibration/img' is no input", id="split: unknown"),
        pytest.param({"image": X, "calibration/labels": LABELS}, "no array 'calibration/image'", id="split: missing"),
        pytest.param({"image": X, "calibration/image": X[:, :1]}, "'calibration/image' has shape", id="split: shape"),
    ],
)
def test_data_that_do_not_fit(arrays: dict[str, np.ndarray], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        from_arrays(arrays, subject())
    assert "\n" not in str(caught.value)
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=rf"d\.npz: .*{reason}"):
        load_data(tmp_path / "d.npz", subject())


TWO = "g (float[N,3] a, float[M,3] b) => (float[1,1] y) { t = Transpose(b) y = MatMul(a, t) }"


@pytest.mark.parametrize(
    ("text", "shapes", "reason"),
    [
        pytest.param(TWO, {"a": (4, 3), "b": (5, 3)}, "'a' has 4 samples, 'b' has 5", id="counts"),
        pytest.param(TWO, {"a": (4, 3), "b": (4, 1, 3)}, "'b' has a sample axis .* 'a' has not", id="mixed ranks"),
        pytest.param(
            TWO.replace("[N", "[2").replace("[M", "[4"),
            {"a": (4, 3), "b": (4, 3)},
            "of 'a' at 2 and of 'b' at 4",
            id="fixed",
        ),
    ],
)
def test_arrays_that_do_not_fit_each_other(text: str, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(DataError, match=reason):
        from_arrays(arrays, from_proto(model(text)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "not a readable .npz|not an .npz", id="empty file"),
        pytest.param(b"hello, world", "is not an .npz file|pickled", id="text"),
        pytest.param(b"PK\x03\x04" + bytes(50), "not a readable .npz", id="broken zip"),
    ],
)
def test_files_that_are_no_npz(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"data\.npz: .*({reason})"):
        load_data(path, subject())


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        load_data(tmp_path / "gone.npz", subject())
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(DataError, match=r"is a single array, an \.npz"):
        load_data(tmp_path / "one.npy", subject())
    np.savez(tmp_path / "pickled.npz", image=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="holds pickled objects, which are refused"):
        load_data(tmp_path / "pickled.npz", subject())


def test_truncated_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, image=X)
    whole = path.read_bytes()
    for length in range(0, len(whole), 61):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            load_data(path, subject())


def test_the_real_data_fit_the_real_models(models: Path) -> None:
    data = load_data(models / "fashion_mnist.npz", load(models / "fmnist_resnet14_bn.onnx"))
    assert data.size == 10_000
    assert data.labels is not None
    assert data.calibration().size == 512
    (feeds,) = data.batches(3)
    assert feeds["image"].shape == (3, 1, 28, 28)
    assert feeds["image"].min() == pytest.approx(-0.286 / 0.353, abs=1e-6)
    assert feeds["image"].max() == pytest.approx((1 - 0.286) / 0.353, abs=1e-6)


def write_set(folder: Path, *arrays: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for index, array in enumerate(arrays):
        (folder / f"input_{index}.pb").write_bytes(onnx.numpy_helper.from_array(array).SerializeToString())


def test_folder_of_test_data_sets(tmp_path: Path) -> None:
    for index in (0, 1, 2, 10):
        write_set(tmp_path / f"test_data_set_{index}", X[: index + 1] if index < 10 else X)
    data = load_data(tmp_path, subject())
    assert [feeds["image"].shape[0] for feeds in data.batches()] == [1, 2, 3, 5]
    assert (data.size, data.generated, data.calibration()) == (4, False, data)
    assert len(list(data.batches(2))) == 2
    assert [f["image"].shape[0] for f in load_data(tmp_path / "test_data_set_1", subject()).batches()] == [2]


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        pytest.param([X, X], "holds 2 inputs, the model takes 1", id="too many"),
        pytest.param([X.astype("f8")], "holds float64, the model's 'image' takes", id="type"),
        pytest.param([X[:, 0]], r"has shape \(5, 4\), the model's 'image' takes", id="rank"),
        pytest.param([X[:, :2]], r"has shape \(5, 2, 4\)", id="shape"),
    ],
)
def test_test_data_sets_that_do_not_fit(arrays: list[np.ndarray], reason: str, tmp_path: Path) -> None:
    write_set(tmp_path / "test_data_set_0", *arrays)
    with pytest.raises(DataError, match=reason):
        load_data(tmp_path, subject())


def test_broken_test_data_sets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no test_data_set_0"):
        load_data(tmp_path, subject())
    (tmp_path / "input_0.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(DataError, match=r"input_0\.pb: is not a readable tensor"):
        load_data(tmp_path, subject())
