"""Host RAM as a tier above the disk: files of models that are likely next, kept in the page cache.

It needs the limits of control groups, which `gpus/host.py` reads.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
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
    """Reads files ahead, one pass at a time, within `budget_bytes` of page cache and never under pressure.

    Available memory is kept above `floor_bytes`, and a pass ends as soon as it is not, or as soon as tasks of
    this machine wait for memory more than MAX_PRESSURE_PERCENT of the time (if the kernel reports it). What
    was warmed least recently is dropped first; pages that an engine has mapped are never dropped.
    """

    def __init__(
        self,
        budget_bytes: int,
        clock: Clock,
        memory: Callable[[], HostMemory],
        *,
        floor_bytes: int = FLOOR_BYTES,
        pressure: Path = _PRESSURE,
    ) -> None:
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._memory = memory
        self._floor_bytes = floor_bytes
        self._pressure = pressure
        self._warmed: OrderedDict[tuple[Path, ...], int] = OrderedDict()
        self._lock = asyncio.Lock()

    async def warm(self, paths: Sequence[Path], reason: str) -> Warmed:
        """Read the files into the page cache, within the budget, and log it with the reason.

        Cancelling the task issues no further read and returns at once. Errors of the disk are not raised.
        """
        files = tuple(paths)
        async with self._lock:
            room, why_not = await asyncio.to_thread(self._prepare, files)
            if why_not is not None:
                return Warmed(stopped=why_not)
            return await self._read(files, room, reason)

    def drop(self, paths: Sequence[Path]) -> None:
        """Remove the files' pages from the page cache, except those that a process has mapped.

        Takes milliseconds a gigabyte: not for the thread of an event loop.
        """
        self._warmed.pop(tuple(paths), None)
        for path in paths:
            with contextlib.suppress(OSError):
                drop(path)

    async def _read(self, files: tuple[Path, ...], room: int, reason: str) -> Warmed:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def on_end() -> None:
            # The loop may have gone while the last read was in flight.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(ended.set)

        started = self._clock.now()
        try:
            reading = ReadAhead(files, limit_bytes=room, stop_reason=self._stop_reason, on_end=on_end)
        except OSError as error:
            return Warmed(stopped=_unreadable(error))
        reading.start()
        try:
            await ended.wait()
        except asyncio.CancelledError:
            reading.cancel()
            raise
        finally:
            if reading.covered_bytes:
                self._warmed[files] = reading.covered_bytes
        seconds, stopped = self._clock.now() - started, reading.stopped
        if stopped is None and reading.covered_bytes < reading.total_bytes:
            stopped = "the budget is used up"
        _log.info(
            "read %s of %s ahead in %s, %s%s",
            format_bytes(reading.read_bytes),
            files[0].name,
            format_duration(seconds),
            reason,
            f"; ended early: {stopped}" if stopped else "",
        )
        return Warmed(reading.total_bytes, reading.covered_bytes, reading.read_bytes, seconds, stopped)

    def _prepare(self, files: tuple[Path, ...]) -> tuple[int, str | None]:
        """Return the bytes that may be read of the files, or why none."""
        try:
            wanted_bytes = sum(path.stat().st_size for path in files)
        except OSError as error:
            return 0, _unreadable(error)
        self._warmed.pop(files, None)
        why_not = self._stop_reason()
        room = 0 if why_not else self._make_room(wanted_bytes)
        return room, why_not or (None if room else "the budget leaves no room")

    def _make_room(self, wanted_bytes: int) -> int:
        """Forget what was warmed least recently until the budget holds as much as it can."""
        available = self._memory().available_bytes
        free = self._budget_bytes if available is None else available - self._floor_bytes
        budget = min(self._budget_bytes, free)
        while self._warmed and sum(self._warmed.values()) + wanted_bytes > budget:
            self.drop(next(iter(self._warmed)))
        return max(0, min(wanted_bytes, budget))

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
