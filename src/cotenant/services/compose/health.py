"""Waiting until a recreated service is well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from cotenant.clock import Clock
from cotenant.http.client import Limits, describe, get_url
from cotenant.services.compose.container_engine import Container, ContainerEngine
from cotenant.services.model import Service

GIVEN_UP: Final = "it was given up because another service failed"
_POLL_S: Final = 0.25
_MAX_POLL_S: Final = 2.0
_ANSWER_WITHIN_S: Final = 5.0
_LIMITS: Final = Limits(_ANSWER_WITHIN_S, whole_s=_ANSWER_WITHIN_S)


class HealthWatch:
    """Judges one project's services. `settle_s` is how long a container without a check has to stay up."""

    def __init__(self, engine: ContainerEngine, project: str, clock: Clock, settle_s: float) -> None:
        self._engine = engine
        self._project = project
        self._clock = clock
        self._settle_s = settle_s

    async def wait(self, service: Service, given_up: Callable[[], bool]) -> str | None:
        """Wait until a service is well; return what is wrong if it does not get well in its time.

        Its URL counts if it has one, else its container's own check, else that it stays up. Ends early when
        its container ends for good, or with GIVEN_UP when `given_up` turns true.
        """
        deadline = self._clock.now() + service.health_timeout_s
        complaint, pause_s = "it did not start", _POLL_S
        while True:
            containers = await self._engine.containers(self._project, service.name)
            ended = await self._ended(containers)
            if ended is not None:
                return ended
            complaint, well = await self._judge(service, containers)
            if well:
                return None
            if self._clock.now() >= deadline:
                within = f"it was not healthy within {service.health_timeout_s:g} s"
                return f"{within}: {complaint}{await self._last_words(containers)}"
            if given_up():
                return GIVEN_UP
            await asyncio.sleep(min(pause_s, max(0.0, deadline - self._clock.now())))
            pause_s = min(pause_s * 1.5, _MAX_POLL_S)

    async def _judge(self, service: Service, containers: Sequence[Container]) -> tuple[str, bool]:
        if service.health_url is not None:
            wrong = await _url_problem(service.health_url)
            return wrong or "", wrong is None
        complaint = ""
        for container in containers:
            if container.has_check:
                well, complaint = await self._engine.check(container, _ANSWER_WITHIN_S)
                if not well:
                    return complaint, False
        if all(container.has_check for container in containers):
            return complaint, True
        return await self._stays_up(service, containers)

    async def _stays_up(self, service: Service, containers: Sequence[Container]) -> tuple[str, bool]:
        """Look again after a while: a container that was restarted meanwhile has another start time."""
        if not all(container.running for container in containers):
            return f"its container is {containers[0].status}", False
        await asyncio.sleep(self._settle_s)
        now = {each.id: each for each in await self._engine.containers(self._project, service.name)}
        for container in containers:
            later = now.get(container.id)
            if later is None or not later.running:
                return "its container does not stay up", False
            if (later.started_at, later.restarts) != (container.started_at, container.restarts):
                return f"its container restarts{await self._last_words([later])}", False
        return "", True

    async def _last_words(self, containers: Sequence[Container]) -> str:
        """Return what those said that do not run, or were started again, to be put after a complaint."""
        for container in containers:
            if not container.running or container.restarts:
                words = await self._engine.last_log_lines(container)
                return f": {words}" if words else ""
        return ""

    async def _ended(self, containers: Sequence[Container]) -> str | None:
        if not containers:
            return "it has no container"
        for container in containers:
            over = container.status in ("exited", "dead", "stopped") and not container.running
            # One that its engine starts again may yet come up.
            if over and not container.starts_again:
                why = " for want of host memory" if container.oom_killed else ""
                told = await self._last_words([container])
                return f"its container ended with status {container.exit_code}{why}{told}"
            if container.status == "created":
                return "its container was made and not started"
        return None


async def _url_problem(url: str) -> str | None:
    """Return what is wrong with a service's URL; None if it answers with a status below 400."""
    try:
        response = await get_url(url, _LIMITS)
    except ValueError:
        return f"{url} is not an HTTP address"
    except OSError as error:
        return f"{url} does not answer: {describe(error)}"
    return None if response.status < 400 else f"{url} answers {response.status}"
