"""Gives memory back to the system: what glibc keeps of freed weights would add up over the sessions of a run."""

import ctypes
import sys
from functools import cache
from typing import Any

_M_MMAP_THRESHOLD = -3
_APART = 1 << 22


def give_back() -> None:
    """Return what is free to the system, where the C library can (glibc's ``malloc_trim``)."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def keep_large_blocks_apart() -> None:
    """Have blocks of 4 MB and more mapped by themselves, so that they are gone when they are freed.

    glibc otherwise raises the limit with each such block that is freed, and keeps later ones in its heap. It holds for
    the whole process, so it is for programs to call, not for libraries.
    """
    if (library := _glibc()) is not None:
        library.mallopt(_M_MMAP_THRESHOLD, _APART)


@cache
def _glibc() -> Any:
    """Return the C library if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "malloc_trim") else None
    except OSError:
        return None
