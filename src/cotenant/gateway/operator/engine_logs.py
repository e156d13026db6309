"""Reads the end of an engine's log, and follows it."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cotenant.domain.engines import LOG_MARK
from cotenant.domain.units import KIB, MIB

MAX_LINES: Final = 10_000
_MAX_TAIL_BYTES: Final = MIB
_READ_BYTES: Final = 64 * KIB


@dataclass
class LogReader:
    """Reads a log from its last lines on, across rotations and changes of the file.

    `path` is called each time: a model that is loaded again may write to another file.
    """

    _path: Callable[[], Path | None]
    _tail_lines: int | None
    _file: BinaryIO | None = None

    def read(self) -> bytes:
        """Return what is new since the last call, at most 64 KiB; first the last lines, at most 1 MiB."""
        path = self._path()
        if path is None:
            return b""
        if self._file is None:
            return self._open(path)
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            # Truncated by a rotation: all of the content is new.
            self._file.seek(0)
        fresh = self._file.read(_READ_BYTES)
        if fresh or self._is_at(path):
            return fresh
        self.close()
        return self._open(path)

    async def follow(self, poll_s: float) -> AsyncGenerator[bytes, None]:
        """Yield new pieces, without end."""
        try:
            while True:
                fresh = self.read()
                if fresh:
                    yield fresh
                else:
                    await asyncio.sleep(poll_s)
        finally:
            self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, path: Path) -> bytes:
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            return b""
        if self._tail_lines is None:
            return self._file.read(_READ_BYTES)
        lines, self._tail_lines = self._tail_lines, None
        return tail_of(self._file, lines)

    def _is_at(self, path: Path) -> bool:
        assert self._file is not None  # noqa: S101  only asked of an open file
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except FileNotFoundError:
            return True


def tail_of(file: BinaryIO, lines: int) -> bytes:
    """Return the last lines, after a first line that is ours, and move to the end.

    A line that the byte limit cuts is left out.
    """
    first = file.readline(_MAX_TAIL_BYTES)
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _MAX_TAIL_BYTES)
    file.seek(start)
    kept = file.read(size - start).splitlines(keepends=True)
    if start and kept:
        del kept[0]
    last = kept[len(kept) - min(lines, len(kept)) :]
    ours = bool(last) and first not in last and first.startswith(LOG_MARK.encode())
    return b"".join([first, *last] if ours else last)
