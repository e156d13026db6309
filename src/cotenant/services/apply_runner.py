"""Runs one apply at a time: starts it, publishes and stores its progress, and stops it with the daemon."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

from cotenant.concurrency.broadcast import Broadcast
from cotenant.domain.errors import ApplyRunning, CotenantError, StoreError
from cotenant.services.compose.orchestrator import ComposeOrchestrator
from cotenant.services.interfaces import ServiceStore
from cotenant.services.model import ApplyOrder, ApplyState, ApplyStatus

_LOG: Final = logging.getLogger("cotenant.services")
_BACKLOG: Final = 64


class ApplyRunner:
    """Runs orders, never two at once; the result of each is stored in the history.

    `status` is the last apply of this run, or the one found at its start; None if there was none.
    """

    def __init__(self, orchestrator: ComposeOrchestrator, store: ServiceStore) -> None:
        self._orchestrator = orchestrator
        self._store = store
        self._task: asyncio.Task[None] | None = None
        self._updates: Broadcast[ApplyStatus] = Broadcast(_BACKLOG)
        self.status: ApplyStatus | None = None

    def check_idle(self) -> None:
        """Raise ApplyRunning while an apply runs."""
        if self._task is not None and not self._task.done():
            raise ApplyRunning(
                "the last apply is still running",
                hint="See its progress with `cotenant services status`.",
            )

    def start(self, order: ApplyOrder) -> ApplyStatus:
        """Start an apply in the background. Raises ApplyRunning."""
        self.check_idle()
        started = ApplyStatus(order.number, ApplyState.RUNNING, time.time())
        self._publish(started)
        self._task = asyncio.get_running_loop().create_task(self._run(order, started))
        return started

    async def recover(self) -> None:
        """Find out the state of an apply that an earlier run did not finish, and store it."""
        try:
            found = await self._orchestrator.unfinished()
            if found is not None:
                _LOG.warning("apply %d: %s", found.number, found.message or found.state)
                self._publish(found)
                await self._store.record_apply(found.number, found)
        except CotenantError as error:
            _LOG.warning("the state of the last apply is unknown: %s", error.message)

    def subscribe(self) -> AsyncIterator[ApplyStatus]:
        """Yield every step from now on. A slow reader loses the oldest ones."""
        return self._updates.subscribe()

    async def close(self) -> None:
        """Stop the running apply; the next run finds out where it stopped."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, order: ApplyOrder, started: ApplyStatus) -> None:
        def failed(message: str) -> ApplyStatus:
            last = self.status or started
            return replace(last, state=ApplyState.FAILED, finished_at=time.time(), message=message)

        try:
            await self._store.record_apply(order.number, started)
            result = await self._orchestrator.apply(order, self._publish_step)
        except CotenantError as error:
            result = failed(error.message)
        except Exception as error:
            _LOG.exception("apply %d ended unexpectedly", order.number)
            result = failed(f"it ended unexpectedly: {error}")
        try:
            await self._store.record_apply(order.number, result)
        except StoreError as error:
            _LOG.error("the result of apply %d cannot be stored: %s", order.number, error.message)
        self._publish(result)

    def _publish_step(self, status: ApplyStatus) -> None:
        """Publish a step. The result is published once it is stored: its readers may start the next apply."""
        if status.running:
            self._publish(status)

    def _publish(self, status: ApplyStatus) -> None:
        if status == self.status:
            return
        self.status = status
        if not status.running:
            level = logging.INFO if status.state is ApplyState.SUCCEEDED else logging.WARNING
            _LOG.log(level, "apply %d %s: %s", status.number, status.state, status.message or "done")
        self._updates.publish(status)
