"""Top-1: which output holds the scores, which samples count, and what is refused."""

import numpy as np
import pytest

from graphopt.errors import DataError
from graphopt.model import Model, from_proto
from graphopt.proof.accuracy import require_scores, top1
from graphopt.runtime.data import ListData
from graphopt.runtime.feeds import from_arrays
from graphopt.runtime.session import Session
from graphopt.testing import draw, model

W = draw(6, 4)
X = draw(11, 6)
LABELS = np.argmax(X @ W, axis=1)
LABELS[[0, 4, 10]] = (LABELS[[0, 4, 10]] + 1) % 4


def net(text: str, **weights: np.ndarray) -> Model:
    return from_proto(model(text, **weights))


@pytest.mark.parametrize("batch", ["N", "1", "2", "4", "11", "20"])
def test_each_sample_counts_once_whatever_the_batch(batch: str) -> None:
    subject = net(f"g (float[{batch},6] x) => (float[{batch},4] y) {{ y = MatMul(x, w) }}", w=W)
    assert top1(subject, from_arrays({"x": X, "labels": LABELS}, subject)) == pytest.approx(8 / 11)


def test_classes_are_the_last_axis() -> None:
    text = """g (float[N,6] x) => (float[N,1,4] y) { a = MatMul(x, w) s = Constant<value_ints = [-1, 1, 4]>()
        y = Reshape(a, s) }"""
    subject = net(text, w=W)
    assert top1(subject, from_arrays({"x": X, "labels": LABELS}, subject)) == pytest.approx(8 / 11)


def test_scores_are_the_first_float_output_of_two_axes() -> None:
    text = """g (float[N,6] x) => (int64[N] top, float[N] sum, float[N,4] y, float[N,4] z) {
        y = MatMul(x, w) z = Neg(y) sum = ReduceSum<keepdims = 0>(y, one) top = ArgMax<axis = 1, keepdims = 0>(y) }"""
    subject = net(text, w=W, one=np.array([1]))
    assert top1(subject, from_arrays({"x": X, "labels": LABELS}, subject)) == pytest.approx(8 / 11)


def test_the_session_has_default_options_and_can_be_anothers() -> None:
    subject = net("g (float[N,6] x) => (float[N,4] y) { y = MatMul(x, w) }", w=W)
    seen = []

    def opener(each: Model, **options: bool) -> Session:
        seen.append(options)
        return Session(each, **options)

    top1(subject, from_arrays({"x": X, "labels": LABELS}, subject), opener)
    assert seen == [{"optimize": True}]


def test_without_a_batch_axis_a_vector_is_one_row() -> None:
    subject = net("g (float[6] x) => (float[4] y) { y = MatMul(x, w) }", w=W)
    assert top1(subject, from_arrays({"x": X, "labels": LABELS}, subject)) == pytest.approx(8 / 11)


def test_one_row_for_several_inputs_of_one_sample_is_enough() -> None:
    """A sentence of five tokens, classified as a whole."""
    text = "g (float[T,6] x) => (float[1,4] y) { a = MatMul(x, w) y = ReduceMean<axes = [0]>(a) }"
    subject = net(text, w=W)
    feeds = {"x": X[:5]}
    outputs = Session(subject).run(feeds)
    require_scores(subject, feeds, outputs, 1)
    with pytest.raises(DataError, match=r"output 'y' of shape \(1, 4\) has 1 rows of class scores for 5 samples"):
        require_scores(subject, feeds, outputs, 5)


@pytest.mark.parametrize(
    ("shape", "fed", "samples", "rows"),
    [((5, 4), (5, 6), 3, None), ((3, 4), (5, 6), 3, "3 rows of class scores for 5"), ((2, 4), (1, 6), 1, "2 rows")],
)
def test_a_row_is_needed_for_each_sample_that_was_fed(
    shape: tuple[int, ...], fed: tuple[int, ...], samples: int, rows: str | None
) -> None:
    subject = net("g (float[N,6] x) => (float[N,4] y) { y = MatMul(x, w) }", w=W)
    feeds, outputs = {"x": np.zeros(fed)}, {"y": np.zeros(shape)}
    if rows is None:
        require_scores(subject, feeds, outputs, samples)
        return
    with pytest.raises(DataError, match=rows):
        require_scores(subject, feeds, outputs, samples)


def test_inputs_of_several_lengths_say_nothing_of_the_number_of_samples() -> None:
    subject = net("g (float[N,6] x, float[M,6] z) => (float[N,4] y) { y = MatMul(x, w) }", w=W)
    for lengths in ((2, 3), (3, 2)):
        feeds = {"x": np.zeros((lengths[0], 6)), "z": np.zeros((lengths[1], 6)), "scalar": np.array(1.0), "list": [1]}
        for samples in lengths:
            require_scores(subject, feeds, {"y": np.zeros((samples, 4))}, samples)
            with pytest.raises(DataError, match=f"7 rows of class scores for {samples}"):
                require_scores(subject, feeds, {"y": np.zeros((7, 4))}, samples)
    require_scores(subject, {"scalar": np.array(1.0)}, {"y": np.zeros((2, 4))}, 2)


def test_a_number_is_no_row_of_scores_for_several_samples() -> None:
    subject = net("g (float[2,6] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }")
    with pytest.raises(DataError, match=r"output 'y' of shape \(1,\) has 1 rows of class scores for 2 samples"):
        top1(subject, from_arrays({"x": X, "labels": LABELS * 0}, subject))


def test_labels_and_float_scores_are_needed() -> None:
    subject = net("g (float[N,6] x) => (float[N,4] y) { y = MatMul(x, w) }", w=W)
    with pytest.raises(DataError, match="there are no labels to measure top-1 with"):
        top1(subject, ListData([{"x": X}]))
    whole = net("g (int64[N,6] x) => (int64[N,6] y) { y = Identity(x) }")
    with pytest.raises(DataError, match="labels: the model has no float output to take class scores from"):
        top1(whole, from_arrays({"x": np.ones((2, 6), np.int64), "labels": np.zeros(2, np.int64)}, whole))
