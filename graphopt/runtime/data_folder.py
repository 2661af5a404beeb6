"""Reads inputs in the form of ONNX's own test data: test_data_set_0/input_0.pb and so on."""

import re
from pathlib import Path
from typing import Any

import onnx

from graphopt.errors import DataError
from graphopt.runtime.data import ListData
from graphopt.runtime.npz import reading, require_file
from graphopt.runtime.signature import Signature, TensorInfo, require_fit


def load_data_folder(folder: Path, sign: Signature) -> ListData:
    """Read every ``test_data_set_N`` below a folder, or the folder itself if it is one such set.

    Raises:
        DataError: There is no set, or one does not fit the model.
    """
    with reading(folder, "folder"):
        sets = [each for each in folder.iterdir() if re.fullmatch(r"test_data_set_\d+", each.name) and each.is_dir()]
    if not sets and any(folder.glob("input_*.pb")):
        sets = [folder]
    if not sets:
        raise DataError(f"{folder}: holds no test_data_set_0/input_0.pb")
    sets.sort(key=lambda each: _number(each.name))
    return ListData([_read_set(each, sign) for each in sets])


def _read_set(folder: Path, sign: Signature) -> dict[str, Any]:
    """Read one set: ``input_I.pb`` is the model's I-th input."""
    files = sorted(folder.glob("input_*.pb"), key=lambda each: _number(each.stem))
    names = sign.order
    if [_number(each.stem) for each in files] != list(range(len(files))):
        raise DataError(f"{folder}: the inputs are not numbered from input_0.pb on, once each")
    if len(files) != len(names):
        raise DataError(f"{folder}: holds {len(files)} inputs, the model takes {len(names)}")
    feeds: dict[str, Any] = {}
    for name, path in zip(names, files, strict=True):
        if name in sign.others:
            feeds[name] = _read_other(path, sign.others[name])
        else:
            feeds[name] = _read_tensor(path, sign.inputs[name])
    return feeds


def _read_tensor(path: Path, info: TensorInfo) -> Any:
    """Read one tensor and hold it against its input."""
    tensor = _parsed(onnx.TensorProto(), path)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise DataError(f"{path}: keeps its values in another file, which is not read")
    with reading(path, "tensor"):
        values = onnx.numpy_helper.to_array(tensor)
    return require_fit(f"{path}:", values, info)


def _read_other(path: Path, kind: onnx.TypeProto) -> Any:
    """Read one sequence or optional."""
    with reading(path, str(kind.WhichOneof("value")).removesuffix("_type")):
        if kind.HasField("sequence_type"):
            return onnx.numpy_helper.to_list(_parsed(onnx.SequenceProto(), path))
        if kind.HasField("optional_type"):
            return onnx.numpy_helper.to_optional(_parsed(onnx.OptionalProto(), path))
    raise DataError(f"{path}: inputs of type {kind.WhichOneof('value')} are not supported")


def _parsed(message: Any, path: Path) -> Any:
    """Parse a file into an empty message."""
    require_file(path)
    with reading(path, "tensor"):
        message.ParseFromString(path.read_bytes())
    return message


def _number(name: str) -> int:
    """Return the number that a name ends with, -1 if it ends with none."""
    found = re.search(r"_(\d+)$", name)
    return int(found[1]) if found else -1
