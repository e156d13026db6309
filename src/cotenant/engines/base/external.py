"""External engines: servers that others run. They are asked and watched, never started or killed."""

from __future__ import annotations

import asyncio

from cotenant.domain.engines import Endpoint, EngineBuild, EngineEnd, EngineReport


class ExternalEngine:
    """A model of a server that others run, as an engine. Kinds override what differs.

    `endpoint` is where requests go, and `build` what is known of the server; no process or log is ours.
    """

    def __init__(self, name: str, endpoint: Endpoint, build: EngineBuild) -> None:
        self._name = name
        self.endpoint = endpoint
        self.pid = None
        self.build = build
        self.log_path = None
        self._end: asyncio.Future[EngineEnd] = asyncio.get_running_loop().create_future()
        self._watcher: asyncio.Task[None] | None = None

    async def wait_exit(self) -> EngineEnd:
        """Return when it no longer serves, with the reason."""
        return await asyncio.shield(self._end)

    async def busy_slots(self) -> int | None:
        """Always 0: these servers cancel requests whose client has disconnected."""
        return 0

    def report(self) -> EngineReport | None:
        """Read back the bytes that it says it took; None if it did not say."""
        return None

    async def stop(self, grace_s: float) -> None:
        """Stop using it."""
        self._ended(EngineEnd(f"{self._name} was stopped"))

    async def _watch(self) -> None:
        """Watch it until it no longer serves, then call `_ended`."""

    def _start_watching(self) -> None:
        """Start watching it."""
        if self._watcher is None and not self._end.done():
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def _stop_watching(self) -> None:
        """Stop watching it."""
        if self._watcher is not None and self._watcher is not asyncio.current_task():
            self._watcher.cancel()

    def _ended(self, end: EngineEnd) -> None:
        if not self._end.done():
            self._end.set_result(end)
        self._stop_watching()
