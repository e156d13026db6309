"""Leases that several connections hold together."""

import asyncio
from typing import Final

from cotenant.interfaces import Lease, Router


class SharedLease:
    """A lease of a model, asked for at once, and released when the last of those who hold it leaves.

    A browser opens six connections for one page: six leases would use up the model's slots.
    `ended` is set once the engine has ended.
    """

    def __init__(self, router: Router, model: str) -> None:
        self.model: Final = model
        self.ended = asyncio.Event()
        self.told = False
        self.lease: Final = asyncio.ensure_future(router.lease(model))
        self._holders = 0
        self._released = False
        self.lease.add_done_callback(self._granted)

    @property
    def is_over(self) -> bool:
        """Whether who comes now must ask for another lease."""
        failed = self.lease.done() and (self.lease.cancelled() or self.lease.exception() is not None)
        return self._released or failed or self.ended.is_set()

    def hold(self) -> None:
        """Count one holder more."""
        self._holders += 1

    def leave(self) -> None:
        """Count one holder less; the last one releases the lease, or waits for it no more."""
        self._holders -= 1
        if self._holders:
            return
        self._released = True
        if not self.lease.done():
            self.lease.cancel()
        elif not self.lease.cancelled() and self.lease.exception() is None:
            self.lease.result().release()

    def _granted(self, lease: asyncio.Future[Lease]) -> None:
        if not lease.cancelled() and lease.exception() is None:
            lease.result().when_ended(self.ended.set)


class SharedLeases:
    """The shared lease of each model that has one."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._by_model: dict[str, SharedLease] = {}

    def of(self, model: str) -> SharedLease:
        """Return the lease that connections to a model hold now, or one that is asked for at once."""
        shared = self._by_model.get(model)
        if shared is None or shared.is_over:
            shared = self._by_model[model] = SharedLease(self._router, model)
        return shared
