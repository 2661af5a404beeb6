"""The arguments of the Python interface: each form that is taken, and one error that names what is not."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from numpy.typing import ArrayLike

from graphopt.base import Pass
from graphopt.errors import DataError, ModelError, OptionError
from graphopt.model import Model, from_proto, load
from graphopt.proof.unknown import provable
from graphopt.registry import create
from graphopt.runtime.feeds import Data, Feeds, draw_inputs, from_arrays, from_batches, load_data, only_input
from graphopt.runtime.signature import signature

AnyModel = Model | onnx.ModelProto | bytes | str | PathLike[str]
Batch = Mapping[str, ArrayLike] | ArrayLike
AnyData = (
    Data | Mapping[str, ArrayLike] | str | PathLike[str] | ArrayLike | Iterable[Batch] | Callable[[], Iterable[Batch]]
)
AnyPasses = Pass | str | Iterable[Pass | str]

_DATA = ("generated", "labels", "size", "at_once", "batches", "counts", "calibration")


def as_model(model: AnyModel, label: str = "model") -> Model:
    """Return any form of a model as a loaded one.

    Raises:
        ModelError: It is unusable, or no model.
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, onnx.ModelProto):
        return from_proto(model)
    if isinstance(model, bytes | bytearray | memoryview):
        try:
            return from_proto(onnx.ModelProto.FromString(bytes(model)))
        except DecodeError as error:
            raise ModelError(f"{label}: these bytes are no ONNX model") from error
    if isinstance(model, str | PathLike) and isinstance(fspath(model), str):
        return load(model)
    taken = "a path, the bytes of a file, an onnx.ModelProto or a loaded model"
    raise ModelError(f"{label}: {_kind(model)} is no model; {taken} is needed")


def as_data(data: AnyData | None, model: Model) -> tuple[Data, Sequence[Feeds | None]]:
    """Return any form of data as feeds for ``model``, and what is known already of what it gives on them.

    Raises:
        DataError: They do not fit the model, or are no data.
    """
    if data is None:
        drawn = draw_inputs(provable(model))
        return drawn.data, drawn.outputs
    if isinstance(data, str | PathLike) and isinstance(fspath(data), str):
        return load_data(data, model), ()
    given: Any = data
    if isinstance(given, Mapping):
        return from_arrays(given, model), ()
    if not isinstance(given, type) and all(hasattr(given, name) for name in _DATA):
        return given, ()
    if hasattr(given, "__array__") and not isinstance(given, type):
        return from_arrays({only_input(signature(model), "data"): given}, model), ()
    if callable(given) and not isinstance(given, type):
        given = _called(given)
    if isinstance(given, Iterable) and not isinstance(given, bytes | bytearray | str):
        return from_batches(given, model), ()
    taken = "a path, arrays by input name, batches of them, or a callable that returns an iterator of batches"
    raise DataError(f"data: {_kind(given)} cannot be used; {taken} is needed")


def as_passes(passes: AnyPasses, label: str = "passes") -> list[Pass]:
    """Return passes, given by themselves or by name, one or several.

    Raises:
        OptionError: One is unknown, or no pass.
    """
    if isinstance(passes, str | Pass):
        return as_passes([passes], label)
    if isinstance(passes, Mapping | bytes | bytearray | type) or not isinstance(passes, Iterable):
        raise OptionError(
            f"{label}: {_kind(passes)} cannot be used; names and passes are needed, as create() gives them"
        )
    found = []
    for each in passes:
        if not isinstance(each, str | Pass):
            raise OptionError(f"{label}: {_kind(each)} is no pass; a name, or what create() gives, is needed")
        found.append(create(each) if isinstance(each, str) else each)
    return found


def texts(value: Any, label: str) -> tuple[str, ...]:
    """Return paths or patterns, one or several, as texts.

    Raises:
        OptionError: It is something else.
    """
    listed = (value,) if isinstance(value, str | PathLike) else value
    if not isinstance(listed, Iterable) or isinstance(listed, Mapping | bytes | bytearray):
        raise OptionError(f"{label}: {_kind(value)} cannot be used; a list of texts is needed")
    found = tuple(listed)
    for each in found:
        if not isinstance(each, str | PathLike):
            raise OptionError(f"{label}: {_kind(each)} is no text")
    return tuple(str(each) for each in found)


def require(value: Any, kinds: type | tuple[type, ...], what: str, label: str) -> None:
    """Raise OptionError unless ``value`` is of these types; True is no number."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise OptionError(f"{label}: {_kind(value)} cannot be used; {what} is needed")


def _called(given: Callable[[], Any]) -> Iterator[Any] | Any:
    """Return what a callable gives.

    Raises:
        DataError: It wants arguments.
    """
    try:
        inspect.signature(given).bind()
    except TypeError as error:
        raise DataError(f"data: the callable is called without arguments: {error}") from error
    except ValueError:  # a builtin that does not tell
        pass
    return given()


def _kind(value: object) -> str:
    """Name a value's type for an error: the class itself where it is one."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
