"""The lease that a granted request holds."""

import asyncio
from collections.abc import Callable

from cotenant.domain.engines import Endpoint, EngineEnd
from cotenant.domain.errors import EngineDied
from cotenant.domain.residencies import LeaseId, ResidencyId


class FleetLease:
    """A slot of an engine, until released. `release(lease, residency, abandoned=…)` frees it."""

    __slots__ = ("_end", "_id", "_release", "_residency", "endpoint")

    def __init__(
        self,
        release: Callable[..., None],
        lease: LeaseId,
        residency: ResidencyId,
        endpoint: Endpoint,
        end: asyncio.Future[EngineEnd],
    ) -> None:
        self._release = release
        self._id: LeaseId | None = lease
        self._residency = residency
        self._end = end
        self.endpoint = endpoint

    async def death(self, within_s: float) -> EngineDied | None:
        """Return why the engine died, if it is seen to have died within `within_s` seconds."""
        await asyncio.wait({self._end}, timeout=within_s)
        end = self._end.result() if self._end.done() else None
        return None if end is None or end.cause is None else EngineDied(end.why, cause=end.cause)

    def release(self, *, abandoned: bool = False) -> None:
        """Free the slot; a second call does nothing."""
        if self._id is not None:
            lease, self._id = self._id, None
            self._release(lease, self._residency, abandoned=abandoned)
