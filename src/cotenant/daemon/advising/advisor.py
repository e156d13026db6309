"""Asks an advisor periodically, and passes its valid hints to the scheduler."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from cotenant.clock import Clock
from cotenant.config.configuration import AdvisorSettings
from cotenant.daemon.advising.prompt import AdvisorPrompt, BadAdvice
from cotenant.daemon.core.loop import Loop
from cotenant.daemon.core.operator import FleetOperator
from cotenant.daemon.core.router import FleetRouter
from cotenant.domain.advisors import Advice, AdvisorMode, AdvisorStatus, Hint, QuestionOutcome
from cotenant.domain.decisions import Decision
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import UnknownModel
from cotenant.domain.units import KIB, format_duration
from cotenant.http.addresses import api_endpoint
from cotenant.http.client import Limits, Request, describe, fetch
from cotenant.scheduling.events import AdviceGiven

_LOG = logging.getLogger("cotenant.advisor")
_LIMITS: Final = Limits(connect_s=None, body_bytes=256 * KIB)
_FAILURES_IN_A_ROW: Final = 3
_BREAK_S: Final = 300.0


class AdvisorUnavailable(Exception):
    """The advisor cannot be asked now, which does not count as its failure; the message says why."""


class Unreachable(Exception):
    """The advisor gave no valid response; the message says how it failed."""


class Refused(Unreachable):
    """The advisor responded with an error status."""


Ask = Callable[[AdvisorPrompt], Awaitable[bytes]]
"""Returns a chat completion. Raises AdvisorUnavailable or Unreachable."""


@dataclass(slots=True)
class Advisor:
    """Asks for advice every `every_s`, one question at a time; nothing waits for the response.

    After three failures in a row it is not asked for a while; then one more failure breaks off again. As a
    listener to decisions it also counts those that advice has changed.
    """

    _settings: AdvisorSettings
    _ask: Ask
    _operator: FleetOperator
    _post: Callable[[AdviceGiven], None]
    _clock: Clock
    _outcomes: Counter[QuestionOutcome] = field(default_factory=Counter)
    _mattered: int = 0
    _failures_in_a_row: int = 0
    _last_failure: str | None = None
    _broken_until: float = -math.inf

    def status(self) -> AdvisorStatus:
        """Return the outcomes of the questions so far."""
        broken = self._clock.now() < self._broken_until
        mode, outcomes = str(self._settings.mode), {**self._outcomes}
        return AdvisorStatus(mode, outcomes, self._mattered, broken, self._last_failure)

    def decided(self, decision: Decision) -> None:
        """Count a decision that advice has changed."""
        self._mattered += "mattered" in decision.facts

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await asyncio.sleep(self._settings.every_s)
            await self.ask_once()

    async def ask_once(self) -> None:
        """Ask, unless it is broken off, and pass the hints on; a failure is counted and logged."""
        if self._clock.now() < self._broken_until:
            self._outcomes[QuestionOutcome.SKIPPED] += 1
            return
        # The bytes of those that are not loaded are what may be loaded ahead.
        models = [
            each if each.devices else replace(each, predicted_bytes=self._operator.bytes_if_loaded(each.name))
            for each in self._operator.statuses()
        ]
        prompt = AdvisorPrompt.of(models, self._operator.devices(), self._clock.now())
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                hints = prompt.read(await self._ask(prompt))
        except AdvisorUnavailable as reason:
            self._outcomes[QuestionOutcome.SKIPPED] += 1
            _LOG.debug("the advisor was not asked: %s", reason)
        except TimeoutError:
            self._failed(Unreachable(f"no answer within {format_duration(self._settings.timeout_s)}"))
        except (BadAdvice, Unreachable) as error:
            self._failed(error)
        else:
            self._failures_in_a_row, self._last_failure = 0, None
            self._outcomes[QuestionOutcome.ANSWERED] += 1
            shadow = self._settings.mode is AdvisorMode.SHADOW
            _LOG.debug("advice on %d models, shadow=%s", len(hints), shadow)
            if hints:
                self._post(AdviceGiven(self._clock.now(), Advice(prompt.asked_at, hints, shadow)))

    def _failed(self, error: BadAdvice | Unreachable) -> None:
        invalid = isinstance(error, BadAdvice)
        self._outcomes[QuestionOutcome.INVALID if invalid else QuestionOutcome.FAILED] += 1
        self._last_failure = str(error)
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW:
            self._broken_until = self._clock.now() + _BREAK_S
            pause = format_duration(_BREAK_S)
            _LOG.warning("the advisor failed (%s); it is not asked for %s", error, pause)
        else:
            _LOG.info("the advisor's response could not be used: %s", error)


@dataclass(frozen=True, slots=True)
class ServedAdvisor:
    """Asks a model that this daemon serves, while it is ready and has a free slot.

    The model is loaded into free memory only: nothing is evicted for it.
    """

    _router: FleetRouter
    _operator: FleetOperator
    _post: Callable[[AdviceGiven], None]
    _clock: Clock
    _model: str

    async def ask(self, prompt: AdvisorPrompt) -> bytes:
        """Ask through a lease, as any client."""
        try:
            lease = self._router.try_lease(self._model)
        except UnknownModel:
            raise AdvisorUnavailable(f"{self._model} is not served") from None
        if lease is None:
            self._request_load()
            raise AdvisorUnavailable(f"{self._model} is not loaded, or busy")
        abandoned = True
        try:
            endpoint = lease.endpoint
            answer = await completion(endpoint, endpoint.model or self._model, prompt)
            abandoned = False
            return answer
        except Refused:
            abandoned = False
            raise
        finally:
            lease.release(abandoned=abandoned)

    def _request_load(self) -> None:
        """Have the model loaded if there is free memory."""
        served = next((m for m in self._router.models() if self._model in (m.name, *m.aliases)), None)
        status = next((m for m in self._operator.statuses() if served and m.name == served.name), None)
        if status is not None and not status.devices:
            now = self._clock.now()
            self._post(AdviceGiven(now, Advice(now, {status.name: Hint(status.loads, prefetch=True)})))


def advisor_of(
    settings: AdvisorSettings, router: FleetRouter, operator: FleetOperator, loop: Loop
) -> Advisor | None:
    """Return the advisor of these settings, listening to decisions; None if it is off."""
    if settings.mode is AdvisorMode.OFF or settings.model is None:
        return None
    ask: Ask
    if settings.address is None:
        ask = ServedAdvisor(router, operator, loop.post, loop.clock, settings.model).ask
    else:
        ask = partial(completion, api_endpoint(settings.address, settings.api_key), settings.model)
    advisor = Advisor(settings, ask, operator, loop.post, loop.clock)
    loop.feed.listeners.append(advisor.decided)
    return advisor


async def completion(endpoint: Endpoint, model: str, prompt: AdvisorPrompt) -> bytes:
    """Return the body of a chat completion, following no redirect. Raises Unreachable."""
    try:
        # The caller limits the time.
        answer = await fetch(
            Request(endpoint, "POST", "/v1/chat/completions", prompt.payload(model)), _LIMITS
        )
    except OSError as error:
        raise Unreachable(describe(error)) from None
    if answer.status != 200:
        quoted = answer.body[:300].decode("utf-8", "replace")
        raise Refused(f"it responded with status {answer.status}: {quoted!r}")
    return answer.body
