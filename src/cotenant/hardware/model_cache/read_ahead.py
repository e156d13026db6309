"""Reading files into the page cache with several reads in flight."""

import ctypes
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cotenant.domain.units import MIB
from cotenant.hardware.model_cache.page_cache import resident_range

BLOCK_BYTES: Final = 4 * MIB
READS_IN_FLIGHT: Final = 4
_SYS_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
_OF_THREAD: Final = 1
_IDLE: Final = 3 << 13


class ReadAhead:
    """One pass over some files, in order, by threads that do not hold the interpreter lock while they read.

    `stop_reason` is called before the first block and every `ask_every_s`: what it returns, if not None, ends
    the pass and becomes `stopped`. `on_end` is called once, from a thread, when the last read has returned.
    `limit_bytes` bounds how much is covered. What the page cache holds already is skipped. `at_idle` reads
    at the disk priority of an idle process.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        limit_bytes: int | None = None,
        stop_reason: Callable[[], str | None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
        reads_in_flight: int = READS_IN_FLIGHT,
        block_bytes: int = BLOCK_BYTES,
        ask_every_s: float = 0.1,
        at_idle: bool = False,
    ) -> None:
        sizes = [path.stat().st_size for path in paths]
        self.total_bytes = sum(sizes)
        self.covered_bytes = 0
        self.read_bytes = 0
        self.stopped: str | None = None
        self._limit_bytes = self.total_bytes if limit_bytes is None else limit_bytes
        self._stop_reason = stop_reason
        self._on_end = on_end
        self._block_bytes = block_bytes
        self._ask_every_s = ask_every_s
        self._at_idle = at_idle
        self._blocks = (
            (path, offset, min(block_bytes, size - offset))
            for path, size in zip(paths, sizes, strict=True)
            for offset in range(0, size, block_bytes)
        )
        self._lock = threading.Lock()
        self._is_cold: dict[Path, bool] = {}
        self._asked_at: float | None = None
        self._left = max(1, min(reads_in_flight, -(-self.total_bytes // block_bytes)))
        self._ended = threading.Event()
        self._threads = [
            # Daemon threads: a read that hangs on a network disk must not keep the process from ending.
            threading.Thread(target=self._run, name="read-ahead", daemon=True)
            for _ in range(self._left)
        ]

    def start(self) -> None:
        """Begin, once."""
        for thread in self._threads:
            thread.start()

    def cancel(self, why: str = "cancelled") -> None:
        """Issue no further reads. Results of those in flight are dropped. Never blocks."""
        self.stopped = self.stopped or why

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the last read; whether it has returned."""
        return self._ended.wait(timeout_s)

    def _run(self) -> None:
        try:
            if self._at_idle:
                _lower_disk_priority()
            self._read_blocks()
        except OSError as error:
            self.cancel(f"it cannot be read: {error.strerror}")
        finally:
            with self._lock:
                self._left -= 1
                last = self._left == 0
            if last:
                self._ended.set()
                self._on_end()

    def _read_blocks(self) -> None:
        buffer = memoryview(bytearray(self._block_bytes))
        opened: Path | None = None
        fd = -1
        try:
            while (block := self._next_block()) is not None:
                path, offset, length = block
                if path != opened:
                    if fd >= 0:
                        os.close(fd)
                        # Its number may be reused as soon as another thread opens a file.
                        fd = -1
                    # One descriptor per thread: the kernel keeps its own read-ahead state for each.
                    fd, opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
                read = 0
                if self._was_cold(path, fd) or resident_range(fd, offset, length) != length:
                    read = os.preadv(fd, [buffer[:length]], offset)
                with self._lock:
                    self.covered_bytes += length
                    self.read_bytes += read
        finally:
            if fd >= 0:
                os.close(fd)

    def _was_cold(self, path: Path, fd: int) -> bool:
        """Whether nothing of a file was in RAM when its first block was read.

        Its blocks are not looked up one by one then: a file that was looked up before each read is mapped and
        read three times as slowly afterwards (`bench/warm.py`).
        """
        with self._lock:
            if path not in self._is_cold:
                self._is_cold[path] = resident_range(fd, 0, os.fstat(fd).st_size) == 0
            return self._is_cold[path]

    def _next_block(self) -> tuple[Path, int, int] | None:
        with self._lock:
            now = time.monotonic()
            is_time_to_ask = self._asked_at is None or now - self._asked_at >= self._ask_every_s
            if is_time_to_ask:
                self._asked_at = now
        if is_time_to_ask and (why := self._stop_reason()) is not None:
            self.cancel(why)
        with self._lock:
            block = None if self.stopped or self._limit_bytes <= 0 else next(self._blocks, None)
            if block is None:
                return None
            path, offset, length = block
            length = min(length, self._limit_bytes)
            self._limit_bytes -= length
            return path, offset, length


def _lower_disk_priority() -> None:
    """Have this thread's reads wait for those of others, where the disk's scheduler knows priorities.

    Its share of processors stays: a thread that waits for one while it holds the interpreter's lock would
    hold up the event loop.
    """
    number = _SYS_IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(
            ctypes.c_long(number), ctypes.c_int(_OF_THREAD), ctypes.c_int(0), ctypes.c_int(_IDLE)
        )
