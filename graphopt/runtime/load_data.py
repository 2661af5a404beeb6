"""Reads the user's data and holds it against the model's signature: what does not fit is one clear DataError."""

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import DataError
from graphopt.model import Model
from graphopt.runtime.data import ArrayData, Data, Stored, fitting_batch
from graphopt.runtime.data_folder import load_data_folder
from graphopt.runtime.npz import Arrays, Member, read_npz
from graphopt.runtime.signature import Signature, TensorInfo, class_count, holds, signature

SPLIT = "calibration/"


def load_data(path: str | PathLike[str], model: Model) -> Data:
    """Read an .npz file (see ``from_arrays``) or a folder of ONNX test data sets.

    Of an .npz file only headers and labels are read here, samples when batches ask for them: large arrays a batch at a
    time, and ``calibration/`` only for ``calibration()``.

    Raises:
        DataError: The file is missing or no .npz, holds pickled objects, or does not fit the model. A file that is
            damaged further in raises it when the damage is met.
    """
    place = Path(path)
    if os.path.isdir(place):  # unlike its namesake of Path, it raises nothing on names that no system takes
        return load_data_folder(place, signature(model))
    try:
        return from_arrays(read_npz(place), model)
    except DataError as error:
        if str(error).startswith(f"{place}: "):
            raise
        raise DataError(f"{place}: {error}") from error


def from_arrays(arrays: Arrays, model: Model) -> Data:
    """Hold arrays by input name against a model.

    The first axis of each array is the samples'. If an array has one axis more than the input, samples are fed one by
    one. Where the model's first axis is fixed at k, k samples are fed at a time, and the last batch is filled up by
    repeating the last sample. An array of rank 0 goes to every batch; so does one of the input's own shape whose first
    axis is fixed, if other inputs' first axes are dynamic and their arrays have other lengths.

    Values may be stored narrower than the model's type where the type holds them all (float16 for float32, int32 for
    int64), or as integers with scalars ``<input>.scale`` and ``<input>.offset``: the input is ``x * scale + offset``,
    computed in float64. ``labels`` are class indices, one per sample. An input that is called like one of these keys is
    that input and nothing else. ``calibration/<input>`` is a split to calibrate with; scale and offset are the input's
    unless it has its own. NaN and Inf are allowed in data: some models take NaN for a missing value.

    Raises:
        DataError: An input is missing or a name unknown; an array has the wrong type or shape, is empty or has another
            number of samples than the rest; labels are unusable.
    """
    sign = signature(model)
    if sign.others:
        name = next(iter(sign.others))
        raise DataError(f"input {name!r} takes a sequence or optional: use a folder of test data sets")
    if strange := next((name for name in arrays if not isinstance(name, str)), None):
        raise DataError(f"{strange!r} is no input's name")
    arrays = {name: v if isinstance(v, Member) else as_array(v, repr(name)) for name, v in arrays.items()}
    test = {name: each for name, each in arrays.items() if not name.startswith(SPLIT) or name in sign.inputs}
    split = {name.removeprefix(SPLIT): arrays[name] for name in arrays if name not in test}
    data = _collect(test, sign, "")
    if not split:
        return data
    for name in sign.inputs:
        if name in split and _values(split[name]).dtype == data.stored[name].values.dtype:
            keys = _factors(name, sign)
            split = {key: arrays[key] for key in keys if key in arrays} | split
    return replace(data, split=_collect(split, sign, SPLIT))


def _collect(arrays: Arrays, sign: Signature, prefix: str) -> ArrayData:
    """Check one split against the signature and decide how to batch it."""
    _require_known(arrays, sign, prefix)
    stored: dict[str, Stored] = {}
    per_sample: list[str] = []
    for name, info in sign.inputs.items():
        if name not in arrays:
            raise DataError(f"no array {prefix + name!r} for the model's input {name!r} ({info})")
        factors = {key.removeprefix(f"{name}."): arrays.get(key) for key in _factors(name, sign)}
        stored[name] = _stored(prefix + name, _values(arrays[name]), info, factors)
        if _has_extra_axis(stored[name], info):
            per_sample.append(name)
    _share(stored, sign)
    sizes = {name: len(each.values) for name, each in stored.items() if not each.shared}
    size = _common_size(sizes, prefix)
    if per_sample:
        left = next((name for name in sizes if name not in per_sample), None)
        if left is not None:
            raise DataError(
                f"{prefix + per_sample[0]!r} has a sample axis in front of the input's own axes, "
                f"{prefix + left!r} has not: give it to both or none"
            )
        batch, fixed = 0, False
    else:
        batch, fixed = _batch({name: each for name, each in stored.items() if not each.shared}, sign)
    labels = None if "labels" in sign.inputs else arrays.get("labels")
    return ArrayData(stored, size, _labels(labels, size, sign, prefix), batch, fixed)


def _values(array: "NDArray[Any] | Member") -> "NDArray[Any] | Member":
    """Return an array as one, and what is read from a file as it is."""
    return array if isinstance(array, Member) else np.asarray(array)


def as_array(values: Any, label: str) -> NDArray[Any]:
    """Return an array, or what can be made one, such as a list or a tensor of a framework.

    Raises:
        DataError: It cannot be made one.
    """
    try:
        return np.asarray(values)
    except Exception as error:  # whatever the object's own conversion raises
        raise DataError(f"{label} cannot be made an array: {' '.join(str(error).split())}") from error


def _factors(name: str, sign: Signature) -> list[str]:
    """Return the keys of an input's scale and offset, unless inputs are called so."""
    return [key for key in (f"{name}.scale", f"{name}.offset") if key not in sign.inputs]


def _share(stored: dict[str, Stored], sign: Signature) -> None:
    """Find inputs that are no samples: their first axis is fixed, others' are not, and the numbers do not agree."""
    first = {name: (sign.inputs[name].shape or (None,))[0] for name, each in stored.items() if not each.shared}
    counts = {len(stored[name].values) for name, size in first.items() if not isinstance(size, int)}
    for name, size in first.items():
        each = stored[name]
        if isinstance(size, int) and each.values.shape == sign.inputs[name].shape and counts and counts != {size}:
            stored[name] = replace(each, shared=True)


def _require_known(arrays: Arrays, sign: Signature, prefix: str) -> None:
    """Refuse an array that belongs to nothing."""
    known = [*sign.inputs, *(key for name in sign.inputs for key in _factors(name, sign)), "labels"]
    for name in arrays:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the inputs are {', '.join(map(repr, sign.inputs))}"
            raise DataError(f"array {prefix + name!r} is no input of the model; {hint}")


def _stored(
    label: str, values: "NDArray[Any] | Member", info: TensorInfo, factors: "Mapping[str, NDArray[Any] | Member | None]"
) -> Stored:
    """Check one array against its input."""
    if info.dtype.kind == "O":
        values = _texts(values, label)
    scale, offset = (_number(f"'{label}.{key}'", factors.get(key)) for key in ("scale", "offset"))
    scaled = scale is not None or offset is not None
    if scaled and values.dtype.kind not in "iuf":
        raise DataError(f"{label!r} holds {values.dtype}, which cannot be scaled")
    if not scaled and not holds(values.dtype, info.dtype):
        hint = f"; to store integers, add '{label}.scale'" if values.dtype.kind in "iu" and _is_float(info) else ""
        raise DataError(f"{label!r} holds {values.dtype}, the model takes {info}{hint}")
    if values.ndim and not len(values):
        raise DataError(f"{label!r} is empty (shape {values.shape})")
    shared = values.ndim == 0 and not info.shape
    _require_shape(label, values, info, shared)
    if not scaled:
        return Stored(values, info.dtype, shared=shared)
    return Stored(values, info.dtype, 1.0 if scale is None else scale, offset or 0.0, shared)


def _texts(values: "NDArray[Any] | Member", label: str) -> "NDArray[Any] | Member":
    """Return texts as Python's; other values as they are, for the check of types to refuse them."""
    if values.dtype.kind in "US":
        try:
            return np.asarray(values).astype(str).astype(object)
        except UnicodeDecodeError as error:
            raise DataError(f"{label!r} holds bytes that are no text") from error
    if values.dtype.kind == "O" and not all(isinstance(each, str) for each in np.asarray(values).reshape(-1)):
        raise DataError(f"{label!r} holds objects that are no text")
    return values


def _number(label: str, value: "NDArray[Any] | Member | None") -> float | None:
    """Return a scale or an offset."""
    if value is None:
        return None
    if math.prod(value.shape) != 1 or value.dtype.kind not in "fiu":
        raise DataError(f"{label} must be one number")
    number = np.asarray(value)
    if not np.isfinite(number).all():
        raise DataError(f"{label} is not finite")
    return float(number.reshape(()))


def _is_float(info: TensorInfo) -> bool:
    return info.dtype.kind == "f"


def _has_extra_axis(stored: Stored, info: TensorInfo) -> bool:
    return not stored.shared and info.shape is not None and stored.values.ndim == len(info.shape) + 1


def _require_shape(label: str, values: "NDArray[Any] | Member", info: TensorInfo, shared: bool) -> None:
    """Refuse an array whose axes after the samples' do not fit the input's."""
    if info.shape is None or shared:
        if values.ndim == 0 and not shared:
            raise DataError(f"{label!r} has no sample axis")
        return
    rank = len(info.shape)
    if values.ndim not in (rank, rank + 1) or not values.ndim:
        raise DataError(f"{label!r} has shape {values.shape}, the model takes {info}")
    wanted = info.shape if values.ndim == rank + 1 else info.shape[1:]
    for axis, (have, want) in enumerate(zip(values.shape[1:], wanted, strict=True), 1):
        if isinstance(want, int) and have != want:
            raise DataError(f"{label!r} has shape {values.shape}, axis {axis} must be {want}: the model takes {info}")


def _common_size(sizes: Mapping[str, int], prefix: str) -> int:
    """Return the number of samples, the same for all arrays."""
    if not sizes:
        return 1
    name, size = next(iter(sizes.items()))
    for other, count in sizes.items():
        if count != size:
            raise DataError(f"{prefix + name!r} has {size} samples, {prefix + other!r} has {count}")
    return size


def _batch(stored: Mapping[str, Stored], sign: Signature) -> tuple[int, bool]:
    """Return how many samples to feed at a time, and whether the model insists on it."""
    fixed: dict[int, str] = {}
    for name in stored:
        shape = sign.inputs[name].shape
        if shape and isinstance(shape[0], int):
            fixed.setdefault(shape[0], name)
    if len(fixed) > 1:
        (one, first), (two, second) = list(fixed.items())[:2]
        raise DataError(
            f"the model fixes the first axis of {first!r} at {one} and of {second!r} at {two}: "
            "give arrays with a sample axis in front of the inputs' own axes"
        )
    if 0 in fixed:
        raise DataError(f"the model fixes the first axis of {fixed[0]!r} at 0")
    if fixed:
        return next(iter(fixed)), True
    nbytes = sum(int(np.prod(each.values.shape[1:])) * each.dtype.itemsize for each in stored.values())
    return fitting_batch(nbytes), False


def _labels(
    values: "NDArray[Any] | Member | None", size: int, sign: Signature, prefix: str
) -> NDArray[np.int64] | None:
    """Check the labels: integers, one per sample, within the classes if the model tells how many there are."""
    if values is None:
        return None
    label = prefix + "labels"
    if values.dtype.kind not in "iu":
        raise DataError(f"{label!r} holds {values.dtype}, class indices must be integers")
    if values.shape != (size,):
        raise DataError(f"{label!r} has shape {values.shape}, one class index for each of {size} samples is needed")
    values = np.asarray(values)
    classes = class_count(sign)
    low, high = int(values.min()), int(values.max())
    if low < 0 or (classes is not None and high >= classes):
        limit = "" if classes is None else f" (the model has {classes} classes)"
        raise DataError(f"{label!r} runs from {low} to {high}, out of range{limit}")
    return values.astype(np.int64)
