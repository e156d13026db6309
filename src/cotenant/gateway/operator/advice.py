"""Settings under which the recorded requests would have waited less."""

from datetime import datetime
from typing import Any, Literal

from cotenant.domain.advisors import AdviceStatus
from cotenant.gateway.http.bodies import ResponseModel
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import Reply, Route
from cotenant.interfaces import WorkloadAdviser


class AdviceResponse(ResponseModel):
    """The last search; `advice` is its result, as `cotenant advise --json` prints it, null before the first.

    `message` says why it failed, or why none can begin.
    """

    state: Literal["idle", "running", "done", "failed"]
    started_at: datetime | None
    finished_at: datetime | None
    message: str
    advice: dict[str, Any] | None


class AdviceRoutes:
    """Starts searches, one at a time, and returns their result."""

    def __init__(self, adviser: WorkloadAdviser | None) -> None:
        self._adviser = adviser

    @Route(
        "GET /api/advise",
        "Return the last search for settings under which the recorded requests would have waited less",
        Reply(AdviceResponse, "the search and its result"),
    )
    async def _show(self, request: ApiRequest) -> object:
        status = AdviceStatus(message="This daemon records no requests.")
        return AdviceResponse.model_validate(self._adviser.status() if self._adviser else status)

    @Route(
        "POST /api/advise",
        "Begin such a search, which takes seconds to minutes and changes nothing; one runs at a time",
        Reply(AdviceResponse, "the search that runs now, or why none can begin"),
        changes=False,
    )
    async def _begin(self, request: ApiRequest) -> object:
        if self._adviser is not None:
            self._adviser.start()
        return await self._show(request)
