"""Agents as processes of their own, and the daemon's side of them without a daemon."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotenant import __version__
from cotenant.domain.nodes import NodeError
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.messages import AgentEvent, GateSettings, Hello, HelloAnswer, Poll, Renew
from cotenant.nodes.protocol import HELLO, POLL, RENEW
from cotenant.nodes.transport import SocketTransport, ask

FLEET = "testers"


@dataclass(eq=False)
class AgentProcess:
    """A running `cotenant agent`."""

    process: subprocess.Popen[str]
    folder: Path
    socket: Path
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid


def command(folder: Path, *flags: str, fleet: str = FLEET) -> list[str]:
    agent = [sys.executable, "-m", "cotenant", "agent", "--fleet", fleet, "--name", "b"]
    return [*agent, "--state-dir", str(folder / "state"), *flags]


@contextlib.contextmanager
def agent(
    folder: Path, *flags: str, env: Mapping[str, str] | None = None, **popen: Any
) -> Iterator[AgentProcess]:
    """Have an agent answer at its socket; it is stopped, and must not have said an internal error."""
    log = folder / "agent.log"
    with log.open("a") as errors:
        process = subprocess.Popen(
            command(folder, *flags),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(env or {})},
            **popen,
        )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        assert said, log.read_text()
        yield AgentProcess(process, folder, Path(said), log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    assert "Traceback" not in log.read_text(), log.read_text()


class Daemon:
    """What a daemon does with one agent: says hello, renews its lease, and takes its events."""

    def __init__(
        self, running: AgentProcess, epoch: int = 1, lease_s: float = 600.0, *, name: str = "b", **more: Any
    ) -> None:
        self.transport = SocketTransport(lambda _: running.socket)
        self.epoch = epoch
        self.lease_s = lease_s
        self.gate: GateSettings | None = GateSettings("127.0.0.1")
        self.host = NodeEngineHost(name, self.transport, epoch, **more)
        self.events: list[AgentEvent] = []
        self.answer: HelloAnswer
        self._tasks: list[asyncio.Task[None]] = []
        self._beating: asyncio.Task[None] | None = None

    async def hello(self) -> HelloAnswer:
        given = Hello(FLEET, self.epoch, self.lease_s, __version__, gate=self.gate)
        self.answer = await ask(self.transport, "b", HELLO, given, 60.0)
        self.host.gate = self.answer.gate
        return self.answer

    async def renew(self, stamp: float) -> float:
        return (await ask(self.transport, "b", RENEW, Renew(self.epoch, stamp))).stamp

    async def follow(self) -> None:
        """Take events until cancelled."""
        after = self.answer.seq
        while True:
            found = await ask(self.transport, "b", POLL, Poll(after, 5.0), 60.0)
            for event in found.events:
                self.events.append(event)
                self.host.take(event)
                after = event.seq

    async def beat(self) -> None:
        """Renew the lease until cancelled."""
        stamp = self.answer.stamp
        while True:
            stamp = await self.renew(stamp)
            await asyncio.sleep(min(1.0, self.lease_s / 10))

    def stop_beating(self) -> None:
        """Renew the lease no more."""
        if self._beating is not None:
            self._beating.cancel()

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator["Daemon"]:
        """Have it follow the agent; whatever breaks there ends the test."""
        await self.hello()
        await self.renew(self.answer.stamp)
        self._beating = asyncio.create_task(self.beat())
        self._tasks = [asyncio.create_task(self.follow()), self._beating]
        try:
            yield self
        finally:
            for task in self._tasks:
                task.cancel()
            for task in self._tasks:
                with contextlib.suppress(asyncio.CancelledError, NodeError):
                    await task
            await self.transport.close()
