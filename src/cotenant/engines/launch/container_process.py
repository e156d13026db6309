"""An engine in a container, and the supervisor process that the daemon starts for it."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.exit_causes import Cause
from cotenant.engines.diagnosis.diagnosis import diagnose
from cotenant.engines.launch import container_supervisor
from cotenant.engines.process.process import ChildProcess, process_end
from cotenant.programs.run import readable

_SHELL_OFFSET: Final = 128


@dataclass(frozen=True, slots=True)
class ContainerJob:
    """A container to create and start: `engine` is the container engine's program, `create` the command.

    `{env_file}` in `create` becomes the name of a file with `env`, but for values with a line break, which
    `create` takes from its own environment: no list of processes shows any.
    `hint` says what to do if the container cannot be created. `lease` is the file that says until when it may
    run, if that is limited (`engines.process.guard`).
    """

    model: str
    hint: str
    name: str
    engine: tuple[str, ...]
    create: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    lease: str | None = None


class ContainerProcess(ChildProcess):
    """A supervisor process (`container_supervisor`) and its engine.

    The supervisor outlives a daemon that is killed, for as long as it takes to kill the engine. If the
    supervisor itself is killed, this process removes the engine.
    """

    def __init__(self, popen: subprocess.Popen[bytes], job: ContainerJob) -> None:
        if popen.stdin is None or popen.stdout is None:
            raise ValueError("a supervisor needs pipes for its input and output")
        self._commands, self._reports = popen.stdin, popen.stdout
        self._job = job
        self._begun = asyncio.Event()
        self._reported: dict[str, Any] = {}
        super().__init__(popen)

    @classmethod
    async def supervise(cls, job: ContainerJob, output_fd: int) -> Self:
        """Start it and return once its process id is known, or it has ended.

        Raises EngineLoadFailed if the container cannot be created, OSError if the supervisor cannot be
        started.
        """
        popen = subprocess.Popen(  # noqa: ASYNC220  exec takes 1 to 2 ms
            [sys.executable, "-I", "-S", container_supervisor.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output_fd,
            start_new_session=True,
        )
        process = cls(popen, job)
        try:
            process._send(json.dumps(asdict(job)))
            await process._begun.wait()
        except asyncio.CancelledError:
            process._commands.close()
            await asyncio.shield(process._exit)
            raise
        if (why := process._reported.get("failed")) is not None:
            await process.wait()
            found = diagnose(1, why)
            raise EngineLoadFailed(
                f"{job.model} could not be loaded: no container could be started: {why}",
                hint=job.hint if found.cause is Cause.UNKNOWN else found.remedy,
                cause=found.cause,
            )
        return process

    @property
    def pid(self) -> int:
        """The engine's process id on this machine; the supervisor's if the engine did not start."""
        return int(self._reported.get("pid", self._popen.pid))

    async def stop(self, grace_s: float) -> bool:
        """End it, by force after `grace_s`; False if the container engine cannot remove it."""
        if not self._exit.done():
            self._send(f"stop {grace_s}")
        try:
            async with asyncio.timeout(grace_s + 60.0):
                await self.wait()
        except TimeoutError:
            return False
        return True

    def _send(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._commands.write(f"{line}\n".encode())
            self._commands.flush()

    async def _reap(self) -> int:
        # Its first report, or its end. A report is written at once, so the rest of the line is not awaited.
        await readable(self._reports.fileno())
        self._reported |= json.loads(self._reports.readline() or b"{}")
        self._begun.set()
        await process_end(self._popen.pid)
        returned = self._popen.wait()
        # No other process has the other end of its reports, so this ends.
        for line in self._reports:
            self._reported |= json.loads(line)
        self._reports.close()
        with contextlib.suppress(BrokenPipeError):
            self._commands.close()
        complete = "code" in self._reported or "failed" in self._reported
        if not complete:
            await asyncio.to_thread(container_supervisor.remove, self._job.engine, self._job.name)
        return _status(self._reported) if complete else returned or -signal.SIGKILL


def _status(reported: Mapping[str, Any]) -> int:
    """Return the exit status as of a child process: container engines add 128 to a signal's number."""
    if reported.get("oom"):
        return -signal.SIGKILL
    code = int(reported.get("code", 1))
    return _SHELL_OFFSET - code if _SHELL_OFFSET < code < _SHELL_OFFSET + signal.NSIG else code
