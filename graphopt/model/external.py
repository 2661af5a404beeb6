"""Weights that a model keeps in files beside it."""

from pathlib import Path

from onnx import TensorProto

from graphopt.errors import ModelError
from graphopt.model.mapping import map_file
from graphopt.model.weights import byte_size
from graphopt.model.wire import Buffer, Span


class ExternalData:
    """Finds and maps the external data of one model, which may not reach out of the model's folder."""

    def __init__(self, folder: Path) -> None:
        """Look in ``folder``, the model's."""
        self._folder = folder.resolve()
        self._maps: dict[Path, Buffer] = {}

    @property
    def size(self) -> int:
        """The bytes of all files that were looked into."""
        return sum(map(len, self._maps.values()))

    def find(self, tensor: TensorProto) -> Span:
        """Return where the bytes of ``tensor`` are.

        Raises:
            ModelError: Its place is missing, outside the folder, or of another size than its dims say.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        label = f"weight {tensor.name!r}"
        buffer = self._map(label, entries.get("location", ""))
        try:
            start = int(entries.get("offset", "0") or "0")
            length = int(entries.get("length") or len(buffer) - start)
        except ValueError:
            raise ModelError(f"{label}: offset or length of its external data is not a number") from None
        wanted = byte_size(tensor.data_type, tensor.dims)
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
            file = (self._folder / location).resolve()
            if Path(location).is_absolute() or not file.is_relative_to(self._folder):
                raise ModelError(f"{label}: its external data {location!r} is outside the model's folder")
            if file not in self._maps:
                if not file.is_file():
                    problem = "is not a regular file" if file.exists() else "is missing"
                    raise ModelError(f"{label}: its external data {location!r} {problem}")
                with file.open("rb") as handle:
                    self._maps[file] = map_file(handle)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelError(f"{label}: cannot read its external data {location!r}: {reason}") from error
        return self._maps[file]
