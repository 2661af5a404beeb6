"""Every bad file gets one ModelError of one line, which says what is wrong."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from graphopt.errors import ModelError
from graphopt.model import from_proto, load, save, to_proto

TEXT = '<ir_version: 10, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { t = Relu(x) y = Relu(t) }'


def relu() -> ModelProto:
    return parser.parse_model(TEXT)


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as raised:
        load(path)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(path))


BYTES = {
    "empty": (b"", "the file is empty"),
    "truncated": (relu().SerializeToString()[:-9], "not an ONNX model"),
    "one byte": (b"\x08", "not an ONNX model"),
    "random bytes": (np.random.default_rng(1).bytes(5000), "not an ONNX model"),
    "text": (b"Hello, this is not a model.\n" * 50, "not an ONNX model"),
    "html": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not an ONNX model"),
    "zip": (b"PK\x03\x04" + bytes(200), "not an ONNX model"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n", "git-lfs pointer"),
    "a tensor": (numpy_helper.from_array(np.ones(9, np.float32), "w").SerializeToString(), "not an ONNX model"),
    "a graph": (relu().graph.SerializeToString(), "not an ONNX model"),
    "zeros": (bytes(4096), "not an ONNX model"),
    "a varint without end": (b"\xff" * 4096, "not an ONNX model"),
    "a length beyond the file": (b"\x3a\xff\xff\xff\xff\x0f" + bytes(100), "not an ONNX model"),
}


def message(key: bytes, data: bytes) -> bytes:
    """A length-delimited field."""
    length, size = bytearray(), len(data)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return key + bytes([*length, size]) + data


def nested(depth: int) -> bytes:
    """A model with an If in an If in an If: graph, node, attribute, graph, ..."""
    data = bytes([0x12, 1, 0x61])
    for _ in range(depth):
        data = message(b"\x0a", message(b"\x2a", message(b"\x32", data + bytes([0x12, 0]) * 600)))
    return b"\x08\x08" + message(b"\x3a", data)


@pytest.mark.parametrize("name", BYTES)
def test_not_a_model(name: str, tmp_path: Path) -> None:
    data, reason = BYTES[name]
    (tmp_path / "m.onnx").write_bytes(data)
    refused(tmp_path / "m.onnx", reason)


@pytest.mark.parametrize("depth", [35, 400])
def test_subgraphs_that_nest_without_end(depth: int, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(nested(depth))
    refused(tmp_path / "m.onnx", "not an ONNX model")


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "m.onnx", "no such file")
    refused(tmp_path, "not a file")


def change(text: str) -> Callable[[ModelProto], None]:
    return lambda model: exec(text, {"onnx": onnx, "np": np, "T": TensorProto}, {"m": model, "g": model.graph})


def tensor(**fields: object) -> str:
    return f"g.initializer.append(T(**{fields!r}))"


GRAPHS = {
    "no graph": ("m.ClearField('graph')", "it has no graph"),
    "no IR version": ("m.ClearField('ir_version')", "no IR version"),
    "newer IR version": ("m.ir_version = 99", "IR version 99 is unknown, the newest known one is"),
    "negative IR version": ("m.ir_version = -1", "IR version -1 is unknown"),
    "no opset": ("del m.opset_import[:]", "imports no operator set"),
    "newer opset": ("m.opset_import[0].version = 99", "opset 99 of 'ai.onnx' is unknown, the newest known one is"),
    "opset 0": ("m.opset_import[0].version = 0", "opset 0 of 'ai.onnx' is unknown"),
    "newer opset of the ml domain": ("m.opset_import.add(domain='ai.onnx.ml', version=99)", "opset 99 of 'ai.onnx.ml'"),
    "two opsets": ("m.opset_import.add(domain='ai.onnx', version=16)", "two versions of the operator set 'ai.onnx'"),
    "unknown input type": ("g.input[0].type.tensor_type.elem_type = 99", "'x' has the unknown element type 99"),
    "unknown output type": ("g.output[0].type.tensor_type.elem_type = -1", "'y' has the unknown element type -1"),
    "unknown type in a sequence": (
        "g.value_info.add(name='t').type.sequence_type.elem_type.tensor_type.elem_type = 99",
        "'t' has the unknown element type 99",
    ),
    "unknown weight type": (tensor(name="w", data_type=99, dims=[1], raw_data=b"1234"), "unknown element type 99"),
    "weight without type": (tensor(name="w", dims=[1], raw_data=b"1234"), "has no element type"),
    "weight without name": (tensor(data_type=1, dims=[1], raw_data=b"1234"), "an initializer has no name"),
    "negative dim": (tensor(name="w", data_type=1, dims=[-2], raw_data=b"12345678"), r"impossible dims \[-2\]"),
    "overflowing dims": (tensor(name="w", data_type=1, dims=[2**40, 2**40]), "impossible dims"),
    "overflowing dims of nothing": (tensor(name="w", data_type=1, dims=[0, 2**40, 2**40]), "impossible dims"),
    "raw data too short": (
        tensor(name="w", data_type=1, dims=[3], raw_data=b"1234"),
        "needs 12 bytes of data, it has 4",
    ),
    "raw data too long": (
        tensor(name="w", data_type=1, dims=[1], raw_data=b"12345678"),
        "needs 4 bytes of data, it has 8",
    ),
    "big raw data too short": (
        tensor(name="w", data_type=1, dims=[999], raw_data=bytes(3992)),
        "needs 3996 bytes of data, it has 3992",
    ),
    "raw data of 4 bits too long": (
        tensor(name="w", data_type=22, dims=[5], raw_data=bytes(5)),
        "needs 3 bytes of data",
    ),
    "no data": (tensor(name="w", data_type=1, dims=[3]), "needs 3 values, it has 0"),
    "typed data too long": (tensor(name="w", data_type=7, dims=[1], int64_data=[1, 2]), "needs 1 values, it has 2"),
    "strings too few": (tensor(name="w", data_type=8, dims=[3], string_data=[b"a"]), "needs 3 values, it has 1"),
    "strings as raw data": (tensor(name="w", data_type=8, dims=[3], raw_data=b"abc"), "needs 3 values, it has 0"),
    "complex data too short": (tensor(name="w", data_type=14, dims=[1], float_data=[1]), "needs 2 values, it has 1"),
    "attribute data too short": (
        "a = g.node[0].attribute.add(name='a', type=4); a.t.name = 'w'; a.t.data_type = 1; a.t.dims.append(9)",
        "needs 9 values, it has 0",
    ),
    "sparse data too short": (
        "s = g.sparse_initializer.add(dims=[4]); s.values.name = 'w'; s.values.data_type = 1; s.values.dims.append(2)",
        "needs 2 values, it has 0",
    ),
    "duplicate initializers": (
        tensor(name="w", data_type=1, dims=[0]) + ";" + tensor(name="w", data_type=1, dims=[0]),
        "two initializers are named 'w'",
    ),
    "duplicate inputs": ("g.input.append(g.input[0])", "two inputs have the same name"),
    "two producers": ("g.node[1].output[0] = 't'", "'t' is produced twice, the second time by a Relu node"),
    "an initializer is produced": (tensor(name="t", data_type=1, dims=[0]), "'t' is produced twice"),
    "an input is produced": ("g.node[0].output[0] = 'x'", "'x' is produced twice"),
    "undefined input": ("g.node[0].input[0] = 'nowhere'", "'nowhere' is used but no input"),
    "undefined output": ("g.output[0].name = 'nowhere'", "'nowhere' is used but no input"),
    "cycle": ("g.node[0].input[0] = 'y'", "a cycle through 'Relu', 'Relu'"),
    "reads itself": ("g.node[0].input[0] = 't'", "a cycle through 'Relu'"),
    "duplicate attributes": (
        "g.node[0].attribute.add(name='a', i=1, type=2); g.node[0].attribute.add(name='a', i=1, type=2)",
        "two attributes 'a'",
    ),
    "duplicate functions": (
        "m.functions.add(name='f', domain='d'); m.functions.add(name='f', domain='d')",
        "two local",
    ),
    "function calls itself": (
        "m.functions.add(name='f', domain='d').node.add(op_type='f', domain='d')",
        "the local function d.f calls itself",
    ),
    "newer opset of a function": (
        "m.functions.add(name='f', domain='d').opset_import.add(version=99)",
        "opset 99 of 'ai.onnx' is unknown",
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_unusable_graph(name: str, tmp_path: Path) -> None:
    text, reason = GRAPHS[name]
    model = relu()
    change(text)(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "m.onnx", reason)
    with pytest.raises(ModelError, match=reason):
        from_proto(model)


NAMES = {
    "output": "m.graph.node[0].output[0] = m.graph.node[1].input[0] = 'NAME'",
    "operator": "m.graph.node[0].op_type = 'NAME'",
    "attribute": "m.graph.node[0].attribute.add(name='NAME', type=4).t.CopyFrom(T(data_type=1, dims=[0]))",
    "input": "m.graph.input[0].name = m.graph.node[0].input[0] = 'NAME'",
    "initializer": "m.graph.initializer.append(T(name='NAME', data_type=1, dims=[0]))",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_not_utf8(name: str, tmp_path: Path) -> None:
    model = relu()
    change(NAMES[name])(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString().replace(b"NAME", b"\xff\xfe\xfd\xfc"))
    refused(tmp_path / "m.onnx", "is not UTF-8")


def external(folder: Path, location: str, data: bytes = bytes(4000), **entries: str) -> Path:
    """Write a model with one weight of 1000 floats at ``location``, and a file of 4,000 bytes at w.bin."""
    (folder / "models").mkdir()
    (folder / "models" / "w.bin").write_bytes(data)
    (folder / "outside.bin").write_bytes(bytes(4000))
    model = relu()
    weight = TensorProto(name="w", data_type=1, dims=[1000], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    (folder / "models" / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "models" / "m.onnx"


EXTERNAL = {
    "missing": ("nowhere.bin", {}, "'nowhere.bin' is missing"),
    "no location": ("", {}, "no usable location"),
    "a null byte": ("a\0b", {}, "no usable location"),
    "escaping": ("../outside.bin", {}, "outside the model's folder"),
    "escaping and coming back": ("../models/w.bin", {}, "outside the model's folder"),
    "escaping behind a folder": ("a/../../outside.bin", {}, "outside the model's folder"),
    "absolute": ("/etc/hostname", {}, "outside the model's folder"),
    "a folder": (".", {}, "is not a regular file"),
    "a long name": ("a" * 5000, {}, "cannot read its external data"),
    "longer than the dims": ("w.bin", {"length": "4001"}, "said to have 4001 at 0"),
    "shorter than the dims": ("w.bin", {"length": "3996"}, "needs 4000 bytes"),
    "negative offset": ("w.bin", {"offset": "-4", "length": "4000"}, "said to have 4000 at -4"),
    "offset past the end": ("w.bin", {"offset": "8", "length": "4000"}, "4000 bytes"),
    "offset leaves too little": ("w.bin", {"offset": "8"}, "said to have 4000 at 8"),
    "offset is no number": ("w.bin", {"offset": "x"}, "not a number"),
    "length is no number": ("w.bin", {"length": "1e3"}, "not a number"),
    "huge offset": ("w.bin", {"offset": "9" * 30}, "needs 4000 bytes"),
}


@pytest.mark.parametrize("name", EXTERNAL)
def test_unusable_external_data(name: str, tmp_path: Path) -> None:
    location, entries, reason = EXTERNAL[name]
    refused(external(tmp_path, location, **entries), reason)


def test_external_data_that_is_too_short_or_empty(tmp_path: Path) -> None:
    path = external(tmp_path, "w.bin", data=bytes(3999))
    refused(path, "3999 bytes")
    (tmp_path / "models" / "w.bin").write_bytes(b"")
    refused(path, "0 bytes")


def test_external_data_behind_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    path = external(tmp_path, "link.bin")
    (path.parent / "link.bin").symlink_to(tmp_path / "outside.bin")
    refused(path, "outside the model's folder: it is a link to '.*outside.bin'.*put the file itself in the place")
    (path.parent / "link.bin").unlink()
    (path.parent / "link.bin").symlink_to("link.bin")
    refused(path, "link.bin")


def test_external_data_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    path = external(tmp_path, "pipe")
    os.mkfifo(path.parent / "pipe")
    refused(path, "not a regular file")


def test_external_data_in_a_proto_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="load the model from its path"):
        from_proto(onnx.load(external(tmp_path, "w.bin"), load_external_data=False))


def test_external_data_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    external(tmp_path, "w.bin", data=np.arange(1000, dtype=np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    (constant,) = load("models/m.onnx").constants()
    np.testing.assert_array_equal(constant.values, np.arange(1000, dtype=np.float32))


def test_mapped_weights_cannot_be_written_to(tmp_path: Path) -> None:
    (constant,) = load(external(tmp_path, "w.bin")).constants()
    with pytest.raises(ValueError, match="read-only"):
        constant.values[0] = 1


def test_unsorted_nodes_are_sorted_and_told(tmp_path: Path) -> None:
    model = relu()
    model.graph.node.append(model.graph.node[0])
    del model.graph.node[0]
    loaded = from_proto(model)
    assert [node.outputs[0].name for node in loaded.graph.nodes] == ["t", "y"]
    assert loaded.repairs == ("the nodes of g were not in topological order",)
    assert loaded.copy().repairs == loaded.repairs
    save(loaded, tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx").repairs == ()


def test_a_wrongly_declared_output_rank_is_accepted() -> None:
    model = relu()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4]))
    assert to_proto(from_proto(model)) == model


def test_a_long_reversed_chain_does_not_overflow_the_stack() -> None:
    model = relu()
    del model.graph.node[:]
    names = ["x", *map(str, range(20_000)), "y"]
    for before, after in reversed(list(itertools.pairwise(names))):
        model.graph.node.add(op_type="Relu", input=[before], output=[after])
    assert [node.outputs[0].name for node in from_proto(model).graph.nodes] == names[1:]
