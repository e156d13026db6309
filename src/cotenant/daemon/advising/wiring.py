"""Putting the advisor together."""

from __future__ import annotations

from cotenant.clock import Clock
from cotenant.config.configuration import AdvisorSettings
from cotenant.daemon.advising.advisor import Advisor, RemoteSource, ServedSource, Source
from cotenant.daemon.core.loop import Loop
from cotenant.domain.advisors import AdvisorMode
from cotenant.http.client import api_endpoint


def advisor_of(settings: AdvisorSettings, loop: Loop, clock: Clock) -> Advisor | None:
    """Return the advisor of these settings, listening to the loop's decisions; None where it is off."""
    if settings.mode is AdvisorMode.OFF or settings.model is None:
        return None
    source: Source
    if settings.address is None:
        source = ServedSource(loop, clock, settings.model)
    else:
        source = RemoteSource(api_endpoint(settings.address, settings.api_key), settings.model)
    advisor = Advisor(settings, source, loop, clock)
    loop.listeners.append(advisor.decided)
    return advisor
