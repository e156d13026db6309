"""Commands of the container engine as child processes: bounded, and each in a group of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from cotenant.services.compose import compose_supervisor

_MAX_OUTPUT_BYTES: Final = 4 << 20
_left_behind: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended. `code` is None if it was killed at its time limit, or could not be asked."""

    code: int | None
    output: str
    errors: str = ""

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.code == 0


async def ask(argv: Sequence[str], timeout_s: float) -> Finished:
    """Run a command that only looks, and return what it said. It ends with this task, or at its limit."""
    try:
        return await _asked(argv, timeout_s)
    except OSError as error:
        return Finished(None, "", f"{argv[0]} cannot be started: {error.strerror}")


async def _asked(argv: Sequence[str], timeout_s: float) -> Finished:
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: ASYNC220  exec takes 1 to 2 ms
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            async with asyncio.timeout(timeout_s):
                await _ended(process)
        except TimeoutError:
            return Finished(None, "", f"{' '.join(argv[:2])} did not answer within {timeout_s:g} s")
        finally:
            # Also where it has ended: what it forked may have stayed. Until it is reaped its id is its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Finished(process.returncode, _tail(output), _tail(errors))


async def work(argv: Sequence[str], timeout_s: float, *, cwd: Path, log: Path, lock: int) -> Finished:
    """Run a command that changes something, its output in the file `log`; at its limit its group is killed.

    If this task is cancelled, or the daemon dies, the command goes on alone, within its limit: half-way it
    may have removed a container and not yet made the next. `lock` is a locked file, kept locked for as long.
    """
    supervisor = [sys.executable, "-I", "-S", compose_supervisor.__file__]
    custodian_argv = [*supervisor, str(lock), str(timeout_s), *argv]
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: ASYNC220  it must outlive the loop; exec takes 1 to 2 ms
            custodian_argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd=cwd,
            start_new_session=True,
            pass_fds=(lock,),
        )
    _left_behind[:] = [each for each in _left_behind if each.poll() is None]
    _left_behind.append(process)
    await _ended(process)
    process.wait()
    output = await asyncio.to_thread(_read, log)
    if process.returncode == compose_supervisor.AT_LIMIT:
        return Finished(
            None, output, f"{Path(argv[0]).name} did not end within {timeout_s:g} s and was killed"
        )
    return Finished(process.returncode, output)


async def _ended(process: subprocess.Popen[Any]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(process.pid)
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _read(log: Path) -> str:
    try:
        with log.open("rb") as file:
            return _tail(file)
    except OSError:
        return ""


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MAX_OUTPUT_BYTES))
    return file.read().decode("utf-8", "replace")
