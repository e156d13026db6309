"""How much of a file the kernel holds in RAM."""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Final

_SYS_CACHESTAT: Final = 451
"""The same number on every architecture but Alpha; Linux 6.5 and later."""


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def resident_bytes(path: Path) -> int | None:
    """Return how many bytes of a file are in the page cache, in whole pages; None if unknown.

    Reads nothing of the file and loads nothing: about a millisecond a gigabyte at most.
    """
    try:
        with path.open("rb", buffering=0) as file:
            return resident_range(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError:
        return None


def resident_range(fd: int, offset: int, length: int) -> int | None:
    """Return how many bytes of a part of an open file are in the page cache; None if unknown."""
    if length <= 0:
        return 0
    pages = _by_cachestat(fd, offset, length)
    if pages is None:
        pages = _by_mincore(fd, offset, length)
    return None if pages is None else min(pages * mmap.PAGESIZE, length)


def drop(path: Path) -> None:
    """Ask the kernel to forget a file's clean pages; those that a process has mapped stay.

    Raises OSError if the file cannot be opened.
    """
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _by_cachestat(fd: int, offset: int, length: int) -> int | None:
    """Count cached pages with cachestat(2), which older kernels and some sandboxes refuse."""
    wanted, found = _Range(offset, length), _Cachestat()
    failed = _libc.syscall(
        ctypes.c_long(_SYS_CACHESTAT),
        ctypes.c_uint(fd),
        ctypes.byref(wanted),
        ctypes.byref(found),
        ctypes.c_uint(0),
    )
    return None if failed else int(found.cached)


def _by_mincore(fd: int, offset: int, length: int) -> int | None:
    """Count cached pages with mincore(2).

    For a file that this user neither owns nor may write, Linux reports that every page is cached.
    """
    if os.fstat(fd).st_uid != os.geteuid() and not os.access(f"/proc/self/fd/{fd}", os.W_OK):
        return None
    pages = 0
    start = offset - offset % mmap.PAGESIZE
    while start < offset + length:
        window = min(1 << 30, offset + length - start)
        # A private copy on write: ctypes takes the address of writable memory only, and nothing is written.
        with mmap.mmap(fd, window, access=mmap.ACCESS_COPY, offset=start) as mapped:
            states = (ctypes.c_ubyte * -(-window // mmap.PAGESIZE))()
            first = ctypes.c_char.from_buffer(mapped)
            failed = _libc.mincore(ctypes.addressof(first), window, states)
            del first
        if failed:
            return None
        pages += sum(bytes(states).translate(_LOWEST_BIT))
        start += window
    return pages


_LOWEST_BIT: Final = bytes(state & 1 for state in range(256))
