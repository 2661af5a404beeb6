"""Mean shifts: what they are, and that they are given up where they take the outputs further away."""

import numpy as np

from graphopt.model import from_proto
from graphopt.runtime.capture import Runs
from graphopt.runtime.feeds import from_arrays
from graphopt.runtime.shifts import Means
from graphopt.testing import model

HEAD = "g (float[N,3,6] x) => (float[N,3,6] y, float[N,3,6] x) {"
X = np.where(np.random.default_rng(4).random((32, 3, 6)) < 0.9, -10.0, 8.0).astype(np.float32)


def shifts(inexact: str) -> dict[str, np.ndarray]:
    """The shifts of ``h`` between an exact model and one that computes it by ``inexact``."""
    tenth, one = np.array(0.1, np.float32), np.array(1.0, np.float32)
    before = from_proto(model(f"{HEAD} h = Identity(x)  y = Relu(h) }}"))
    after = from_proto(model(f"{HEAD} {inexact}  y = Relu(h) }}", tenth=tenth, one=one))
    means = Means(before, {"h": (1, 3)})
    runs = Runs(before, means.names, from_arrays({"x": X}, before), 64, means.form)
    for samples, tensors in runs:
        means.add(tensors, samples)
    return means.shifts(after, lambda: runs.data.batches(64))


def test_what_a_channel_lacks_everywhere_is_given_back() -> None:
    found = shifts("h = Sub(x, one)")
    np.testing.assert_allclose(found["h"], np.ones(3), rtol=1e-5, atol=0)


def test_what_only_the_background_lacks_is_not_given_to_the_rest() -> None:
    background = "a = Neg(x)  b = Relu(a)  c = Mul(b, tenth)  h = Sub(x, c)"
    assert shifts(background) == {}  # the Relu hides the background's error; the mean would move what is right
