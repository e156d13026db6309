"""Engines that run as no process of ours: they are asked, watched and let go, never started or killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cotenant.domain.engines import Endpoint, EngineBuild, EngineEnd, EngineReport


class ExternalEngine:
    """A part of a server that somebody else runs, seen as an engine; kinds override what differs."""

    def __init__(self, name: str, endpoint: Endpoint, build: EngineBuild) -> None:
        self._name = name
        self._endpoint = endpoint
        self._build = build
        self._end: asyncio.Future[EngineEnd] = asyncio.get_running_loop().create_future()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go."""
        return self._endpoint

    @property
    def pid(self) -> None:
        """No process of ours."""
        return

    @property
    def build(self) -> EngineBuild:
        """What is known of the server."""
        return self._build

    @property
    def log_path(self) -> Path | None:
        """No log of ours."""
        return None

    async def wait_exit(self) -> EngineEnd:
        """Return when it serves no more, with how and why."""
        return await asyncio.shield(self._end)

    async def busy_slots(self) -> int | None:
        """None is held up: such servers end what a client has left."""
        return 0

    def report(self) -> EngineReport | None:
        """Read back the bytes that it says it took; None if it did not say."""
        return None

    async def stop(self, grace_s: float) -> None:
        """Let it go."""
        self._ended(EngineEnd(f"{self._name} was stopped"))

    async def _watch(self) -> None:
        """Look until it serves no more, and say so."""

    def _start_watching(self) -> None:
        """Look after it from now on."""
        if self._watcher is None and not self._end.done():
            self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def _stop_watching(self) -> None:
        """Look after it no more."""
        if self._watcher is not None and self._watcher is not asyncio.current_task():
            self._watcher.cancel()

    def _ended(self, end: EngineEnd) -> None:
        if not self._end.done():
            self._end.set_result(end)
        self._stop_watching()
