"""Reads the user's data and holds it against the model's signature: what does not fit is one clear DataError."""

import difflib
import zipfile
import zlib
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
from graphopt.runtime.signature import Signature, TensorInfo, class_count, signature

Arrays = Mapping[str, NDArray[Any]]

SPLIT = "calibration/"


def load_data(path: str | PathLike[str], model: Model) -> Data:
    """Read an .npz file (see ``from_arrays``) or a folder of ONNX test data sets.

    Raises:
        DataError: The file is missing or no .npz, holds pickled objects, or does not fit the model.
    """
    place = Path(path)
    if place.is_dir():
        return load_data_folder(place, signature(model))
    try:
        with place.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{place}: is a single array, an .npz with arrays keyed by input names is needed")
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(f"{place}: no such file") from error
    except ValueError as error:
        pickled = "Object arrays" in str(error)
        reason = "holds pickled objects, which are refused" if pickled else "is not an .npz file"
        raise DataError(f"{place}: {reason}") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise DataError(f"{place}: is not a readable .npz file ({' '.join(str(error).split())})") from error
    try:
        return from_arrays(arrays, model)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def from_arrays(arrays: Arrays, model: Model) -> Data:
    """Hold arrays by input name against a model.

    The first axis of each array is the samples'. If an array has one axis more than the input, samples are fed one by
    one; an array of rank 0 goes to every batch. Where the model's first axis is fixed at k, k samples are fed at a
    time, and the last batch is filled up by repeating the last sample.

    Values may be stored narrower than the model's type where the type holds them all (float16 for float32, int32 for
    int64), or as integers with scalars ``<input>.scale`` and ``<input>.offset``: the input is ``x * scale + offset``,
    computed in float64. ``labels`` are class indices, one per sample. ``calibration/<input>`` is a split to calibrate
    with; scale and offset are the input's unless it has its own. NaN and Inf are allowed in data: some models
    take NaN for a missing value.

    Raises:
        DataError: An input is missing or a name unknown; an array has the wrong type or shape, is empty or has another
            number of samples than the rest; labels are unusable.
    """
    sign = signature(model)
    if sign.others:
        name = next(iter(sign.others))
        raise DataError(f"input {name!r} takes a sequence or optional: use a folder of test data sets")
    test = {name: each for name, each in arrays.items() if not name.startswith(SPLIT) or name in sign.inputs}
    split = {name.removeprefix(SPLIT): arrays[name] for name in arrays if name not in test}
    data = _collect(test, sign, "")
    if not split:
        return data
    for name in sign.inputs:
        if name in split and np.asarray(split[name]).dtype == data.stored[name].values.dtype:
            keys = (f"{name}.scale", f"{name}.offset")
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
        factors = arrays.get(f"{name}.scale"), arrays.get(f"{name}.offset")
        stored[name] = _stored(prefix + name, np.asarray(arrays[name]), info, *factors)
        if _has_extra_axis(stored[name], info):
            per_sample.append(name)
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
    return ArrayData(stored, size, _labels(arrays.get("labels"), size, sign, prefix), batch, fixed)


def _require_known(arrays: Arrays, sign: Signature, prefix: str) -> None:
    """Refuse an array that belongs to nothing."""
    known = [*sign.inputs, *(f"{name}.{key}" for name in sign.inputs for key in ("scale", "offset")), "labels"]
    for name in arrays:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the inputs are {', '.join(map(repr, sign.inputs))}"
            raise DataError(f"array {prefix + name!r} is no input of the model; {hint}")


def _stored(
    label: str, values: NDArray[Any], info: TensorInfo, scale: NDArray[Any] | None, offset: NDArray[Any] | None
) -> Stored:
    """Check one array against its input."""
    if values.dtype.kind in "US" and info.dtype.kind == "O":
        values = values.astype(str).astype(object)
    factors = []
    for key, value in (("scale", scale), ("offset", offset)):
        if value is not None and (np.size(value) != 1 or np.asarray(value).dtype.kind not in "fiu"):
            raise DataError(f"'{label}.{key}' must be one number")
        if value is not None and not np.isfinite(value).all():
            raise DataError(f"'{label}.{key}' is not finite")
        factors.append(None if value is None else float(np.asarray(value).reshape(())))
    scaled = any(factor is not None for factor in factors)
    if scaled and values.dtype.kind not in "iuf":
        raise DataError(f"{label!r} holds {values.dtype}, which cannot be scaled")
    if not scaled and not _holds(values.dtype, info.dtype):
        hint = f"; to store integers, add '{label}.scale'" if values.dtype.kind in "iu" and _is_float(info) else ""
        raise DataError(f"{label!r} holds {values.dtype}, the model takes {info}{hint}")
    if values.ndim and not values.size:
        raise DataError(f"{label!r} is empty (shape {values.shape})")
    shared = values.ndim == 0 and not info.shape
    _require_shape(label, values, info, shared)
    if not scaled:
        return Stored(values, info.dtype, shared=shared)
    return Stored(values, info.dtype, 1.0 if factors[0] is None else factors[0], factors[1] or 0.0, shared)


def _is_float(info: TensorInfo) -> bool:
    return info.dtype.kind == "f"


def _holds(stored: "np.dtype[Any]", taken: "np.dtype[Any]") -> bool:
    """Whether a type holds every value of the stored one, and both are of one kind."""
    kinds = {"f": "f", "i": "iu", "u": "iu"}
    return stored == taken or (stored.kind in kinds.get(taken.kind, "") and np.can_cast(stored, taken, "safe"))


def _has_extra_axis(stored: Stored, info: TensorInfo) -> bool:
    return not stored.shared and info.shape is not None and stored.values.ndim == len(info.shape) + 1


def _require_shape(label: str, values: NDArray[Any], info: TensorInfo, shared: bool) -> None:
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


def _labels(values: NDArray[Any] | None, size: int, sign: Signature, prefix: str) -> NDArray[np.int64] | None:
    """Check the labels: integers, one per sample, within the classes if the model tells how many there are."""
    if values is None:
        return None
    label = prefix + "labels"
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise DataError(f"{label!r} holds {values.dtype}, class indices must be integers")
    if values.shape != (size,):
        raise DataError(f"{label!r} has shape {values.shape}, one class index for each of {size} samples is needed")
    classes = class_count(sign)
    low, high = int(values.min()), int(values.max())
    if low < 0 or (classes is not None and high >= classes):
        limit = "" if classes is None else f" (the model has {classes} classes)"
        raise DataError(f"{label!r} runs from {low} to {high}, out of range{limit}")
    return values.astype(np.int64)
