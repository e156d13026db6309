"""A request's wait for its lease, and what its client gets during the wait."""

import asyncio
from collections.abc import Awaitable, Callable

from cotenant.domain.requests import LeaseTerms
from cotenant.gateway.inference.progress import ProgressReport
from cotenant.gateway.telemetry.counters import ModelCounters
from cotenant.interfaces import Lease, Router

Send = Callable[[bytes], Awaitable[None]]


class LeaseWait:
    """One request's wait for its lease; `waited_s` is set when it ends."""

    def __init__(self, router: Router, counters: ModelCounters, name: str, terms: LeaseTerms) -> None:
        self._router = router
        self._counters = counters
        self._name = name
        self._lease = asyncio.ensure_future(router.lease(name, terms))
        self._cancelled = False
        self.waited_s = 0.0

    def cancel(self) -> None:
        """Cancel the wait, since the client has disconnected."""
        self._cancelled = True
        self._lease.cancel()

    async def lease(self, report: ProgressReport | None, send: Send) -> Lease | None:
        """Return the lease when it is granted, None if the client disconnects first.

        Meanwhile, what `report` says of the wait is sent. Raises UnknownModel and what Router.lease raises.
        """
        loop, waiting = asyncio.get_running_loop(), self._lease
        since = loop.time()
        self._counters.waiting += 1
        try:
            if report is not None:
                await self._tell(report, send)
            lease = await waiting
        except asyncio.CancelledError:
            # The lease may be granted in the same iteration of the loop that cancels this task: release it.
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                waiting.result().release()
            task = asyncio.current_task()
            if self._cancelled and task is not None and not task.cancelling():
                return None
            raise
        finally:
            waiting.cancel()
            self._counters.waiting -= 1
            self.waited_s = loop.time() - since
            self._counters.wait_s.observe(self.waited_s)
        if self._cancelled:
            lease.release()
            return None
        return lease

    async def _tell(self, report: ProgressReport, send: Send) -> None:
        """Send reports until the wait ends.

        Each estimate is for the end of the queue; the request's own position never gets worse.
        """
        await asyncio.wait({self._lease}, timeout=report.after_s)
        place: int | None = None
        while not self._lease.done():
            estimate = self._router.wait_estimate(self._name)
            if estimate is not None:
                place = estimate.position if place is None else min(place, estimate.position)
            await send(report.render(estimate, place))
            await asyncio.wait({self._lease}, timeout=report.every_s)
