"""Asks an advisor now and then, and gives the scheduler what it says, as far as it can be trusted."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final, Protocol

from cotenant.clock import Clock
from cotenant.config.configuration import AdvisorSettings
from cotenant.daemon.advising.prompt import AdvisorPrompt, BadAdvice
from cotenant.daemon.core.loop import Loop
from cotenant.domain.advisors import AdvisorMode, AdvisorStatus, Asked
from cotenant.domain.decisions import Decision
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import UnknownModel
from cotenant.domain.units import KIB, format_duration
from cotenant.http.client import Limits, Request, describe, fetch
from cotenant.scheduling.advice import Hint
from cotenant.scheduling.events import AdviceGiven

_LOG = logging.getLogger("cotenant.advisor")
_PATH: Final = "/v1/chat/completions"
_QUOTED_BYTES: Final = 300
_LIMITS: Final = Limits(connect_s=None, body_bytes=256 * KIB)
_FAILURES_IN_A_ROW: Final = 3
_BREAK_S: Final = 300.0


class AdvisorUnavailable(Exception):
    """The advisor cannot be asked at present, through no fault of its own; the message says why."""


class Unreachable(Exception):
    """The advisor did not answer as it should; the message says how."""


class Refused(Unreachable):
    """It answered at once, and not with a completion."""


class Source(Protocol):
    """Where advice comes from."""

    async def ask(self, brief: AdvisorPrompt) -> bytes:
        """Return a chat completion. Raises AdvisorUnavailable or Unreachable."""
        ...


class Breaker:
    """Stops asking after three failures in a row; after a pause one question goes through again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures = 0
        self._open_until: float | None = None

    @property
    def open(self) -> bool:
        """Whether nothing is asked at present."""
        return self._open_until is not None and self._clock.now() < self._open_until

    def succeeded(self) -> None:
        """Count from nought again."""
        self._failures, self._open_until = 0, None

    def failed(self) -> bool:
        """Count a failure; whether it opened the breaker. The one question of a half-open one is enough."""
        self._failures += 1
        if self._failures < _FAILURES_IN_A_ROW:
            return False
        self._open_until = self._clock.now() + _BREAK_S
        return True


class Advisor:
    """Asks a source each `every_s`, one question at a time; nothing waits for its answer.

    As a listener to decisions it also counts those that advice has changed.
    """

    def __init__(self, settings: AdvisorSettings, source: Source, loop: Loop, clock: Clock) -> None:
        self._settings = settings
        self._source = source
        self._loop = loop
        self._clock = clock
        self._breaker = Breaker(clock)
        self._outcomes: Counter[Asked] = Counter()
        self._mattered = 0
        self._last_failure: str | None = None

    def status(self) -> AdvisorStatus:
        """Return how it does."""
        return AdvisorStatus(
            str(self._settings.mode),
            {**self._outcomes},
            self._mattered,
            self._breaker.open,
            self._last_failure,
        )

    def decided(self, decision: Decision) -> None:
        """Count a decision that advice has changed."""
        self._mattered += "mattered" in decision.facts

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await asyncio.sleep(self._settings.every_s)
            await self.ask_once()

    async def ask_once(self) -> None:
        """Ask, unless the breaker is open, and pass on what it says; no fault of the advisor gets out."""
        if self._breaker.open:
            self._outcomes[Asked.SKIPPED] += 1
            return
        brief = AdvisorPrompt.of(self._loop.statuses(), self._loop.devices(), self._clock.now())
        try:
            hints = await self._hints(brief)
        except AdvisorUnavailable as reason:
            self._outcomes[Asked.SKIPPED] += 1
            _LOG.debug("the advisor was not asked: %s", reason)
        except (BadAdvice, Unreachable) as error:
            self._failed(error)
        else:
            self._breaker.succeeded()
            self._last_failure = None
            self._outcomes[Asked.ANSWERED] += 1
            shadow = self._settings.mode is AdvisorMode.SHADOW
            _LOG.debug("advice on %d models, shadow=%s", len(hints), shadow)
            if hints:
                self._loop.post(AdviceGiven(self._clock.now(), brief.advice(hints, shadow=shadow)))

    async def _hints(self, brief: AdvisorPrompt) -> Mapping[str, Hint]:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return brief.read(await self._source.ask(brief))
        except TimeoutError:
            raise Unreachable(f"no answer within {format_duration(self._settings.timeout_s)}") from None

    def _failed(self, error: BadAdvice | Unreachable) -> None:
        self._outcomes[Asked.INVALID if isinstance(error, BadAdvice) else Asked.FAILED] += 1
        self._last_failure = str(error)
        if self._breaker.failed():
            pause = format_duration(_BREAK_S)
            _LOG.warning("the advisor failed (%s); it is left alone for %s", error, pause)
        else:
            _LOG.info("the advisor's answer was of no use: %s", error)


class RemoteSource:
    """An OpenAI-compatible address."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._endpoint = endpoint
        self._model = model

    async def ask(self, brief: AdvisorPrompt) -> bytes:
        """Ask over the network; no redirect is followed, and a long answer is cut off."""
        return await completion(self._endpoint, brief, self._model)


class ServedSource:
    """A model that we serve: asked when it is ready and free.

    It is loaded where there is room, never in another's place.
    """

    def __init__(self, loop: Loop, clock: Clock, model: str) -> None:
        self._loop = loop
        self._clock = clock
        self._model = model

    async def ask(self, brief: AdvisorPrompt) -> bytes:
        """Ask through a lease, as any client."""
        try:
            lease = self._loop.try_lease(self._model)
        except UnknownModel:
            raise AdvisorUnavailable(f"{self._model} is not served") from None
        if lease is None:
            self._wish()
            raise AdvisorUnavailable(f"{self._model} is not loaded, or busy")
        abandoned = True
        try:
            endpoint = lease.endpoint
            answer = await completion(endpoint, brief, endpoint.model or self._model)
            abandoned = False
            return answer
        except Refused:
            abandoned = False
            raise
        finally:
            lease.release(abandoned=abandoned)

    def _wish(self) -> None:
        """Have it loaded into memory that nobody needs."""
        served = next((m for m in self._loop.models() if self._model in (m.name, *m.aliases)), None)
        status = next((each for each in self._loop.statuses() if served and each.name == served.name), None)
        if status is not None and not status.devices:
            now = self._clock.now()
            hints = {status.name: Hint(status.loads, prefetch=True)}
            self._loop.post(AdviceGiven(now, AdvisorPrompt(now, {}, {}).advice(hints, shadow=False)))


async def completion(endpoint: Endpoint, brief: AdvisorPrompt, model: str) -> bytes:
    """Return the body of a chat completion. Raises Unreachable."""
    try:
        # The caller limits the time.
        answer = await fetch(Request(endpoint, "POST", _PATH, brief.payload(model)), _LIMITS)
    except OSError as error:
        raise Unreachable(describe(error)) from None
    if answer.status != 200:
        raise Refused(
            f"it answered with status {answer.status}: {answer.body[:300].decode('utf-8', 'replace')!r}"
        )
    return answer.body
