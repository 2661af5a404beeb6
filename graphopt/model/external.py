"""Weights that a model keeps in files beside it."""

import os
import re
from pathlib import Path

from onnx import TensorProto

from graphopt.errors import ModelError
from graphopt.model.mapping import map_file
from graphopt.model.weights import byte_size
from graphopt.model.wire import Buffer, Span

_HASH = re.compile(r"[0-9a-f]{30,128}")
_FAN_OUT = re.compile(r"[0-9a-f]{2}")
_HUB_FILE = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class MissingDataError(ModelError):
    """A file of external data does not exist."""


class ExternalData:
    """Finds and maps the external data of one model.

    A location is a path below the model's folder, by its name. What the name leads to has to be in one of these places,
    so that a link in a downloaded archive opens no file of the user's:

    1. the model's folder;
    2. where the model itself is a link, the folder of what it links to: whoever made both links put both files there.
       Stores that name files by their content and spread them over folders of two digits count as one folder;
    3. the ``blobs`` of a Hugging Face cache, where files are named by their hash and ``snapshots`` lies beside: its
       downloads into a folder copy small files, such as the model, and link large ones.
    """

    def __init__(self, model: Path) -> None:
        """Look for the data of a model file."""
        self._folder = model.parent.resolve()
        self._folders = [self._folder]
        self._trusted = [self._folder]
        if model.is_symlink():
            real = model.resolve()
            self._folders.append(real.parent)
            self._trusted.append(_store(real))
        self._maps: dict[Path, Buffer] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were looked into, links followed."""
        return tuple(self._maps)

    @property
    def size(self) -> int:
        """The bytes of all files that were looked into."""
        return sum(map(len, self._maps.values()))

    def find(self, tensor: TensorProto) -> Span:
        """Return where the bytes of ``tensor`` are.

        Without a length, or with 0, it has the bytes that its dims say, as ONNX Runtime takes it.

        Raises:
            MissingDataError: The file does not exist.
            ModelError: Its place is missing, outside the folder, or of another size than its dims say.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        label = f"weight {tensor.name!r}"
        buffer = self._map(label, entries.get("location", ""))
        wanted = byte_size(tensor.data_type, tensor.dims)
        try:
            start = int(entries.get("offset") or "0")
            length = int(entries.get("length") or "0") or wanted
        except ValueError:
            raise ModelError(f"{label}: offset or length of its external data is not a number") from None
        if start < 0 or length != wanted or start + length > len(buffer):
            raise ModelError(
                f"{label} needs {wanted} bytes, but its external data {entries['location']!r} "
                f"({len(buffer)} bytes) is said to have {length} at {start}"
            )
        return Span(buffer, start, length)

    def _map(self, label: str, location: str) -> Buffer:
        """Map the file at a location within the folder."""
        if not location or "\0" in location:
            raise ModelError(f"{label}: its external data has no usable location")
        try:
            file = self._file(label, location)
            if file not in self._maps:
                if not file.is_file():
                    if file.exists():
                        raise ModelError(f"{label}: its external data {location!r} is not a regular file")
                    raise MissingDataError(f"{label}: its external data {location!r} is missing")
                with file.open("rb") as handle:
                    self._maps[file] = map_file(handle)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelError(f"{label}: cannot read its external data {location!r}: {reason}") from error
        return self._maps[file]

    def _file(self, label: str, location: str) -> Path:
        """Return the real path of a location, beside the model or beside what the model links to.

        Raises:
            ModelError: The location, or a link that it leads to, goes outside of where it may be.
        """
        inside = os.path.normpath(location)
        if Path(location).is_absolute() or inside == ".." or inside.startswith(f"..{os.sep}"):
            raise ModelError(f"{label}: its external data {location!r} is outside the model's folder")
        named = [folder / location for folder in self._folders]
        found = next((each for each in named if os.path.lexists(each)), named[0])
        file = found.resolve()
        if not any(file.is_relative_to(folder) for folder in self._trusted) and not _is_in_hub(file):
            raise ModelError(
                f"{label}: its external data {location!r} is outside the model's folder: it is a link to "
                f"{str(file)!r}, and the model is no link to there; put the file itself in the place of the link"
            )
        return file


def _store(real: Path) -> Path:
    """Return the folder of the store that a file lies in: its own, or that of ``ab/cdef...`` by digits of a hash."""
    spread = _HASH.fullmatch(real.name) and _FAN_OUT.fullmatch(real.parent.name)
    return real.parent.parent if spread else real.parent


def _is_in_hub(file: Path) -> bool:
    """Whether a file is one of a Hugging Face cache, which names files by their hash."""
    folder = file.parent
    return bool(_HUB_FILE.fullmatch(file.name)) and folder.name == "blobs" and (folder.parent / "snapshots").is_dir()
