"""What is known of computed shapes, against what ONNX Runtime computes for batches of several sizes.

The model's input is ``float[N,3,4,5]``. An element that is said to be known must be the same for every N, one that is
said to be N must be N. Where a form only moves elements or combines them one by one, the reverse holds too.
"""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from graphopt.graph import GraphView
from graphopt.graph.channels import Channels
from graphopt.model import from_proto
from graphopt.runtime.session import Session
from graphopt.testing import model

BATCHES = (7, 4, 2, 1010)
CONSTANTS: dict[str, NDArray[Any]] = {
    "one": np.array(1),
    "two": np.array(2),
    "minus": np.array(-1),
    "zeros": np.array([0]),
    "ones": np.array([1]),
    "twos": np.array([2]),
    "fours": np.array([4]),
    "last": np.array([-1]),
    "far": np.array([-(2**31)]),
    "mixed": np.array([5, -3, 0, 2]),
    "pair": np.array([1, -1]),
    "both": np.array([0, 1]),
    "square": np.array([2, 2]),
    "copy": np.array([0, -1]),
    "column": np.array([[2], [3]]),
    "mask": np.array([True, False, False, True]),
    "half": np.array(0.5, dtype=np.float32),
    "halves": np.array([-7.5, 2.5], dtype=np.float32),
    "small": np.array([3], dtype=np.int32),
}
DIRECT = """
y = Identity(s)
y = Add(s, mixed)
y = Add(s, column)
y = Sub(mixed, s)
y = Mul(s, mixed)
y = Div(s, two)
t = Slice(s, ones, fours) y = Div(t, minus)
t = Sub(mixed, s) u = Slice(t, ones, fours) y = Div(u, two)
y = Div(mixed, divisors)
y = Div(divisors, mixed_one)
t = Add(s, fours) y = Div(large, t)
y = Where(open, s, mixed)
y = Mod(s, two)
y = Mod(mixed, divisors)
y = Neg(s)
b = Equal(s, fours) y = Cast<to=7>(b)
y = Min(s, fours)
y = Max(s, fours, mixed)
y = Max(column, s)
c = Cast<to=1>(s) d = Div(c, half) y = Cast<to=7>(d)
c = Cast<to=1>(s) d = Mul(c, half) y = Cast<to=6>(d)
c = Cast<to=11>(s) y = Cast<to=7>(c)
c = Cast<to=9>(mixed) y = Where(c, s, mixed)
y = CastLike(s, small)
y = Cast<to=7>(halves)
y = Concat<axis=0>(s, mixed, s)
y = Concat<axis=-1>(mixed, s)
t = Unsqueeze(s, zeros) u = Unsqueeze(mixed, zeros) y = Concat<axis=0>(t, u)
t = Unsqueeze(s, zeros) u = Unsqueeze(mixed, zeros) y = Concat<axis=1>(t, u)
y = Gather(s, one)
y = Gather(s, minus)
y = Gather<axis=0>(s, pair)
y = Gather(s, column)
t = Reshape(s, square) y = Gather<axis=1>(t, one)
t = Reshape(s, square) y = Gather<axis=-1>(t, pair)
t = Unsqueeze(s, zeros) y = Squeeze(t, zeros)
t = Slice(s, ones, twos) y = Squeeze(t)
t = Slice(s, zeros, ones) y = Squeeze(t, last)
y = Unsqueeze(s, last)
y = Unsqueeze(s, pair)
y = Slice(s, ones, fours)
y = Slice(s, last, far, zeros, last)
y = Slice(s, zeros, fours, zeros, twos)
t = Reshape(s, square) y = Slice(t, ones, twos, ones)
t = Reshape(s, square) y = Slice(t, both, twice)
y = Reshape(s, square)
t = Reshape(s, square) y = Reshape(t, last)
t = Reshape(s, square) y = Reshape(t, copy)
t = Reshape(s, square) y = Transpose(t)
t = Reshape(s, square) y = Transpose<perm=[0,1]>(t)
t = Reshape(s, square) u = Unsqueeze(t, zeros) y = Transpose<perm=[2,0,1]>(u)
t = Unsqueeze(s, last) y = Expand(t, fours)
y = Expand(s, column_shape)
y = Where(mask, s, mixed)
y = Where(mask, mixed, s)
y = Where(mask, fours, s)
y = Where(mask_column, s, mixed)
t = Shape<start=1>(x) y = Neg(t)
t = Shape<end=2>(x) y = Neg(t)
t = Shape<start=-3,end=-1>(x) y = Neg(t)
t = Shape<start=-2>(x) y = Mul(t, two)
t = Slice(s, ones, twos) y = ConstantOfShape<value=int64[1]{6}>(t)
t = Slice(s, ones, fours) y = ConstantOfShape<value=int32[1]{1}>(t)
t = Slice(s, ones, twos) y = ConstantOfShape<value=bool[1]{1}>(t)
a = Gather(s, one) b = Gather(s, minus) y = Range(a, b, one)
a = Gather(s, minus) b = Gather(s, one) y = Range(a, b, minus)
a = Gather(s, one) b = Gather(s, minus) y = Range(a, b, two)
a = Gather(s, minus) y = Range(one, a, three)
"""
DIRECT_OLD = """
y = Slice<starts=[1],ends=[3]>(s)
y = Slice<starts=[-3],ends=[9],axes=[0]>(s)
y = Unsqueeze<axes=[1]>(s)
t = Unsqueeze<axes=[0]>(s) y = Squeeze<axes=[0]>(t)
t = Unsqueeze<axes=[0]>(s) y = Slice<starts=[2],ends=[4],axes=[1]>(t)
"""
# What is known of y ("." for nothing of one element, "" for nothing at all), where it does not follow from the batch:
# an element that is made of an unknown one may be the same for all batches.
FOURS = "r = ReduceMax<axes=[0,1,3],keepdims=0>(x) c = Concat<axis=0>({}r) i = Cast<to=7>(c) "
LOOSE = {
    "y = Mul(s, zeros)": ".kkk",
    "y = Div(s, s)": ".kkk",
    "y = Sub(s, s)": ".kkk",
    "y = Where(mask, s, s)": ".kkk",
    "b = Equal(s, s) y = Where(b, s, mixed)": ".kkk",
    "b = Equal(s, fours) y = Where(b, s, mixed)": ".kkk",
    "b = Equal(s, mixed) y = Where(b, mixed, s)": ".kkk",
    "n = Gather(s, zero) y = Range(one, n, two)": "",
    "n = Gather(s, zero) y = Range(n, one, minus)": "",
    "n = Slice(s, zeros, ones) t = Concat<axis=0>(n, twos) y = ConstantOfShape<value=int64[1]{6}>(t)": "",
    "c = Cast<to=10>(s) y = Cast<to=7>(c)": "",  # float16 is nothing to compute sizes in
    "y = ConstantOfShape<value=int64[1]{6}>(many)": "",
    "y = ConstantOfShape<value=int64[1]{6}>(most)": "k" * 4096,
    "n = Slice(s, zeros, ones) y = Slice(s, zeros, n)": "",
    "n = Gather(s, zero) m = Mod(n, two) y = Gather(s, m)": "",
    "n = Slice(s, zeros, ones) t = Concat<axis=0>(n, fours) y = Expand(twos, t)": "",
    "r = ReduceSum<keepdims=0>(x) i = Cast<to=7>(r) y = Add(s, i)": "....",
    "r = ReduceSum<keepdims=0>(x) i = Cast<to=7>(r) j = Unsqueeze(i, zeros) y = Concat<axis=0>(s, j)": ".kkk.",
    "r = ReduceSum<keepdims=0>(x, last) i = Cast<to=7>(r) j = Reshape(i, last) y = Concat<axis=0>(s, j)": "",
    FOURS.format("r, " * 15) + "y = Concat<axis=0>(s, i)": ".kkk" + 64 * ".",
    FOURS.format("r, " * 16) + "y = Concat<axis=0>(s, i)": "",
}
CONSTANTS |= {
    "zero": np.array(0),
    "three": np.array(3),
    "twice": np.array([2, 2]),
    "column_shape": np.array([3, 1]),
    "mask_column": np.array([[True], [False]]),
    "divisors": np.array([1, 2, -2, 3]),
    "large": np.array([10000, -300, 71, 20]),
    "mixed_one": np.array([5, -3, 1, 2]),
    "open": np.array([False, True, True, False]),
    "many": np.array([4097]),
    "most": np.array([4096]),
}


def lines(texts: str) -> list[str]:
    """Return the forms of a text."""
    return [line for line in texts.splitlines() if line]


def judge(text: str, opset: int = 17) -> list[tuple[str, NDArray[Any], NDArray[Any], NDArray[Any], list[str | None]]]:
    """Return what is said of each result, and what it is: name, said to be known, values, constant, names."""
    start = "s = Shape(x)"
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    proto = model(
        f"g (float[N,3,4,5] x) => (int64[a] y) {{ {start} {text} }}",
        opset=opset,
        **{name: value for name, value in CONSTANTS.items() if name in words},
    )
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in proto.graph.node)
    facts = Channels.analyze(GraphView(from_proto(onnx.ModelProto.FromString(proto.SerializeToString())))).facts
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    types = {info.name: info for info in inferred.graph.output}
    del proto.graph.output[:]
    proto.graph.output.extend(types.values())
    session = Session(proto)
    runs = [session.run({"x": np.ones((n, 3, 4, 5), dtype=np.float32)}) for n in BATCHES]
    found = []
    for node in facts.program:
        tensor = node.outputs[0]
        results = [run[tensor.name] for run in runs]
        values = facts.values(tensor)
        if values is None:
            same = np.zeros(results[0].shape, dtype=bool)
            found.append((str(tensor.name), same, results[0], ~same, []))
            continue
        assert all(result.shape == values.array.shape for result in results), tensor.name
        assert values.known.shape == values.array.shape
        assert values.array.dtype == results[0].dtype or not values.known.any()
        for result, batch in zip(results, BATCHES, strict=True):
            np.testing.assert_array_equal(values.array[values.known], result[values.known])
            named = np.array([name == "N" for name in values.names(facts.symbols)], dtype=bool)
            assert (result.ravel()[named] == batch).all()
        same = np.all([result == results[0] for result in results], axis=0)
        found.append((str(tensor.name), values.known, results[0], same, values.names(facts.symbols)))
    return found


@pytest.mark.parametrize(("text", "opset"), [(t, 17) for t in lines(DIRECT)] + [(t, 9) for t in lines(DIRECT_OLD)])
def test_all_that_does_not_depend_on_the_batch_is_known(text: str, opset: int) -> None:
    moves = not any(op in text for op in ("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Min", "Max", "Equal", "Cast"))
    for name, known, values, same, names in judge(text, opset):
        np.testing.assert_array_equal(known, same, err_msg=name)
        if moves:
            expected = [None if k or v != BATCHES[0] else "N" for k, v in zip(known.flat, values.flat, strict=True)]
            assert names == expected


@pytest.mark.parametrize(("text", "expected"), LOOSE.items())
def test_what_is_known_does_not_depend_on_the_batch(text: str, expected: str) -> None:
    found = judge(text)
    assert found[0][1].tolist() == [False, True, True, True]
    _, known, _, _, names = found[-1]
    assert "".join(".k"[each] for each in known.ravel().tolist()) == expected if expected else not names
