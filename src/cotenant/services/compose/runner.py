"""Runs the compose command of one project: one at a time, across restarts of the daemon too."""

import asyncio
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cotenant.clock import Clock
from cotenant.services.compose.command import reason
from cotenant.services.compose.program import run_supervised

_LOCK: Final = "compose.lock"
_LOG: Final = "compose.log"
_POLL_S: Final = 0.05


class ComposeRunner:
    """Runs compose commands one after the other, since podman-compose cannot run twice at once.

    Each holds a lock on a file as long as it runs, even if the daemon ends: the next one waits for the lock,
    and `is_busy` reports it. `folder` is the daemon's own.
    """

    def __init__(self, folder: Path, clock: Clock, timeout_s: float) -> None:
        self._lock = folder / _LOCK
        self._log = folder / _LOG
        self._clock = clock
        self._timeout_s = timeout_s
        self._one_at_a_time = asyncio.Lock()

    async def run(self, argv: Sequence[str], cwd: Path) -> str | None:
        """Run a command; return the engine's error line, None if it succeeded."""
        async with self._one_at_a_time:
            try:
                return await self._run(argv, cwd)
            except OSError as error:
                return f"{error.filename or argv[0]} cannot be used: {error.strerror}"

    async def is_busy(self, patience_s: float) -> bool:
        """Whether a command of an earlier run is still running after `patience_s`.

        A lock that cannot be opened is another user's and counts as no.
        """
        try:
            lock = await self._acquire(patience_s)
        except OSError:
            return False
        if lock is None:
            return True
        os.close(lock)
        return False

    async def _run(self, argv: Sequence[str], cwd: Path) -> str | None:
        lock = await self._acquire(self._timeout_s)
        if lock is None:
            return "another compose command of this project did not end"
        try:
            finished = await run_supervised(argv, self._timeout_s, cwd=cwd, log=self._log, lock=lock)
            return None if finished.ok else finished.problem or reason(finished.output)
        finally:
            os.close(lock)

    async def _acquire(self, patience_s: float) -> int | None:
        deadline = self._clock.now() + patience_s
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(descriptor):
                if self._clock.now() >= deadline:
                    os.close(descriptor)
                    return None
                await asyncio.sleep(_POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
