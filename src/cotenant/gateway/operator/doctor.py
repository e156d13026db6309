"""What the doctor finds on the machine where the daemon runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from cotenant.domain.errors import UnknownRoute
from cotenant.gateway.http.asgi import send_json
from cotenant.gateway.http.request import ApiRequest, Routes


class Doctor:
    """Has the machine examined, once at a time: who asks meanwhile gets the same answer."""

    def __init__(self, examine: Callable[[], Mapping[str, Any]] | None) -> None:
        self._examine = examine
        self._going_on: asyncio.Task[Mapping[str, Any]] | None = None
        self.routes: Routes = {"/api/doctor": {"GET": self._answer}}

    async def _answer(self, request: ApiRequest) -> None:
        if self._examine is None:
            raise UnknownRoute(
                "this daemon cannot examine its machine", hint="Run `cotenant doctor` on the machine."
            )
        if self._going_on is None or self._going_on.done():
            self._going_on = asyncio.create_task(asyncio.to_thread(self._examine))
        # One that leaves must not end it for the others.
        await send_json(request.send, 200, await asyncio.shield(self._going_on))
