"""Waits until a recreated service is healthy."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from cotenant.http.client import Limits, describe, get_url
from cotenant.services.compose.container_engine import Container, ContainerEngine
from cotenant.services.model import Service

GIVEN_UP: Final = "it was given up because another service failed"
_POLL_S: Final = 0.25
_MAX_POLL_S: Final = 2.0
_PROBE_TIMEOUT_S: Final = 5.0
_LIMITS: Final = Limits(_PROBE_TIMEOUT_S, whole_s=_PROBE_TIMEOUT_S)


class HealthWatch:
    """Checks services. A container without a health check must stay up for `settle_s`."""

    def __init__(self, engine: ContainerEngine, settle_s: float) -> None:
        self._engine = engine
        self._settle_s = settle_s

    async def wait(self, service: Service, given_up: Callable[[], bool]) -> str | None:
        """Wait until a service is healthy; return None, or what is wrong if its time runs out.

        Its URL decides if it has one, else its container's health check, else that it stays up. Returns early
        if its container ends for good, and GIVEN_UP once `given_up` returns true.
        """
        deadline = time.monotonic() + service.health_timeout_s
        pause_s = _POLL_S
        while True:
            containers = await self._engine.containers(service.name)
            ended = await self._ended(containers)
            if ended is not None:
                return ended
            problem = await self._problem(service, containers)
            if problem is None:
                return None
            if time.monotonic() >= deadline:
                within = f"it was not healthy within {service.health_timeout_s:g} s"
                return f"{within}: {problem}{await self._last_log(containers)}"
            if given_up():
                return GIVEN_UP
            await asyncio.sleep(min(pause_s, max(0.0, deadline - time.monotonic())))
            pause_s = min(pause_s * 1.5, _MAX_POLL_S)

    async def _problem(self, service: Service, containers: Sequence[Container]) -> str | None:
        if service.health_url is not None:
            return await _url_problem(service.health_url)
        for container in containers:
            problem = await self._engine.check(container, _PROBE_TIMEOUT_S) if container.has_check else None
            if problem is not None:
                return problem
        if all(container.has_check for container in containers):
            return None
        if not all(container.running for container in containers):
            return f"its container is {containers[0].status}"
        # A container that is restarted meanwhile has another start time then.
        await asyncio.sleep(self._settle_s)
        now = {each.id: each for each in await self._engine.containers(service.name)}
        for container in containers:
            later = now.get(container.id)
            if later is None or not later.running:
                return "its container does not stay up"
            if (later.started_at, later.restarts) != (container.started_at, container.restarts):
                return f"its container restarts{await self._last_log([later])}"
        return None

    async def _last_log(self, containers: Sequence[Container]) -> str:
        """Return the last log lines of one that has ended or was restarted, to append to a problem."""
        for container in containers:
            if not container.running or container.restarts:
                lines = await self._engine.last_log_lines(container)
                return f": {lines}" if lines else ""
        return ""

    async def _ended(self, containers: Sequence[Container]) -> str | None:
        if not containers:
            return "it has no container"
        for container in containers:
            ended = container.status in ("exited", "dead", "stopped") and not container.running
            # Its engine may restart it, and then it may still become healthy.
            if ended and not container.starts_again:
                why = " because host memory ran out" if container.oom_killed else ""
                log = await self._last_log([container])
                return f"its container ended with status {container.exit_code}{why}{log}"
            if container.status == "created":
                return "its container was created but not started"
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
