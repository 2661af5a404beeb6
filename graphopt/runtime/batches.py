"""Takes data in batches, as loops over files give them: joined where they are alike, kept in temporary files."""

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import DataError
from graphopt.model import Model
from graphopt.runtime.data import Data, Feeds, ListData
from graphopt.runtime.load_data import as_array, from_arrays
from graphopt.runtime.signature import Signature, require_fit, signature


def from_batches(batches: Iterable[Any], model: Model) -> Data:
    """Read batches once and hold them against a model.

    A batch is a mapping of arrays by input name, or one array where the model has one input. Batches whose arrays have
    the same axes behind the first, and one length of the first, are samples in a row: they are joined, and stand for
    what ``from_arrays`` takes, labels and the calibration split included. Others, such as sequences of several lengths,
    stay one run each.

    Raises:
        DataError: A batch is none, or the data do not fit the model.
    """
    sign = signature(model)
    with ExitStack() as files:
        rows, apart = _read(batches, sign, files)
        if apart is not None:
            return ListData([_feeds(arrays, sign, f"batch {number}") for number, arrays in enumerate(apart, 1)])
        if not rows:
            raise DataError("data: there is no batch")
        return from_arrays({name: each.joined() for name, each in rows.items()}, model)


def _read(batches: Iterable[Any], sign: Signature, files: ExitStack) -> "tuple[dict[str, _Rows], list[Feeds] | None]":
    """Return the samples of all batches by input; from where they cannot be joined, all batches as they are."""
    rows: dict[str, _Rows] = {}
    apart: list[Feeds] | None = None
    lengths: list[int] = []
    for number, batch in enumerate(batches, 1):
        arrays = _arrays(batch, sign, f"batch {number}")
        if apart is None and not _continues(rows, arrays):
            apart = _cut(rows, lengths)
        if apart is not None:
            apart.append(arrays)
            continue
        for name, values in arrays.items():
            if name not in rows:
                rows[name] = files.enter_context(closing(_Rows(values)))
            rows[name].add(values)
        lengths.append(len(next(iter(arrays.values()))))
    return rows, apart


class _Rows:
    """The samples of one input, written to a temporary file as they come; texts stay in memory."""

    def __init__(self, first: NDArray[Any]) -> None:
        self.dtype, self.shape, self.count = first.dtype, first.shape[1:], 0
        self._texts: list[NDArray[Any]] = []
        self._file: IO[bytes] | None = None if first.dtype.hasobject else tempfile.TemporaryFile()  # noqa: SIM115

    def continues(self, values: NDArray[Any]) -> bool:
        """Whether an array has the type and the axes of those before."""
        return values.dtype == self.dtype and values.shape[1:] == self.shape

    def add(self, values: NDArray[Any]) -> None:
        """Append samples."""
        self.count += len(values)
        if self._file is None:
            self._texts.append(values)
        else:
            self._file.write(np.ascontiguousarray(values).tobytes())

    def joined(self) -> NDArray[Any]:
        """Return all samples; those in a file are mapped, and stay so when it is closed."""
        if self._file is None:
            return np.concatenate(self._texts)
        self._file.flush()
        shape = (self.count, *self.shape)
        return np.memmap(self._file, self.dtype, "r", shape=shape) if np.prod(shape) else np.empty(shape, self.dtype)

    def close(self) -> None:
        """Close the file, which has no name any more."""
        if self._file is not None:
            self._file.close()


def _continues(rows: Mapping[str, _Rows], arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether the arrays of a batch are samples, and of the same form as those before."""
    if not arrays or any(not values.ndim for values in arrays.values()):
        return False
    if len({len(values) for values in arrays.values()}) > 1:
        return False
    return not rows or (
        rows.keys() == arrays.keys() and all(rows[name].continues(values) for name, values in arrays.items())
    )


def _cut(rows: Mapping[str, _Rows], lengths: list[int]) -> list[Feeds]:
    """Return the batches that were joined so far."""
    whole = {name: each.joined() for name, each in rows.items()}
    stops = np.cumsum(lengths).tolist()
    return [
        {name: values[stop - length : stop] for name, values in whole.items()}
        for stop, length in zip(stops, lengths, strict=True)
    ]


def _arrays(batch: Any, sign: Signature, label: str) -> dict[str, Any]:
    """Return the arrays of a batch by name."""
    if isinstance(batch, Mapping):
        if strange := next((name for name in batch if not isinstance(name, str)), None):
            raise DataError(f"{label}: {strange!r} is no input's name")
        return {name: as_array(values, f"{label}: {name!r}") for name, values in batch.items()}
    if hasattr(batch, "__array__"):
        return {only_input(sign, label): as_array(batch, label)}
    raise DataError(f"{label} is a {type(batch).__name__}; arrays by input name are needed")


def only_input(sign: Signature, label: str) -> str:
    """Return the input that an array without a name is for.

    Raises:
        DataError: The model has none, or several.
    """
    if len(sign.order) != 1:
        named = ", ".join(map(repr, sign.order)) or "none"
        raise DataError(f"{label} is one array; the model's inputs are {named}: give arrays by name")
    return sign.order[0]


def _feeds(arrays: Mapping[str, NDArray[Any]], sign: Signature, label: str) -> Feeds:
    """Hold a batch that stays by itself against the model's inputs."""
    for name in arrays:
        if name not in sign.order:
            why = "batches that cannot be joined have no labels" if name == "labels" else "is no input of the model"
            raise DataError(f"{label}: {name!r}: {why}; the inputs are {', '.join(map(repr, sign.order))}")
    for name in sign.order:
        if name not in arrays:
            raise DataError(f"{label}: no array for the model's input {name!r}")
        if name not in sign.inputs:
            raise DataError(f"input {name!r} takes a sequence or optional: use a folder of test data sets")
    return {name: require_fit(f"{label}: {name!r}", arrays[name], sign.inputs[name]) for name in sign.order}
