"""Runs commands of the container engine, each under a supervisor process with a time limit."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cotenant.programs.run import Finished, read_tail, readable
from cotenant.services.compose import compose_supervisor

_left_behind: list[subprocess.Popen[bytes]] = []


async def run_supervised(
    argv: Sequence[str], timeout_s: float, *, cwd: Path, log: Path, lock: int
) -> Finished:
    """Run a command that changes something, its output in the file `log`; at its limit its group is killed.

    If this task is cancelled, or the daemon dies, the command continues alone, within its limit: it may have
    removed a container and not yet created the next. `lock` is a locked file; it stays locked until then.
    """
    supervisor = [sys.executable, "-I", "-S", compose_supervisor.__file__, str(lock), str(timeout_s)]
    with log.open("wb") as sink:
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
    output = await asyncio.to_thread(_read, log)
    if process.returncode == compose_supervisor.AT_LIMIT:
        problem = f"{Path(argv[0]).name} did not end within {timeout_s:g} s and was killed"
        return Finished(None, output, problem=problem)
    return Finished(process.returncode, output)


def _read(log: Path) -> str:
    try:
        with log.open("rb") as file:
            return read_tail(file)
    except OSError:
        return ""
