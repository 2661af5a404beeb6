"""Files mapped into memory, read-only, whose bytes the system can copy to other files by itself."""

import errno
import mmap
import os
import weakref
from typing import IO

_UNSUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}


class MappedFile(mmap.mmap):
    """A mapped file that keeps its descriptor open; both live as long as anything refers to the map."""

    descriptor: int


def map_file(file: IO[bytes]) -> MappedFile | bytes:
    """Map an open file; an empty one, which cannot be mapped, is no bytes."""
    if not os.fstat(file.fileno()).st_size:
        return b""
    mapped = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.descriptor = os.dup(file.fileno())
    weakref.finalize(mapped, os.close, mapped.descriptor)
    return mapped


def copy_range(source: MappedFile, start: int, length: int, target: IO[bytes]) -> bool:
    """Append a range of a mapped file to ``target`` without bringing it into memory.

    Returns:
        False if the system cannot; ``target`` is as it was then.

    Raises:
        OSError: The target cannot take it, or the source has become shorter.
    """
    if not hasattr(os, "copy_file_range"):
        return False
    target.flush()
    begin = target.tell()
    done = 0
    while done < length:
        try:
            copied = os.copy_file_range(source.descriptor, target.fileno(), length - done, start + done)
        except OSError as error:
            if error.errno not in _UNSUPPORTED or done:
                raise
            return False
        if not copied:
            raise OSError(errno.EIO, "the file that holds the weights has become shorter")
        done += copied
    target.seek(begin + length)
    return True
