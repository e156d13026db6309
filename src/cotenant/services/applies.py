"""The one apply that may go on at a time: begun, told to followers, kept, and ended with the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final

from cotenant.concurrency.broadcast import Broadcast
from cotenant.domain.errors import ApplyRunning, CotenantError, StoreError
from cotenant.services.interfaces import Orchestrator, ServiceStore
from cotenant.services.model import ApplyOrder, ApplyState, ApplyStatus

_LOG: Final = logging.getLogger("cotenant.services")
_BACKLOG: Final = 64


class Applies:
    """Runs orders one after the other, never two at once; each ends in the history."""

    def __init__(self, orchestrator: Orchestrator, book: ServiceStore, wall: Callable[[], float]) -> None:
        self._orchestrator = orchestrator
        self._book = book
        self._wall = wall
        self._task: asyncio.Task[None] | None = None
        self._status: ApplyStatus | None = None
        self._subscribers: Broadcast[ApplyStatus] = Broadcast(_BACKLOG)

    @property
    def status(self) -> ApplyStatus | None:
        """The last apply of this run or found at its start; None if there was none."""
        return self._status

    def check_free(self) -> None:
        """Raise ApplyRunning while one goes on."""
        if self._task is not None and not self._task.done():
            raise ApplyRunning(
                "the last apply is still going on",
                hint="See how far it is with `cotenant services status`.",
            )

    def begin(self, order: ApplyOrder) -> ApplyStatus:
        """Carry an order out beside everything else. Raises ApplyRunning."""
        self.check_free()
        self._tell(ApplyStatus(order.number, ApplyState.RUNNING, self._wall()))
        self._task = asyncio.get_running_loop().create_task(self._execute(order))
        return self._told

    async def resume(self) -> None:
        """Find out how the apply stands that an earlier run did not end, and keep it."""
        try:
            found = await self._orchestrator.unfinished()
            if found is not None:
                _LOG.warning("apply %d: %s", found.number, found.message or found.state)
                self._tell(found)
                await self._book.record_apply(found.number, found)
        except CotenantError as error:
            _LOG.warning("the last apply cannot be looked at: %s", error.message)

    def follow(self) -> AsyncIterator[ApplyStatus]:
        """Yield every step from now on; a slow reader misses the oldest."""
        return self._subscribers.subscribe()

    async def close(self) -> None:
        """Stop the apply that goes on; the next run finds out how far it came."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def _told(self) -> ApplyStatus:
        if self._status is None:
            raise AssertionError("nothing was begun")
        return self._status

    async def _execute(self, order: ApplyOrder) -> None:
        try:
            await self._book.record_apply(order.number, self._told)
            ended = await self._orchestrator.apply(order, self._tell_going)
        except CotenantError as error:
            ended = self._failed(error.message)
        except Exception as error:
            _LOG.exception("apply %d ended unexpectedly", order.number)
            ended = self._failed(f"it ended unexpectedly: {error}")
        try:
            await self._book.record_apply(order.number, ended)
        except StoreError as error:
            _LOG.error("how apply %d ended cannot be kept: %s", order.number, error.message)
        self._tell(ended)

    def _failed(self, message: str) -> ApplyStatus:
        return replace(self._told, state=ApplyState.FAILED, finished_at=self._wall(), message=message)

    def _tell_going(self, status: ApplyStatus) -> None:
        """Tell a step. The end is told once it is kept: whoever hears of it may begin the next."""
        if status.running:
            self._tell(status)

    def _tell(self, status: ApplyStatus) -> None:
        if status == self._status:
            return
        self._status = status
        if not status.running:
            level = logging.INFO if status.state is ApplyState.SUCCEEDED else logging.WARNING
            _LOG.log(level, "apply %d %s: %s", status.number, status.state, status.message or "done")
        self._subscribers.publish(status)
