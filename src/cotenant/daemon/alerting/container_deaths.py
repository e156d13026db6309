"""Containers that die, as the container engine reports them."""

import asyncio
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.daemon.alerting.alerts import Alerts
from cotenant.domain.errors import ContainerEngineMissing
from cotenant.engines.process.process import ChildProcess, guarded
from cotenant.programs.run import run_async
from cotenant.services.compose.command import find_compose
from cotenant.services.compose.container_events import (
    ContainerChange,
    ContainerEvent,
    events_command,
    read_event,
)

_LOG = logging.getLogger(__name__)
_AGAIN_S: Final = (1.0, 5.0, 30.0, 120.0)
_STEADY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ContainerWatch:
    """Follows the events of the engine that runs the services, and reports them to the alerts.

    It is the engine that the compose command uses (`compose`; None: find one), else the first engine on the
    PATH. `ENGINE events` runs as a child that dies with this process. If it ends, it is started again, after
    longer pauses each time until it has run for a minute.
    """

    _alerts: Alerts
    _compose: Sequence[str] | None = None

    async def run(self) -> None:
        """Follow the events until cancelled; return at once if there is no container engine."""
        engine = await self._engine()
        attempt = 0
        loop = asyncio.get_running_loop()
        while engine is not None:
            began = loop.time()
            await self._follow(engine)
            attempt = 0 if loop.time() - began > _STEADY_S else attempt + 1
            if attempt == 1:
                _LOG.info("%s events ended; it will be started again", engine)
            await asyncio.sleep(_AGAIN_S[min(attempt, len(_AGAIN_S) - 1)])

    async def _engine(self) -> str | None:
        try:
            names: Sequence[str] = (await find_compose(self._compose)).engine[:1]
        except ContainerEngineMissing:
            names = ("podman", "docker")
        return next((path for name in names if (path := shutil.which(name))), None)

    async def _follow(self, engine: str) -> None:
        reading, writing = os.pipe()
        try:
            child = ChildProcess.start(
                guarded(events_command(engine)), env=dict(os.environ), output_fd=writing
            )
        except OSError as error:
            os.close(reading)
            _LOG.warning("%s events cannot be followed: %s", engine, error.strerror)
            return
        finally:
            os.close(writing)
        reader = asyncio.StreamReader(limit=1 << 16)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", 0)
        )
        try:
            await self._read(engine, reader)
        finally:
            transport.close()
            await child.stop(1.0)

    async def _read(self, engine: str, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                # A line over the limit is dropped; no event that matters is that long.
                continue
            if not line:
                return
            event = read_event(line)
            if event is not None:
                await self._report(engine, event)

    async def _report(self, engine: str, event: ContainerEvent) -> None:
        change = event.change
        if change is ContainerChange.KILLED:
            what = ("--format", "{{.State.OOMKilled}}", event.container_id)
            inspected = await run_async([engine, "container", "inspect", *what], 10.0)
            if inspected.ok and inspected.output.strip() == "true":
                change = ContainerChange.OUT_OF_MEMORY
        if change is ContainerChange.OUT_OF_MEMORY:
            self._alerts.container_killed(event.name)
        self._alerts.container_ended(event.name)
