"""The protobuf wire format of model files: take the big weights out of the bytes, and put them back in.

A model's bytes with every big ``raw_data`` replaced by a short marker are its skeleton: small enough to parse at any
size of model, and everything but the weights is still in its place. ``strip`` makes it, ``expand`` undoes it.

See https://protobuf.dev/programming-guides/encoding/ for the format, onnx.proto for the field numbers.
"""

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from mmap import mmap
from typing import NamedTuple

Buffer = bytes | mmap

BIG = 1024
"""Weights of at least this many bytes are taken out of a skeleton."""

MAX_DEPTH = 100
"""How deep messages may nest; protobuf's own limit."""

_MAGIC = b"\x00graphopt weight\xff"
_MARKER_SIZE = len(_MAGIC) + 8
_WEIGHT = "raw data"
_NESTED: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
    "tensor": {9: _WEIGHT},
}


class WireError(ValueError):
    """The bytes are not a protobuf message."""


class Span(NamedTuple):
    """A range of a buffer."""

    buffer: Buffer
    start: int
    length: int


def strip(buffer: Buffer) -> tuple[bytes, list[Span]]:
    """Return the skeleton of a ModelProto's bytes, and the range of every weight that was taken out.

    Raises:
        WireError: The bytes are not a protobuf message.
    """
    spans: list[Span] = []

    def replace(start: int, end: int) -> list[bytes | int]:
        spans.append(Span(buffer, start, end - start))
        return [marker(len(spans) - 1)]

    def wanted(start: int, end: int) -> bool:
        return end - start >= BIG or buffer.find(_MAGIC, start, end) >= 0

    pieces, _ = _rewrite(buffer, 0, len(buffer), "model", wanted, replace, 0)
    return b"".join(piece for piece in pieces if isinstance(piece, bytes)), spans


def expand(skeleton: bytes, lengths: Sequence[int]) -> Iterator[bytes | int]:
    """Yield the model's bytes, in order: bytes as they are, and an index wherever that weight's bytes belong.

    Args:
        skeleton: Serialized model with markers.
        lengths: Bytes of each weight, by the index in its marker.
    """
    places = list(_find_all(skeleton, _MAGIC))
    sizes = {marker(index): length for index, length in enumerate(lengths)}

    def replace(start: int, end: int) -> list[bytes | int]:
        index = marker_index(skeleton[start:end])
        return [skeleton[start:end]] if index is None or index >= len(sizes) else [index]

    def wanted(start: int, end: int) -> bool:
        first = bisect_left(places, start)
        return first < len(places) and places[first] < end

    def sized(piece: bytes | int) -> int:
        return len(piece) if isinstance(piece, bytes) else lengths[piece]

    pieces, _ = _rewrite(skeleton, 0, len(skeleton), "model", wanted, replace, 0, sized)
    yield from pieces


def marker(index: int) -> bytes:
    """Return what stands in a skeleton for the weight number ``index``."""
    return _MAGIC + struct.pack("<Q", index)


def marker_index(data: bytes) -> int | None:
    """Return the number of the weight that a marker stands for, or None if ``data`` is not a marker."""
    if len(data) != _MARKER_SIZE or not data.startswith(_MAGIC):
        return None
    index: int = struct.unpack("<Q", data[len(_MAGIC) :])[0]
    return index


def has_marker(data: bytes | memoryview) -> bool:
    """Whether a weight's own bytes look like a marker, so that they too have to be taken out."""
    return len(data) < BIG and bytes(data).find(_MAGIC) >= 0


def fields(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Walk the message in a range of a buffer.

    Yields:
        Number and wire type of a field, where its key and its payload start, and where it ends.

    Raises:
        WireError: The range is not a protobuf message.
    """
    place = start
    while place < end:
        key = place
        tag, place = _varint(buffer, place, end)
        wire_type = tag & 7
        if wire_type == 2:
            length, place = _varint(buffer, place, end)
            stop = place + length
        elif wire_type == 0:
            _, stop = _varint(buffer, place, end)
        elif wire_type in (1, 5):
            stop = place + (8 if wire_type == 1 else 4)
        else:
            raise WireError(f"wire type {wire_type} at byte {key}")
        if stop > end or tag < 8:
            raise WireError(f"the field at byte {key} ends at {stop}, its message at {end}")
        yield tag >> 3, wire_type, key, place, stop
        place = stop


def split(data: bytes, number: int) -> tuple[bytes, bytes | None]:
    """Part a message: all fields but one, and the payload of that one, None if it is absent.

    Where a singular message stands there twice its payloads are joined, which merges them as parsing would.
    """
    rest: list[bytes] = []
    taken: list[bytes] = []
    run = 0
    for found, _, key, start, end in fields(data, 0, len(data)):
        if found == number:
            rest.append(data[run:key])
            taken.append(data[start:end])
            run = end
    rest.append(data[run:])
    return b"".join(rest), b"".join(taken) if taken else None


def _rewrite(
    buffer: Buffer,
    start: int,
    end: int,
    kind: str,
    wanted: Callable[[int, int], bool],
    replace: Callable[[int, int], list[bytes | int]],
    depth: int,
    sized: Callable[[bytes | int], int] = lambda piece: len(piece) if isinstance(piece, bytes) else 0,
) -> tuple[list[bytes | int], int]:
    """Copy a message with the wanted ``raw_data`` fields replaced; return the pieces and their total length."""
    if depth > MAX_DEPTH:
        raise WireError("messages nest too deeply")
    nested = _NESTED[kind]
    pieces: list[bytes | int] = []
    run = start
    for number, wire_type, key, begin, stop in fields(buffer, start, end):
        inside = nested.get(number)
        if inside is None or wire_type != 2 or not wanted(begin, stop):
            continue
        if inside == _WEIGHT:
            new = replace(begin, stop)
            size = sum(map(sized, new))
        else:
            new, size = _rewrite(buffer, begin, stop, inside, wanted, replace, depth + 1, sized)
        pieces += [buffer[run:key], _key(number), _encoded(size), *new]
        run = stop
    pieces.append(buffer[run:end])
    return pieces, sum(map(sized, pieces))


def _varint(buffer: Buffer, place: int, end: int) -> tuple[int, int]:
    """Return the variable-length integer at ``place`` and the place after it."""
    value = shift = 0
    if place < end and (byte := buffer[place]) < 128:
        return byte, place + 1
    while place < end and shift < 70:
        byte = buffer[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise WireError(f"the integer before byte {place} has no end")


def _encoded(value: int) -> bytes:
    """Return an integer in the variable-length form."""
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)


def _key(number: int) -> bytes:
    """Return the key of a length-delimited field."""
    return _encoded(number << 3 | 2)


def _find_all(data: bytes, what: bytes) -> Iterator[int]:
    """Yield every place where ``what`` starts."""
    place = data.find(what)
    while place >= 0:
        yield place
        place = data.find(what, place + 1)
