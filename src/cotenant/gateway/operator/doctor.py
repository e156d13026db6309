"""The doctor's findings on the daemon's machine."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from cotenant.domain import errors
from cotenant.domain.errors import UnknownRoute
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import Reply, Route
from cotenant.gateway.operator.schema import FindingsResponse


class DoctorRoutes:
    """Runs the doctor's checks, one run at a time: requests during a run get its result."""

    def __init__(self, examine: Callable[[], Mapping[str, Any]] | None) -> None:
        self._examine = examine
        self._running: asyncio.Task[Mapping[str, Any]] | None = None

    @Route(
        "GET /api/doctor",
        "Check the daemon's machine, which takes some seconds",
        Reply(FindingsResponse, "the findings"),
        (errors.UnknownRoute,),
    )
    async def _answer(self, request: ApiRequest) -> object:
        if self._examine is None:
            raise UnknownRoute(
                "this daemon cannot check its machine", hint="Run `cotenant doctor` on the machine."
            )
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(asyncio.to_thread(self._examine))
        # A client that disconnects must not cancel the run for the others.
        return await asyncio.shield(self._running)
