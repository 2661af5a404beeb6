"""The algebra of y = s x + t: maps against numpy, and both passes that use it on random graphs."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.graph.affine import Affine
from graphopt.graph.affine.layout import regroup
from graphopt.numerics.compare import Comparer
from graphopt.registry import create
from graphopt.result import Skip
from graphopt.runtime.session import Session
from graphopt.testing import model, random_feeds, run_alone

Arrays = dict[str, NDArray[Any]]


def apply(affine: Affine, x: NDArray[Any]) -> NDArray[Any]:
    scale, shift = affine.padded(x.ndim)
    return np.asarray(scale * x + shift)


def draw_map(rng: np.random.Generator, shape: tuple[int, ...]) -> Affine:
    """A map of a tensor of this shape that varies along some of its axes."""
    sizes = [size if rng.integers(2) else 1 for size in shape]
    return Affine.of(rng.standard_normal(sizes), rng.standard_normal(sizes))


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(shapes, st.integers(0, 999))
def test_two_maps_in_a_row_are_one(shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second, x = draw_map(rng, shape), draw_map(rng, shape), rng.standard_normal(shape)
    np.testing.assert_allclose(apply(first.then(second), x), apply(second, apply(first, x)), rtol=0, atol=1e-12)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(shapes, st.integers(0, 999))
def test_a_map_follows_a_reshape_or_is_given_up(shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    affine, x = draw_map(rng, shape), rng.standard_normal(shape)
    after = cut_up(rng, x.size)
    if not affine.varying():
        return
    moved = regroup(affine, list(shape), after)
    assert moved is not None, "with all sizes known, a map can always be followed"
    wanted = apply(affine, x).reshape(after)
    assert np.array_equal(apply(moved, x.reshape(after)), wanted)
    marked = regroup(affine, ["N", *shape[1:]], ["N", *after[1:]]) if after[0] == shape[0] else None
    if marked is not None:
        assert np.array_equal(apply(marked, x.reshape(after)), wanted)


def cut_up(rng: np.random.Generator, size: int) -> list[int]:
    """Sizes whose product is ``size``, in random order."""
    sizes = [1] if rng.integers(2) else []
    for factor in (2, 3):
        while size % factor == 0:
            size //= factor
            if sizes and rng.integers(2):
                sizes[-1] *= factor
            else:
                sizes.append(factor)
    return [int(value) for value in rng.permutation(sizes or [1])]


def test_an_unknown_size_is_not_guessed() -> None:
    per_channel = Affine.per_channel([1, 2], [0, 0])
    assert regroup(per_channel, ["N", 2, "H"], ["N", 2, "H", "W"]) is per_channel
    assert regroup(per_channel, ["N", 2, "H"], ["M", 2, "K"]) is None
    assert regroup(per_channel, ["N", 2, 3], ["M", 6]) is not None
    assert regroup(per_channel, ["N", 2, "H"], ["N", 2]) is per_channel
    assert regroup(per_channel, ["N", 2, "H"], ["N"]) is None


def test_axes_along_which_nothing_varies_shrink() -> None:
    affine = Affine.of(np.full((1, 3, 2), 5.0), np.arange(3.0).reshape(1, 3, 1) * np.ones(2))
    assert affine.scale.shape == affine.shift.shape == (1, 3)
    assert affine.varying() == {1}
    with pytest.raises(Skip, match="it has 3 channels, the layer 4"):
        affine.along(1, 4)
    with pytest.raises(Skip, match="it varies along axis 1, the layer's channels are axis 2"):
        affine.along(2, 3)
    with pytest.raises(Skip, match="of a tensor of rank 1"):
        affine.padded(1)


STEPS = {
    "mul": "{o} = Mul({i}, s{k})",
    "add": "{o} = Add(t{k}, {i})",
    "sub": "{o} = Sub({i}, t{k})",
    "flip": "{o} = Sub(t{k}, {i})",
    "scalar": "{o} = Div({i}, q)",
    "norm": "{o} = BatchNormalization({i}, g{k}, b{k}, b{k}, v{k})",
    "conv": "{o} = Conv({i}, w{k})",
    "padded": "{o} = Conv<pads=[1,1]>({i}, p{k})",
    "depthwise": "{o} = Conv<group=4>({i}, d{k}, b{k})",
    "transposed": "{o} = ConvTranspose<group=2>({i}, h{k})",
    "matmul": "{o} = MatMul(m{k}, {i})",
    "identity": "{o} = Identity({i})",
    "relu": "{o} = Relu({i})",
    "pool": "{o} = AveragePool<kernel_shape=[3], pads=[1,1]>({i})",
    "maximum": "{o} = MaxPool<kernel_shape=[3], pads=[1,1]>({i})",
    "turn": "{o}z = Transpose<perm=[0,2,1]>({i}) {o}a = MatMul({o}z, m{k}) {o} = Transpose<perm=[0,2,1]>({o}a)",
    "concat": "{o}c = Concat<axis=1>({i}, {i}) {o} = Conv({o}c, e{k})",
    "halves": "{o}l = Conv({i}, f{k}) {o}r = Conv({i}, f{k}) {o} = Concat<axis=-2>({o}l, {o}r)",
    "reflect": '{o}c = Conv({i}, w{k}) {o}d = Pad<mode="reflect">({o}c, pads) {o} = Conv({o}d, p{k})',
    "resize": "{o}r = Resize({i}, , twice) {o} = MaxPool<kernel_shape=[2], strides=[2]>({o}r)",
    "two ways": "{o}n = Mul({i}, s{k}) {o}i = Add({o}n, t{k}) {o}c = Concat<axis=1>({o}n, {o}i) {o} = Conv({o}c, e{k})",
    "fork": "{o}l = Conv({i}, w{k}) {o}r = Mul({i}, s{k}) {o} = Add({o}l, {o}r)",
    "beside": "{o}l = Conv<pads=[1,1]>({i}, p{k}) {o}r = BatchNormalization({i}, g{k}, b{k}, b{k}, v{k}) "
    "{o} = Add({o}l, {o}r)",
}
SIZES = {
    "w": (4, 4, 1),
    "p": (4, 4, 3),
    "d": (4, 1, 1),
    "h": (4, 2, 1),
    "e": (4, 8, 1),
    "f": (2, 4, 1),
    "m": (4, 4),
    "s": (4, 1),
    "t": (4, 1),
    "g": (4,),
    "b": (4,),
    "v": (4,),
}


def random_chain(steps: list[str], seed: int) -> onnx.ModelProto:
    """A chain of operators on [2, 4, 7]; scales have both signs and now and then one is zero."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {"q": np.float32(rng.choice([-3, 0.25])), "pads": np.array([0, 0, 1, 0, 0, 1])}
    arrays["twice"] = np.float32([1, 1, 2])
    body, name = "", "x"
    for k, step in enumerate(steps):
        body += STEPS[step].format(i=name, o=f"n{k}", k=k) + " "
        name = f"n{k}"
        arrays |= {f"{key}{k}": rng.standard_normal(size).astype(np.float32) for key, size in SIZES.items()}
        arrays[f"v{k}"] = rng.uniform(0.5, 2, 4).astype(np.float32)
        arrays[f"g{k}"][rng.integers(4)] = 0
    words = body.replace(",", " ").replace(")", " ").replace("(", " ").split()
    used = {key: value for key, value in arrays.items() if key in words}
    return model(f"g (float[2,4,7] x) => (float[2,4,7] y) {{ {body} y = Identity({name}) }}", **used)


@pytest.mark.parametrize("name", ["fold-batchnorm", "fold-affine"])
@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=8), st.integers(0, 99))
def test_random_graphs_keep_their_values(name: str, steps: list[str], seed: int) -> None:
    proto, pass_ = random_chain(steps, seed), create(name)
    after, result = run_alone(pass_, proto)
    onnx.checker.check_model(after, full_check=True)
    feeds = random_feeds(proto, 1)
    comparer = Comparer(pass_.contract)
    comparer.add(Session(proto, threads=1).run(feeds), Session(after, threads=1).run(feeds))
    assert comparer.result().holds, f"{comparer.result().problem}; {result}"
    again, second = run_alone(pass_, after)
    assert not second.rewritten
    assert again.SerializeToString() == after.SerializeToString()
