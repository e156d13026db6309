"""Models of an Ollama daemon as engines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import Final

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineEnd, EngineReport, ReportedDevice
from cotenant.domain.errors import BadRecipe, EngineLoadFailed, EngineLoadTimeout
from cotenant.domain.exit_causes import Cause
from cotenant.domain.models import Parts
from cotenant.domain.units import format_duration
from cotenant.engines.base.external import ExternalEngine
from cotenant.engines.ollama.client import ASK_TIMEOUT_S, LoadedModel, OllamaClient, same_tag
from cotenant.http.client import Response, tls_problem
from cotenant.interfaces import EngineOrder

_FOREVER: Final = -1
_RENEW_BEFORE_S: Final = 120.0
_UNLOAD_TIMEOUT_S: Final = 30.0


class OllamaHost:
    """Loads models in Ollama daemons; `poll_every_s` is how often each is asked what it has loaded."""

    def __init__(self, *, poll_every_s: float = 1.0) -> None:
        self._poll_every_s = poll_every_s

    async def start(self, order: EngineOrder) -> OllamaEngine:
        """Begin to load. Raises BadRecipe."""
        address = order.options.address
        if address is None:
            raise BadRecipe(f"{order.name} has no Ollama daemon", hint="Give it an `address:`.")
        return OllamaEngine(order.name, address, order.options.model or order.name, self._poll_every_s)


class OllamaEngine(ExternalEngine):
    """One model of an Ollama daemon, kept loaded until it is stopped."""

    def __init__(self, name: str, address: Endpoint, tag: str, poll_every_s: float) -> None:
        super().__init__(name, replace(address, model=tag), EngineKind.OLLAMA)
        self._client = OllamaClient(address)
        self._tag = tag
        self._poll_every_s = poll_every_s
        self._seen: LoadedModel | None = None
        self._weights: dict[str, str] = {}

    async def wait_ready(self, timeout_s: float) -> None:
        """Load it. Raises EngineLoadFailed with Ollama's own message, or EngineLoadTimeout."""
        answer = await self._client.keep(self._tag, _FOREVER, timeout_s=timeout_s)
        if answer is None:
            running = await self._client.version()
            if running is None:
                fault = await tls_problem(self.endpoint, timeout_s=ASK_TIMEOUT_S)
                why = "" if fault is None else f": {fault}"
                raise EngineLoadFailed(
                    f"{self._name} could not be loaded: no Ollama answers at {self.endpoint.url}{why}",
                    hint="Start it (`ollama serve`), or correct `address:`.",
                )
            await self._unload()
            raise EngineLoadTimeout(
                f"{self._name} was not loaded by Ollama within {format_duration(timeout_s)}",
                hint="See Ollama's log (`journalctl -u ollama`).",
            )
        if answer.status != 200:
            raise EngineLoadFailed(
                f"{self._name} could not be loaded: Ollama answers {answer.status}: {_error(answer)}",
                hint=f"`ollama pull {self._tag}` fetches a model that it does not have."
                if answer.status == 404
                else "See Ollama's log (`journalctl -u ollama`).",
            )
        self._seen = await self._loaded_now()
        self._start_watching()

    def report(self) -> EngineReport | None:
        """Return the bytes that Ollama reports."""
        seen = self._seen
        if seen is None:
            return None
        host = max(0, seen.total_bytes - seen.gpu_bytes)
        return EngineReport(
            (
                ReportedDevice("ollama", None, Parts(weights=seen.gpu_bytes)),
                ReportedDevice("CPU", None, Parts(weights=host), on_host=True),
            )
        )

    async def stop(self, grace_s: float) -> None:
        """Unload it, and return when Ollama no longer lists it; requests of other clients finish first."""
        if not self._end.done():
            # Otherwise the watcher takes the unload for another client's.
            self._stop_watching()
            await self._unload()
        await super().stop(grace_s)

    async def _unload(self) -> None:
        if await self._client.keep(self._tag, 0, timeout_s=_UNLOAD_TIMEOUT_S) is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_UNLOAD_TIMEOUT_S):
                while await self._loaded_now() is not None:  # noqa: ASYNC110  Ollama only answers questions
                    await asyncio.sleep(0.05)

    async def _watch(self) -> None:
        """Keep it loaded, also if other clients send another `keep_alive` for it."""
        silent = 0
        while True:
            await asyncio.sleep(self._poll_every_s)
            loaded = await self._client.loaded()
            silent = silent + 1 if loaded is None else 0
            if silent >= 3:
                why = f"{self._name} is no longer served: Ollama at {self.endpoint.url} does not answer"
                return self._ended(EngineEnd(why, Cause.UNKNOWN))
            if loaded is None:
                continue
            self._seen = await self._find_in(loaded)
            if self._seen is None:
                why = f"{self._name} was unloaded by Ollama or another client of it"
                return self._ended(EngineEnd(why, Cause.UNKNOWN))
            expires_at = self._seen.expires_at
            if expires_at is not None and expires_at - time.time() < _RENEW_BEFORE_S:
                await self._client.keep(self._tag, _FOREVER, timeout_s=ASK_TIMEOUT_S)

    async def _loaded_now(self) -> LoadedModel | None:
        return await self._find_in(await self._client.loaded() or ())

    async def _find_in(self, loaded: tuple[LoadedModel, ...]) -> LoadedModel | None:
        """Find this model, which may be listed under another name with the same weights."""
        for each in loaded:
            if same_tag(each.tag, self._tag):
                return each
        for each in loaded:
            weights = await self._weights_of(each.tag)
            if weights and weights == await self._weights_of(self._tag):
                return each
        return None

    async def _weights_of(self, tag: str) -> str:
        if tag not in self._weights:
            facts = await self._client.facts(tag)
            if facts is None:
                return ""
            self._weights[tag] = facts.weights
        return self._weights[tag]


def _error(answer: Response) -> str:
    parsed = answer.json_object(of_any_status=True)
    text = str(parsed["error"]) if parsed and "error" in parsed else answer.body.decode("utf-8", "replace")
    return text.strip()[:300] or "nothing"
