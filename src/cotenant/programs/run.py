"""Runs a program until it ends: without a terminal, in its own process group, within a time limit."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_MAX_OUTPUT_BYTES: Final = 4 << 20
_MAX_REASON_CHARS: Final = 300


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended, and the last 4 MiB of what it printed.

    `status` is None if it could not be started or was killed at its time limit; `problem` then says so.
    `errors` is its standard error if that is separate from the output.
    """

    status: int | None
    output: str = ""
    errors: str = ""
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.status == 0

    @property
    def failure_text(self) -> str:
        """What is known of a failure: the problem, else its standard error, else its output."""
        return self.problem or self.errors or self.output

    @property
    def reason(self) -> str:
        """Why it failed: the problem, else its last line, else its status."""
        lines = [line.strip() for line in (self.errors or self.output).splitlines() if line.strip()]
        return self.problem or (lines[-1][:_MAX_REASON_CHARS] if lines else f"status {self.status}")


def run_program(
    argv: Sequence[str],
    timeout_s: float,
    *,
    input_text: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    merge_errors: bool = True,
    kill_children: bool = True,
) -> Finished:
    """Run a program and return how it ended. It blocks. `env` replaces the environment.

    With `merge_errors` its standard error is part of the output. Child processes that still run when it ends
    are killed, unless `kill_children` is False: some programs start a daemon.
    """
    try:
        with _running(argv, input_text, env, cwd, merge_errors=merge_errors) as (pidfd, finish):
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                raise TimeoutError
            return finish(kill_children)
    except OSError as error:
        return _not_finished(error, timeout_s)


async def run_async(argv: Sequence[str], timeout_s: float, *, input_text: str = "") -> Finished:
    """Run a program without blocking the loop, its standard error separate; it is killed with this task."""
    try:
        with _running(argv, input_text, None, None, merge_errors=False) as (pidfd, finish):
            async with asyncio.timeout(timeout_s):
                await readable(pidfd)
            return finish(True)
    except OSError as error:
        return _not_finished(error, timeout_s)


async def readable(descriptor: int) -> None:
    """Return when a descriptor can be read; that of a process, when the process has ended."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def read_tail(file: IO[bytes]) -> str:
    """Return the last 4 MiB of a file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MAX_OUTPUT_BYTES))
    return file.read().decode("utf-8", "replace")


@contextlib.contextmanager
def _running(
    argv: Sequence[str],
    input_text: str,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    *,
    merge_errors: bool,
) -> Iterator[tuple[int, Callable[[bool], Finished]]]:
    """Start a program; its group is killed at the end of the block unless it has finished. Raises OSError.

    Yield its pidfd, and what to call once it has ended: with True it kills what is left of the group.
    """
    with _in_memory() as stdin, _in_memory() as out, _in_memory() as err:
        stdin.write(input_text.encode())
        stdin.seek(0)
        errors = subprocess.STDOUT if merge_errors else err
        process = subprocess.Popen(
            argv, stdin=stdin, stdout=out, stderr=errors, env=env, cwd=cwd, start_new_session=True
        )

        def finish(kill: bool) -> Finished:
            if kill:
                _kill_group(process)
            return Finished(process.wait(), read_tail(out), read_tail(err))

        try:
            pidfd = os.pidfd_open(process.pid)
            try:
                yield pidfd, finish
            finally:
                os.close(pidfd)
        finally:
            _kill_group(process)
            process.wait()


def _in_memory() -> IO[bytes]:
    """Open a file for a program: not a pipe, which blocks when full and which a child may keep open.

    It is not on a disk, which may be full: a daemon without a build that it can ask would serve nothing.
    """
    return os.fdopen(os.memfd_create("cotenant"), "w+b")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a group unless its leader is reaped: then its id may belong to another group."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _not_finished(error: OSError, timeout_s: float) -> Finished:
    if isinstance(error, TimeoutError):
        return Finished(None, problem=f"it did not answer within {timeout_s:g} s")
    return Finished(None, problem=f"it cannot be started: {error.strerror}")
