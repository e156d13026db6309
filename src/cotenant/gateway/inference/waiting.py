"""A request's wait for its lease, and the comments that its client gets during the wait."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from cotenant.domain.decisions import WaitEstimate
from cotenant.domain.units import format_duration
from cotenant.gateway.telemetry.counters import ModelCounters
from cotenant.interfaces import Lease, LeaseTerms, Router

_SUFFIXES: Final = {1: "st", 2: "nd", 3: "rd"}

SendComment = Callable[[bytes], Awaitable[None]]


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

    async def lease(self, send_comment: SendComment | None, every_s: float) -> Lease | None:
        """Return the lease when it is granted, None if the client disconnects first.

        Every `every_s` seconds, a comment in the event stream reports the progress. Raises UnknownModel and
        what Router.lease raises.
        """
        loop, waiting = asyncio.get_running_loop(), self._lease
        since = loop.time()
        self._counters.waiting += 1
        try:
            if send_comment is not None:
                await self._comment(send_comment, every_s)
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

    async def _comment(self, send_comment: SendComment, every_s: float) -> None:
        """Send comments until the wait ends.

        Each estimate is for the end of the queue; the request's own position never gets worse.
        """
        await asyncio.wait({self._lease}, timeout=0)
        place: int | None = None
        while not self._lease.done():
            estimate = self._router.wait_estimate(self._name)
            if estimate is not None:
                place = estimate.position if place is None else min(place, estimate.position)
            await send_comment(wait_comment(estimate, place))
            await asyncio.wait({self._lease}, timeout=every_s)


def wait_comment(estimate: WaitEstimate | None, place: int | None) -> bytes:
    """Render `: waiting, 2nd in line, about 12.0 s (loading llama-7b)` with a blank line."""
    text = ": waiting"
    if place:
        text += f", {_ordinal(place)} in line"
    if estimate is None:
        return text.encode() + b"\n\n"
    if estimate.eta_s is not None:
        text += f", about {format_duration(estimate.eta_s)}"
    if estimate.waits_for:
        text += f" ({' '.join(estimate.waits_for.split())})"
    return text.encode() + b"\n\n"


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{_SUFFIXES.get(number % 10, 'th')}"
