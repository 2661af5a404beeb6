"""Taking weights out of a model's bytes and putting them back gives the same bytes."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper, parser

from graphopt.model.wire import BIG, WireError, expand, fields, marker, marker_index, strip


def model(sizes: list[int]) -> bytes:
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 17]> g (float[2] x, bool c) => (float[2] y) '
        "{ y = If(c) <then_branch = a () => (float[2] z) { z = Relu(x) }, "
        "else_branch = b () => (float[2] z2) { z2 = Neg(x) }> }"
    )
    graphs = [proto.graph, *(attribute.g for attribute in proto.graph.node[0].attribute)]
    for index, size in enumerate(sizes):
        tensor = numpy_helper.from_array(np.full(size, index, np.uint8), f"w{index}")
        graph = graphs[index % 3]
        if index % 2:
            graph.initializer.append(tensor)
        else:
            graph.node.add(op_type="Constant", output=[f"w{index}"]).attribute.add(name="value", type=4).t.CopyFrom(
                tensor
            )
    data: bytes = proto.SerializeToString()
    return data


@given(st.lists(st.sampled_from([0, 1, BIG - 1, BIG, BIG + 1, 20_000]), max_size=9))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_strip_then_expand(sizes: list[int]) -> None:
    data = model(sizes)
    skeleton, spans = strip(data)
    assert sorted(span.length for span in spans) == sorted(size for size in sizes if size >= BIG)
    assert len(skeleton) < 1000 + 1100 * len(sizes)
    ModelProto.FromString(skeleton)
    pieces = expand(skeleton, [span.length for span in spans])
    blobs = [data[span.start : span.start + span.length] for span in spans]
    assert b"".join(piece if isinstance(piece, bytes) else blobs[piece] for piece in pieces) == data


def varint(value: int) -> bytes:
    head, low = divmod(value, 128)
    return bytes([low + 128]) + varint(head) if head else bytes([low])


def field(number: int, wire_type: int, payload: bytes) -> bytes:
    return varint(8 * number + wire_type) + (varint(len(payload)) if wire_type == 2 else b"") + payload


MESSAGES = [1, 5, 6, 7, 9, 25]
"""Fields that hold a message at some depth of a model; what is in any other is not looked at."""

NUMBERS = st.integers(1, 2**29 - 1) | st.sampled_from(MESSAGES)
PLAIN = st.one_of(
    st.builds(field, NUMBERS, st.just(0), st.integers(0, 2**64 - 1).map(varint)),
    st.builds(field, NUMBERS, st.just(1), st.binary(min_size=8, max_size=8)),
    st.builds(field, st.integers(26, 2**29 - 1), st.just(2), st.binary(max_size=100)),
    st.builds(field, NUMBERS, st.just(5), st.binary(min_size=4, max_size=4)),
)
FIELDS = st.recursive(
    PLAIN,
    lambda inner: st.builds(field, st.integers(1, 25), st.just(2), st.lists(inner, max_size=4).map(b"".join)),
    max_leaves=12,
)


@given(st.lists(FIELDS, max_size=8).map(b"".join))
@settings(derandomize=True, max_examples=200, deadline=None)
def test_any_fields_are_walked(data: bytes) -> None:
    assert strip(data) == (data, [])
    assert b"".join(data[key:end] for _, _, key, _, end in fields(data, 0, len(data))) == data


@given(st.binary(max_size=300))
@settings(derandomize=True, max_examples=300, deadline=None)
def test_any_bytes_are_walked_or_refused(data: bytes) -> None:
    """Nearly all are refused; what is not asserted is that nothing else is raised."""
    with contextlib.suppress(WireError):
        assert strip(data) == (data, [])


@given(st.binary(max_size=BIG + 50), st.integers(0, 2**64 - 1))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_markers(data: bytes, index: int) -> None:
    assert marker_index(marker(index)) == index
    assert marker_index(data) is None
    assert marker_index(marker(index) + b"x") is None


@pytest.mark.parametrize(
    "data",
    [b"\x08", b"\x0a\x05abc", b"\x0b", b"\x09abc", b"\x02\x01a", b"\x0a" + b"\xff" * 12, b"\xff" * 20],
    ids=["no value", "too long", "a group", "half a double", "field number 0", "long length", "long key"],
)
def test_broken_fields(data: bytes) -> None:
    with pytest.raises(WireError):
        list(fields(data, 0, len(data)))
