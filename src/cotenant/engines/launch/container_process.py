"""An engine in a container, as the daemon holds it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.exit_causes import Cause
from cotenant.engines.diagnosis.diagnosis import diagnose
from cotenant.engines.launch import container_supervisor
from cotenant.engines.process.process import group_lives

_REMOVES_WITHIN_S: Final = 60.0
_GROUP_GONE_WITHIN_S: Final = 10.0
_GROUP_POLL_S: Final = 0.01
_SHELL_OFFSET: Final = 128


@dataclass(frozen=True, slots=True)
class ContainerJob:
    """A container to create and start: `engine` is the program of its engine, `create` the whole command.

    `{env_file}` in `create` becomes a file with `env`, which so appears in no list of processes. `hint` is
    what to do where it cannot be created.
    """

    model: str
    hint: str
    name: str
    engine: tuple[str, ...]
    create: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupJob:
    """A command whose container is a child of its own: its group is ended. `env` goes on top of ours."""

    model: str
    hint: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


class ContainerProcess:
    """A keeper (`container_supervisor`) and the engine that it keeps.

    The keeper survives a daemon that is killed, for as long as it takes to kill the engine. A keeper that is
    killed itself is noticed, and what it kept is removed.
    """

    def __init__(self, popen: subprocess.Popen[bytes], job: ContainerJob | GroupJob) -> None:
        self._popen = popen
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._told: dict[str, Any] = {}
        self._rest = b""
        if popen.stdin is None or popen.stdout is None:
            raise ValueError("a keeper is spoken to through pipes")
        self._orders, self._reports = popen.stdin, popen.stdout
        self._loop.add_reader(self._reports, self._hear)
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop.add_reader(self._pidfd, self._ended.set)
        self._exit = asyncio.create_task(self._reap())

    @classmethod
    async def start(cls, job: ContainerJob | GroupJob, output_fd: int) -> Self:
        """Start it and return once its process is known, or it has ended.

        Raises EngineLoadFailed if there is no container to start, OSError if there is no keeper.
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
            process._order(_told_to_keeper(job))
            await process._begun
        except asyncio.CancelledError:
            process._orders.close()
            await asyncio.shield(process._exit)
            raise
        if (why := process._told.get("failed")) is not None:
            await process.wait()
            raise _not_created(job, why)
        return process

    @property
    def pid(self) -> int:
        """The engine's process id on this machine; the keeper's if it never came to have one."""
        return int(self._told.get("pid", self._popen.pid))

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the signal's number if a signal killed it, None while it runs."""
        return self._exit.result() if self._exit.done() and not self._exit.cancelled() else None

    async def wait(self) -> int:
        """Return the exit status once it has ended and its container is removed."""
        return await asyncio.shield(self._exit)

    async def stop(self, grace_s: float) -> bool:
        """End it, by force after `grace_s`; False if the container engine does not get rid of it."""
        if not self._exit.done():
            self._order(f"stop {grace_s}".encode())
        try:
            async with asyncio.timeout(grace_s + _REMOVES_WITHIN_S):
                await self.wait()
        except TimeoutError:
            return False
        return True

    def _order(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._orders.write(line + b"\n")
            self._orders.flush()

    def _hear(self) -> None:
        more = os.read(self._reports.fileno(), 65536)
        if not more:
            self._loop.remove_reader(self._reports)
        *lines, self._rest = (self._rest + more).split(b"\n")
        for line in lines:
            self._told.update(json.loads(line))
        if self._told and not self._begun.done():
            self._begun.set_result(None)

    async def _reap(self) -> int:
        await self._ended.wait()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._loop.remove_reader(self._reports)
        returned = self._popen.wait()
        if not self._begun.done():
            self._begun.set_result(None)
        # What it said last may not have been heard yet; nobody else holds the other end.
        self._hear_rest()
        self._reports.close()
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()
        told = "code" in self._told or "failed" in self._told
        group = self._told.get("pid")
        if not told:
            await asyncio.to_thread(_abandoned, self._job, group)
        if isinstance(self._job, GroupJob) and group is not None:
            await _gone(group)
        return _status(self._told) if told else returned or -signal.SIGKILL

    def _hear_rest(self) -> None:
        rest = self._rest + self._reports.read()
        for line in rest.splitlines():
            self._told.update(json.loads(line))


def _not_created(job: ContainerJob | GroupJob, why: str) -> EngineLoadFailed:
    """Say why there is no container; of a card that is missing the remedy is not to look at the image."""
    found = diagnose(1, why)
    hint = found.remedy if found.cause is Cause.DEVICE_MISSING else job.hint
    what = f"{job.model} could not be loaded: no container could be started: {why}"
    return EngineLoadFailed(what, hint=hint, cause=found.cause)


async def _gone(group: int) -> None:
    """Wait for those whom the kill of a group has still to reach; not for what a driver holds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GROUP_GONE_WITHIN_S):
            while group_lives(group):  # noqa: ASYNC110  nothing tells of a grandchild's end
                await asyncio.sleep(_GROUP_POLL_S)


def _told_to_keeper(job: ContainerJob | GroupJob) -> bytes:
    if isinstance(job, GroupJob):
        return json.dumps({"run": job.argv, "env": dict(job.env)}).encode()
    told = {"name": job.name, "engine": job.engine, "create": job.create, "env": dict(job.env)}
    return json.dumps(told).encode()


def _status(told: Mapping[str, Any]) -> int:
    """Return the exit status in the form of a child's: container engines add 128 to a signal's number."""
    if told.get("oom"):
        return -signal.SIGKILL
    code = int(told.get("code", 1))
    return _SHELL_OFFSET - code if _SHELL_OFFSET < code < _SHELL_OFFSET + signal.NSIG else code


def _abandoned(job: ContainerJob | GroupJob, group: int | None) -> None:
    """Remove what a keeper left that was killed."""
    if isinstance(job, ContainerJob):
        container_supervisor.remove(job.engine, job.name)
    elif group is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
