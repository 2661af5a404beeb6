"""Members of an .npz file, read as they are needed: small ones at once, large ones sample after sample."""

import math
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import DataError

KEPT_BYTES = 1 << 25
"""Members of up to this many bytes are kept in memory once they have been read."""

_CHUNK = 1 << 22
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DENSEST = 1040
"""Deflate packs no more bytes than this into one."""


def read_npz(path: Path) -> dict[str, "Member"]:
    """Read what an .npz file holds: names, types and shapes, no values.

    Raises:
        DataError: The file is missing, is no .npz, is damaged, or holds pickled objects.
    """
    require_file(path)
    with reading(path, ".npz file"), path.open("rb") as file:
        start = file.read(6)
        if start == np.lib.format.MAGIC_PREFIX:
            raise DataError(f"{path}: is a single array, an .npz with arrays keyed by input names is needed")
        if start[:2] != b"PK":
            raise DataError(f"{path}: is not an .npz file")
        members: dict[str, Member] = {}
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in members:
                    raise DataError(f"{path}: holds {name!r} twice")
                members[name] = _member(path, archive, info)
    return members


def require_file(path: Path) -> None:
    """Refuse what is no file to read: a pipe would keep its reader waiting for ever.

    Raises:
        DataError: It is missing, or neither a file nor a link to one.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: is not a file")


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Turn whatever the reader of a format raises on damaged bytes into one line: no list of errors is complete.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: is not a readable {form} ({text[:300]})") from error


@dataclass(eq=False)
class Member:
    """One array in an .npz file.

    Attributes:
        path: The file.
        entry: Its name in the archive.
        dtype: Its type.
        shape: Its shape.
        fortran: Whether the first axis, the samples', varies fastest, so that it has to be read whole.
    """

    path: Path
    entry: str
    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]
    fortran: bool
    _kept: NDArray[Any] | None = field(default=None, repr=False)

    @property
    def ndim(self) -> int:
        """How many axes it has."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes its values take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_large(self) -> bool:
        """Whether it is read sample after sample."""
        return self.nbytes > KEPT_BYTES and self.ndim > 0 and not (self.fortran and self.ndim > 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all values."""
        return np.array(self._whole(), dtype=dtype, copy=copy)

    def __getitem__(self, samples: Any) -> NDArray[Any]:
        """Return samples: those of a slice without steps or of one index, or everything."""
        if not self.is_large or samples is Ellipsis:
            return np.asarray(self._whole()[samples])
        with self.reader() as read:
            return read(samples)

    @contextmanager
    def reader(self) -> Iterator[Callable[[slice | int], NDArray[Any]]]:
        """Give a function that returns samples, quickly if they are asked for in order.

        Raises:
            DataError: The file is damaged.
        """
        if not self.is_large:
            yield lambda samples: np.asarray(self._whole()[samples])
            return
        with reading(self.path, ".npz file"):
            archive = zipfile.ZipFile(self.path)
        with archive, closing(_Stream(self, archive)) as stream:
            yield stream.read

    def _whole(self) -> NDArray[Any]:
        """Return all values, and keep them if they are few."""
        if self._kept is not None:
            return self._kept
        with reading(self.path, ".npz file"), zipfile.ZipFile(self.path) as archive, archive.open(self.entry) as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
            _finish(file)
        if self.nbytes <= KEPT_BYTES:
            self._kept = values
        return values


class _Stream:
    """Reads the samples of a large member from front to back, and from the front again where it has to go back."""

    def __init__(self, member: Member, archive: zipfile.ZipFile) -> None:
        self._member, self._archive = member, archive
        self._file: IO[bytes] | None = None
        self._next = 0

    def read(self, samples: slice | int) -> NDArray[Any]:
        """Return samples.

        Raises:
            DataError: The file is damaged.
        """
        size = len(self._member)
        if isinstance(samples, int):
            return np.asarray(self.read(slice(samples, samples + 1))[0])
        start, stop, step = samples.indices(size)
        if step != 1:
            return np.asarray(self.read(slice(None))[samples])
        with reading(self._member.path, ".npz file"):
            return self._span(start, max(start, stop))

    def _span(self, start: int, stop: int) -> NDArray[Any]:
        """Return samples from ``start`` up to ``stop``."""
        member = self._member
        if self._file is None or start < self._next:
            self.close()
            self._file, self._next = self._archive.open(member.entry), 0
            _header(self._file)
        row = member.nbytes // len(member)
        self._skip((start - self._next) * row)
        values = np.empty((stop - start, *member.shape[1:]), member.dtype)
        view, done = memoryview(values.reshape(-1).view(np.uint8).data), 0
        while done < len(view):
            part = self._file.read(min(_CHUNK, len(view) - done))
            if not part:
                raise EOFError("it is shorter than its header says")
            view[done : done + len(part)] = part
            done += len(part)
        self._next = stop
        if stop == len(member):
            _finish(self._file)
        return values

    def close(self) -> None:
        """Close the member."""
        if self._file is not None:
            self._file.close()

    def _skip(self, count: int) -> None:
        """Read over bytes."""
        while count > 0 and self._file is not None:
            part = self._file.read(min(_CHUNK, count))
            if not part:
                raise EOFError("it is shorter than its header says")
            count -= len(part)


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    """Read the header of a member."""
    with archive.open(info) as file:
        shape, fortran, dtype = _header(file)
    if dtype.hasobject:
        raise DataError(f"{path}: holds pickled objects, which are refused")
    member = Member(path, info.filename, dtype, shape, fortran)
    if min(shape, default=0) < 0 or not 0 <= info.file_size - member.nbytes <= 1 << 20:
        raise ValueError(f"{info.filename} is not as long as its header says")
    densest = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DENSEST}.get(info.compress_type)
    if densest is not None and info.file_size > densest * min(info.compress_size, path.stat().st_size):
        raise ValueError(f"{info.filename} cannot be as long as its header says")
    return member


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Read the header of a .npy file: its shape, whether its order is Fortran's, and its type."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError("it holds an array in a form that is not supported")
    shape, fortran, dtype = _HEADERS[version](file)
    return tuple(int(size) for size in shape), bool(fortran), dtype


def _finish(file: IO[bytes]) -> None:
    """Read to the end of a member, where its checksum is compared."""
    if file.read(1):
        raise ValueError("it is longer than its header says")


Arrays = Mapping[str, "NDArray[Any] | Member"]
