"""Training: it learns, keeps what must stay, repeats itself bit for bit, and refuses what it cannot use."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from graphopt.distill.augmentation import Augmentation
from graphopt.distill.samples import Samples
from graphopt.distill.settings import VIEWS, Settings
from graphopt.distill.trainer import Outcome, distill
from graphopt.errors import DataError, ModelError, OptionError
from graphopt.model import from_proto, to_proto
from graphopt.runtime.feeds import from_arrays, generate
from graphopt.runtime.session import Session
from graphopt.testing import initializers, model

pytest.importorskip("onnx_ad")

Task = Any
"""The fixture of conftest.py: teacher, student, data, images."""

QUICK: dict[str, Any] = {"epochs": 4, "batch": 16, "rate": 5e-3, "held_out": 0.2, "threads": 1}


def arrays(outcome: Outcome) -> dict[str, NDArray[Any]]:
    return initializers(to_proto(outcome.student))


def run(task: Task, student: onnx.ModelProto | None = None, **settings: Any) -> Outcome:
    return distill(task.teacher, from_proto(student or task.student), task.data, Settings(**{**QUICK, **settings}))


def test_the_student_comes_closer_to_the_teacher(task: Task) -> None:
    outcome = run(task, epochs=15, rate=1e-2)
    assert outcome.history[outcome.best_epoch] < 0.2 * outcome.history[0]
    wanted, before, after = (
        Session(each).run({"x": task.images})["y"]
        for each in (to_proto(task.teacher), task.student, to_proto(outcome.student))
    )
    assert np.square(after - wanted).mean() < 0.5 * np.square(before - wanted).mean()


def test_the_student_given_is_not_changed(task: Task) -> None:
    before = task.student.SerializeToString()
    run(task)
    assert task.student.SerializeToString() == before


def test_the_same_seed_gives_the_same_bits(task: Task) -> None:
    first, second, other = run(task), run(task), run(task, seed=1)
    for name, value in arrays(first).items():
        np.testing.assert_array_equal(arrays(second)[name], value)
    assert any(not np.array_equal(arrays(other)[name], value) for name, value in arrays(first).items())


CHANGES = Augmentation(flip=True, shift=0.1, crop=0.8, rotate=10, mix=0.5, paste=0.5)


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"augmentation": CHANGES},
        {"augmentation": CHANGES, "average": 0.9, "epochs": 6, "held_out": 0.0},
        {"optimizer": "adam", "average": 0.9},
        {"group_lasso": 0.5, "average": 0.9},
    ],
    ids=["plain", "views", "averaged, over two eigenbases", "adam", "sparse"],
)
def test_an_interrupted_training_ends_with_the_same_bits(task: Task, tmp_path: Path, chosen: dict[str, Any]) -> None:
    settings = Settings(**{**QUICK, **chosen})
    whole = distill(task.teacher, from_proto(task.student), task.data, settings)
    path = tmp_path / "state.npz"

    def interrupt(step: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(task.teacher, from_proto(task.student), task.data, settings, checkpoint=path, progress=interrupt)
    resumed = distill(task.teacher, from_proto(task.student), task.data, settings, checkpoint=path, resume=True)
    assert resumed.history == whole.history
    assert to_proto(resumed.student).SerializeToString() == to_proto(whole.student).SerializeToString()


def test_a_checkpoint_of_another_training_is_refused(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    distill(task.teacher, from_proto(task.student), task.data, Settings(**QUICK), checkpoint=path)
    other = Settings(**{**QUICK, "rate": 1e-3})
    with pytest.raises(OptionError, match="belongs to a training with other"):
        distill(task.teacher, from_proto(task.student), task.data, other, checkpoint=path, resume=True)
    path.write_bytes(b"no archive")
    with pytest.raises(OptionError, match="is not a readable checkpoint"):
        distill(task.teacher, from_proto(task.student), task.data, Settings(**QUICK), checkpoint=path, resume=True)


def zeroed(task: Task) -> onnx.ModelProto:
    """Channel 2 of the first stream is gone; one weight of the last layer is zero; the first bias there too."""
    student = onnx.ModelProto.FromString(task.student.SerializeToString())
    for tensor in student.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name in ("w1", "b1", "w2", "b2", "w3", "b3"):
            value[2] = 0
        if tensor.name == "w4":
            value[1, 3] = 0
        if tensor.name == "b4":
            value[0] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return student


def test_zeros_stay_zero(task: Task) -> None:
    student = zeroed(task)
    after = arrays(run(task, student, weight_decay=0.1, l2=0.01))
    for name, value in initializers(student).items():
        if name != "b4":
            np.testing.assert_array_equal(after[name][value == 0], 0.0)
    assert after["b4"][0] != 0, "a bias of a living channel is free to move"
    assert after["w4"][0, 0] != initializers(student)["w4"][0, 0]


def test_zeros_move_if_wanted(task: Task) -> None:
    assert arrays(run(task, zeroed(task), keep_zeros=False))["w4"][1, 3] != 0


def test_group_lasso_empties_whole_channels(task: Task) -> None:
    outcome = run(task, epochs=25, group_lasso=2.0, rate=2e-2, schedule="constant")
    after = arrays(outcome)
    dead = [c for c in range(6) if not after["w1"][c].any()]
    assert outcome.zero_groups == len(dead) > 0
    for channel in dead:
        assert not any(after[name][channel].any() for name in ("w1", "b1", "w3", "b3"))


def test_l1_brings_single_weights_to_zero(task: Task) -> None:
    after = arrays(run(task, epochs=20, l1=1.0, rate=2e-2, schedule="constant"))
    assert sum(int((value == 0).sum()) for value in after.values()) > 5


def quantized(task: Task) -> onnx.ModelProto:
    """The first weight in int8 per channel, the last in int4 by blocks."""
    given = initializers(task.student)
    scale1 = (np.abs(given["w1"]).max(axis=(1, 2, 3)) / 7).astype(np.float32)
    levels = np.clip(np.round(given["w1"] / scale1[:, None, None, None]), -8, 7).astype(np.int8)
    scale4 = (np.abs(given["w4"].reshape(4, 2, 3)).max(axis=2) / 7).astype(np.float32)
    blocks = np.round(given["w4"] / np.repeat(scale4, 3, axis=1))
    text = """g (float[N,1,8,8] x) => (float[N,4] y) {
      v1 = DequantizeLinear<axis = 0>(q1, s1) a = Conv<pads = [1,1,1,1]>(x, v1, b1) r = Relu(a)
      p = GlobalAveragePool(r) q = Flatten(p)
      v4 = DequantizeLinear<axis = 1, block_size = 3>(q4, s4) y = Gemm<transB = 1>(q, v4, b4) }"""
    kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4)
    return model(
        text,
        opset=21,
        ir_version=10,
        q1=levels,
        s1=scale1,
        b1=given["b1"],
        q4=blocks.astype(kind),
        s4=scale4,
        b4=given["b4"],
    )


def test_quantized_weights_stay_on_their_grid(task: Task) -> None:
    student = quantized(task)
    outcome = run(task, student, epochs=12, rate=2e-2)
    before, after = initializers(student), arrays(outcome)
    assert {name: value.dtype for name, value in after.items()} == {name: v.dtype for name, v in before.items()}
    assert not np.array_equal(after["q1"], before["q1"])
    assert not np.array_equal(after["q4"].astype(np.int8), before["q4"].astype(np.int8))
    np.testing.assert_array_equal(after["s1"], before["s1"])
    assert outcome.history[outcome.best_epoch] < outcome.history[0]
    proto = to_proto(outcome.student)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node] == [node.op_type for node in student.graph.node]


def test_features_of_the_same_shape_are_matched(task: Task) -> None:
    outcome = run(task, features=("r", "s=s"), divergence=0.0)
    assert outcome.history[outcome.best_epoch] < outcome.history[0]


@pytest.mark.parametrize(
    ("feature", "error", "reason"),
    [
        ("nowhere", OptionError, "the student has no tensor 'nowhere'"),
        ("r=nowhere", OptionError, "the teacher has no tensor 'nowhere'"),
        ("r=p", ModelError, r"different shapes, \[16, 6, 8, 8\] and \[16, 6, 1, 1\]"),
    ],
)
def test_features_that_do_not_fit(task: Task, feature: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        run(task, features=(feature,))


def test_labels_are_learnt(task: Task) -> None:
    outcome = run(task, divergence=0.0, labels=1.0, epochs=10, held_out=0.0)
    assert outcome.history[-1] < outcome.history[0]


def test_labels_are_needed_for_the_cross_entropy(task: Task) -> None:
    unlabelled = from_arrays({"x": task.images}, task.teacher)
    with pytest.raises(DataError, match="no labels"):
        distill(task.teacher, from_proto(task.student), unlabelled, Settings(**QUICK, labels=1.0))


def test_generated_inputs_teach_nothing(task: Task) -> None:
    with pytest.raises(DataError, match="cannot learn from generated inputs"):
        distill(task.teacher, from_proto(task.student), generate(task.teacher), Settings(**QUICK))


def test_the_average_lags_behind_and_is_what_is_kept(task: Task) -> None:
    steep = {"epochs": 5, "rate": 2e-2, "schedule": "constant", "held_out": 0.0}
    plain, averaged = run(task, **steep), run(task, **steep, average=0.95)
    assert plain.history == averaged.history, "the training itself is the same"
    start, last, mean = initializers(task.student)["w3"], arrays(plain)["w3"], arrays(averaged)["w3"]
    assert 0 < np.abs(mean - start).mean() < np.abs(last - start).mean()


def test_a_training_that_diverges_says_so(task: Task) -> None:
    student = onnx.ModelProto.FromString(task.student.SerializeToString())
    huge = onnx.numpy_helper.from_array(np.full((6, 1, 3, 3), 1e30, np.float32), "w1")
    next(each for each in student.graph.initializer if each.name == "w1").CopyFrom(huge)
    with pytest.raises(ModelError, match=r"diverges: no finite gradient in step 1"):
        run(task, student)


def test_as_many_epochs_as_make_4000_steps() -> None:
    assert Settings().course(16) == (250, 100)
    assert Settings().course(3) == (1334, 100)
    assert Settings(epochs=8).course(5) == (8, 10)
    assert Settings(epochs=30).course(10) == (30, 20)
    assert Settings(epochs=8, warmup=0).course(5) == (8, 0)


def samples(labels: bool = False, **inputs: tuple[str, tuple[int, ...]]) -> Samples:
    drawn = {name: np.zeros(shape, kind) for name, (kind, shape) in inputs.items()}
    return Samples(drawn, np.zeros(2, np.int64) if labels else None)


def test_images_are_changed_unless_something_else_is_said() -> None:
    photos = samples(x=("float32", (2, 3, 32, 32)), ids=("int64", (2, 7)))
    assert Settings().views(photos) == VIEWS
    assert Settings(labels=1.0).views(photos) == replace(VIEWS, mix=0.0)
    assert not Settings(augmentation=Augmentation()).views(photos).active
    assert Settings(augmentation=CHANGES).views(photos) == CHANGES
    for shape in ((2, 64, 32, 32), (2, 1, 5, 300), (2, 3, 32), (2, 1, 8, 32, 32)):
        assert not Settings().views(samples(x=("float32", shape))).active


@pytest.mark.parametrize(("kind", "shape"), [("uint8", (2, 3, 8, 8)), ("float32", (2, 8)), ("int64", (2, 8))])
def test_what_is_no_image_cannot_be_mixed(kind: str, shape: tuple[int, ...]) -> None:
    told = rf"only float images \[N, C, H, W\] can be changed, and no input is one \(x {kind}"
    with pytest.raises(OptionError, match=told):
        Settings(augmentation=Augmentation(mix=0.5)).views(samples(x=(kind, shape)))


def test_a_batch_is_mixed_before_it_is_split_for_a_model_of_fixed_batch(task: Task) -> None:
    student = onnx.ModelProto.FromString(task.student.SerializeToString())
    student.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    data = from_arrays({"x": task.images[:16]}, from_proto(student))
    changed = Settings(**{**QUICK, "held_out": 0.0}, augmentation=Augmentation(mix=1.0))
    mixed = distill(task.teacher, from_proto(student), data, changed)
    plain = distill(task.teacher, from_proto(student), data, replace(changed, augmentation=Augmentation()))
    assert mixed.history[0] != plain.history[0]


def test_early_stop(task: Task) -> None:
    outcome = run(task, epochs=50, rate=1.0, schedule="constant", patience=2)
    assert len(outcome.history) - 1 - outcome.best_epoch == 2


def test_a_student_of_another_kind_with_batch_normalization(task: Task) -> None:
    rng = np.random.default_rng(5)
    text = """g (float[N,1,8,8] x) => (float[N,4] y) {
      a = Conv<strides = [2,2]>(x, w) n = BatchNormalization(a, g, h, m, v) r = Relu(n)
      p = GlobalAveragePool(r) q = Flatten(p) y = Gemm<transB = 1>(q, u, c) }"""
    student = model(
        text,
        w=rng.standard_normal((8, 1, 3, 3)).astype(np.float32),
        g=np.ones(8, np.float32),
        h=np.zeros(8, np.float32),
        m=np.zeros(8, np.float32),
        v=np.ones(8, np.float32),
        u=(rng.standard_normal((4, 8)) * 0.3).astype(np.float32),
        c=np.zeros(4, np.float32),
    )
    outcome = run(task, student, epochs=20, rate=2e-2, train_norm=True)
    assert outcome.history[outcome.best_epoch] < 0.9 * outcome.history[0]
    after = arrays(outcome)
    assert after["m"].any()
    assert (after["v"] != 1).any()
    assert [node.op_type for node in to_proto(outcome.student).graph.node] == [n.op_type for n in student.graph.node]
    frozen = arrays(run(task, student, epochs=2))
    np.testing.assert_array_equal(frozen["m"], 0)


def test_a_model_of_fixed_batch(task: Task) -> None:
    student = onnx.ModelProto.FromString(task.student.SerializeToString())
    student.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    data = from_arrays({"x": task.images}, from_proto(student))
    settings = Settings(**QUICK, optimizer="adam")
    outcome = distill(task.teacher, from_proto(student), data, settings)
    free = distill(task.teacher, from_proto(task.student), from_arrays({"x": task.images}, task.teacher), settings)
    for name, value in arrays(free).items():
        np.testing.assert_allclose(arrays(outcome)[name], value, rtol=1e-3, atol=1e-4)


def test_nothing_to_train(task: Task) -> None:
    student = model("g (float[N,1,8,8] x) => (float[N,1] y) { p = GlobalAveragePool(x) y = Flatten(p) }")
    teacher = from_proto(student)
    with pytest.raises(ModelError, match="no float32 or quantized weights"):
        distill(teacher, from_proto(student), task.data, Settings(**QUICK))
