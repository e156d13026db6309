"""Host RAM as a tier above the disk: files of models that are likely next, kept in the page cache.

It needs the limits of control groups, which `gpus/host.py` reads.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.clock import Clock
from cotenant.domain.units import GIB, format_bytes, format_duration
from cotenant.hardware.gpus.host import HostMemory
from cotenant.hardware.model_cache.page_cache import drop, resident_bytes
from cotenant.hardware.model_cache.read_ahead import ReadAhead

FLOOR_BYTES: Final = 2 * GIB
MAX_PRESSURE_PERCENT: Final = 5.0
_PRESSURE: Final = Path("/proc/pressure/memory")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Warmed:
    """What a pass did: `covered_bytes` of `total_bytes` are in RAM, of which it read `read_bytes`.

    `stopped` says why it ended early, if so.
    """

    total_bytes: int = 0
    covered_bytes: int = 0
    read_bytes: int = 0
    seconds: float = 0.0
    stopped: str | None = None


class WarmTier:
    """Reads files into the page cache, and says how much of it may be used.

    Without `limit_bytes` half of the available memory may. `floor_bytes` stay available in any case: a pass
    ends as soon as they are not, or as soon as tasks of this machine wait for memory more than
    MAX_PRESSURE_PERCENT of the time (if the kernel reports it).
    """

    def __init__(
        self,
        limit_bytes: int | None,
        clock: Clock,
        memory: Callable[[], HostMemory],
        *,
        floor_bytes: int = FLOOR_BYTES,
        pressure: Path = _PRESSURE,
    ) -> None:
        self.limit_bytes = limit_bytes
        self._clock = clock
        self._memory = memory
        self._floor_bytes = floor_bytes
        self._pressure = pressure

    def budget(self) -> tuple[int, str | None]:
        """Return how many bytes of files may be kept now, and why nothing may be read now, if so.

        Memory that kept files use counts as available: the kernel takes their pages when it needs them.
        """
        available = self._memory().available_bytes
        if available is None:
            return self.limit_bytes or 0, self._stop_reason()
        limit = available // 2 if self.limit_bytes is None else self.limit_bytes
        return max(0, min(limit, available - self._floor_bytes)), self._stop_reason()

    async def warm(
        self,
        paths: Sequence[Path],
        reason: str,
        *,
        limit_bytes: int | None = None,
        yields_to: Callable[[], str | None] = lambda: None,
        at_idle: bool = False,
    ) -> Warmed:
        """Read the first `limit_bytes` of the files into the page cache, and log it with the reason.

        `yields_to` is called by other threads: the pass ends when it returns something. `at_idle` reads only
        while nothing else uses the disk, if the disk's scheduler knows priorities. Cancelling the task issues
        no further read and returns at once. Errors of the disk are not raised.
        """
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def on_end() -> None:
            # The loop may have gone while the last read was in flight.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

        started = self._clock.now()
        try:
            reading = ReadAhead(
                paths,
                limit_bytes=limit_bytes,
                stop_reason=lambda: yields_to() or self._stop_reason(),
                on_end=on_end,
                at_idle=at_idle,
            )
        except OSError as error:
            return Warmed(stopped=_unreadable(error))
        reading.start()
        try:
            await ended.wait()
        except asyncio.CancelledError:
            reading.cancel()
            raise
        seconds, stopped = self._clock.now() - started, reading.stopped
        if reading.read_bytes:
            _log.info(
                "read %s of %s ahead in %s, %s%s",
                format_bytes(reading.read_bytes),
                paths[0].name,
                format_duration(seconds),
                reason,
                f"; ended early: {stopped}" if stopped else "",
            )
        return Warmed(reading.total_bytes, reading.covered_bytes, reading.read_bytes, seconds, stopped)

    def _stop_reason(self) -> str | None:
        """Return why nothing should be read ahead now, if so."""
        available = self._memory().available_bytes
        if available is not None and available < self._floor_bytes:
            return f"only {format_bytes(available)} of memory are available"
        waiting = read_pressure(self._pressure)
        if waiting is not None and waiting > MAX_PRESSURE_PERCENT:
            return f"tasks wait for memory {waiting:.0f} % of the time"
        return None


def read_pressure(path: Path = _PRESSURE) -> float | None:
    """Return the share of the last ten seconds in which some task waited for memory, in percent.

    None if the kernel does not report it (`/proc/pressure/memory`, Linux 4.20 with CONFIG_PSI).
    """
    try:
        words = path.read_text(encoding="ascii").splitlines()[0].split()
        return float(next(word for word in words if word.startswith("avg10=")).removeprefix("avg10="))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _unreadable(error: OSError) -> str:
    return f"{error.filename} cannot be read: {error.strerror}"


def presence(paths: Sequence[Path]) -> tuple[int, int | None]:
    """Return the size of some files in bytes, and how much of it is in the page cache; None if unknown.

    Raises OSError if one is missing.
    """
    total_bytes = sum(path.stat().st_size for path in paths)
    known = [count for path in paths if (count := resident_bytes(path)) is not None]
    return total_bytes, sum(known) if len(known) == len(paths) else None


def forget(paths: Sequence[Path]) -> None:
    """Remove the files' pages from the page cache, except those that a process has mapped.

    Takes milliseconds a gigabyte: not for the thread of an event loop.
    """
    for path in paths:
        with contextlib.suppress(OSError):
            drop(path)
