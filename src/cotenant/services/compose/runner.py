"""Runs the compose command of one project: one at a time, across restarts of the daemon too."""

import asyncio
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from cotenant.programs.run import read_tail, readable
from cotenant.services.compose import compose_supervisor
from cotenant.services.compose.command import reason

_LOCK: Final = "compose.lock"
_LOG: Final = "compose.log"
_POLL_S: Final = 0.05
_left_behind: list[subprocess.Popen[bytes]] = []


class ComposeRunner:
    """Runs compose commands one after the other, since podman-compose cannot run twice at once.

    Each holds a lock on a file as long as it runs, even if the daemon ends: the next one waits for the lock,
    and `is_busy` reports it. `folder` is the daemon's own.
    """

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self._lock = folder / _LOCK
        self._log = folder / _LOG
        self._timeout_s = timeout_s
        self._one_at_a_time = asyncio.Lock()

    async def run(self, argv: Sequence[str], cwd: Path) -> str | None:
        """Run a command; return the engine's error line, None if it succeeded."""
        async with self._one_at_a_time:
            try:
                async with self._locked(self._timeout_s) as lock:
                    if lock is None:
                        return "another compose command of this project did not end"
                    return await self._run_supervised(argv, cwd, lock)
            except OSError as error:
                return f"{error.filename or argv[0]} cannot be used: {error.strerror}"

    async def is_busy(self, patience_s: float) -> bool:
        """Whether a command of an earlier run is still running after `patience_s`.

        A lock that cannot be opened is another user's and counts as no.
        """
        try:
            async with self._locked(patience_s) as lock:
                return lock is None
        except OSError:
            return False

    async def _run_supervised(self, argv: Sequence[str], cwd: Path, lock: int) -> str | None:
        """Run a command under a supervisor process, its output in a file; at its limit its group is killed.

        If this task is cancelled, or the daemon dies, the command continues alone, within its limit: it may
        have removed a container and not yet created the next. `lock` is a locked file; it stays locked until
        then.
        """
        script = compose_supervisor.__file__
        supervisor = [sys.executable, "-I", "-S", script, str(lock), str(self._timeout_s)]
        with self._log.open("wb") as sink:
            process = subprocess.Popen(  # noqa: ASYNC220  it outlives the loop; exec takes 1 to 2 ms
                [*supervisor, *argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=cwd,
                start_new_session=True,
                pass_fds=(lock,),
            )
        _left_behind[:] = [each for each in _left_behind if each.poll() is None]
        _left_behind.append(process)
        pidfd = os.pidfd_open(process.pid)
        try:
            await readable(pidfd)
        finally:
            os.close(pidfd)
        process.wait()
        if process.returncode == compose_supervisor.AT_LIMIT:
            return f"{Path(argv[0]).name} did not end within {self._timeout_s:g} s and was killed"
        return reason(await asyncio.to_thread(self._output)) if process.returncode else None

    def _output(self) -> str:
        with self._log.open("rb") as file:
            return read_tail(file)

    @asynccontextmanager
    async def _locked(self, patience_s: float) -> AsyncIterator[int | None]:
        """The locked file; None if another command holds it for longer than `patience_s`."""
        deadline = time.monotonic() + patience_s
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(descriptor):
                if time.monotonic() >= deadline:
                    yield None
                    return
                await asyncio.sleep(_POLL_S)
            yield descriptor
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
