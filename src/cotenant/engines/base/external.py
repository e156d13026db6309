"""External engines: servers that others run. They are queried and watched, never started or killed."""

import asyncio
from dataclasses import replace

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineBuild, EngineEnd, EngineReport


class ExternalEngine:
    """A model of a server that others run, as an engine. Kinds override methods of this class.

    `endpoint` is where requests go, `build` what is known of the server. It has no process or log of ours.
    """

    def __init__(self, name: str, endpoint: Endpoint, kind: EngineKind) -> None:
        self._name = name
        self.endpoint = replace(endpoint, kind=kind)
        self.pid: int | None = None
        self.build = EngineBuild(kind, kind, endpoint.url, "unknown")
        self.log_path = None
        self.problem: str | None = None
        self._end: asyncio.Future[EngineEnd] = asyncio.get_running_loop().create_future()
        self._watcher: asyncio.Task[None] | None = None

    async def wait_exit(self) -> EngineEnd:
        """Return the reason when it no longer serves."""
        return await asyncio.shield(self._end)

    async def busy_slots(self) -> int | None:
        """Always 0: these servers cancel requests whose client has disconnected."""
        return 0

    def report(self) -> EngineReport | None:
        """Return the bytes that it reports to have taken; None if it does not report them."""
        return None

    async def stop(self, grace_s: float) -> None:
        """Stop using it."""
        self._ended(EngineEnd(f"{self._name} was stopped"))

    async def _watch(self) -> None:
        """Watch it until it no longer serves, then call `_ended`."""

    def _start_watching(self) -> None:
        if self._watcher is None and not self._end.done():
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def _stop_watching(self) -> None:
        if self._watcher is not None and self._watcher is not asyncio.current_task():
            self._watcher.cancel()

    def _ended(self, end: EngineEnd) -> None:
        if not self._end.done():
            self._end.set_result(end)
        self._stop_watching()
