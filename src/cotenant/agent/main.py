"""Runs an agent until it is stopped; there is one for each machine and fleet."""

import asyncio
import fcntl
import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvloop

from cotenant.agent.agent import Agent, AgentOptions
from cotenant.agent.environment import clean
from cotenant.agent.server import AgentServer
from cotenant.clock import SystemClock
from cotenant.domain.errors import BadSetting, PortTaken
from cotenant.engines.launch.orphans import kill_orphans, remove_orphaned_containers
from cotenant.hardware.gpus.inventory import probe

_LOCK: Final = "agent.lock"

_LOG = logging.getLogger(__name__)


def run(
    options: AgentOptions, sock: Path, *, gpus: str | None = None, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Answer calls at a socket until SIGTERM or SIGINT, which end all engines; call `on_ready` once it does.

    `gpus` describes GPUs in place of those that there are. Raises PortTaken if another agent of this fleet
    runs here, BadSetting if the folder or the socket cannot be used.
    """
    options = replace(options, problems=clean())
    for problem in options.problems:
        _LOG.warning("%s", problem)
    lock = _only_one(options, sock)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(options, sock, gpus, on_ready))
    finally:
        os.close(lock)


async def _serve(options: AgentOptions, sock: Path, gpus: str | None, on_ready: Callable[[], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    clock = SystemClock()
    devices = probe(gpus, clock)
    await asyncio.to_thread(kill_orphans)
    agent = Agent(options, devices, clock, await asyncio.to_thread(devices.inventory))
    server = AgentServer(sock, agent.answer)
    await server.start()
    work = [
        asyncio.create_task(agent.run()),
        asyncio.create_task(asyncio.to_thread(remove_orphaned_containers)),
    ]
    stopping = asyncio.create_task(stopped.wait())
    try:
        on_ready()
        await asyncio.wait({work[0], stopping}, return_when=asyncio.FIRST_COMPLETED)
        if work[0].done():
            work[0].result()
    finally:
        for task in (*work, stopping):
            task.cancel()
        await server.close()
        await agent.close()


def _only_one(options: AgentOptions, sock: Path) -> int:
    """Lock the folder of the fleet's agent on this machine. Raises PortTaken, which says who holds it."""
    path = options.state_dir / _LOCK
    try:
        options.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadSetting(
            f"the agent's folder {options.state_dir} cannot be used: {error.strerror}",
            hint="Give another one: cotenant agent --state-dir FOLDER.",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder: dict[str, object] = {}
        with suppress(OSError, ValueError):
            holder = json.loads(os.pread(descriptor, 4096, 0))
        os.close(descriptor)
        raise PortTaken(
            f"process {holder.get('pid', 'unknown')} is this machine's agent of the fleet {options.fleet!r}",
            hint=f"It answers at {holder.get('socket', 'an unknown socket')}.",
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "socket": str(sock)}).encode(), 0)
    return descriptor
