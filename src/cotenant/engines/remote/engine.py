"""Models of other servers of OpenAI's API, which take no memory here."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineEnd, EngineOptions
from cotenant.domain.errors import BadRecipe, EngineLoadFailed, EngineLoadTimeout
from cotenant.domain.exit_causes import Cause
from cotenant.domain.units import format_duration
from cotenant.engines.base.external import ExternalEngine
from cotenant.engines.diagnosis.remedies import REMEDIES
from cotenant.http.client import probe, tls_problem
from cotenant.interfaces import EngineOrder

_PROBE_TIMEOUT_S: Final = 5.0
_FIRST_POLL_S: Final = 0.1
_WATCH_EVERY_S: Final = 10.0
_SILENT_TIMES: Final = 3
_FORBIDDEN: Final = frozenset({401, 403})
_MISSING: Final = frozenset({404, 405, 410, 501})
_BUSY: Final = 429
"""It serves, but not so many requests."""


class RemoteHost:
    """Reaches other servers; each is checked every `watch_every_s`, and abandoned after three failures."""

    def __init__(self, *, watch_every_s: float = _WATCH_EVERY_S) -> None:
        self._watch_every_s = watch_every_s

    async def start(self, order: EngineOrder) -> RemoteEngine:
        """Start connecting. Raises BadRecipe."""
        address = order.options.address
        if address is None:
            raise BadRecipe(f"{order.name} has no address", hint="Give it an `address:`.")
        return RemoteEngine(order.name, address, order.options, self._watch_every_s)


class RemoteEngine(ExternalEngine):
    """One model of another server."""

    def __init__(self, name: str, address: Endpoint, options: EngineOptions, watch_every_s: float) -> None:
        super().__init__(name, replace(address, model=options.model), EngineKind.REMOTE)
        self._health_path = options.health_path
        self._watch_every_s = watch_every_s

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when it answers.

        Raises EngineLoadFailed if it does not take the key, its certificate is not trusted, or nothing is at
        its health path; EngineLoadTimeout.
        """
        self.problem = "there is no answer"
        try:
            async with asyncio.timeout(timeout_s):
                while (problem := await self._problem()) is not None:
                    self.problem = problem
                    await asyncio.sleep(_FIRST_POLL_S)
        except TimeoutError:
            waited = format_duration(timeout_s)
            raise EngineLoadTimeout(
                f"{self._name} at {self.endpoint.url} was not ready within {waited}: {self.problem}",
                hint="Check that the server runs and that `address:` is right.",
            ) from None
        self._start_watching()

    async def _watch(self) -> None:
        silent, cause = 0, Cause.UNKNOWN
        while silent < _SILENT_TIMES:
            await asyncio.sleep(self._watch_every_s)
            try:
                problem = await self._problem()
            except EngineLoadFailed as error:
                problem, silent, cause = error.message, _SILENT_TIMES, error.cause
            silent = 0 if problem is None else silent + 1
        why = f"{self._name} at {self.endpoint.url} no longer serves: {problem}"
        self._ended(EngineEnd(why, cause))

    async def _problem(self) -> str | None:
        """Return what is wrong with it, or None. Raises EngineLoadFailed if waiting does not help."""
        answer = await probe(self.endpoint, self._health_path, timeout_s=_PROBE_TIMEOUT_S)
        if answer is None:
            fault = await tls_problem(self.endpoint, timeout_s=_PROBE_TIMEOUT_S)
            if fault is None:
                return "there is no answer"
            raise EngineLoadFailed(
                f"{self._name} at {self.endpoint.url} cannot be reached: {fault}",
                hint=REMEDIES[Cause.UNTRUSTED_SERVER],
                cause=Cause.UNTRUSTED_SERVER,
            )
        if answer.status in _FORBIDDEN:
            raise EngineLoadFailed(
                f"{self._name} at {self.endpoint.url} does not take the key: it answers {answer.status}",
                hint=REMEDIES[Cause.KEY_REFUSED],
                cause=Cause.KEY_REFUSED,
            )
        if answer.status < 300 or answer.status == _BUSY:
            return None
        said = f"it answers {answer.status} at {self.endpoint.target(self._health_path)}"
        if answer.status < 400:
            location = dict(answer.headers).get(b"location", b"").decode("latin-1")
            hint = "Write the new address as `address:`; a request that is redirected loses its body."
            raise EngineLoadFailed(
                f"{self._name} at {self.endpoint.url}: {said}, redirecting to {location[:200]}", hint=hint
            )
        if answer.status in _MISSING:
            hint = "Check `address:`, or name another path by `health:` if the server lists no models."
            raise EngineLoadFailed(f"{self._name} at {self.endpoint.url}: {said}", hint=hint)
        return said
