"""Slots of one engine, and who waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from cotenant.domain.decisions import Outlook
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import EngineDied, QueueFull, UnknownModel, WaitTimeout
from cotenant.domain.requests import ServedModel
from cotenant.interfaces import DEFAULT_TERMS, Engine, LeaseTerms

_LOG = logging.getLogger(__name__)
_SETTLE_POLL_S = 1.5
_SETTLE_POLLS_UNSEEN = 20


class SlotLease:
    """One slot of the engine, until released."""

    __slots__ = ("_released", "_router", "endpoint")

    def __init__(self, router: SlotRouter, endpoint: Endpoint) -> None:
        self._router = router
        self.endpoint = endpoint
        self._released = False

    def release(self, *, abandoned: bool = False) -> None:
        """Give the slot back; a second call does nothing."""
        if not self._released:
            self._released = True
            self._router.take_back(abandoned=abandoned)


class SlotRouter:
    """Hands out the slots of one engine, in the order of asking.

    At most `slots` requests are with the engine at once: what it queues itself it cannot forget when the
    client leaves. A non-streaming request whose client left may go on generating while others stream, so its
    slot stays taken until the engine shows one free.
    """

    def __init__(
        self,
        engine: Engine,
        model: ServedModel,
        *,
        slots: int,
        max_queue: int,
        wait_timeout_s: float,
        also_known_as: Sequence[str] = (),
        settle_poll_s: float = _SETTLE_POLL_S,
    ) -> None:
        self._engine = engine
        self._settle_poll_s = settle_poll_s
        self._endpoint = engine.endpoint
        self._model = model
        self._names = {model.name, *model.aliases, *also_known_as}
        self._slots = slots
        self._max_queue = max_queue
        self._wait_timeout_s = wait_timeout_s
        self._taken = 0
        self._abandoned = 0
        self._waiting: deque[asyncio.Future[SlotLease]] = deque()
        self._settling: asyncio.Task[None] | None = None
        self._gone: str | None = None

    @property
    def in_flight(self) -> int:
        """Leases out, and slots that the engine has not given back yet."""
        return self._taken

    def models(self) -> Sequence[ServedModel]:
        """Return the one model."""
        return (self._model,)

    def update(self, **facts: object) -> None:
        """Change facts of the served model: its state, its report."""
        self._model = replace(self._model, **facts)  # type: ignore[arg-type]

    def try_lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> SlotLease | None:
        """Grant a free slot at once; None when there is none. Raises UnknownModel or EngineDied."""
        self._check(name)
        if self._taken < self._slots and not self._waiting:
            self._taken += 1
            return SlotLease(self, self._endpoint)
        return None

    async def lease(self, name: str, terms: LeaseTerms = DEFAULT_TERMS) -> SlotLease:
        """Wait in line for a slot. Raises UnknownModel, QueueFull, WaitTimeout or EngineDied."""
        granted = self.try_lease(name)
        if granted is not None:
            return granted
        if len(self._waiting) >= self._max_queue:
            raise QueueFull(
                f"{len(self._waiting)} requests already wait for {self._model.name}",
                hint="Try again shortly, or raise --max-queue or --parallel.",
            )
        ticket: asyncio.Future[SlotLease] = asyncio.get_running_loop().create_future()
        self._waiting.append(ticket)
        try:
            async with asyncio.timeout(self._wait_timeout_s):
                return await ticket
        except TimeoutError:
            self._forget(ticket)
            raise WaitTimeout(
                f"no slot of {self._model.name} came free within {self._wait_timeout_s:g} s",
                hint="Raise --timeout or --parallel.",
            ) from None
        except BaseException:
            self._forget(ticket)
            raise

    def outlook(self, name: str) -> Outlook | None:
        """Tell the end of the line; when it moves is not known."""
        self._check(name)
        if self._taken < self._slots:
            return None
        return Outlook(position=len(self._waiting), eta_s=None, waits_for="a free slot")

    def take_back(self, *, abandoned: bool) -> None:
        """Count a slot as free again, or as abandoned until the engine is seen to have freed it."""
        if abandoned and self._gone is None:
            self._abandoned += 1
            if self._settling is None:
                self._settling = asyncio.get_running_loop().create_task(self._settle())
            return
        self._taken -= 1
        self._grant()

    def engine_gone(self, why: str) -> None:
        """Refuse everything from now on: the engine has died."""
        self._gone = why
        self.update(state="failed")
        for ticket in self._waiting:
            if not ticket.done():
                ticket.set_exception(self._died())

    def _check(self, name: str) -> None:
        if name not in self._names:
            raise UnknownModel(f"the model {name!r} is not served", hint=f"Served: {self._model.name}.")
        if self._gone is not None:
            raise self._died()

    def _died(self) -> EngineDied:
        return EngineDied(f"the engine of {self._model.name} has died: {self._gone}", hint="See its log.")

    def _grant(self) -> None:
        while self._waiting and self._taken < self._slots:
            ticket = self._waiting.popleft()
            if not ticket.done():
                self._taken += 1
                ticket.set_result(SlotLease(self, self._endpoint))

    def _forget(self, ticket: asyncio.Future[SlotLease]) -> None:
        """Drop a ticket whose waiter is leaving; a grant that never reached it goes back."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        elif ticket.done() and not ticket.cancelled() and ticket.exception() is None:
            ticket.result().release()

    async def _settle(self) -> None:
        """Watch the engine's slots until every abandoned one is free.

        A request just sent may not be in a slot yet, so one look is not believed: two in a row are. llama.cpp
        looks for departed clients when its result queue has been still for a second, and asking for its slots
        stirs that queue: hence the slow pace.
        """
        freed_before = unseen = 0
        while self._abandoned and self._gone is None:
            await asyncio.sleep(self._settle_poll_s)
            busy = await self._engine.busy_slots()
            live = self._taken - self._abandoned
            if busy is None:
                unseen += 1
                freed_before = 0
                if unseen < _SETTLE_POLLS_UNSEEN:
                    continue
                _LOG.warning("the engine does not show its slots: %d are taken for free", self._abandoned)
                busy, freed_before = live, self._abandoned
            unseen = 0
            freed_now = self._abandoned - max(0, busy - live)
            freed = max(0, min(freed_now, freed_before))
            freed_before = freed_now - freed
            for _ in range(freed):
                self._abandoned -= 1
                self._taken -= 1
            if freed:
                _LOG.debug("abandoned slots freed: %d, still taken: %d", freed, self._taken)
                self._grant()
        self._settling = None
